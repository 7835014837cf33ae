"""Actions of the upgrade machine: the pure functions from state and event to the new state that its table names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dcupgrade.conditions import HALTED_CODES

from .events import (
    BackoffOver,
    ChainSeen,
    Collected,
    CommandEvent,
    Event,
    FailureEvent,
    HoldCommand,
    NodeExited,
    NodeStartFailed,
    NodeStopped,
    Permitted,
    ReleaseCommand,
    ResumeCommand,
    RevertCommand,
    StageFailed,
)
from .guards import Budgets, EventT, need, offered
from .state import Name, Record, Release, State

Action = Callable[[State, EventT, Budgets], State]
N = Name
TRIES_COUNTED_MAX = 32
"""The count stops here, because it is enough for the longest pause."""


def remember_chain(state: State, event: ChainSeen, _: Budgets) -> State:
    """Store the chain's facts about the relevant releases. New addresses of a release allow a new attempt."""
    facts = event.facts
    before, program = state.chain.program if state.chain else None, facts.program
    if program is not None:
        state = replace(
            state,
            running=_readdressed(state.running, program),
            target=_readdressed(state.target, program),
            previous=_readdressed(state.previous, program),
        )
        if before is not None and before.enclave_id == program.enclave_id and before.sources != program.sources:
            state = _forgive_sources(state, program.enclave_id)
    known = {item.enclave_id for item in (state.running, state.target, state.previous, program) if item}
    kept = tuple(item for item in facts.listed if item[0] in known)
    return replace(state, chain=replace(facts, listed=kept))


def _readdressed(release: Release | None, program: Release) -> Release | None:
    """Return the chain's current form of the release, if the chain names it."""
    return program if release is not None and release.enclave_id == program.enclave_id else release


def _forgive_sources(state: State, enclave_id: str) -> State:
    """Forget failures caused by the addresses, but not failures of the version itself or an operator's revert."""
    record = state.record(enclave_id)
    of_the_version = record.reverted or record.quarantine == "OPERATOR_REVERT"
    return state if of_the_version else state.with_record(Record(enclave_id))


def hold(state: State, event: HoldCommand, _: Budgets) -> State:
    """Keep the hold."""
    return replace(state, hold=event.hold)


def unhold(state: State, _event: Event, _: Budgets) -> State:
    """Forget the hold."""
    return replace(state, hold=None)


def approve(state: State, event: ReleaseCommand, _: Budgets) -> State:
    """Keep the approval of a release that is not in quarantine."""
    return replace(state, approved=event.enclave_id) if _may_be_tried(state, event) else state


def override(state: State, event: ReleaseCommand, _: Budgets) -> State:
    """Keep the override for a release that is not in quarantine."""
    return replace(state, override=event.enclave_id) if _may_be_tried(state, event) else state


def _may_be_tried(state: State, event: ReleaseCommand) -> bool:
    return bool(event.enclave_id) and not state.record(event.enclave_id).quarantine


def release_quarantine(state: State, event: ReleaseCommand, _: Budgets) -> State:
    """Forget the failures of a release: it may be tried again at once."""
    return state.with_record(Record(event.enclave_id))


def count_crash(state: State, event: NodeExited | NodeStartFailed, budgets: Budgets) -> State:
    """Count a failed start or an exit of the running version."""
    return replace(state, crashes=min(state.crashes + 1, budgets.crashes), detail=event.detail or event.code)


def note_serving(state: State, _event: Event, _: Budgets) -> State:
    """The running version serves: the count of crashes in a row restarts at 0."""
    return replace(state, crashes=0, detail="" if state.crashes and not state.reason else state.detail)


def note_request(state: State, event: RevertCommand, _: Budgets) -> State:
    """Keep the revert command until the node has stopped."""
    return replace(state, revert_requested=True, reason="OPERATOR_REVERT", detail=event.reason)


def begin(state: State, event: Event, _: Budgets) -> State:
    """Take the offered release as the target of a new upgrade; earlier commands about it still count."""
    return replace(
        clean(state),
        reason="",
        detail="",
        target=need(offered(state), state, event),
        target_since_unix_s=event.at_unix_s,
        first_install=state.running is None,
    )


