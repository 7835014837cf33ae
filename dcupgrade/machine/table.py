"""The upgrade machine: one table of transitions, and pure functions over it.

`step(state, event)` finds the first row of TABLE for the state's name and the event's kind whose guard holds, and
returns the new state with the effects that are newly wanted. What is not in the table raises. `activity(state)` says
which effects are wanted in a state at all: since it depends on nothing else, a restart needs only the stored state to
take up the work where it was left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from . import actions as t
from . import guards
from .actions import Action
from .events import Effect, EffectKind, Event, EventKind
from .guards import Budgets, Guard
from .state import Name, State


@dataclass(frozen=True, slots=True)
class Row:
    """One edge of the machine: in `source`, on `event`, if `guard` holds, do `action` and go to `target`."""

    source: Name
    event: EventKind
    target: Name
    guard: Guard | None = None
    action: Action | None = None

    @property
    def label(self) -> str:
        """The event and its guard in words, for diagrams and the coverage report."""
        return self.event.value + (f" [{self.guard.__name__.lstrip('_')}]" if self.guard else "")


DEFAULT_BUDGETS = Budgets()
N, E, F = Name, EventKind, EffectKind
BEFORE_STOP = (N.IDLE, N.STAGING, N.STAGED, N.COLLECTING, N.SEALED, N.ABANDONED)
"""States in which the running node is kept up and restarted when it crashes."""
KEEPS_NODE = (*BEFORE_STOP, N.COMMITTED, N.REVERTED)


# --- the table -------------------------------------------------------------------------------------------------------


def _rows() -> Iterable[Row]:
    yield from _rows_everywhere()
    # idle
    yield Row(N.IDLE, E.BEGIN, N.STAGING, None, t.begin)
    yield Row(N.IDLE, E.BACKOFF_OVER, N.IDLE, None, t.backoff_over)
    yield Row(N.IDLE, E.RETIRED, N.IDLE, None, t.retired)
    yield Row(N.IDLE, E.REVERT, N.REVERTING, guards.has_previous, t.turn_back_by_hand)
    yield Row(N.IDLE, E.REVERT, N.IDLE)
    # before the old node is touched, whatever goes wrong is abandoned
    yield Row(N.STAGING, E.STAGED, N.STAGED)
    yield Row(N.STAGING, E.STAGE_FAILED, N.ABANDONED, None, t.abandon)
    yield Row(N.STAGED, E.GATES_OPEN, N.LAUNCHING, guards.first_install)
    yield Row(N.STAGED, E.GATES_OPEN, N.COLLECTING)
    yield Row(N.COLLECTING, E.COLLECTED, N.SEALED, None, t.note_keys)
    yield Row(N.COLLECTING, E.COLLECT_FAILED, N.HALTED, guards.needs_a_person, t.halt("VAULT_REPLACED", N.IDLE))
    yield Row(N.COLLECTING, E.COLLECT_FAILED, N.ABANDONED, None, t.abandon)
    yield Row(N.SEALED, E.PERMITTED, N.STOPPING, None, t.note_permit)
    # the last look before downtime: the window may have closed while the agent or the vault was away
    yield Row(N.SEALED, E.GATES_SHUT, N.STAGED)
    yield Row(N.SEALED, E.PERMIT_FAILED, N.HALTED, guards.needs_a_person, t.halt("VAULT_REPLACED", N.IDLE))
    yield Row(N.SEALED, E.PERMIT_FAILED, N.ABANDONED, None, t.abandon)
    for name in (N.STAGING, N.STAGED, N.COLLECTING, N.SEALED):
        yield Row(name, E.REVERT, N.ABANDONED, None, t.abandon)
    yield Row(N.ABANDONED, E.SOURCE_SERVING, N.IDLE, None, t.settle)
    yield Row(N.ABANDONED, E.REVERT, N.ABANDONED)
    # from here on the old node is down, and whatever goes wrong is reverted
    yield Row(N.STOPPING, E.NODE_STOPPED, N.REVERTING, guards.must_turn_back, t.turn_back)
    yield Row(N.STOPPING, E.NODE_STOPPED, N.LAUNCHING)
    yield Row(N.STOPPING, E.STOP_FAILED, N.REVERTING, None, t.turn_back)
    yield Row(N.STOPPING, E.REVERT, N.STOPPING, None, t.note_request)
    yield Row(N.LAUNCHING, E.LAUNCHED, N.PROBATION, guards.first_install, t.count_launch)
    yield Row(N.LAUNCHING, E.LAUNCHED, N.DELIVERING, None, t.count_launch)
    yield Row(N.LAUNCHING, E.LAUNCH_FAILED, N.REVERTING, None, t.turn_back)
    yield Row(N.DELIVERING, E.DELIVERED, N.PROBATION)
    yield Row(N.DELIVERING, E.DELIVERY_FAILED, N.REVERTING, None, t.turn_back)
    yield Row(N.DELIVERING, E.NODE_EXITED, N.LAUNCHING, guards.may_relaunch)
    yield Row(N.DELIVERING, E.NODE_EXITED, N.REVERTING, None, t.turn_back)
    yield Row(N.PROBATION, E.HEALTHY, N.COMMITTED, None, t.commit)
    yield Row(N.PROBATION, E.UNHEALTHY, N.REVERTING, None, t.turn_back)
    yield Row(N.PROBATION, E.NODE_EXITED, N.LAUNCHING, guards.host_rebooted)
    yield Row(N.PROBATION, E.NODE_EXITED, N.REVERTING, None, t.turn_back)
    for name in (N.LAUNCHING, N.DELIVERING, N.PROBATION):
        yield Row(name, E.REVERT, N.REVERTING, None, t.turn_back)
    yield Row(N.COMMITTED, E.COMMIT_DONE, N.IDLE, None, t.settle_committed)
    # a version that never takes the commit must not keep its operator from going back
    yield Row(N.COMMITTED, E.REVERT, N.REVERTING, guards.has_previous, t.turn_back_by_hand)
    yield Row(N.COMMITTED, E.REVERT, N.COMMITTED)
    yield from _rows_of_reverting()


def _rows_of_reverting() -> Iterable[Row]:
    yield Row(N.REVERTING, E.NODE_STOPPED, N.HALTED, guards.no_source, t.halt("FIRST_INSTALL_FAILED", N.LAUNCHING))
    yield Row(N.REVERTING, E.NODE_STOPPED, N.HALTED, guards.source_revoked, t.halt("PREVIOUS_REVOKED", N.REVERTING))
    yield Row(N.REVERTING, E.NODE_STOPPED, N.REVERTING, None, t.note_target_stopped)
    yield Row(N.REVERTING, E.STOP_FAILED, N.HALTED, guards.only_locked, t.halt_locked)
    yield Row(N.REVERTING, E.STOP_FAILED, N.HALTED, None, t.halt("TARGET_WONT_STOP", N.REVERTING))
    yield Row(N.REVERTING, E.SOURCE_SERVING, N.REVERTED, None, t.reverted)
    yield Row(N.REVERTING, E.SOURCE_FAILED, N.HALTED, None, t.halt("SOURCE_WONT_START", N.REVERTING))
    yield Row(N.REVERTING, E.REVERT, N.REVERTING)
    yield Row(N.REVERTED, E.SETTLED, N.IDLE, None, t.settle)
    yield Row(N.REVERTED, E.REVERT, N.REVERTED)
    yield Row(N.HALTED, E.RESUME, N.IDLE, guards.install_revoked, t.give_up_install)
    yield Row(N.HALTED, E.RESUME, N.LAUNCHING, guards.back_to(N.LAUNCHING), t.resume_install)
    yield Row(N.HALTED, E.RESUME, N.REVERTING, guards.back_to(N.REVERTING), t.resume_revert)
    yield Row(N.HALTED, E.RESUME, N.IDLE, None, t.resume_idle)
    yield Row(N.HALTED, E.REVERT, N.REVERTING, guards.can_turn_back, t.resume_revert)
    yield Row(N.HALTED, E.REVERT, N.IDLE, guards.install_superseded, t.give_up_install)
    yield Row(N.HALTED, E.REVERT, N.HALTED)
    yield Row(N.HALTED, E.NODE_STOPPED, N.HALTED, guards.no_source, t.halt("FIRST_INSTALL_FAILED", N.LAUNCHING))
    yield Row(N.HALTED, E.NODE_STOPPED, N.HALTED, guards.source_revoked, t.halt("PREVIOUS_REVOKED", N.REVERTING))
    yield Row(N.HALTED, E.NODE_STOPPED, N.REVERTING, None, t.target_gone_meanwhile)
    yield Row(N.HALTED, E.NODE_SERVING, N.IDLE, guards.waits_for_serving, t.resume_idle)
    yield Row(N.HALTED, E.NODE_SERVING, N.REVERTED, guards.source_returned, t.returned)


def _rows_everywhere() -> Iterable[Row]:
    for name in (N.STAGING, N.STAGED, N.COLLECTING, N.SEALED):
        yield Row(name, E.CHAIN, N.ABANDONED, guards.target_gone, t.abandon)
    for name in (N.LAUNCHING, N.DELIVERING, N.PROBATION):
        yield Row(name, E.CHAIN, N.REVERTING, guards.target_revoked, t.turn_back)
    yield Row(N.REVERTING, E.CHAIN, N.HALTED, guards.source_revoked, t.halt("PREVIOUS_REVOKED", N.REVERTING))
    yield Row(N.HALTED, E.CHAIN, N.HALTED, guards.revoked_while_waiting, t.halt("PREVIOUS_REVOKED", N.REVERTING))
    for name in (N.COLLECTING, N.SEALED):
        yield Row(name, E.HOLD, N.STAGED, None, t.remember_command)
    for name in Name:
        yield Row(name, E.CHAIN, name, None, t.remember_chain)
        for command in (E.HOLD, E.UNHOLD, E.APPROVE, E.OVERRIDE):
            if command is not E.HOLD or name not in (N.COLLECTING, N.SEALED):
                yield Row(name, command, name, None, t.remember_command)
        if name is not N.HALTED:
            yield Row(name, E.RESUME, name)
        yield Row(name, E.RETRY, name, None, t.release_quarantine)
    for name in (N.COLLECTING, N.ABANDONED):
        for kind in (E.NODE_EXITED, E.NODE_START_FAILED):
            yield Row(name, kind, N.HALTED, guards.source_is_hopeless, t.halt("SOURCE_WONT_START", N.IDLE))
    for name in (*KEEPS_NODE, N.HALTED):
        for kind in (E.NODE_EXITED, E.NODE_START_FAILED):
            yield Row(name, kind, name, None, t.count_crash)
    for name in KEEPS_NODE:
        yield Row(name, E.NODE_SERVING, name, None, t.note_serving)
    yield Row(N.HALTED, E.NODE_SERVING, N.HALTED, guards.halted_otherwise, t.note_serving)


TABLE: tuple[Row, ...] = tuple(_rows())
_INDEX: dict[tuple[Name, EventKind], tuple[Row, ...]] = {
    key: tuple(row for row in TABLE if (row.source, row.event) == key) for key in {(r.source, r.event) for r in TABLE}
}


def find_row(state: State, event: Event, budgets: Budgets) -> Row:
    """The row that applies; raises DcupgradeError MACHINE_NO_TRANSITION where there is none."""
    for row in _INDEX.get((state.name, event.kind), ()):
        if row.guard is None or row.guard(state, event, budgets):
            return row
    raise guards.broken(state, event, "the table has no such transition")


def step(state: State, event: Event, budgets: Budgets = DEFAULT_BUDGETS) -> tuple[State, tuple[Effect, ...]]:
    """One transition: the new state, and the effects that it wants and the old one did not.

    Raises DcupgradeError MACHINE_NO_TRANSITION for an event that the table does not know in this state.
    """
    row = find_row(state, event, budgets)
    after = row.action(state, event, budgets) if row.action else state
    after = replace(after, name=row.target) if after.name is not row.target else after
    before = activity(state)
    return after, tuple(effect for effect in activity(after) if effect not in before)


def activity(state: State) -> tuple[Effect, ...]:
    """The effects wanted in a state, in no order: started when newly wanted, stopped when wanted no more."""
    running = state.running.enclave_id if state.running else ""
    target = state.target.enclave_id if state.target else ""
    waits = state.name is N.HALTED and (state.resume_to == N.IDLE or guards.source_may_return(state))
    kept = (Effect(F.KEEP_NODE, running),) if running and (state.name in KEEPS_NODE or waits) else ()
    match state.name:
        case N.IDLE:
            return (*kept, *_idle_activity(state))
        case N.STAGED:
            hold = (state.hold.reason, str(state.hold.until_unix_s)) if state.hold else ("", "")
            words = (state.approved, state.override, *hold)
            return (*kept, Effect(F.GATES, target, words=words))
        case N.REVERTING:
            return (Effect(F.START_SOURCE, running),) if state.target_stopped else (Effect(F.STOP_NODE, target),)
        case N.STOPPING:
            return (Effect(F.STOP_NODE, running),)
        case N.HALTED:
            return (Effect(F.STOP_NODE, target),) if guards.target_may_stop(state) else kept
        case N.STAGING:
            return (*kept, Effect(F.STAGE, target, words=state.target.sources if state.target else ()))
        case _:
            about = running if state.name in (N.ABANDONED, N.COMMITTED, N.REVERTED, N.COLLECTING) else target
            return (*kept, Effect(_WORK[state.name], about, state.key_set_id))


def keeps_node(state: State) -> bool:
    """Whether the running version is to be kept up in this state, and so may be started again at any time."""
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
