"""Guards of the transition table: questions about state and event, answered without side effects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from chain_watcher.proof.release import newer
from dcupgrade.conditions import HALTED_CODES
from dcupgrade.errors import DcupgradeError

from .events import ChainSeen, Event, FailureEvent, NodeExited, RevertCommand
from .state import ChainFacts, Name, Release, State


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits of attempts before the machine gives up.

    `attempts`: abandoned attempts of a release before it is quarantined. `failures`: reverted attempts of it.
    `launches`: starts of the new version within one upgrade. `crashes`: failed starts of the running version in a row
    before an upgrade that needs it stops. `retention_s`: how long a revert to the previous version is possible.
    """

    attempts: int = 5
    failures: int = 1
    launches: int = 3
    crashes: int = 5
    retention_s: float = 1209600.0


EventT = TypeVar("EventT", bound=Event)
Guard = Callable[[State, EventT, Budgets], bool]
N = Name


MAY_PASS = ("SOURCE_WONT_START", "SOURCE_SLOT_DAMAGED", "KEYS_UNREACHABLE", "NO_KEYS_ANYWHERE", "DATA_LOCKED")
"""Conditions during a revert in which the source may still start later, for example when a mirror or the vault is back.

They raise an alarm; meanwhile the machine retries the source indefinitely.
"""


def newer_release(state: State) -> Release | None:
    """Return the release on the chain if it is signed and newer than the running one.

    A running version that is not listed counts by the height that it had when it was begun: an endpoint may show a
    state of the chain from before that.
    """
    program = state.chain.program if state.chain else None
    if program is None or state.chain is None or not state.chain.lists(program.enclave_id):
        return None
    if state.running is None:
        return program
    if program.enclave_id == state.running.enclave_id:
        return None
    height = dict(state.chain.listed).get(state.running.enclave_id, state.running.added_height or None)
    return program if newer(height, program.added_height) else None


def is_newer(release: Release, running: Release | None, listed: Mapping[str, int]) -> bool:
    """Tell whether a release, perhaps not final, is newer than the running one. `listed`: final lowest heights."""
    height = listed.get(release.enclave_id, release.added_height)
    return newer(listed.get(running.enclave_id) if running else None, height)


def offered(state: State) -> Release | None:
    """Return the newer release on the chain, unless it is quarantined or in backoff."""
    program = newer_release(state)
    if program is None:
        return None
    record = state.record(program.enclave_id)
    return None if record.quarantine or record.waiting else program


def chain_now(state: State, event: Event) -> ChainFacts | None:
    """Return the chain's facts at this event; None before the first finalized block."""
    return event.facts if isinstance(event, ChainSeen) else state.chain


def target_gone(state: State, event: ChainSeen, _: Budgets) -> bool:
    """The target is no longer the version to run, or no longer signed."""
    facts = event.facts
    target = need(state.target, state, event)
    return facts.program is None or facts.program.enclave_id != target.enclave_id or not facts.lists(target.enclave_id)


def target_revoked(state: State, event: Event, _: Budgets) -> bool:
    """The network no longer signs the target."""
    facts = chain_now(state, event)
    target = need(state.target, state, event)
    return facts is not None and not facts.lists(target.enclave_id)


def must_turn_back(state: State, event: Event, budgets: Budgets) -> bool:
    """Between permit and stop, the target was revoked or an operator requested a revert."""
    return state.revert_requested or target_revoked(state, event, budgets)


def first_install(state: State, _event: Event, _: Budgets) -> bool:
    """No version runs whose keys the target would need."""
    return state.first_install


def no_source(state: State, _event: Event, _: Budgets) -> bool:
    """There is no version to revert to."""
    return state.running is None


def source_revoked(state: State, event: Event, _: Budgets) -> bool:
    """The version to revert to is revoked, and no operator has accepted that."""
    facts = chain_now(state, event)
    revoked = state.running is not None and facts is not None and not facts.lists(state.running.enclave_id)
    return revoked and not state.revoked_accepted


def needs_a_person(_state: State, event: FailureEvent, _: Budgets) -> bool:
    """The failure is a named condition: a retry would not help."""
    return event.code in HALTED_CODES


