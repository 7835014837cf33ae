"""How many nodes of a fleet may upgrade at once, and when none may. Pure: the engine's state in, a decision out.

A fleet has a number of slots. A node takes one before its old version stops and frees it when its upgrade has ended. A
slot is never taken over: an agent that died in the middle of an upgrade keeps it, so that a bad release stops after as
many hosts as there are slots. An operator frees it (`dcupgrade fleet release`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .gates import Shut

OUTCOMES_KEPT = 100
"""How many ends of upgrades the fleet remembers."""
VERSIONS_SHOWN, WAITING_SHOWN = 20, 100
"""How many versions and waiting nodes status, page and metrics name."""
LAST_UNIX_S = 253_402_300_799.0
"""The last second of the year 9999: a larger number, written by hand, is not a valid time."""
TEXT_MAX = 200
"""Largest length of a stored name or reason, because engines are shared with others."""


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
class Member:
    """A node's own report: the version that it runs, and the version for which it waits for a slot, if any."""

    node: str
    version: str
    waits_for: str
    at_unix_s: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """An engine's state of one fleet: the holder of each slot (None: free), the halt, and the stored outcomes."""

    slots: tuple[Slot | None, ...]
    halt: Halt | None = None
    outcomes: tuple[Outcome, ...] = ()

    def slot_of(self, node: str) -> int | None:
        """The number of the slot that a node holds."""
        return next((n for n, slot in enumerate(self.slots) if slot is not None and slot.holder == node), None)

    def newest(self) -> tuple[Outcome, ...]:
        """The last outcomes by the clocks of their hosts, newest first."""
        return tuple(sorted(self.outcomes, key=lambda item: item.at_unix_s, reverse=True))[:OUTCOMES_KEPT]

    def reverted(self, enclave_id: str) -> tuple[str, ...]:
        """The nodes whose last upgrade to a release was reverted."""
        last: dict[str, str] = {}
        for item in sorted(self.outcomes, key=lambda outcome: outcome.at_unix_s):
            if item.enclave_id == enclave_id:
                last[item.node] = item.outcome
        return tuple(sorted(node for node, outcome in last.items() if outcome == "reverted"))


@dataclass(frozen=True, slots=True)
class Take:
    """The node may upgrade: it has the slot with this number already (`held`), or must take it."""

    number: int
    held: bool


def decide(fleet: Fleet, node: str, enclave_id: str, *, reverts_max: int, draw: float) -> Take | Shut:
    """Decide whether a node may upgrade now. `draw` in [0, 1) selects a free slot: nodes do not race for the first.

    Once `reverts_max` nodes have reverted a release, no other node starts it. Each agent counts the reverts itself, so
    no agent needs the right to halt a fleet.
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


def versions(fleet: Fleet, members: tuple[Member, ...]) -> dict[str, int]:
    """Count the nodes of each version, most first: by their own report, else by their last outcome."""
    runs = {item.node: item.version for item in reversed(fleet.newest()) if item.outcome == "committed"}
    runs |= {member.node: member.version for member in members}
    return dict(Counter(version for version in runs.values() if version).most_common(VERSIONS_SHOWN))


def summary(fleet: Fleet, members: tuple[Member, ...]) -> dict[str, Any]:
    """Return the fleet for status, page and metrics; JSON-able."""
    return {
        "slots": [None if slot is None else to_json(slot) for slot in fleet.slots],
        "halt": None if fleet.halt is None else to_json(fleet.halt),
        "waiting": sorted(member.node for member in members if member.waits_for)[:WAITING_SHOWN],
        "versions": versions(fleet, members),
        "outcomes": [to_json(item) for item in fleet.newest()],
    }


def to_json(value: Slot | Halt | Outcome | Member) -> dict[str, Any]:
    """Return the JSON form of a slot, a halt, an outcome or a member."""
    return asdict(value)


def slot_from_json(data: Mapping[str, Any]) -> Slot:
    """Decode a slot. Raises ValueError if it is malformed."""
    texts = (_text(data, "holder"), _text(data, "enclave_id"), _text(data, "version"))
    return Slot(*texts, _number(data, "since_unix_s"))


def halt_from_json(data: Mapping[str, Any]) -> Halt:
    """Decode a halt. Raises ValueError if it is malformed."""
    return Halt(_text(data, "who"), _text(data, "why"), _number(data, "at_unix_s"))


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    """Decode an outcome. Raises ValueError if it is malformed."""
    texts = (_text(data, "node"), _text(data, "enclave_id"), _text(data, "version"), _text(data, "outcome"))
    return Outcome(*texts, _number(data, "at_unix_s"))


def member_from_json(data: Mapping[str, Any]) -> Member:
    """Decode a member. Raises ValueError if it is malformed."""
    texts = (_text(data, "node"), _text(data, "version"), _text(data, "waits_for"))
    return Member(*texts, _number(data, "at_unix_s"))


def worth_keeping(outcomes: tuple[Outcome, ...], most: int = OUTCOMES_KEPT) -> tuple[Outcome, ...]:
    """Return the outcomes to keep if there is room for so many, in the order of their arrival.

    Outcomes with a later one of the same node and release are dropped first. Reverts stay longest, because they stop a
    release. Clocks of hosts do not matter, because they may be years off.
    """
    spare = len(outcomes) - most
    if spare <= 0:
        return outcomes
    last = {(item.node, item.enclave_id): place for place, item in enumerate(outcomes)}

    def rank(place: int) -> tuple[bool, bool, int]:
        item = outcomes[place]
        return last[item.node, item.enclave_id] == place, item.outcome == "reverted", place

    gone = set(sorted(range(len(outcomes)), key=rank)[:spare])
    return tuple(item for place, item in enumerate(outcomes) if place not in gone)


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is not text")
    return value[:TEXT_MAX]


def _number(data: Mapping[str, Any], key: str) -> float:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LAST_UNIX_S:
        raise ValueError(f"{key} is not a time")
    return float(value)
