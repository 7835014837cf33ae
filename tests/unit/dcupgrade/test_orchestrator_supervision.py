"""What the agent does for the running node whatever else is wrong: it keeps it up, and stops it only when allowed."""

import asyncio
from dataclasses import replace

import pytest

from dcupgrade.gates import GateRules, Window
from dcupgrade.states import Name
from tests.simulation.simulator.nodes import Node
from tests.unit.dcupgrade.scene import Scene

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def only_node(scene: Scene) -> Node:
    (node,) = scene.world.nodes.all_living()
    return node


@pytest.mark.parametrize("crashes", [1, 3])
def test_a_node_that_crashes_while_the_journal_cannot_be_written_is_started_again(crashes: int) -> None:
    """The journal holds already that it is to run; that it crashed is stored when there is room again."""

    async def act(scene: Scene) -> None:
        await scene.installed()
        scene.journal.fail_writes = True
        for _ in range(crashes):
            only_node(scene).kill("signal 9")
            await asyncio.sleep(60)
            assert scene.serving() == "1.0.0"
        assert scene.state.crashes == 0
        scene.journal.fail_writes = False
        await scene.until(lambda _: any("node_exited" in line for line in scene.journal.trace))
        await scene.until(lambda state: state.crashes == 0)

    Scene().play(act)


def test_a_node_that_cannot_start_while_the_journal_cannot_be_written_is_tried_again() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.journal.fail_writes = True
        scene.world.nodes.port_taken = True
        only_node(scene).kill("signal 9")
        await asyncio.sleep(30)
        assert scene.serving() == ""
        scene.world.nodes.port_taken = False
        await asyncio.sleep(30)
        assert scene.serving() == first.version

    Scene().play(act)


@pytest.mark.parametrize("name", [Name.COLLECTING, Name.SEALED])
def test_an_upgrade_taken_up_after_the_window_closed_waits_for_the_next_one(name: Name) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        await scene.kill_agent()
        # the simulated clock begins at 22:13:20 UTC: the window closes 46 minutes and 40 seconds later
        scene.rules = GateRules("scene", windows=(Window(DAYS, "01:00", 22 * 3600),))
        scene.start_agent()
        node = only_node(scene)
        second = scene.publish()
        await scene.until_state(name)
        await scene.kill_agent()
        scene.world.wall_offset_s += 3600
        scene.start_agent()
        await scene.until_state(Name.STAGED)
        await asyncio.sleep(120)
        assert scene.state.name is Name.STAGED
        assert only_node(scene) is node
        assert scene.serving() == first.version
        scene.world.wall_offset_s += 2 * 3600
        await scene.until_idle(second)

    Scene().play(act)


def test_an_override_goes_on_after_the_window_closed() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        await scene.kill_agent()
        scene.rules = GateRules("scene", windows=(Window(DAYS, "01:00", 22 * 3600),))
        scene.start_agent()
        second = scene.publish()
        await scene.until_state(Name.STAGED)
        scene.say("override", enclave_id=second.enclave_id)
        await scene.until_state(Name.SEALED)
        scene.world.wall_offset_s += 3600
        await scene.until_idle(second)
        assert "stopping" in scene.passed()

    Scene().play(act)


def test_pauses_between_restarts_begin_anew_once_the_node_was_steady() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.world.chain.releases[first.enclave_id] = replace(first, trait="dies")
        only_node(scene).kill("signal 9")
        await asyncio.sleep(60)
        scene.world.chain.releases[first.enclave_id] = replace(first, trait="good")
        await scene.until(lambda state: state.crashes == 0 and scene.serving() == first.version)
        only_node(scene).kill("signal 9")
        began = scene.world.monotonic()
        await scene.until(lambda _: scene.serving() == first.version)
        assert scene.world.monotonic() - began < 3

    Scene().play(act)
