"""Gates: whether an upgrade may begin now; if not, why, and when to check again. Pure: time is an argument.

Windows are weekly, in local time of an IANA zone, and may span midnight. If the clock is set forward over an opening
time, the window opens at the same instant as without the change (02:30 at 03:30). If a local time occurs twice, it
opens at the first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from .state import Hold

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
RECHECK_MAX_S = 60.0
"""The longest wait before the gates are checked again."""


@dataclass(frozen=True, slots=True)
class Window:
    """A weekly window: opens on `days` ("mon" to "sun") at `start` ("HH:MM", local time of `zone`)."""

    days: tuple[str, ...]
    start: str
    duration_s: int
    zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class GateRules:
    """The gates' settings, which are the same for every release."""

    node_id: str = ""
    approval: bool = False
    windows: tuple[Window, ...] = ()
    stagger_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Shut:
    """One shut gate: a stable code, the reason for an operator, and when it opens by itself (None: never).

    Objections of the host's preflight and of the fleet are also such values; each has its own code.
    """

    code: str
    detail: str
    opens_unix_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: {"code", "detail", "opens_unix_s"}."""
        return asdict(self)


def shut_gates(
    rules: GateRules,
    *,
    enclave_id: str,
    since_unix_s: float,
    now_unix_s: float,
    hold: Hold | None,
    approved: str,
    override: str,
) -> tuple[Shut, ...]:
    """Return the gates that are shut for this release now. An override opens all gates of this function."""
    if override and override == enclave_id:
        return ()
    shut: list[Shut] = []
    if hold is not None and not (hold.until_unix_s and now_unix_s >= hold.until_unix_s):
        shut.append(Shut("GATE_HELD", f"{hold.who or 'an operator'}: {hold.reason}", hold.until_unix_s or None))
    if rules.approval and approved != enclave_id:
        shut.append(Shut("GATE_APPROVAL_MISSING", "waits for `dcupgrade approve`"))
    opened, closes, opens_next = window_at(rules.windows, now_unix_s)
    if opened is None:
        shut.append(Shut("GATE_WINDOW_SHUT", "outside the maintenance windows", opens_next))
    turn = turn_at(rules, enclave_id, since_unix_s, opened if opened is not None else opens_next, closes)
    # If the release was first seen in the future, the clock was set back since: do not wait for the staggering.
    if rules.stagger_s and since_unix_s <= now_unix_s < turn:
        shut.append(Shut("GATE_NOT_MY_TURN", "this node's turn comes later", turn))
    return tuple(shut)


def recheck_after_s(shut: Sequence[Shut], now_unix_s: float) -> float:
    """Return the seconds until the gates must be checked again: until the next one opens, at most RECHECK_MAX_S."""
    waits = [item.opens_unix_s - now_unix_s for item in shut if item.opens_unix_s is not None]
    return max(0.05, min([RECHECK_MAX_S, *(wait for wait in waits if wait > 0)]))


def fraction(node_id: str, enclave_id: str) -> float:
    """Return this node's position among all nodes for this release: in [0, 1), from SHA-256 of both ids."""
    digest = hashlib.sha256(b"dcupgrade turn v1\0" + node_id.encode() + b"\0" + enclave_id.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def turn_at(
    rules: GateRules, enclave_id: str, since_unix_s: float, opened: float | None, closes: float | None
) -> float:
    """Return when this node's turn begins: its fraction of the staggering time after the release or the opening.

    Within a window, the staggering is shortened so that every node's turn comes before the window closes.
    """
    base = max(since_unix_s, opened) if opened is not None else since_unix_s
    spread = rules.stagger_s if closes is None else min(rules.stagger_s, max(0.0, closes - base))
    return base + fraction(rules.node_id, enclave_id) * spread


def window_at(windows: Sequence[Window], now_unix_s: float) -> tuple[float | None, float | None, float | None]:
    """Return (opened, closes, opens next), Unix seconds. Without windows it is always open: (0, None, None)."""
    if not windows:
        return 0.0, None, None
    current: list[tuple[float, float]] = []
    coming: list[float] = []
    for window in windows:
        for opens in _openings(window, now_unix_s):
            if opens <= now_unix_s < opens + window.duration_s:
                current.append((opens, opens + window.duration_s))
            elif opens > now_unix_s:
                coming.append(opens)
    opens_next = min(coming) if coming else None
    if not current:
        return None, None, opens_next
    opened, closes = max(current, key=lambda item: item[1])
    return opened, closes, opens_next


def _openings(window: Window, now_unix_s: float) -> list[float]:
    """Return the openings from eight days before now (a window may last a week) to eight days after it."""
    zone = ZoneInfo(window.zone)
    hour, minute = (int(part) for part in window.start.split(":"))
    today = datetime.fromtimestamp(now_unix_s, zone).date()
    out = []
    for offset in range(-8, 9):
        day = today + timedelta(days=offset)
        if DAYS[day.weekday()] not in window.days:
            continue
        local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
        out.append(local.astimezone(UTC).timestamp())
    return out
