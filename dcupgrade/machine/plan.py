"""The plan: the next action, and why it does not happen yet. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from .gates import GateRules, Shut, shut_gates
from .guards import newer_release
from .state import Name, State

PREFLIGHT = "GATE_PREFLIGHT"
GATES_OF_ALL = ("GATE_HELD", "GATE_WINDOW_SHUT")
IDENTITY_NOTES = {
    "sigstruct": "Its identity rests on the SIGSTRUCT in its image; its files were not measured.",
    "attested": "WARNING: nothing proves its identity before it attests itself to the vault; an image that cannot "
    "gets no keys and is reverted.",
}
GATES = ("GATE_HELD", "GATE_APPROVAL_MISSING", "GATE_WINDOW_SHUT", "GATE_NOT_MY_TURN", PREFLIGHT)


@dataclass(frozen=True, slots=True)
class Gate:
    """The current state of one gate: open, or shut with a reason."""

    code: str
    shut: Shut | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: {"name", "open", "why", "opens_unix_s"}."""
        return {
            "name": self.code,
            "open": self.shut is None,
            "why": self.shut.detail if self.shut else "open",
            "opens_unix_s": self.shut.opens_unix_s if self.shut else None,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The next action.

    `action`: "none", "upgrade", "install", "wait", "under_way" or "halted". `lines`: the explanation for an operator.
    `target`: the enclave id that it is about, or "". `identity`: how that id is proven ("" if it is not staged).
    `changes`: differences of its container from the running one.
    """

    action: str
    lines: tuple[str, ...]
    target: str
    gates: tuple[Gate, ...]
    identity: str = ""
    changes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, the answer of /api/v1/plan."""
        return {
            "action": self.action,
            "lines": list(self.lines),
            "target": self.target,
            "gates": [gate.to_json() for gate in self.gates],
            "identity": self.identity,
            "changes": list(self.changes),
        }


def plan(
    state: State, rules: GateRules, now_unix_s: float, since_unix_s: float, found_shut: Sequence[Shut] = ()
) -> Plan:
    """Return the plan for this state. `since_unix_s`: when the release was first seen.

    `found_shut`: the gates that the agent last found shut, including objections of host and fleet. The agent asks host
    and fleet only once the other gates are open.
    """
    target = state.target if state.name in (Name.STAGING, Name.STAGED) else newer_release(state)
    shut = shut_gates(
        rules,
        enclave_id=target.enclave_id if target else "",
        since_unix_s=since_unix_s,
        now_unix_s=now_unix_s,
        hold=state.hold,
        approved=state.approved,
        override=state.override,
    )

    def nothing(action: str, why: str) -> Plan:
        return _answer(action, [why], target.enclave_id if target else "", shut)

    if state.name is Name.HALTED:
        return nothing("halted", f"Halted: {state.halted}. Nothing is begun before `dcupgrade resume`.")
    if state.name not in (Name.IDLE, Name.STAGING, Name.STAGED):
        about = f" to {_named(state.target)}" if state.target else ""
        return nothing("under_way", f"An upgrade{about} is in state {state.name.value}.")
    if state.chain is None:
        return nothing("none", "No finalized block was seen yet.")
    if target is None:
        return nothing("none", _why_nothing(state))
    quarantine = state.record(target.enclave_id).quarantine
    if quarantine:
        why = f"{_named(target)} is in quarantine ({quarantine}); `dcupgrade retry` gives it another try."
        return nothing("none", why)
    if not shut and state.name is Name.STAGED:
        shut = _of_host(found_shut)
    verb = "Would install" if state.running is None else f"Would upgrade {_named(state.running)} to"
    lines = [f"{verb} {_named(target)}, listed at height {target.added_height}."]
    lines += [f"Not yet: {item.code}: {item.detail}{_until(item)}." for item in shut]
    action = "wait" if shut else "install" if state.running is None else "upgrade"
    return _answer(action, lines, target.enclave_id, shut)


def with_launch(found: Plan, identity: str, changes: Sequence[str]) -> Plan:
    """Return the plan with facts of a staged version: how its id is proven, and differences of its container."""
    lines = list(found.lines)
    if identity in IDENTITY_NOTES:
        lines.append(IDENTITY_NOTES[identity])
    lines += [f"Container: {item}" for item in changes]
    return replace(found, lines=tuple(lines), identity=identity, changes=tuple(changes))


def _until(shut: Shut) -> str:
    """Return when the gate opens by itself, as text; UTC, as in the log."""
    if shut.opens_unix_s is None:
        return ""
    return f" (opens at {datetime.fromtimestamp(shut.opens_unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC)"


def _of_host(found: Sequence[Shut]) -> tuple[Shut, ...]:
    """Return the preflight as one gate. Other gates in `found_shut` are ignored: they were checked again."""
    reasons = [
        item.detail if item.code == PREFLIGHT else f"{item.code}: {item.detail}"
        for item in found
        if item.code == PREFLIGHT or item.code not in GATES
    ]
    return (Shut(PREFLIGHT, "; ".join(reasons)),) if reasons else ()


def _why_nothing(state: State) -> str:
    program = state.chain.program if state.chain else None
    if program is None:
        return "The chain names no version that carries the network's signature."
    if state.running is not None and program.enclave_id == state.running.enclave_id:
        return f"{_named(program)} is the version on the chain, and it runs."
    return f"{_named(program)} is the version on the chain, but it is not newer than the running one, or not listed."


def _answer(action: str, lines: Sequence[str], target: str, shut: Sequence[Shut]) -> Plan:
    """Return the plan. Without a target it has only the gates that are the same for every release."""
    by_code = {item.code: item for item in shut}
    gates = tuple(Gate(code, by_code.get(code)) for code in (GATES if target else GATES_OF_ALL))
    return Plan(action, tuple(lines), target, gates)


def _named(release: Any) -> str:
    return f"{release.version or 'a version without a name'} ({release.enclave_id[:12]}…)"
