"""Supervision of the running node during other failures: the agent keeps it running and stops it only when allowed."""

import asyncio
from dataclasses import replace

import pytest

from dcupgrade.machine.effects import EffectKind
from dcupgrade.machine.events import GatesOpen
from dcupgrade.machine.gates import GateRules, Window
from dcupgrade.machine.state import Name
from dcupgrade.upgrade.event_queue import Item
from tests.doubles.scene import Scene
from tests.simulation.simulator.nodes import Node

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def only_node(scene: Scene) -> Node:
    (node,) = scene.world.nodes.all_living()
    return node


@pytest.mark.parametrize("crashes", [1, 3])
def test_a_node_that_crashes_while_the_journal_cannot_be_written_is_started_again(crashes: int) -> None:
    """The journal already contains that it must run; the crash is stored when there is space again."""

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
        await scene.outcome(scene.say("override", enclave_id=second.enclave_id))
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


@pytest.mark.parametrize("journal_too", [False, True])
@pytest.mark.parametrize("name", list(Name)[1:10])
def test_a_disk_that_is_full_from_any_state_on_for_a_while_loses_nothing(name: Name, journal_too: bool) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        await scene.until_state(name)
        scene.world.disk.full, scene.journal.fail_writes = True, journal_too
        await asyncio.sleep(8)
        scene.world.disk.full = scene.journal.fail_writes = False
        state = await scene.until(
            lambda state: (
                state.name is Name.IDLE
                and bool(state.previous or state.record(second.enclave_id).quarantine)
                and scene.serving() != ""
            )
        )
        if state.previous is None:
            # a new version that could not seal its keys was reverted, and is tried again at a person's word
            assert "reverted" in scene.passed()
            scene.say("retry", enclave_id=second.enclave_id)
        await scene.until_idle(second)
        scene.world.judge_keys()

    Scene().play(act)


@pytest.mark.parametrize("what", ["port_taken", "locked_by_other"])
def test_the_old_version_comes_back_by_itself_when_what_kept_it_down_has_passed(what: str) -> None:
    """No operator is needed for a taken port, a full disk, or an unreachable vault."""

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        real = scene.world.nodes.stop

        async def stop(enclave_id: str) -> None:
            await real(enclave_id)
            setattr(scene.world.nodes, what, enclave_id != first.enclave_id)

        scene.world.nodes.stop = stop  # type: ignore[method-assign]
        second = scene.publish("blind")
        state = await scene.until_state(Name.HALTED)
        assert state.halted == ("DATA_LOCKED" if what == "locked_by_other" else "SOURCE_WONT_START")
        await asyncio.sleep(100)
        assert scene.state.halted == state.halted
        setattr(scene.world.nodes, what, False)
        state = await scene.until_idle(first)
        assert state.halted == ""
        assert state.record(second.enclave_id).quarantine == "BUDGET_SPENT"

    Scene().play(act)


def test_a_vault_that_comes_back_late_lets_the_old_version_have_its_keys_and_the_machine_go_on() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish("blind")
        await scene.until_state(Name.REVERTING)
        scene.world.disk.remove(f"node/{first.enclave_id}")
        scene.world.vault.up = False
        state = await scene.until_state(Name.HALTED)
        assert state.halted == "KEYS_UNREACHABLE"
        scene.world.vault.up = True
        await scene.until_idle(first)

    Scene().play(act)


def test_a_result_of_an_earlier_run_of_the_same_work_is_dropped() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        scene.say("hold", reason="a holiday")
        await scene.until(lambda state: state.hold is not None)
        second = scene.publish()
        await scene.until_state(Name.STAGED)
        await asyncio.sleep(1)
        (effect,) = [effect for effect in scene.agent._jobs if effect.kind is EffectKind.GATES]
        stale = GatesOpen(second.enclave_id)
        scene.agent._queue.put(Item(stale, effect, scene.agent._jobs[effect].number - 1))
        await asyncio.sleep(1)
        assert "collecting" not in scene.passed()

    Scene().play(act)
