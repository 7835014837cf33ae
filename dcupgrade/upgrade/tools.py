"""What the performers share: limits, retries, notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.events import Effect, Event
from dcupgrade.machine.state import Release, State

from .ports import NodeHealth

FINAL_REFUSALS = ("PERMIT_", "RELEASE_KEY_SET_")
"""Refusals of the vault that no further try of the same target changes; others may pass."""


PREFLIGHT_PAUSE_S = 2.0
"""How long until the host is looked at again after a check before the upgrade failed."""


T = TypeVar("T")


Emit = Callable[[Event], None]


Note = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Times and counts of the performers; all in seconds unless named otherwise.

    `confirmed` lists the vault's delivery states that count as confirmed: over handover v1 nothing is confirmed, and
    "delivered" has to do.
    """

    attempts: int = 5
    backoff_s: float = 2.0
    backoff_max_s: float = 300.0
    ready_deadline_s: float = 120.0
    delivery_deadline_s: float = 120.0
    probation_s: float = 300.0
    probe_interval_s: float = 2.0
    refusal_patience_s: float = 10.0
    silent_probes: int = 3
    steady_s: float = 30.0
    launches: int = 3
    remove_previous: bool = False
    confirmed: tuple[str, ...] = ("durable",)


def _problem(health: NodeHealth, enclave_id: str) -> tuple[str, str] | None:
    """(code, detail) when a health report rules the node out, whatever else is awaited."""
    if health.enclave_id and health.enclave_id != enclave_id:
        return "NODE_ANOTHER_VERSION", f"{health.enclave_id} answers"
    if health.status == "failed":
        return "NODE_UNHEALTHY", health.detail or "it says that it failed"
    if health.canary is False:
        return "CANARY_FAILED", health.detail or "it cannot decrypt the canary record"
    return None


def _release(state: State, effect: Effect) -> Release:
    for release in (state.target, state.running, state.previous):
        if release is not None and release.enclave_id == effect.enclave_id:
            return release
    raise DcupgradeError(
        code="MACHINE_NO_TRANSITION",
        what=f"effect {effect.kind.value}",
        why=f"the state names no release {effect.enclave_id}",
        kind="invariant",
    )
