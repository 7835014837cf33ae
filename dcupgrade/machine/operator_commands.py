"""Operator commands (hold, approve, …): which there are, what each may carry, and the event that each means. Pure.

Command line and HTTP API check a command here before they queue it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .events import Event, EventKind
from .guards import newer_release
from .state import Hold, Name, State
from .table import keeps_node

ARGUMENTS = {
    "hold": ("reason", "until_unix_s"),
    "unhold": ("reason",),
    "approve": ("reason", "enclave_id"),
    "override": ("reason", "enclave_id"),
    "retry": ("reason", "enclave_id"),
    "resume": ("reason",),
    "revert": ("reason",),
    "restart": ("reason",),
}
"""The commands, and what each may carry."""
LIFETIME_S = 300.0
"""A queued command that acts is refused when it is older: the situation that it was given for has passed.

`hold` and `unhold` never expire: they say how things are to be, not what to do now.
"""
TEXT_CHARS_MAX = 1000
_ENCLAVE_ID = re.compile(r"[0-9a-f]{64}\Z")


def require_valid(kind: str, who: object, arguments: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments without those that are None. Raises ValueError with the reason, for a reader."""
    if kind not in ARGUMENTS:
        raise ValueError(f"there is no command {kind!r}; there are {', '.join(ARGUMENTS)}")
    given = {name: value for name, value in arguments.items() if value is not None}
    if unknown := sorted(set(given) - set(ARGUMENTS[kind])):
        raise ValueError(f"{kind} has no {unknown[0]!r}; it takes {', '.join(ARGUMENTS[kind])}")
    for name, value in {"who": who, "reason": given.get("reason", "")}.items():
        if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX:
            raise ValueError(f"{name} is not text of at most {TEXT_CHARS_MAX} characters")
    until = given.get("until_unix_s", 0)
    if (
        isinstance(until, bool)
        or not isinstance(until, int | float)
        or not 0 <= until < 1e11
        or not math.isfinite(until)
    ):
        raise ValueError("until_unix_s is not a time in Unix seconds")
    enclave_id = given.get("enclave_id", "")
    if not isinstance(enclave_id, str) or (enclave_id and not _ENCLAVE_ID.match(enclave_id)):
        raise ValueError(
            "enclave_id is not 64 lower-case hexadecimal digits; leave it out for the release on the chain"
        )
    return given


KINDS = {
    "hold": EventKind.HOLD,
    "unhold": EventKind.UNHOLD,
    "approve": EventKind.APPROVE,
    "override": EventKind.OVERRIDE,
    "retry": EventKind.RETRY,
    "resume": EventKind.RESUME,
    "revert": EventKind.REVERT,
    "restart": EventKind.RESTART,
}


