"""Shared by the performers: the ports, limits, retries, and the events that end an effect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from dcupgrade.errors import DcupgradeError, Failure, failure_of
from dcupgrade.machine.effects import Effect
from dcupgrade.machine.events import Event, FailureEvent, NodeExited, ReleaseEvent
from dcupgrade.machine.gates import GateRules, Shut
from dcupgrade.machine.stages import StagedRelease
from dcupgrade.machine.state import Release, State

from .early_fetch import EarlyFetch
from .ports import NodeExit, NodeHealth, Ports

T = TypeVar("T")
Emit = Callable[[Event], None]
Note = Callable[[str, Mapping[str, Any]], None]
"""Takes progress for people: a name, and JSON-able facts."""
ShowGates = Callable[[tuple[Shut, ...]], None]
"""Takes the gates that are shut now, for people."""
Alarm = Callable[[str, str], None]
AlarmOfWork = Callable[[], AbstractContextManager[Alarm]]
"""Opens an alarm that ends with the work: call it with a code and a detail, or an empty code to end it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times and counts of the performers; all in seconds unless named otherwise.

    `confirmed` lists the vault's delivery states that count as confirmed. Handover v1 has no confirmation, so there
    "delivered" must suffice. `early_hosts` are hosts, in addition to those named by final releases, from which releases
    may be fetched before they are final.
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
    remove_previous: bool = True
    tidy_every_s: float = 300.0
    tidy_soon_s: float = 30.0
    confirmed: tuple[str, ...] = ("durable",)
    early_hosts: tuple[str, ...] = ()


class Tools:
    """Ports, limits and gate rules of one agent, and how work reports progress and alarms. Neither report raises."""

    def __init__(
        self,
        ports: Ports,
        limits: Limits,
        rules: GateRules,
        early: EarlyFetch,
        *,
        note: Note,
        show_gates: ShowGates,
        alarm: AlarmOfWork,
    ) -> None:
        self._early = early
        self.chain, self.vault, self.clock = ports.chain, ports.vault, ports.clock
        self.slots, self.processes, self.node_http, self.host = (
            ports.slots, ports.processes, ports.node_http, ports.host,
        )  # fmt: skip
        self.fleet = ports.fleet
        self.limits, self.rules = limits, rules
        self.note, self.show_gates, self.alarm = note, show_gates, alarm
        self.restart = asyncio.Event()
        """Set when an operator wants the node stopped and started again; cleared by whoever keeps the node."""

    def pause_s(self, tries: int) -> float:
        """Return the pause in seconds after this many failed tries: it doubles each time, up to a limit."""
        return min(self.limits.backoff_max_s, self.limits.backoff_s * 2.0 ** min(max(tries - 1, 0), 20))

    def pace_s(self, waited_s: float) -> float:
        """Return the seconds until the node is asked again; short at first, because this is downtime."""
        return min(self.limits.probe_interval_s, max(0.05, waited_s / 10))

    async def retry(self, what: str, work: Callable[[], Awaitable[T]], *, also_refusals: bool = False) -> T:
        """Do the work; repeat it with growing pauses while its failure is transient. Raises its last error.

        `also_refusals`: repeat whatever the failure is, up to `attempts` times.
        """
        tries = 0
        while True:
            try:
                return await work()
            except Exception as error:
                tries += 1
                failure = failure_of(error)
                if (failure.kind != "transient" and not also_refusals) or tries >= self.limits.attempts:
                    raise
                pause = self.pause_s(tries)
                self.note("retry", {"what": what, "code": failure.code, "detail": failure.detail, "pause_s": pause})
                await self.clock.sleep(pause)

    async def until_exit(self, enclave_id: str, *works: Awaitable[Event]) -> Event:
        """Return the event of the work that ends first, or NodeExited if the node's process ends before that."""
        return await first_of(*works, self._exit_event(enclave_id))

    async def _exit_event(self, enclave_id: str) -> Event:
        ended = await self._exit_of(enclave_id)
        return NodeExited(enclave_id, ended.text, ended.rebooted)

    async def _exit_of(self, enclave_id: str) -> NodeExit:
        """Return how the node's process ended. If it cannot be watched, retry after a pause: that is not its end."""
        tries = 0
        while True:
            try:
                return await self.processes.wait_exit(enclave_id)
            except Exception as error:
                tries += 1
                failure = failure_of(error)
                self.note("retry", {"what": "watch the node", "code": failure.code, "detail": failure.detail})
                await self.clock.sleep(self.pause_s(tries))

    async def wait_serving(self, enclave_id: str, deadline_s: float | None) -> NodeHealth:
        """Return the node's health once it serves, has failed, or the deadline has passed."""
        began = self.clock.monotonic()
        while True:
            health = await self.node_http.health(enclave_id)
            waited = self.clock.monotonic() - began
            if health.status in ("serving", "failed") or (deadline_s is not None and waited >= deadline_s):
                return health
            await self.clock.sleep(self.pace_s(waited))

    async def fetch(self, release: Release) -> StagedRelease:
        """Download and verify a release and report progress. Files of an early fetch are continued."""
        await self._early.give_way(release.enclave_id)
        return await self.slots.stage(release, lambda facts: self.note("download", facts))


Work = Callable[[Tools, Effect, State, Emit], Awaitable[Event]]
"""How one kind of effect is performed."""


async def first_of(*works: Awaitable[T]) -> T:
    """Return the result of the work that ends first and cancel the others. If several ended, the given order decides.

    Await this directly, never as a separate task: a task that is cancelled before it begins leaves `works` unawaited.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def at_once(event: type[ReleaseEvent]) -> Work:
    """Return an effect that needs no work; only the journal entry matters."""

    async def work(_tools: Tools, effect: Effect, _state: State, _emit: Emit) -> Event:
        return event(effect.enclave_id)

    return work


def failed(event: type[FailureEvent], error: BaseException, enclave_id: str) -> FailureEvent:
    """Return the event of a failed effect."""
    return event(enclave_id, failure_of(error))


def problem_of(health: NodeHealth, enclave_id: str) -> Failure | None:
    """Return the failure if a health report shows that the node cannot become usable, else None."""
    if health.enclave_id and health.enclave_id != enclave_id:
        return Failure("NODE_ANOTHER_VERSION", "rejected", f"{health.enclave_id} answers")
    if health.status == "failed":
        return Failure("NODE_UNHEALTHY", "rejected", health.detail or "it says that it failed")
    if health.canary is False:
        return Failure("CANARY_FAILED", "rejected", health.detail or "it cannot decrypt the canary record")
    return None


def release_of(state: State, effect: Effect) -> Release:
    """Return the effect's release. Raises MACHINE_NO_TRANSITION if the state names none."""
    for release in (state.target, state.running, state.previous):
        if release is not None and release.enclave_id == effect.enclave_id:
            return release
    raise DcupgradeError(
        code="MACHINE_NO_TRANSITION",
        what=f"effect {effect.kind.value}",
        why=f"the state names no release {effect.enclave_id}",
        kind="invariant",
    )
