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
from .guards import newer
from .state import Hold, State

ARGUMENTS = {
    "hold": ("reason", "until_unix_s"),
    "unhold": ("reason",),
    "approve": ("reason", "enclave_id"),
    "override": ("reason", "enclave_id"),
    "resume": ("reason",),
    "revert": ("reason",),
}
"""The commands, and what each may carry."""
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
    "resume": EventKind.RESUME,
    "revert": EventKind.REVERT,
}


@dataclass(frozen=True, slots=True)
class Command:
    """An operator command, queued in the journal by the command line or the HTTP API."""

    id: int
    kind: str
    who: str
    arguments: Mapping[str, Any]
    at_unix_s: float


def event_of(command: Command, state: State) -> Event:
    """The event that a queued command means; WORD_REFUSED for one that means nothing, so that later ones are heard."""
    try:
        return _meaning_of(command, state)
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        return Event(EventKind.WORD_REFUSED, who=command.who, detail=f"{command.kind}: {error}")


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
    if kind in (EventKind.APPROVE, EventKind.OVERRIDE):
        about = state.target or newer(state)
        enclave_id = str(arguments.get("enclave_id") or (about.enclave_id if about else ""))
        return Event(kind, enclave_id, who=command.who, detail=detail)
    return Event(kind, who=command.who, detail=detail)