@dataclass(frozen=True, slots=True)
class Command:
    """An operator command, queued in the journal by the command line or the HTTP API."""

    id: int
    kind: str
    who: str
    arguments: Mapping[str, Any]
    at_unix_s: float

    @property
    def expires_unix_s(self) -> float | None:
        """When the command is refused if it still waits; None for one that never is."""
        return None if self.kind in ("hold", "unhold") else self.at_unix_s + LIFETIME_S

    def to_json(self) -> dict[str, Any]:
        """JSON form, for a list of what waits."""
        return {
            "id": self.id,
            "kind": self.kind,
            "who": self.who,
            "arguments": dict(self.arguments),
            "at_unix_s": self.at_unix_s,
            "expires_unix_s": self.expires_unix_s,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command: `text` for a reader, and where it was refused, `code`."""

    accepted: bool
    code: str
    text: str

    def to_json(self) -> dict[str, Any]:
        """JSON form, as the journal stores it."""
        return {"accepted": self.accepted, "code": self.code, "text": self.text}


def event_of(command: Command, state: State, now_unix_s: float) -> Event:
    """The event that a queued command means; WORD_REFUSED for one that is invalid or too old.

    An invalid command is rejected without blocking the commands behind it.
    """
    try:
        if command.expires_unix_s is not None and now_unix_s > command.expires_unix_s:
            why = f"{command.kind}: it waited for longer than {LIFETIME_S:.0f} s; give it again if it is still wanted"
            return Event(EventKind.WORD_REFUSED, who=command.who, code="COMMAND_EXPIRED", detail=why)
        return _meaning_of(command, state)
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        why = f"{command.kind}: {error}"
        return Event(EventKind.WORD_REFUSED, who=command.who, code="COMMAND_INVALID", detail=why)


def _meaning_of(command: Command, state: State) -> Event:
    arguments = command.arguments
    detail = str(arguments.get("reason", ""))
    if command.kind not in KINDS:
        raise ValueError("there is no such command")
    kind = KINDS[command.kind]
    if kind is EventKind.HOLD:
        until_unix_s = float(arguments.get("until_unix_s") or 0.0)
        if not math.isfinite(until_unix_s):
            raise ValueError(f"until_unix_s is {until_unix_s}")
        return Event(kind, who=command.who, detail=detail, hold=Hold(detail, command.who, until_unix_s))
    if kind in (EventKind.APPROVE, EventKind.OVERRIDE, EventKind.RETRY):
        about = state.target or newer_release(state)
        enclave_id = str(arguments.get("enclave_id") or (about.enclave_id if about else ""))
        return Event(kind, enclave_id, who=command.who, detail=detail)
    return Event(kind, who=command.who, detail=detail)


def outcome_of(before: State, event: Event, after: State) -> Outcome:
    """What the command that became `event` came to."""
    match event.kind:
        case EventKind.HOLD:
            return _done("no upgrade is begun from now on")
        case EventKind.UNHOLD:
            return _done("the hold is lifted" if before.hold else "nothing was held")
        case EventKind.APPROVE | EventKind.OVERRIDE:
            return _outcome_for_release(before, event)
        case EventKind.RETRY:
            record = before.record(event.enclave_id)
            waited = record.quarantine or record.waiting
            return _done(f"{event.enclave_id} may be tried again" if waited else "nothing was in quarantine")
        case EventKind.RESUME if not before.halted:
            return _done("nothing was halted")
        case EventKind.RESUME if after.halted:
            return Outcome(False, after.halted, after.detail)
        case EventKind.RESUME:
            return _done(f"continues in state {after.name.value}")
        case EventKind.REVERT:
            return _outcome_of_revert(before, event, after)
        case EventKind.RESTART:
            return _outcome_of_restart(before, event)
        case _:
            return Outcome(False, event.code, event.detail)


def _outcome_of_restart(before: State, event: Event) -> Outcome:
    if refused := refusal_of_restart(before):
        return refused
    if event.code:
        return Outcome(False, event.code, event.detail)
    return _done("the node is stopped and started again now")


def refusal_of_restart(state: State) -> Outcome | None:
    """Why nobody may start the node, or start it again, in this state; None where it may be."""
    if keeps_node(state):
        return None
    if state.running is None and state.name is Name.IDLE:
        return Outcome(False, "NODE_NOT_KEPT", "no node is installed")
    why = f"halted: {state.halted}" if state.halted else f"an upgrade is in state {state.name.value}"
    return Outcome(False, "NODE_NOT_KEPT", f"{why}, in which the upgrade itself stops and starts nodes")


def _outcome_for_release(before: State, event: Event) -> Outcome:
    if not event.enclave_id:
        return Outcome(False, "NO_RELEASE_SEEN", "the chain names no release that is newer than the running one")
    quarantine = before.record(event.enclave_id).quarantine
    if quarantine:
        why = f"{event.enclave_id} is in quarantine ({quarantine}); `retry` releases it, and only that"
        return Outcome(False, "RELEASE_QUARANTINED", why)
    return _done(f"noted for {event.enclave_id}")


def _outcome_of_revert(before: State, event: Event, after: State) -> Outcome:
    if before.name in (Name.IDLE, Name.COMMITTED) and after.name is before.name:
        return Outcome(False, "REVERT_IMPOSSIBLE", event.detail if event.code else "there is nothing to go back to")
    if after.halted:
        return Outcome(False, after.halted, after.detail)
    if before.name in (Name.REVERTING, Name.REVERTED, Name.ABANDONED):
        return _done("the machine was going back already")
    return _done("goes back once the old version has stopped" if after.name is Name.STOPPING else "goes back now")


def _done(text: str) -> Outcome:
    return Outcome(True, "", text)
