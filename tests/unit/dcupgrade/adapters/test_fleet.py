"""A node's slot in its fleet: taken before the old node stops, found again after a crash, freed at the end."""

import asyncio
from dataclasses import replace

import pytest

from dcupgrade.adapters.fleet import FleetGate
from dcupgrade.machine.fleet import Halt, Member, Slot
from dcupgrade.machine.state import Name, Record, Release, State
from tests.doubles.memory_fleet import MemoryFleet

OLD, NEW = Release("a" * 64, "1.0.0", added_height=1), Release("b" * 64, "1.1.0", added_height=2)


class Clock:
    def now(self) -> float:
        return 1000.0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, _seconds: float) -> None:
        raise asyncio.CancelledError  # one round of `keep` is enough here


def gate(engine: MemoryFleet, node: str = "me", reverts_max: int = 2) -> FleetGate:
    return FleetGate(engine, node, reverts_max, Clock(), draw=lambda: 0.0)


async def one_round(of: FleetGate, state: State) -> None:
    with pytest.raises(asyncio.CancelledError):
        await of.keep(lambda: state)


def codes(found: tuple[object, ...]) -> list[str]:
    return [item.code for item in found]  # type: ignore[attr-defined]


async def test_a_slot_is_taken_once_however_often_it_is_asked_for() -> None:
    engine = MemoryFleet(limit=2)
    assert await gate(engine).take(NEW) == ()
    assert await gate(engine).take(NEW) == ()  # after a crash: another object, the same node
    assert engine.most_held == 1
    assert engine.fleet.slots[0] == Slot("me", NEW.enclave_id, "1.1.0", 1000.0)


async def test_the_last_slot_goes_to_one_of_two() -> None:
    engine = MemoryFleet(limit=1)
    found = [await gate(engine, node).take(NEW) for node in ("x", "y")]
    assert [codes(item) for item in found] == [[], ["FLEET_FULL"]]


async def test_a_slot_that_somebody_takes_in_between_is_tried_for_elsewhere() -> None:
    engine = MemoryFleet(limit=2)
    first_read = engine.read

    async def read_then_lose() -> object:
        fleet = await first_read()
        engine.read = first_read  # type: ignore[method-assign]
        await engine.put(0, Slot("quick", NEW.enclave_id, "1.1.0", 1.0))
        return fleet

    engine.read = read_then_lose  # type: ignore[assignment,method-assign]
    assert await gate(engine).take(NEW) == ()
    assert engine.fleet.slot_of("me") == 1


async def test_an_engine_that_is_away_shuts_the_gate_and_raises_nothing() -> None:
    engine = MemoryFleet(down=True)
    assert codes(await gate(engine).take(NEW)) == ["FLEET_UNREACHABLE"]
    await gate(engine).give_back()


async def test_a_halt_shuts_the_gate() -> None:
    engine = MemoryFleet()
    await engine.set_halt(Halt("eve", "audit", 1.0))
    assert codes(await gate(engine).take(NEW)) == ["FLEET_HALTED"]


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        (State(running=NEW), "committed"),
        (State(running=OLD, records=(Record(NEW.enclave_id, reverted=1),)), "reverted"),
        (State(running=OLD), "abandoned"),
    ],
)
async def test_the_slot_is_freed_with_its_outcome_once_the_upgrade_is_over(state: State, outcome: str) -> None:
    engine = MemoryFleet()
    await gate(engine).take(NEW)
    await one_round(gate(engine), state)
    assert engine.fleet.slot_of("me") is None
    assert [item.outcome for item in engine.fleet.outcomes] == [outcome]


@pytest.mark.parametrize("name", [name for name in Name if name is not Name.IDLE])
async def test_the_slot_is_kept_as_long_as_the_upgrade_is_under_way_or_halted(name: Name) -> None:
    engine = MemoryFleet()
    await gate(engine).take(NEW)
    await one_round(gate(engine), replace(State(running=OLD), name=name))
    assert engine.fleet.slot_of("me") == 0


async def test_a_slot_is_not_freed_while_the_next_upgrade_takes_it() -> None:
    engine = MemoryFleet(limit=1)
    await engine.put(0, Slot("me", OLD.enclave_id, "1.0.0", 1.0))
    asked, answers, quick = asyncio.Event(), asyncio.Event(), engine.read

    async def slow() -> object:
        engine.read = quick  # type: ignore[method-assign]
        asked.set()
        await answers.wait()
        return await quick()

    engine.read = slow  # type: ignore[assignment,method-assign]
    mine = gate(engine)
    idle = State(name=Name.IDLE, running=OLD)
    async with asyncio.TaskGroup() as group:
        group.create_task(one_round(mine, idle))  # the upgrade to OLD has ended: its slot is to be freed
        await asked.wait()
        taking = group.create_task(mine.take(NEW))
        await asyncio.sleep(0)
        answers.set()
    assert taking.result() == ()
    assert engine.fleet.slots[0] == Slot("me", NEW.enclave_id, "1.1.0", 1000.0)


async def test_another_nodes_slot_is_never_freed() -> None:
    engine = MemoryFleet()
    await gate(engine, "other").take(NEW)
    await one_round(gate(engine), State(running=NEW))
    await gate(engine).give_back()
    assert engine.fleet.slot_of("other") == 0


async def test_a_slot_is_given_back_while_another_gate_is_shut_and_the_engine_is_asked_once() -> None:
    engine = MemoryFleet()
    mine = gate(engine)
    await mine.take(NEW)
    await mine.give_back()
    asked = engine.asked
    await mine.give_back()
    assert engine.fleet.slot_of("me") is None
    assert engine.asked == asked
    assert engine.fleet.outcomes == ()


async def test_a_bad_release_stops_after_as_many_nodes_as_it_may_spoil() -> None:
    engine = MemoryFleet(limit=1)
    spoiled = []
    for number in range(20):
        mine = gate(engine, f"n{number}")
        if await mine.take(NEW) == ():
            spoiled.append(number)
            await one_round(mine, State(running=OLD, records=(Record(NEW.enclave_id, reverted=1),)))
    assert spoiled == [0, 1]


async def test_what_a_node_runs_and_waits_for_is_published_when_it_changes() -> None:
    engine = MemoryFleet(limit=1)
    mine = gate(engine)
    await engine.put(0, Slot("other", NEW.enclave_id, NEW.version, 1.0))
    waiting = State(Name.STAGED, running=OLD, target=NEW)
    assert codes(await mine.take(NEW)) == ["FLEET_FULL"]
    await one_round(mine, waiting)
    assert engine.told == {"me": Member("me", "1.0.0", "1.1.0", 1000.0)}
    assert mine.facts()["waiting"] == ["me"]
    engine.told.clear()
    await one_round(mine, waiting)
    assert engine.told == {}
    await mine.give_back()
    await one_round(mine, State(running=NEW))
    assert engine.told["me"] == Member("me", "1.1.0", "", 1000.0)


async def test_the_engine_is_not_asked_while_the_node_is_away() -> None:
    engine = MemoryFleet()
    await one_round(gate(engine), State(Name.LAUNCHING, running=OLD, target=NEW))
    assert engine.asked == 0