def source_is_hopeless(state: State, _event: Event, budgets: Budgets) -> bool:
    """The running version failed to start as often as the budget allows."""
    return state.crashes + 1 >= budgets.crashes


def may_relaunch(state: State, _event: Event, budgets: Budgets) -> bool:
    """The target may be started once more within this upgrade."""
    return state.launches < budgets.launches


def host_rebooted(state: State, event: NodeExited, budgets: Budgets) -> bool:
    """The target's process ended with the host, not by itself."""
    return event.rebooted and may_relaunch(state, event, budgets)


def has_previous(state: State, event: RevertCommand, _: Budgets) -> bool:
    """There is a previous version, within its retention time, not revoked, and with its files undamaged."""
    kept = state.previous is not None and event.at_unix_s <= state.previous_until_unix_s
    return kept and not event.files_damaged and not state.revoked(state.previous)


def waits_for_serving(state: State, _event: Event, _: Budgets) -> bool:
    """The condition has ended by itself: the running version was down for a temporary reason and serves again."""
    return state.halted in MAY_PASS and state.resume_to == N.IDLE


def source_may_return(state: State) -> bool:
    """The revert halted for a reason that may pass, and the new version has stopped: retry the source indefinitely."""
    allowed = state.revoked_accepted or not state.revoked(state.running)
    return allowed and state.resume_to == N.REVERTING and state.target_stopped and state.halted in MAY_PASS


def target_may_stop(state: State) -> bool:
    """The revert halted because the new version could not be stopped: retry until it has stopped."""
    return state.resume_to == N.REVERTING and not state.target_stopped and state.halted != "PREVIOUS_REVOKED"


def only_locked(state: State, event: FailureEvent, budgets: Budgets) -> bool:
    """The process is gone and the source may start, but another process holds the data."""
    may_start = state.running is not None and not source_revoked(state, event, budgets)
    return may_start and event.code == "DATA_LOCKED"


def source_returned(state: State, _event: Event, _: Budgets) -> bool:
    """The source serves, so the revert is complete."""
    return source_may_return(state)


def halted_otherwise(state: State, event: Event, budgets: Budgets) -> bool:
    """Any other condition stays until an operator command."""
    return not waits_for_serving(state, event, budgets) and not source_may_return(state)


def revoked_while_waiting(state: State, event: Event, budgets: Budgets) -> bool:
    """The source was revoked during the indefinite retries: an operator must know that now."""
    waits = state.resume_to == N.REVERTING and state.target_stopped and state.halted != "PREVIOUS_REVOKED"
    return waits and source_revoked(state, event, budgets)


def back_to(name: Name) -> Guard[Event]:
    """Return a guard that holds if the halted upgrade must continue in state `name`."""

    def guard(state: State, _event: Event, _: Budgets) -> bool:
        return state.resume_to == name

    guard.__name__ = f"halted_before_{name.value}"
    return guard


def install_revoked(state: State, event: Event, budgets: Budgets) -> bool:
    """The first install failed, and its release was revoked since."""
    return state.resume_to == N.LAUNCHING and target_revoked(state, event, budgets)


def install_superseded(state: State, _event: Event, _: Budgets) -> bool:
    """The first install failed, and the chain names another release to install."""
    program = newer_release(state)
    about = state.target.enclave_id if state.target else ""
    return state.resume_to == N.LAUNCHING and program is not None and program.enclave_id != about


def can_turn_back(state: State, event: Event, budgets: Budgets) -> bool:
    """The halted upgrade was reverting, and halted for another reason."""
    return state.resume_to == N.REVERTING and not source_revoked(state, event, budgets)


def need(release: Release | None, state: State, event: Event) -> Release:
    """Return the release. Raises MACHINE_NO_TRANSITION if the state should name one and does not."""
    if release is None:
        raise broken(state, event, "the state names no release for it")
    return release


def broken(state: State, event: Event, why: str) -> DcupgradeError:
    """Make the error for an event without a transition."""
    return DcupgradeError(
        code="MACHINE_NO_TRANSITION",
        what=f"event {event.kind} in state {state.name.value}",
        why=why,
        action="This is a fault of the program: keep the journal and report it.",
        kind="invariant",
    )
