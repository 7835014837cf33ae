"""The seeded simulator finds no violation, replays exactly, and finds planted bugs."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine import guards
from dcupgrade.machine import table as machine
from dcupgrade.machine.effects import Effect, EffectKind
from dcupgrade.machine.events import Event, GatesOpen, NodeStopped, Staged, StageFailed
from dcupgrade.machine.state import Name, State
from dcupgrade.upgrade import before_stop
from dcupgrade.upgrade.event_queue import Item
from dcupgrade.upgrade.orchestrator import Orchestrator
from dcupgrade.upgrade.performer import WORK, perform
from dcupgrade.upgrade.tools import Emit, Tools, failed, release_of
from keyvault.vault import decisions as core
from tests.simulation.simulator.driver import simulate
from tests.simulation.simulator.world import SimulatedWorld

from .run import report, run

SEEDS = 60


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_no_seed_breaks_an_invariant() -> None:
    outcomes, seconds = run(SEEDS * 10, 0, workers=1)
    assert "violations: 0" in report(outcomes, seconds)
    assert sum(outcome.upgrades for outcome in outcomes) == SEEDS * 10
    endings = {name for outcome in outcomes for name in outcome.endings}
    assert endings == {"committed", "reverted", "abandoned", "halted"}
    assert len({name for outcome in outcomes for name in outcome.faults}) == 25


def test_a_seed_replays_exactly_in_another_process() -> None:
    script = "import sys, json, logging; logging.disable(50); from tests.simulation.simulator.driver import simulate\n"
    script += "print(json.dumps([simulate(seed).digest for seed in (3, 5, 7, 23)]))"
    digests = set()
    for hash_seed in ("0", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
        )
        digests.add(tuple(json.loads(done.stdout)))
    assert len(digests) == 1
    assert len(set(next(iter(digests)))) == 4


def first_violation(seeds: int, plant: Callable[[SimulatedWorld], None] | None = None) -> str:
    for seed in range(seeds):
        outcome = simulate(seed, 10, plant)
        if outcome.violation:
            return outcome.violation
    return ""


def test_writes_that_are_not_synced_are_noticed() -> None:
    def plant(world: SimulatedWorld) -> None:
        world.disk.syncs = False

    assert first_violation(20, plant) != ""


def test_a_vault_that_gives_keys_without_a_permit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = core.decide_release

    def careless(facts: Any, rules: Any, requester_id: str, wanted: str, now: int) -> Any:
        for entry in facts.collected.values():
            return core.Release(facts, entry.key_set_id, "target")
        return real(facts, rules, requester_id, wanted, now)

    monkeypatch.setattr(core, "decide_release", careless)
    assert "3: keys went to" in first_violation(60)


def test_a_vault_that_permits_what_the_chain_does_not_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_check_target", lambda *_: None)
    assert "3: keys went to" in first_violation(100)


def test_an_orchestrator_that_acts_before_the_journal_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state runs ahead of what a crash leaves behind: the old node is started beside the new one."""

    async def forgetful(self: Any, entry: Any) -> None:
        if entry.after.name in (Name.STAGED, Name.ABANDONED, Name.IDLE, Name.COMMITTED):
            await self._journal.append(entry)

    monkeypatch.setattr(Orchestrator, "_store", forgetful)
    assert first_violation(60) != ""


def test_a_stop_that_does_not_wait_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hasty(_tools: Tools, effect: Effect, _state: State, _emit: Emit) -> Event:
        return NodeStopped(effect.enclave_id)

    monkeypatch.setitem(WORK, EffectKind.STOP_NODE, hasty)
    assert "2: " in first_violation(20)


