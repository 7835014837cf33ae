"""The upgrade machine: one table of transitions, and pure functions over it.

`step(state, event)` finds the first row of TABLE for the state's name and the event's class whose guard holds, and
returns the new state with the newly wanted effects. It raises if no row applies. `activity(state)` returns all effects
that a state wants. It depends on the state alone, so after a restart the stored state is enough to continue the work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from . import actions as t
from . import events as e
from . import guards
from .actions import Action
from .effects import Effect, EffectKind
from .guards import Budgets, EventT, Guard
from .state import Name, State


@dataclass(frozen=True, slots=True)
class Row:
    """One edge of the machine: in `source`, on `event`, if `guard` holds, do `action` and go to `target`."""

    source: Name
    event: type[e.Event]
    target: Name
    guard: Guard[Any] | None = None
    action: Action[Any] | None = None

    @property
    def label(self) -> str:
        """The event and its guard as text, for diagrams and the coverage report."""
        return self.event.kind + (f" [{self.guard.__name__.lstrip('_')}]" if self.guard else "")


def row(
    source: Name,
    event: type[EventT],
    target: Name,
    guard: Guard[EventT] | None = None,
    action: Action[EventT] | None = None,
) -> Row:
    """Make a row. The types ensure that guard and action accept this class of event."""
    return Row(source, event, target, guard, action)


DEFAULT_BUDGETS = Budgets()
N, F = Name, EffectKind
BEFORE_STOP = (N.IDLE, N.STAGING, N.STAGED, N.COLLECTING, N.SEALED, N.ABANDONED)
"""States in which the running node is supervised, and restarted after a crash."""
KEEPS_NODE = (*BEFORE_STOP, N.COMMITTED, N.REVERTED)


# --- the table -------------------------------------------------------------------------------------------------------


def _rows() -> Iterable[Row]:
    yield from _rows_everywhere()
    # idle
    yield row(N.IDLE, e.UpgradeBegun, N.STAGING, None, t.begin)
    yield row(N.IDLE, e.BackoffOver, N.IDLE, None, t.backoff_over)
    yield row(N.IDLE, e.PreviousRetired, N.IDLE, None, t.retired)
    yield row(N.IDLE, e.RevertCommand, N.REVERTING, guards.has_previous, t.turn_back_by_hand)
    yield row(N.IDLE, e.RevertCommand, N.IDLE)
    # before the old node is stopped, any failure leads to abandoned
    yield row(N.STAGING, e.Staged, N.STAGED)
    yield row(N.STAGING, e.StageFailed, N.ABANDONED, None, t.abandon)
    yield row(N.STAGED, e.GatesOpen, N.LAUNCHING, guards.first_install)
    yield row(N.STAGED, e.GatesOpen, N.COLLECTING)
    yield row(N.COLLECTING, e.Collected, N.SEALED, None, t.note_keys)
    yield row(N.COLLECTING, e.CollectFailed, N.HALTED, guards.needs_a_person, t.halt("VAULT_REPLACED", N.IDLE))
    yield row(N.COLLECTING, e.CollectFailed, N.ABANDONED, None, t.abandon)
    yield row(N.SEALED, e.Permitted, N.STOPPING, None, t.note_permit)
    # the gates are checked again just before the downtime: a window may have closed while agent or vault was down
    yield row(N.SEALED, e.GatesShut, N.STAGED)
    yield row(N.SEALED, e.PermitFailed, N.HALTED, guards.needs_a_person, t.halt("VAULT_REPLACED", N.IDLE))
    yield row(N.SEALED, e.PermitFailed, N.ABANDONED, None, t.abandon)
    for name in (N.STAGING, N.STAGED, N.COLLECTING, N.SEALED):
        yield row(name, e.RevertCommand, N.ABANDONED, None, t.abandon_by_hand)
    yield row(N.ABANDONED, e.SourceServing, N.IDLE, None, t.settle)
    yield row(N.ABANDONED, e.RevertCommand, N.ABANDONED)
    # from here on the old node is down, and any failure leads to reverting
    yield row(N.STOPPING, e.NodeStopped, N.REVERTING, guards.must_turn_back, t.turn_back_after_stop)
    yield row(N.STOPPING, e.NodeStopped, N.LAUNCHING)
    yield row(N.STOPPING, e.StopFailed, N.REVERTING, None, t.turn_back)
    yield row(N.STOPPING, e.RevertCommand, N.STOPPING, None, t.note_request)
    yield row(N.LAUNCHING, e.Launched, N.PROBATION, guards.first_install, t.count_launch)
    yield row(N.LAUNCHING, e.Launched, N.DELIVERING, None, t.count_launch)
    yield row(N.LAUNCHING, e.LaunchFailed, N.REVERTING, None, t.turn_back)
    yield row(N.DELIVERING, e.Delivered, N.PROBATION)
    yield row(N.DELIVERING, e.DeliveryFailed, N.REVERTING, None, t.turn_back)
    yield row(N.DELIVERING, e.NodeExited, N.LAUNCHING, guards.may_relaunch)
    yield row(N.DELIVERING, e.NodeExited, N.REVERTING, None, t.turn_back)
    yield row(N.PROBATION, e.Healthy, N.COMMITTED, None, t.commit)
    yield row(N.PROBATION, e.Unhealthy, N.REVERTING, None, t.turn_back)
    yield row(N.PROBATION, e.NodeExited, N.LAUNCHING, guards.host_rebooted)
    yield row(N.PROBATION, e.NodeExited, N.REVERTING, None, t.turn_back)
    for name in (N.LAUNCHING, N.DELIVERING, N.PROBATION):
        yield row(name, e.RevertCommand, N.REVERTING, None, t.turn_back_on_request)
    yield row(N.COMMITTED, e.CommitDone, N.IDLE, None, t.settle_committed)
    # a version that never acknowledges the commit must not prevent a revert by the operator
    yield row(N.COMMITTED, e.RevertCommand, N.REVERTING, guards.has_previous, t.turn_back_by_hand)
    yield row(N.COMMITTED, e.RevertCommand, N.COMMITTED)
    yield from _rows_of_reverting()


def _rows_of_reverting() -> Iterable[Row]:
    yield row(N.REVERTING, e.NodeStopped, N.HALTED, guards.no_source, t.halt("FIRST_INSTALL_FAILED", N.LAUNCHING))
    yield row(N.REVERTING, e.NodeStopped, N.HALTED, guards.source_revoked, t.halt("PREVIOUS_REVOKED", N.REVERTING))
    yield row(N.REVERTING, e.NodeStopped, N.REVERTING, None, t.note_target_stopped)
    yield row(N.REVERTING, e.StopFailed, N.HALTED, guards.only_locked, t.halt_locked)
    yield row(N.REVERTING, e.StopFailed, N.HALTED, None, t.halt("TARGET_WONT_STOP", N.REVERTING))
    yield row(N.REVERTING, e.SourceServing, N.REVERTED, None, t.reverted)
    yield row(N.REVERTING, e.SourceFailed, N.HALTED, None, t.halt("SOURCE_WONT_START", N.REVERTING))
    yield row(N.REVERTING, e.RevertCommand, N.REVERTING)
    yield row(N.REVERTED, e.Settled, N.IDLE, None, t.settle)
    yield row(N.REVERTED, e.RevertCommand, N.REVERTED)
    yield row(N.HALTED, e.ResumeCommand, N.IDLE, guards.install_revoked, t.give_up_install)
    yield row(N.HALTED, e.ResumeCommand, N.LAUNCHING, guards.back_to(N.LAUNCHING), t.resume_install)
    yield row(N.HALTED, e.ResumeCommand, N.REVERTING, guards.back_to(N.REVERTING), t.resume_revert)
    yield row(N.HALTED, e.ResumeCommand, N.IDLE, None, t.resume_idle)
    yield row(N.HALTED, e.RevertCommand, N.REVERTING, guards.can_turn_back, t.resume_revert)
    yield row(N.HALTED, e.RevertCommand, N.IDLE, guards.install_superseded, t.give_up_install)
    yield row(N.HALTED, e.RevertCommand, N.HALTED)
    yield row(N.HALTED, e.NodeStopped, N.HALTED, guards.no_source, t.halt("FIRST_INSTALL_FAILED", N.LAUNCHING))
    yield row(N.HALTED, e.NodeStopped, N.HALTED, guards.source_revoked, t.halt("PREVIOUS_REVOKED", N.REVERTING))
    yield row(N.HALTED, e.NodeStopped, N.REVERTING, None, t.target_gone_meanwhile)
    yield row(N.HALTED, e.NodeServing, N.IDLE, guards.waits_for_serving, t.resume_idle)
    yield row(N.HALTED, e.NodeServing, N.REVERTED, guards.source_returned, t.returned)


def _rows_everywhere() -> Iterable[Row]:
    for name in (N.STAGING, N.STAGED, N.COLLECTING, N.SEALED):
        yield row(name, e.ChainSeen, N.ABANDONED, guards.target_gone, t.abandon_for_the_chain)
    for name in (N.LAUNCHING, N.DELIVERING, N.PROBATION):
        yield row(name, e.ChainSeen, N.REVERTING, guards.target_revoked, t.turn_back_for_the_chain)
    yield row(N.REVERTING, e.ChainSeen, N.HALTED, guards.source_revoked, t.halt("PREVIOUS_REVOKED", N.REVERTING))
    yield row(N.HALTED, e.ChainSeen, N.HALTED, guards.revoked_while_waiting, t.halt("PREVIOUS_REVOKED", N.REVERTING))
    for name in (N.COLLECTING, N.SEALED):
        yield row(name, e.HoldCommand, N.STAGED, None, t.hold)
    for name in Name:
        yield row(name, e.ChainSeen, name, None, t.remember_chain)
        if name not in (N.COLLECTING, N.SEALED):
            yield row(name, e.HoldCommand, name, None, t.hold)
        yield row(name, e.UnholdCommand, name, None, t.unhold)
        yield row(name, e.ApproveCommand, name, None, t.approve)
        yield row(name, e.OverrideCommand, name, None, t.override)
        if name is not N.HALTED:
            yield row(name, e.ResumeCommand, name)
        yield row(name, e.RetryCommand, name, None, t.release_quarantine)
    for name in (N.COLLECTING, N.ABANDONED):
        for event in (e.NodeExited, e.NodeStartFailed):
            yield row(name, event, N.HALTED, guards.source_is_hopeless, t.halt("SOURCE_WONT_START", N.IDLE))
    for name in (*KEEPS_NODE, N.HALTED):
        yield row(name, e.NodeExited, name, None, t.count_crash)
        yield row(name, e.NodeStartFailed, name, None, t.count_crash)
    for name in KEEPS_NODE:
        yield row(name, e.NodeServing, name, None, t.note_serving)
    yield row(N.HALTED, e.NodeServing, N.HALTED, guards.halted_otherwise, t.note_serving)


TABLE: tuple[Row, ...] = tuple(_rows())
_INDEX: dict[tuple[Name, type[e.Event]], tuple[Row, ...]] = {
    key: tuple(one for one in TABLE if (one.source, one.event) == key) for key in {(r.source, r.event) for r in TABLE}
}


def find_row(state: State, event: e.Event, budgets: Budgets) -> Row:
    """Return the row that applies. Raises DcupgradeError MACHINE_NO_TRANSITION if there is none."""
    for found in _INDEX.get((state.name, type(event)), ()):
        if found.guard is None or found.guard(state, event, budgets):
            return found
    raise guards.broken(state, event, "the table has no such transition")


def state_after(state: State, event: e.Event, budgets: Budgets = DEFAULT_BUDGETS) -> State:
    """Return the state after one transition.

    Raises DcupgradeError MACHINE_NO_TRANSITION for an event that the table does not know in this state.
    """
    found = find_row(state, event, budgets)
    after = found.action(state, event, budgets) if found.action else state
    return replace(after, name=found.target) if after.name is not found.target else after


def step(state: State, event: e.Event, budgets: Budgets = DEFAULT_BUDGETS) -> tuple[State, tuple[Effect, ...]]:
    """Return the state after one transition, and the effects that it wants and the old state did not."""
    after = state_after(state, event, budgets)
    before = activity(state)
    return after, tuple(effect for effect in activity(after) if effect not in before)


def activity(state: State) -> tuple[Effect, ...]:
    """Return the effects that a state wants, unordered. The orchestrator starts new ones and stops unwanted ones."""
    running = state.running.enclave_id if state.running else ""
    target = state.target.enclave_id if state.target else ""
    waits = state.name is N.HALTED and (state.resume_to == N.IDLE or guards.source_may_return(state))
    kept = (Effect(F.KEEP_NODE, running),) if running and (state.name in KEEPS_NODE or waits) else ()
    match state.name:
        case N.IDLE:
            return (*kept, *_idle_activity(state))
        case N.STAGED:
            hold = (state.hold.reason, str(state.hold.until_unix_s)) if state.hold else ("", "")
            commands = (state.approved, state.override, *hold)
            return (*kept, Effect(F.GATES, target, depends_on=commands))
        case N.REVERTING:
            return (Effect(F.START_SOURCE, running),) if state.target_stopped else (Effect(F.STOP_NODE, target),)
        case N.STOPPING:
            return (Effect(F.STOP_NODE, running),)
        case N.HALTED:
            return (Effect(F.STOP_NODE, target),) if guards.target_may_stop(state) else kept
        case N.STAGING:
            return (*kept, Effect(F.STAGE, target, depends_on=state.target.sources if state.target else ()))
        case _:
            about = running if state.name in (N.ABANDONED, N.COMMITTED, N.REVERTED, N.COLLECTING) else target
            return (*kept, Effect(_WORK[state.name], about, state.key_set_id))


def keeps_node(state: State) -> bool:
    """Tell whether the running version is supervised in this state, so that it may be restarted at any time."""
    return any(effect.kind is F.KEEP_NODE for effect in activity(state))


_WORK = {
    N.COLLECTING: F.COLLECT,
    N.SEALED: F.PERMIT,
    N.LAUNCHING: F.LAUNCH,
    N.DELIVERING: F.DELIVER,
    N.PROBATION: F.PROBATION,
    N.COMMITTED: F.COMMIT,
    N.ABANDONED: F.AWAIT_SOURCE,
    N.REVERTED: F.SETTLE,
}


def _idle_activity(state: State) -> tuple[Effect, ...]:
    program = guards.newer_release(state)
    out: list[Effect] = []
    if program is not None:
        record = state.record(program.enclave_id)
        if not record.quarantine:
            out.append(Effect(F.BACKOFF if record.waiting else F.BEGIN, program.enclave_id))
    if state.previous is not None:
        out.append(Effect(F.RETIRE, state.previous.enclave_id))
    return tuple(out)
