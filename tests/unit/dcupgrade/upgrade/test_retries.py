"""Every retry has a pause, repeated unexpected failures end, and queues stay small (cases A2, A3)."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.effects import Effect, EffectKind
from dcupgrade.machine.events import ChainSeen, NodeExited, NodeServing, ResumeCommand, Staged
from dcupgrade.machine.stages import StagedRelease
from dcupgrade.machine.state import ChainFacts, Name
from dcupgrade.upgrade.event_queue import EventQueue, Item
from dcupgrade.upgrade.performer import FAILURES
from dcupgrade.upgrade.ports import NodeHealth
from tests.doubles.scene import Scene
from tests.simulation.simulator.world import SimulatedWorld

OUT_OF_DESCRIPTORS = OSError(24, "Too many open files")
ENGINE_AWAY = DcupgradeError(code="CONTAINER_ENGINE_UNREACHABLE", what="engine", why="away", kind="transient")
FAULT = RecursionError("maximum recursion depth exceeded")
PORTS = (
    *[("nodes", name) for name in ("is_alive", "start", "wait_exit", "stop", "stage", "slot_is_good", "preflight")],
    *[("nodes", name) for name in ("health", "commit", "key_set_id", "remove_slot", "discover")],
    *[("vault", name) for name in ("status", "collect", "permit", "delivery", "committed", "holds_keys_of")],
    ("chain", "evidence"),
)


def failing(world: SimulatedWorld, owner: str, name: str, error: Exception, calls: list[float]) -> Callable[[], None]:
    """Make a port raise at once and count the calls; returns a function that repairs it."""
    port = getattr(world, owner)
    real = getattr(port, name)

    def raises(*_: Any, **__: Any) -> Any:
        calls.append(world.monotonic())
        raise error

    setattr(port, name, raises)
    return lambda: setattr(port, name, real)


@pytest.mark.parametrize("error", [OUT_OF_DESCRIPTORS, ENGINE_AWAY, FAULT], ids=["descriptors", "engine", "fault"])
@pytest.mark.parametrize(("owner", "name"), PORTS)
def test_no_port_that_fails_is_asked_without_a_pause_and_nothing_is_lost(
    owner: str, name: str, error: Exception
) -> None:
    """The port raises at the call, not at the await, for ten minutes in the middle of an upgrade."""

    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        await scene.until_state(Name.STAGED)
        calls: list[float] = []
        fix = failing(scene.world, owner, name, error, calls)
        await asyncio.sleep(600)
        assert len(calls) < 1500
        fix()
        await asyncio.sleep(200)
        if scene.state.halted:
            scene.say("resume")
        scene.say("retry", enclave_id=second.enclave_id)
        await scene.until_idle(second)
        await asyncio.sleep(60)
        assert scene.alarms() == []

    Scene().play(act)


def test_a_health_report_that_always_fails_the_program_ends_probation() -> None:
    """Case A3: after 25 simulated hours it was still in probation."""

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish()
        await scene.until_state(Name.PROBATION)
        fix = failing(scene.world, "nodes", "health", FAULT, [])
        state = await scene.until_state(Name.REVERTING)
        assert state.reason == "UNEXPECTED"
        fix()
        await scene.until_idle(first)

    Scene().play(act)


def test_every_effect_that_can_fail_has_an_end_and_the_others_are_repeated() -> None:
    repeated = {
        *(EffectKind.KEEP_NODE, EffectKind.GATES, EffectKind.COMMIT, EffectKind.AWAIT_SOURCE),
        *(EffectKind.BEGIN, EffectKind.BACKOFF, EffectKind.RETIRE, EffectKind.SETTLE),
    }
    assert set(FAILURES) | repeated == set(EffectKind)


def test_a_node_that_cannot_be_watched_for_a_while_has_not_crashed() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        (node,) = scene.world.nodes.all_living()
        await scene.kill_agent()
        calls: list[float] = []
        fix = failing(scene.world, "nodes", "wait_exit", OUT_OF_DESCRIPTORS, calls)
        scene.start_agent()
        await asyncio.sleep(120)
        assert scene.state.crashes == 0
        assert len(calls) < 100
        fix()
        node.kill("signal 9")
        await scene.until(lambda _: scene.serving() == "1.0.0" and scene.world.nodes.all_living() != [node])

    Scene().play(act)


def test_files_that_are_lost_are_fetched_again_before_the_running_version_is_restarted() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.world.disk.remove(f"slot/{first.enclave_id}")
        scene.world.nodes.downloads_fail = 1.0
        for node in scene.world.nodes.all_living():
            node.kill("signal 9")
        await asyncio.sleep(120)
        assert "SOURCE_SLOT_DAMAGED" in scene.alarms()
        scene.world.nodes.downloads_fail = 0.0
        await scene.until(lambda _: scene.serving() == first.version)

    Scene().play(act)


@pytest.mark.parametrize("down_s", [5.0, 1000.0])
def test_the_way_back_never_gives_up_on_a_mirror(down_s: float) -> None:
    """Case C3: the mirror answers with a page instead of the archive, once or for a long time, and is good again."""

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish("blind")
        await scene.until_state(Name.DELIVERING)
        scene.world.disk.remove(f"slot/{first.enclave_id}")
        page = DcupgradeError(code="ARCHIVE_CORRUPT", what="download", why="a page", kind="rejected")
        fix = failing(scene.world, "nodes", "stage", page, [])
        await asyncio.sleep(down_s)
        if down_s > 100:
            assert "SOURCE_SLOT_DAMAGED" in scene.alarms()
        fix()
        await scene.until_idle(first)
        await scene.until(lambda _: scene.alarms() == ["BUDGET_SPENT"])

    Scene().play(act)


def test_a_source_without_any_address_comes_back_once_its_files_are_put_back() -> None:
    """Case C3 for an adopted version: the source of its files is unknown, so an operator restores them."""

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish("blind")
        await scene.until_state(Name.DELIVERING)
        scene.world.disk.remove(f"slot/{first.enclave_id}")
        why = "the release names no source"
        nowhere = DcupgradeError(code="DOWNLOAD_SOURCES_FAILED", what="download", why=why, kind="transient")
        failing(scene.world, "nodes", "stage", nowhere, [])
        await scene.until(lambda state: state.halted == "SOURCE_SLOT_DAMAGED", "the halt")
        await asyncio.sleep(1000.0)
        assert "SOURCE_SLOT_DAMAGED" in scene.alarms()
        scene.world.disk.write(f"slot/{first.enclave_id}", "put back by hand")
        await scene.until_idle(first)

    Scene().play(act)


def test_a_version_that_does_not_stop_for_a_while_needs_no_person() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish("blind")
        await scene.until_state(Name.DELIVERING)
        scene.world.nodes.stop_hangs = True
        state = await scene.until_state(Name.HALTED)
        assert state.halted == "TARGET_WONT_STOP"
        await asyncio.sleep(300)
        scene.world.nodes.stop_hangs = False
        await scene.until_idle(first)

    Scene().play(act)


@pytest.mark.parametrize("held_s", [5.0, 500.0])
def test_a_port_that_another_program_takes_between_stop_and_start_needs_no_person(held_s: float) -> None:
    """Case B4."""

    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        await scene.until_state(Name.STOPPING)
        scene.world.nodes.port_taken = True
        await asyncio.sleep(held_s)
        if held_s > 100:
            (alarm,) = [item for item in scene.agent.feed.alarms(scene.state) if item["code"] == scene.state.halted]
            assert "PORT_TAKEN" in alarm["detail"]
        scene.world.nodes.port_taken = False
        await scene.until(lambda state: state.name is Name.IDLE and scene.serving() != "")
        scene.say("retry", enclave_id=second.enclave_id)
        await scene.until_idle(second)

    Scene().play(act)


async def test_the_queue_keeps_the_newest_of_a_kind_behind_all_others() -> None:
    queue = EventQueue()
    keep = Effect(EffectKind.KEEP_NODE, "a")
    exited = [Item(NodeExited("a", str(number)), keep, 1) for number in range(1000)]
    serving = Item(NodeServing("a"), keep, 1)
    for item in (exited[0], serving, *exited[1:]):
        queue.put(item)
    assert len(queue) == 2
    assert [await queue.get(), await queue.get()] == [serving, exited[-1]]


async def test_the_queue_never_drops_a_command_or_the_result_of_another_run() -> None:
    queue = EventQueue()
    stage = Effect(EffectKind.STAGE, "b")
    items = [Item(Staged(StagedRelease("b")), stage, number) for number in (1, 2)]
    items += [Item(ResumeCommand(), command_id=number) for number in (1, 2)]
    for item in items:
        queue.put(item)
    assert [await queue.get() for _ in items] == items


def test_a_journal_that_cannot_be_written_for_hours_fills_no_memory() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.world.chain.releases[first.enclave_id] = replace(first, trait="dies")
        scene.journal.fail_writes = True
        for node in scene.world.nodes.all_living():
            node.kill("signal 9")
        for _ in range(50):
            scene.world.chain._new_block()
            await asyncio.sleep(100)
        assert len(scene.agent._queue) < 10

    Scene().play(act)


async def test_only_the_newest_view_of_the_chain_waits() -> None:
    queue = EventQueue()
    for number in range(100):
        queue.put(Item(ChainSeen(ChainFacts(block_number=number))))
    assert len(queue) == 1
    newest = (await queue.get()).event
    assert isinstance(newest, ChainSeen)
    assert newest.facts.block_number == 99


def test_a_slow_health_report_is_no_silence() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        real = scene.world.nodes.health

        async def slow(enclave_id: str) -> NodeHealth:
            await asyncio.sleep(4)
            return await real(enclave_id)

        scene.world.nodes.health = slow  # type: ignore[method-assign]
        await asyncio.sleep(100)
        assert scene.alarms() == []

    Scene().play(act)