def test_a_retry_without_a_pause_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case A2: one that repeats itself takes the whole processor, and the agent answers nobody."""
    monkeypatch.setattr(Tools, "pause_s", lambda *_: 0.0)
    assert "without a pause" in first_violation(40)


def health_fails_now_and_then(world: SimulatedWorld) -> None:
    """Every tenth look at a node dies of a fault of the program."""
    real, looks = world.nodes.health, 0

    def health(enclave_id: str) -> Any:
        nonlocal looks
        looks += 1
        if looks % 10 == 0:
            raise RecursionError("maximum recursion depth exceeded")
        return real(enclave_id)

    world.nodes.health = health  # type: ignore[method-assign]


def test_an_effect_that_dies_of_an_unexpected_error_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case A3."""
    assert first_violation(10, health_fails_now_and_then) == ""

    async def dies(self: Any, effect: Effect, number: int, state: State) -> None:
        def emit(event: Event) -> None:
            self._queue.put(Item(event, effect, number))

        emit(await perform(self._tools, effect, state, emit))

    monkeypatch.setattr(Orchestrator, "_perform", dies)
    assert "5: it does not come to rest" in first_violation(10, health_fails_now_and_then)


def port_is_taken_after_a_stop(world: SimulatedWorld) -> None:
    """Another program takes the port between stop and start, and keeps it."""
    real = world.nodes.stop

    async def stop(enclave_id: str) -> None:
        await real(enclave_id)
        world.nodes.port_taken = True
        asyncio.get_running_loop().call_later(300.0, setattr, world.nodes, "port_taken", False)

    world.nodes.stop = stop  # type: ignore[method-assign]


def test_a_way_back_that_gives_up_on_what_passes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases B4 and C3: nobody says a word in the end, and the node is to come back all the same."""
    assert first_violation(10, port_is_taken_after_a_stop) == ""
    monkeypatch.setattr(guards, "source_may_return", lambda _: False)
    assert "5: it does not come to rest" in first_violation(20, port_is_taken_after_a_stop)


def test_a_machine_that_skips_collecting_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    key = (Name.STAGED, GatesOpen)
    index = dict(machine._INDEX)
    index[key] = tuple(replace(row, target=Name.STOPPING) if row.guard is None else row for row in index[key])
    monkeypatch.setattr(machine, "_INDEX", index)
    assert "4: " in first_violation(20)


def test_a_release_condemned_by_one_wrong_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case C1."""

    async def strict(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
        try:
            return Staged(await tools.fetch(release_of(state, effect)))
        except Exception as error:
            return failed(StageFailed, error, effect.enclave_id)

    monkeypatch.setitem(WORK, EffectKind.STAGE, strict)
    assert "13: " in first_violation(60)


def test_a_fleet_that_is_asked_after_the_stop_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = WORK[EffectKind.STOP_NODE]

    async def asks(tools: Tools, effect: Effect, state: State, emit: Emit) -> Event:
        event = await real(tools, effect, state, emit)
        await tools.fleet.take(release_of(state, effect))
        return event

    monkeypatch.setitem(WORK, EffectKind.STOP_NODE, asks)
    assert "12: " in first_violation(20)


def test_a_vault_that_believes_a_lagging_endpoint_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = core.admit_evidence

    def forgetful(facts: Any, rules: Any, state: Any, now: int) -> Any:
        return real(replace(facts, floor_number=0, floor_hash=""), rules, state, now)

    monkeypatch.setattr(core, "admit_evidence", forgetful)
    assert "3: the vault believes an older block" in first_violation(100)


def test_asking_an_endpoint_without_history_again_and_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def impatient(tools: Tools, target_id: str, source_id: str) -> Any:
        while True:
            try:
                return await tools.chain.evidence(target_id, source_id, await tools.vault.status())
            except DcupgradeError:
                await asyncio.sleep(0)

    monkeypatch.setattr(before_stop, "_evidence", impatient)
    assert "without a pause" in first_violation(40)


def test_an_orchestrator_that_does_not_wait_for_a_slow_journal_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real, writing = Orchestrator._store, set()

    async def hasty(self: Any, entry: Any) -> None:
        task = asyncio.ensure_future(real(self, entry))
        writing.add(task)
        task.add_done_callback(writing.discard)

    monkeypatch.setattr(Orchestrator, "_store", hasty)
    assert first_violation(60) != ""