def note_keys(state: State, event: Collected, _: Budgets) -> State:
    """Keep the id of the sealed key set."""
    return replace(state, key_set_id=event.keys.key_set_id)


def note_permit(state: State, event: Permitted, _: Budgets) -> State:
    """Keep when the release permit expires."""
    return replace(state, permit_expires_unix_s=event.permit.expires_unix_s)


def count_launch(state: State, _event: Event, _: Budgets) -> State:
    """Count a start of the target."""
    return replace(state, launches=state.launches + 1)


def abandon(state: State, event: FailureEvent, budgets: Budgets) -> State:
    """Give up before the old node was affected, and count the failure of the release.

    Temporary failures (an unreachable mirror or vault) are retried indefinitely with growing pauses; refusals are not.
    """
    target = need(state.target, state, event)
    record = state.record(target.enclave_id)
    record = replace(record, abandoned=min(record.abandoned + 1, TRIES_COUNTED_MAX), waiting=True)
    if isinstance(event, StageFailed) and event.failure.kind == "rejected":
        record = replace(record, quarantine=event.code, waiting=False)
    elif event.failure.kind != "transient" and record.abandoned >= budgets.attempts:
        record = replace(record, quarantine="BUDGET_SPENT", waiting=False)
    state = withdraw(state) if record.quarantine else state
    return replace(state.with_record(record), reason=event.code, detail=event.detail)


def abandon_for_the_chain(state: State, event: ChainSeen, budgets: Budgets) -> State:
    """Give up because the chain names another version or no longer lists the target. Not a failure of the target."""
    target = need(state.target, state, event)
    state = remember_chain(state, event, budgets)
    listed = state.chain is not None and state.chain.lists(target.enclave_id)
    return replace(state, reason="SUPERSEDED" if listed else "TARGET_REVOKED", detail="")


def abandon_by_hand(state: State, event: RevertCommand, _: Budgets) -> State:
    """Give up because of an operator command: the release is quarantined."""
    target = need(state.target, state, event)
    record = replace(state.record(target.enclave_id), quarantine="OPERATOR_REVERT")
    return replace(withdraw(state.with_record(record)), reason="OPERATOR_REVERT", detail=event.reason)


def withdraw(state: State) -> State:
    """Drop approval and override of the target: a new attempt needs a new command."""
    about = state.target.enclave_id if state.target else ""
    return replace(
        state,
        approved="" if state.approved == about else state.approved,
        override="" if state.override == about else state.override,
    )


def turn_back(state: State, event: FailureEvent | NodeExited, _: Budgets) -> State:
    """Store the failure and undo the upgrade."""
    return replace(state, reason=event.code, detail=event.detail)


def turn_back_for_the_chain(state: State, event: ChainSeen, budgets: Budgets) -> State:
    """Undo the upgrade because the target was revoked."""
    return replace(remember_chain(state, event, budgets), reason="TARGET_REVOKED", detail="", target_stopped=False)


def turn_back_on_request(state: State, event: RevertCommand, _: Budgets) -> State:
    """Undo the upgrade because of an operator command."""
    return replace(state, reason="OPERATOR_REVERT", detail=event.reason, revert_requested=True)


def turn_back_after_stop(state: State, _event: NodeStopped, _: Budgets) -> State:
    """Undo the upgrade for a reason that became known while the old node was being stopped."""
    return replace(state, reason="OPERATOR_REVERT" if state.revert_requested else "TARGET_REVOKED")


def turn_back_by_hand(state: State, event: RevertCommand, _: Budgets) -> State:
    """Revert after commit: remove the running version and start the previous one again."""
    return replace(
        clean(state),
        target=state.running,
        running=state.previous,
        previous=None,
        previous_until_unix_s=0.0,
        revert_requested=True,
        reason="OPERATOR_REVERT",
        detail=event.reason,
    )


def note_target_stopped(state: State, _event: Event, _: Budgets) -> State:
    """The new version has stopped; the source may start."""
    return replace(state, target_stopped=True)


