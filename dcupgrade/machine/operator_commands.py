"""An operator's words (hold, approve, …) before they are queued: what cannot be taken up must not get into the journal.

Pure. Command line and HTTP API both come by here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .events import EventKind

ARGUMENTS = {
    "hold": ("reason", "until_unix_s"),
    "unhold": ("reason",),
    "approve": ("reason", "enclave_id"),
    "override": ("reason", "enclave_id"),
    "resume": ("reason",),
    "revert": ("reason",),
}
"""The words, and what each may carry."""
TEXT_CHARS_MAX = 1000
_ENCLAVE_ID = re.compile(r"[0-9a-f]{64}\Z")


def verify_word(kind: str, who: object, arguments: Mapping[str, object]) -> dict[str, Any]:
    """The arguments, without those that are None; raises ValueError with the reason, for a reader."""
    if kind not in ARGUMENTS:
        raise ValueError(f"there is no action {kind!r}; there are {', '.join(ARGUMENTS)}")
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


WORDS = {
    "hold": EventKind.HOLD,
    "unhold": EventKind.UNHOLD,
    "approve": EventKind.APPROVE,
    "override": EventKind.OVERRIDE,
    "resume": EventKind.RESUME,
    "revert": EventKind.REVERT,
}
"""Commands that an operator can queue in the journal."""


@dataclass(frozen=True, slots=True)
class Command:
    """An operator's word, queued in the journal by the command line or the status page."""

    id: int
    kind: str
    who: str
    arguments: Mapping[str, Any]
    at_unix_s: float
