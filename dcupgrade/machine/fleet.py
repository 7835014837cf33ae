"""How many nodes of a fleet may upgrade at once, and when none may. Pure: an engine's answer in, a decision out.

A fleet has a number of slots. A node takes one before its old version stops and frees it when its upgrade has ended. A
slot is never taken over: an agent that died in the middle of an upgrade keeps it, so that a bad release stops after as
many hosts as there are slots. A person frees it (`dcupgrade fleet release`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .gates import Shut

OUTCOMES_KEPT = 100
"""How many ends of upgrades the fleet remembers."""
TEXT_MAX = 200
"""Characters of a name or reason that is kept; engines are shared with others."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot that a node holds. `since_unix_s`: when it was taken, by that host's clock."""

    holder: str
    enclave_id: str
    version: str
    since_unix_s: float


@dataclass(frozen=True, slots=True)
class Halt:
    """The operator's stop for the whole fleet."""

    who: str
    why: str
    at_unix_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the upgrade of one node ended: `outcome` is "committed", "reverted" or "abandoned"."""

    node: str
    enclave_id: str
    version: str
    outcome: str
    at_unix_s: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """What an engine says of one fleet: a place for each slot (None: free), the stop, and the newest outcomes."""

    slots: tuple[Slot | None, ...]
    halt: Halt | None = None
    outcomes: tuple[Outcome, ...] = ()

    def slot_of(self, node: str) -> int | None:
        """The number of the slot that a node holds."""
        return next((n for n, slot in enumerate(self.slots) if slot is not None and slot.holder == node), None)

    def reverted(self, enclave_id: str) -> tuple[str, ...]:
        """The nodes whose last upgrade to a release was reverted."""
        last: dict[str, str] = {}
        for item in sorted(self.outcomes, key=lambda outcome: outcome.at_unix_s):
            if item.enclave_id == enclave_id:
                last[item.node] = item.outcome
        return tuple(sorted(node for node, outcome in last.items() if outcome == "reverted"))


@dataclass(frozen=True, slots=True)
class Take:
    """Go: the slot with this number is the node's already (`held`), or is to be taken."""

    number: int
    held: bool


def decide(fleet: Fleet, node: str, enclave_id: str, *, reverts_max: int, draw: float) -> Take | Shut:
    """Whether a node may upgrade now. `draw` in [0, 1) picks among free slots, so that nodes do not race for the first.

    Reverts are counted, not announced: once `reverts_max` nodes went back from a release, nobody begins it any more.
    So no agent needs the right to stop a fleet.
    """
    if fleet.halt is not None:
        return Shut("FLEET_HALTED", f"{fleet.halt.who or 'an operator'}: {fleet.halt.why}")
    back = fleet.reverted(enclave_id)
    if len(back) >= reverts_max:
        return Shut("FLEET_HALTED", f"{len(back)} nodes went back from this release: {', '.join(back[:5])}")
    held = fleet.slot_of(node)
    if held is not None:
        return Take(held, held=True)
    free = [number for number, slot in enumerate(fleet.slots) if slot is None]
    if not free:
        holders = ", ".join(sorted(slot.holder for slot in fleet.slots if slot is not None)[:5])
        return Shut(
            "FLEET_FULL", f"all {len(fleet.slots)} slots are held, by {holders}" if holders else "it has no slots"
        )
    return Take(free[int(draw * len(free))], held=False)


def to_json(value: Slot | Halt | Outcome) -> dict[str, Any]:
    """The JSON form of a slot, a halt or an outcome."""
    return asdict(value)


def slot_from_json(data: Mapping[str, Any]) -> Slot:
    """Decode a slot. Raises ValueError for what is none."""
    texts = (_text(data, "holder"), _text(data, "enclave_id"), _text(data, "version"))
    return Slot(*texts, _number(data, "since_unix_s"))


def halt_from_json(data: Mapping[str, Any]) -> Halt:
    """Decode a halt. Raises ValueError for what is none."""
    return Halt(_text(data, "who"), _text(data, "why"), _number(data, "at_unix_s"))


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    """Decode an outcome. Raises ValueError for what is none."""
    texts = (_text(data, "node"), _text(data, "enclave_id"), _text(data, "version"), _text(data, "outcome"))
    return Outcome(*texts, _number(data, "at_unix_s"))


def newest(outcomes: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
    """The outcomes that are worth keeping, oldest first."""
    return tuple(sorted(outcomes, key=lambda item: item.at_unix_s))[-OUTCOMES_KEPT:]


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is not text")
    return value[:TEXT_MAX]


def _number(data: Mapping[str, Any], key: str) -> float:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise ValueError(f"{key} is not a time")
    return float(value)