def reverted(state: State, event: Event, budgets: Budgets) -> State:
    """Count the failure against the release, and quarantine it when its budget is spent."""
    target = need(state.target, state, event)
    record = state.record(target.enclave_id)
    record = replace(record, reverted=record.reverted + 1, waiting=True)
    if state.revert_requested:
        record = replace(record, quarantine="OPERATOR_REVERT", waiting=False)
    elif record.reverted >= budgets.failures:
        record = replace(record, quarantine="BUDGET_SPENT", waiting=False)
    return replace(withdraw(state).with_record(record), crashes=0)


def returned(state: State, event: Event, budgets: Budgets) -> State:
    """The source started by itself after the revert had halted."""
    return replace(reverted(state, event, budgets), halted="", resume_to="")


def commit(state: State, event: Event, budgets: Budgets) -> State:
    """The target becomes the running version; the source is kept as the previous one."""
    target = need(state.target, state, event)
    return replace(
        withdraw(state).with_record(replace(state.record(target.enclave_id), abandoned=0, reverted=0, quarantine="")),
        running=target,
        previous=state.running,
        previous_until_unix_s=event.at_unix_s + budgets.retention_s if state.running else 0.0,
        crashes=0,
    )


def clean(state: State) -> State:
    """Forget the values of one upgrade, but keep the reason for its end.

    An approval or override names a release and stays valid if an attempt is abandoned.
    """
    return replace(
        state,
        target=None,
        target_since_unix_s=0.0,
        key_set_id="",
        permit_expires_unix_s=0,
        first_install=False,
        launches=0,
        target_stopped=False,
        revert_requested=False,
        revoked_accepted=False,
        halted="",
        resume_to="",
    )


def settle(state: State, _event: Event, _: Budgets) -> State:
    """End one upgrade."""
    return clean(state)


def settle_committed(state: State, _event: Event, _: Budgets) -> State:
    """End one upgrade that succeeded."""
    return replace(clean(state), reason="", detail="")


def backoff_over(state: State, event: BackoffOver, _: Budgets) -> State:
    """The release may be tried again."""
    return state.with_record(replace(state.record(event.enclave_id), waiting=False))


def retired(state: State, _event: Event, _: Budgets) -> State:
    """A revert to the previous version is no longer possible."""
    return replace(state, previous=None, previous_until_unix_s=0.0)


def target_gone_meanwhile(state: State, event: Event, budgets: Budgets) -> State:
    """The new version has ended: continue the revert."""
    return note_target_stopped(replace(state, halted="", resume_to=""), event, budgets)


def halt_locked(state: State, event: FailureEvent, budgets: Budgets) -> State:
    """The new version has stopped, but another process uses the data: the source waits for its end."""
    return note_target_stopped(halt("DATA_LOCKED", N.REVERTING)(state, event, budgets), event, budgets)


def halt(code: str, resume_to: Name) -> Action[Event]:
    """Make an action that halts with the event's condition, else with `code`. `resume` continues at `resume_to`."""

    def action(state: State, event: Event, budgets: Budgets) -> State:
        found = event.code if event.code in HALTED_CODES else code
        if isinstance(event, ChainSeen):
            state = remember_chain(state, event, budgets)
        return replace(state, halted=found, resume_to=resume_to.value, detail=event.detail or event.code)

    action.__name__ = f"halt_{code.lower()}"
    return action


def resume_revert(state: State, event: CommandEvent, _: Budgets) -> State:
    """Continue to revert. Only `resume` accepts a revoked version, and only if that was the condition."""
    accepted = state.revoked_accepted or (isinstance(event, ResumeCommand) and state.halted == "PREVIOUS_REVOKED")
    return replace(state, halted="", resume_to="", revoked_accepted=accepted)


def resume_install(state: State, _event: Event, _: Budgets) -> State:
    """Try the first install again."""
    return replace(state, halted="", resume_to="", launches=0, target_stopped=False)


def resume_idle(state: State, _event: Event, _: Budgets) -> State:
    """Continue with the running version."""
    return replace(clean(state), crashes=0)


def give_up_install(state: State, _event: Event, _: Budgets) -> State:
    """Do not try a revoked first version again. Its files in the data folder stay, and the gates report them."""
    return replace(clean(withdraw(state)), crashes=0)
