"""What would be done now, and why not yet: the machine's state and the gates in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def plan(
    state: State, rules: GateRules, now_unix_s: float, since_unix_s: float, host: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """{"action", "lines", "target", "gates": [{"name", "open", "why", "opens_unix_s"}]}; JSON-able.

    ``action``: "none", "upgrade", "install", "wait", "under_way" or "halted". ``host`` is what the agent's last look at
    the host found against an upgrade ({"code", "detail"} each); it looks once the other gates are open.
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

    def nothing(action: str, why: str) -> dict[str, Any]:
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
        shut = _of_host(host)
    verb = "Would install" if state.running is None else f"Would upgrade {_named(state.running)} to"
    lines = [f"{verb} {_named(target)}, listed at height {target.added_height}."]
    lines += [f"Not yet: {item.code}: {item.detail}{_until(item)}." for item in shut]
    action = "wait" if shut else "install" if state.running is None else "upgrade"
    return _answer(action, lines, target.enclave_id, shut)


def with_launch(answer: dict[str, Any], identity: str, changes: Sequence[str]) -> dict[str, Any]:
    """The plan with what is known of a staged version: how its id is proven, and what its container has otherwise."""
    lines = list(answer["lines"])
    if identity in IDENTITY_NOTES:
        lines.append(IDENTITY_NOTES[identity])
    lines += [f"Container: {item}" for item in changes]
    return {**answer, "lines": lines, "identity": identity, "changes": list(changes)}


def _until(shut: Shut) -> str:
    """When the gate opens by itself, for a reader; UTC, as in the log."""
    if shut.opens_unix_s is None:
        return ""
    return f" (opens at {datetime.fromtimestamp(shut.opens_unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC)"


def _of_host(found: Sequence[Mapping[str, Any]]) -> tuple[Shut, ...]:
    """The preflight as one gate; what an earlier look said of the other gates is no news of the host."""
    words = [
        item["detail"] if item["code"] == PREFLIGHT else f"{item['code']}: {item['detail']}"
        for item in found
        if item["code"] == PREFLIGHT or item["code"] not in GATES
    ]
    return (Shut(PREFLIGHT, "; ".join(words)),) if words else ()


def _why_nothing(state: State) -> str:
    program = state.chain.program if state.chain else None
    if program is None:
        return "The chain names no version that carries the network's signature."
    if state.running is not None and program.enclave_id == state.running.enclave_id:
        return f"{_named(program)} is the version on the chain, and it runs."
    return f"{_named(program)} is the version on the chain, but it is not newer than the running one, or not listed."


def _answer(action: str, lines: Sequence[str], target: str, shut: Sequence[Shut]) -> dict[str, Any]:
    """The plan; without a target only the gates that are the same for every release."""
    by_code: Mapping[str, Shut] = {item.code: item for item in shut}
    gates = [
        {
            "name": code,
            "open": code not in by_code,
            "why": by_code[code].detail if code in by_code else "open",
            "opens_unix_s": by_code[code].opens_unix_s if code in by_code else None,
        }
        for code in (GATES if target else GATES_OF_ALL)
    ]
    return {"action": action, "lines": list(lines), "target": target, "gates": gates}


def _named(release: Any) -> str:
    return f"{release.version or 'a version without a name'} ({release.enclave_id[:12]}…)"
