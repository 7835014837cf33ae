"""Operator commands (hold, approve, …): their arguments and their events. Pure.

The command line and the HTTP API check a command here before they queue it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcupgrade.printable import storable

from .events import (
    ApproveCommand,
    CommandEvent,
    CommandRefused,
    Event,
    HoldCommand,
    OverrideCommand,
    ReleaseCommand,
    RestartCommand,
    ResumeCommand,
    RetryCommand,
    RevertCommand,
    UnholdCommand,
)
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
"""The commands and their arguments."""
LIFETIME_S = 300.0
"""A queued command that acts is refused if it is older, because the situation may have changed."""
LASTING = ("hold", "unhold")
"""These commands never expire: they describe a wanted condition, not an action."""
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
        if storable(value) != value:
            raise ValueError(f"{name} is not UTF-8 text: {storable(value)}")
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


OF_A_RELEASE: dict[str, type[ReleaseCommand]] = {
    "approve": ApproveCommand,
    "override": OverrideCommand,
    "retry": RetryCommand,
}


@dataclass(frozen=True, slots=True)
class Command:
    """An operator command, queued in the journal by the command line or the HTTP API.

    If `is_damaged`, the journal's row is damaged: only its number is known, and the command is refused.
    """

    id: int
    kind: str
    who: str
    arguments: Mapping[str, Any]
    at_unix_s: float
    is_damaged: bool = False

    @property
    def expires_unix_s(self) -> float | None:
        """Time at which the command expires if it still waits; None for one that never does."""
        return None if self.kind in LASTING else self.at_unix_s + LIFETIME_S

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, for the list of waiting commands."""
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
    """The outcome of a command: `text` for an operator, and `code` if it was refused."""

    accepted: bool
    code: str
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, as the journal stores it."""
        return {"accepted": self.accepted, "code": self.code, "text": self.text}


def event_of(command: Command, state: State, now_unix_s: float) -> CommandEvent:
    """Return the event of a queued command. Raises CommandRefused if it is damaged, invalid or too old.

    An invalid command is rejected without blocking the commands behind it.
    """
    if command.is_damaged:
        why = f"command {command.id} is not what was written into the journal; give it again"
        return CommandRefused(command.who, refusal="JOURNAL_ROW_DAMAGED", why=why)
    try:
        if command.expires_unix_s is not None and now_unix_s > command.expires_unix_s:
            return _expired(command.kind, command.who)
        return _meaning_of(command, state)
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        return CommandRefused(command.who, refusal="COMMAND_INVALID", why=f"{command.kind}: {error}")


def in_time(event: CommandEvent, given_unix_s: float, now_unix_s: float) -> CommandEvent:
    """Return the event of a command that had to wait for the machine; CommandRefused if it has expired since."""
    lasts = isinstance(event, CommandRefused) or event.kind in LASTING
    return event if lasts or now_unix_s <= given_unix_s + LIFETIME_S else _expired(event.kind, event.who)


def _expired(kind: str, who: str) -> CommandRefused:
    why = f"{kind}: it waited for longer than {LIFETIME_S:.0f} s; give it again if it is still wanted"
    return CommandRefused(who, refusal="COMMAND_EXPIRED", why=why)


def _meaning_of(command: Command, state: State) -> CommandEvent:
    arguments, who = command.arguments, command.who
    reason = str(arguments.get("reason", ""))
    match command.kind:
        case "hold":
            until_unix_s = float(arguments.get("until_unix_s") or 0.0)
            if not math.isfinite(until_unix_s):
                raise ValueError(f"until_unix_s is {until_unix_s}")
            return HoldCommand(who, reason, hold=Hold(reason, who, until_unix_s))
        case "unhold":
            return UnholdCommand(who, reason)
        case "resume":
            return ResumeCommand(who, reason)
        case "revert":
            return RevertCommand(who, reason)
        case "restart":
            return RestartCommand(who, reason)
        case "approve" | "override" | "retry":
            about = state.target or newer_release(state)
            enclave_id = str(arguments.get("enclave_id") or (about.enclave_id if about else ""))
            return OF_A_RELEASE[command.kind](who, reason, enclave_id)
        case _:
            raise ValueError("there is no such command")


def outcome_of(before: State, event: Event, after: State) -> Outcome:
    """Return the outcome of the command that became `event`."""
    match event:
        case HoldCommand():
            return _done("no upgrade is begun from now on")
        case UnholdCommand():
            return _done("the hold is lifted" if before.hold else "nothing was held")
        case ApproveCommand() | OverrideCommand():
            return _outcome_for_release(before, event)
        case RetryCommand():
            record = before.record(event.enclave_id)
            waited = record.quarantine or record.waiting
            return _done(f"{event.enclave_id} may be tried again" if waited else "nothing was in quarantine")
        case ResumeCommand() if not before.halted:
            return _done("nothing was halted")
        case ResumeCommand() if after.halted:
            return Outcome(False, after.halted, after.detail)
        case ResumeCommand():
            return _done(f"continues in state {after.name.value}")
        case RevertCommand():
            return _outcome_of_revert(before, event, after)
        case RestartCommand():
            return _outcome_of_restart(before, event)
        case _:
            return Outcome(False, event.code, event.detail)


def _outcome_of_restart(before: State, event: RestartCommand) -> Outcome:
    if refused := refusal_of_restart(before):
        return refused
    if event.code:
        return Outcome(False, event.code, event.detail)
    return _done("the node is stopped and started again now")


def refusal_of_restart(state: State) -> Outcome | None:
    """Return why the node must not be started or restarted in this state; None if it may be."""
    if keeps_node(state):
        return None
    if state.running is None and state.name is Name.IDLE:
        return Outcome(False, "NODE_NOT_KEPT", "no node is installed")
    why = f"halted: {state.halted}" if state.halted else f"an upgrade is in state {state.name.value}"
    return Outcome(False, "NODE_NOT_KEPT", f"{why}, in which the upgrade itself stops and starts nodes")


def _outcome_for_release(before: State, event: ReleaseCommand) -> Outcome:
    if not event.enclave_id:
        return Outcome(False, "NO_RELEASE_SEEN", "the chain names no release that is newer than the running one")
    quarantine = before.record(event.enclave_id).quarantine
    if quarantine:
        why = f"{event.enclave_id} is in quarantine ({quarantine}); `retry` releases it, and only that"
        return Outcome(False, "RELEASE_QUARANTINED", why)
    return _done(f"noted for {event.enclave_id}")


def _outcome_of_revert(before: State, event: RevertCommand, after: State) -> Outcome:
    if before.name in (Name.IDLE, Name.COMMITTED) and after.name is before.name:
        return Outcome(False, "REVERT_IMPOSSIBLE", event.files_damaged or "there is nothing to go back to")
    if after.halted:
        return Outcome(False, after.halted, after.detail)
    if before.name in (Name.REVERTING, Name.REVERTED, Name.ABANDONED):
        return _done("the machine was going back already")
    return _done("goes back once the old version has stopped" if after.name is Name.STOPPING else "goes back now")


def _done(text: str) -> Outcome:
    return Outcome(True, "", text)
