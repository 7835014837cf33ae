"""An operator's `restart`: the node is stopped and started again, but only if it could start again."""

import asyncio
from dataclasses import replace

import pytest

from dcupgrade.machine.operator_commands import refusal_of_restart
from dcupgrade.machine.state import Name, State
from tests.doubles.scene import Scene
from tests.simulation.simulator.nodes import Node


def only_node(scene: Scene) -> Node:
    (node,) = scene.world.nodes.all_living()
    return node


def test_the_node_is_stopped_and_started_again_and_that_is_no_crash() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        before = only_node(scene)
        told = await scene.outcome(scene.say("restart", reason="a new kernel module"))
        assert (told.accepted, told.text) == (True, "the node is stopped and started again now")
        await scene.until(lambda _: before.ended.done() and scene.serving() == first.version)
        assert only_node(scene) is not before
        await asyncio.sleep(60)
        assert (scene.state.name, scene.state.crashes) == (Name.IDLE, 0)
        assert scene.alarms() == []
        assert not any("node_exited" in line for line in scene.journal.trace)

    Scene().play(act)


def test_a_node_that_hangs_while_it_starts_is_started_again() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.world.chain.releases[first.enclave_id] = replace(first, trait="mute")
        only_node(scene).kill("signal 9")
        await asyncio.sleep(60)
        hung = only_node(scene)
        assert scene.serving() == ""
        scene.world.chain.releases[first.enclave_id] = replace(first, trait="good")
        assert (await scene.outcome(scene.say("restart"))).accepted
        await scene.until(lambda _: scene.serving() == first.version)
        assert hung.ended.result() == "signal 15"

    Scene().play(act)


def test_a_restart_ends_the_pause_before_the_next_start() -> None:
    async def act(scene: Scene) -> None:
        scene.with_limits(backoff_s=5000.0, backoff_max_s=10000.0)
        first = await scene.installed()
        only_node(scene).kill("signal 9")
        await asyncio.sleep(100)
        assert scene.serving() == ""
        assert (await scene.outcome(scene.say("restart"))).accepted
        await asyncio.sleep(20)
        assert scene.serving() == first.version

    Scene().play(act)


def test_what_serves_is_not_stopped_where_its_files_could_not_be_started_again() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        before = only_node(scene)
        scene.world.disk.remove(f"slot/{first.enclave_id}")
        told = await scene.outcome(scene.say("restart"))
        assert (told.accepted, told.code) == (False, "SOURCE_SLOT_DAMAGED")
        await asyncio.sleep(60)
        assert only_node(scene) is before

    Scene().play(act)


def test_a_node_that_cannot_be_stopped_is_tried_again_and_is_no_fault_of_the_program() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        before = only_node(scene)
        scene.world.nodes.stop_hangs = True
        assert (await scene.outcome(scene.say("restart"))).accepted
        await asyncio.sleep(10)
        assert only_node(scene) is before
        scene.world.nodes.stop_hangs = False
        assert (await scene.outcome(scene.say("restart"))).accepted
        await scene.until(lambda _: before.ended.done() and scene.serving() == first.version)

    Scene().play(act)


@pytest.mark.parametrize("name", [Name.STOPPING, Name.LAUNCHING, Name.DELIVERING, Name.PROBATION, Name.REVERTING])
def test_an_upgrade_that_stops_and_starts_nodes_itself_is_not_disturbed(name: Name) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish("blind" if name is Name.REVERTING else "good")
        await scene.until_state(name)
        assert refusal_of_restart(scene.state) is not None
        told = await scene.outcome(scene.say("restart"))
        if not told.accepted:  # the state may have passed before the command was read
            assert told.code == "NODE_NOT_KEPT"
        await scene.until(lambda state: state.name is Name.IDLE)
        assert (second.enclave_id == (scene.state.running or second).enclave_id) is (name is not Name.REVERTING)

    Scene().play(act)


def test_the_refusal_names_the_state_and_the_lack_of_a_node() -> None:
    assert "no node is installed" in str(refusal_of_restart(State()))
    assert "state launching" in str(refusal_of_restart(State(Name.LAUNCHING)))
    assert "halted: TARGET_WONT_STOP" in str(refusal_of_restart(State(Name.HALTED, halted="TARGET_WONT_STOP")))
