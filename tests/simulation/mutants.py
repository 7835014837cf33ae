"""Planted bugs: each changes the machine in one place, like a careless edit. The explorer must find each one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from dcupgrade.machine import actions as t
from dcupgrade.machine import events as e
from dcupgrade.machine import guards
from dcupgrade.machine import table as machine
from dcupgrade.machine.effects import Effect, EffectKind
from dcupgrade.machine.state import Name, State
from dcupgrade.machine.table import Row

from .explorer import Scenario
from .model import Traits

N, F = Name, EffectKind
Rows = Callable[[Row], Row | None]
Activity = Callable[[State, tuple[Effect, ...]], tuple[Effect, ...]]

CALM = Scenario(Traits("good"), crashes=1, faults=1)
SICK = Scenario(Traits("blind"), crashes=1, faults=1)
DYING = Scenario(Traits("dies"), crashes=1, faults=0)
COMMANDED = Scenario(Traits("good"), crashes=0, faults=1, commands=1)


def _edge(source: Name, event: type[e.Event], change: Callable[[Row], Row | None], guard: str = "") -> Rows:
    def rows(row: Row) -> Row | None:
        named = not guard or (row.guard is not None and row.guard.__name__ == guard)
        return change(row) if (row.source, row.event) == (source, event) and named else row

    return rows


def _to(target: Name) -> Callable[[Row], Row]:
    return lambda row: replace(row, target=target)


def _act(action: t.Action[Any] | None) -> Callable[[Row], Row]:
    return lambda row: replace(row, action=action)


def _drop(_: Row) -> None:
    return None


def _same(row: Row) -> Row:
    return row


def _keep_activity(_: State, wanted: tuple[Effect, ...]) -> tuple[Effect, ...]:
    return wanted


def _in(name: Name, change: Activity) -> Activity:
    return lambda state, wanted: change(state, wanted) if state.name is name else wanted


def _launch_while_stopping(state: State, wanted: tuple[Effect, ...]) -> tuple[Effect, ...]:
    return (*wanted, Effect(F.KEEP_NODE, state.target.enclave_id)) if state.target else wanted


def _keep_source(state: State, wanted: tuple[Effect, ...]) -> tuple[Effect, ...]:
    return (*wanted, Effect(F.KEEP_NODE, state.running.enclave_id)) if state.running else wanted


def _keep_nothing(_: State, wanted: tuple[Effect, ...]) -> tuple[Effect, ...]:
    return tuple(effect for effect in wanted if effect.kind is not F.KEEP_NODE)


def _commit_early(state: State, wanted: tuple[Effect, ...]) -> tuple[Effect, ...]:
    return (*wanted, Effect(F.COMMIT, state.target.enclave_id)) if state.target else wanted


def _retire_running(state: State, wanted: tuple[Effect, ...]) -> tuple[Effect, ...]:
    return tuple(
        Effect(F.RETIRE, state.running.enclave_id) if effect.kind is F.RETIRE and state.running else effect
        for effect in wanted
    )


def _retire_before_commit(state: State, wanted: tuple[Effect, ...]) -> tuple[Effect, ...]:
    return (*wanted, Effect(F.RETIRE, state.running.enclave_id)) if state.running else wanted


def _start_without_stop(state: State, wanted: tuple[Effect, ...]) -> tuple[Effect, ...]:
    return (Effect(F.START_SOURCE, state.running.enclave_id),) if state.running else wanted


def _forgets_the_failure(state: State, _event: e.Event, _: guards.Budgets) -> State:
    return state


def _commits_to_the_source(state: State, event: e.Event, budgets: guards.Budgets) -> State:
    return replace(t.commit(state, event, budgets), running=state.running, previous=state.target)


def _never_stop(_: State, wanted: tuple[Effect, ...]) -> tuple[Effect, ...]:
    return tuple(effect for effect in wanted if effect.kind is not F.STOP_NODE)


def _tries_on_and_on(state: State, wanted: tuple[Effect, ...]) -> tuple[Effect, ...]:
    waits = state.name is N.HALTED and state.resume_to == N.REVERTING and state.target_stopped
    return (Effect(F.KEEP_NODE, state.running.enclave_id),) if waits and state.running else wanted


def _keeps_records(state: State, event: e.ChainSeen, budgets: guards.Budgets) -> State:
    return replace(t.remember_chain(state, event, budgets), records=state.records)


def _forgets_the_height_of_what_runs(state: State, event: e.ChainSeen, budgets: guards.Budgets) -> State:
    after = t.remember_chain(state, event, budgets)
    running = replace(after.running, added_height=0) if after.running else None
    return replace(after, running=running)


def _lifts_every_quarantine(state: State, _event: e.Event, _: guards.Budgets) -> State:
    return replace(state, records=())


MUTANTS: dict[str, tuple[Rows, Activity, Scenario]] = {
    "stops the node as soon as the release is staged": (
        _edge(N.STAGED, e.GatesOpen, _to(N.STOPPING)), _keep_activity, CALM),
    "stops the node before it has a copy of the keys": (
        _edge(N.STAGING, e.Staged, _to(N.STOPPING)), _keep_activity, CALM),
    "launches while the old node is being stopped": (_same, _in(N.STOPPING, _launch_while_stopping), CALM),
    "keeps the old node up while the new one is launched": (_same, _in(N.LAUNCHING, _keep_source), CALM),
    "keeps the old node up while keys are delivered": (_same, _in(N.DELIVERING, _keep_source), CALM),
    "starts the source before the target is stopped": (_same, _in(N.REVERTING, _start_without_stop), SICK),
    "does not restart the old node while collecting": (_same, _in(N.COLLECTING, _keep_nothing), CALM),
    "does not restart the old node after abandoning": (
        _same, _in(N.ABANDONED, _keep_nothing), Scenario(Traits("good"), faults=2)),
    "does not keep the node in idle": (_same, _in(N.IDLE, _keep_nothing), CALM),
    "tells the node to commit during probation": (_same, _in(N.PROBATION, _commit_early), SICK),
    "removes the running version's files": (
        _same, _in(N.IDLE, _retire_running), Scenario(Traits("good", remove_previous=True))),
    "removes the source's files before the commit": (
        _same, _in(N.PROBATION, _retire_before_commit), Scenario(Traits("blind", remove_previous=True))),
    "forgets what failed after reverting": (
        _edge(N.REVERTING, e.SourceServing, _act(_forgets_the_failure)), _keep_activity, SICK),
    "forgets what failed after abandoning": (
        _edge(N.STAGING, e.StageFailed, _act(_forgets_the_failure)), _keep_activity,
        Scenario(Traits("bad"))),
    "relaunches a dying node indefinitely": (
        _edge(N.LAUNCHING, e.Launched, _act(None)), _keep_activity, DYING),
    "ignores a node that ended in probation": (
        _edge(N.PROBATION, e.NodeExited, _to(N.PROBATION)), _keep_activity, Scenario(Traits("frail"))),
    "continues with a target that was revoked while stopping": (
        _edge(N.STOPPING, e.NodeStopped, _drop, "must_turn_back"), _keep_activity, CALM),
    "ignores a revert that came while stopping": (
        _edge(N.STOPPING, e.NodeStopped, lambda row: replace(row, guard=guards.target_revoked), "must_turn_back"),
        _keep_activity, COMMANDED),
    "goes back to files that are gone": (
        _edge(N.IDLE, e.RevertCommand,
              lambda row: replace(row, guard=lambda state, _event, _: state.previous is not None), "has_previous"),
        _keep_activity, Scenario(Traits("good", remove_previous=True), crashes=1, commands=1)),
    "starts a source that was revoked": (
        _edge(N.REVERTING, e.NodeStopped, _drop, "source_revoked"), _keep_activity, SICK),
    "commits a target that failed probation": (
        _edge(N.PROBATION, e.Unhealthy, lambda row: replace(row, target=N.COMMITTED, action=t.commit)), _keep_activity,
        SICK),
    "goes idle straight from a failed launch": (
        _edge(N.LAUNCHING, e.LaunchFailed, _to(N.IDLE)), _keep_activity, CALM),
    "goes idle from a failed delivery with the new node alive": (
        _edge(N.DELIVERING, e.DeliveryFailed, _to(N.IDLE)), _keep_activity, CALM),
    "takes the source for the running version after the commit": (
        _edge(N.PROBATION, e.Healthy, _act(_commits_to_the_source)), _keep_activity, CALM),
    "goes back to the source after a crash in committed": (
        _edge(N.COMMITTED, e.CommitDone, _to(N.REVERTING)), _keep_activity, CALM),
    "does not know that stopping can fail": (_edge(N.STOPPING, e.StopFailed, _drop), _keep_activity, CALM),
    "halts without a name": (
        _edge(N.REVERTING, e.StopFailed, _act(None)), _keep_activity, SICK),
    "cannot leave halted": (_edge(N.HALTED, e.ResumeCommand, _drop), _keep_activity, COMMANDED),
    "gives up on a new version that would not stop": (
        _same, _in(N.HALTED, _never_stop), Scenario(Traits("blind"), faults=2)),
    "gives up on a source whose files were lost": (
        _same, _in(N.HALTED, _keep_nothing), Scenario(Traits("blind"), faults=2)),
    "waits for an operator once the data is free again": (
        _same, _in(N.HALTED, _keep_nothing), Scenario(Traits("dies"), faults=2)),
    "remembers the failures of addresses that were corrected": (
        _edge(N.IDLE, e.ChainSeen, _act(_keeps_records)), _keep_activity, Scenario(Traits("misplaced"), faults=1)),
    "does not know that an effect can fail unexpectedly": (
        _edge(N.PROBATION, e.Unhealthy, _drop), _keep_activity, CALM),
    "starts a source that was revoked while it waited": (
        _edge(N.HALTED, e.ChainSeen, _drop, "revoked_while_waiting"), _tries_on_and_on,
        Scenario(Traits("blind"), faults=3)),
    "takes an approval for an end of the quarantine": (
        _edge(N.IDLE, e.ApproveCommand, _act(t.release_quarantine)), _keep_activity,
        Scenario(Traits("good"), commands=2)),
    "takes a resume for an end of the quarantine": (
        _edge(N.IDLE, e.ResumeCommand, _act(_lifts_every_quarantine)), _keep_activity,
        Scenario(Traits("good"), commands=2)),
    "takes what an endpoint that lags shows for a newer release": (
        _edge(N.IDLE, e.ChainSeen, _act(_forgets_the_height_of_what_runs)), _keep_activity,
        Scenario(Traits("good", lags=True), faults=2)),
    "passes the fleet's gate by": (
        _edge(N.STAGING, e.Staged, _to(N.COLLECTING)), _keep_activity, Scenario(Traits("good", fleet=True), faults=1)),
    "takes a hold for an order to stop": (
        _edge(N.COLLECTING, e.HoldCommand, _to(N.STOPPING)), _keep_activity, COMMANDED),
}  # fmt: skip
"""Name of the bug -> (change of the table, change of the wanted work, scenario that shows it)."""


@contextmanager
def planted(name: str) -> Iterator[Scenario]:
    """The machine with one bug, for as long as the context lasts; gives the scenario that shows it."""
    rows, change, scenario = MUTANTS[name]
    table = tuple(row for row in map(rows, machine.TABLE) if row is not None)
    index: dict[tuple[Name, type[e.Event]], tuple[Row, ...]] = {}
    for row in table:
        index[row.source, row.event] = (*index.get((row.source, row.event), ()), row)
    real = machine.activity
    with (
        mock.patch.object(machine, "_INDEX", index),
        mock.patch.object(machine, "activity", lambda state: change(state, real(state))),
    ):
        yield scenario
