"""How each effect of the machine is performed, over the ports. Every one is safe to do twice, and safe to cancel.

A performer waits, retries what is transient, and returns the event that ends the effect. Nothing here decides what
comes next: that is the machine's table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

from dcupgrade.errors import DcupgradeError, failure_of
from dcupgrade.machine import gates
from dcupgrade.machine.events import Effect, EffectKind, Event, EventKind
from dcupgrade.machine.state import Release, State

from .ports import ChainPort, ClockPort, NodeHealth, NodesPort, VaultPort
from .tools import FINAL_REFUSALS, PREFLIGHT_PAUSE_S, Emit, Limits, Note, T, _problem, _release


class Performer:
    """Performs effects. `note(name, facts)` receives progress for people; it must not raise."""

    def __init__(
        self,
        *,
        nodes: NodesPort,
        vault: VaultPort,
        chain: ChainPort,
        clock: ClockPort,
        limits: Limits,
        rules: gates.GateRules,
        note: Note,
    ) -> None:
        self.nodes, self.vault, self.chain, self.clock = nodes, vault, chain, clock
        self.limits, self.rules, self.note = limits, rules, note
        self._work: dict[EffectKind, Callable[[Effect, State, Emit], Awaitable[Event]]] = {
            EffectKind.KEEP_NODE: self._keep_node,
            EffectKind.BEGIN: self._at_once(EventKind.BEGIN),
            EffectKind.BACKOFF: self._backoff,
            EffectKind.RETIRE: self._retire,
            EffectKind.STAGE: self._stage,
            EffectKind.GATES: self._gates,
            EffectKind.COLLECT: self._collect,
            EffectKind.PERMIT: self._permit,
            EffectKind.STOP_NODE: self._stop_node,
            EffectKind.LAUNCH: self._launch,
            EffectKind.DELIVER: self._deliver,
            EffectKind.PROBATION: self._probation,
            EffectKind.COMMIT: self._commit,
            EffectKind.AWAIT_SOURCE: self._await_source,
            EffectKind.START_SOURCE: self._start_source,
            EffectKind.SETTLE: self._at_once(EventKind.SETTLED),
        }

    async def perform(self, effect: Effect, state: State, emit: Emit) -> Event:
        """Do the work and return the event that ends it; `emit` takes events on the way. Raises only when cancelled."""
        return await self._work[effect.kind](effect, state, emit)

    # --- tools -------------------------------------------------------------------------------------------------------

    def pause_s(self, tries: int) -> float:
        """The pause after so many failed tries: doubling, bounded."""
        return min(self.limits.backoff_max_s, self.limits.backoff_s * 2.0 ** min(max(tries - 1, 0), 20))

    async def _retry(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        tries = 0
        while True:
            try:
                return await work()
            except Exception as error:
                tries += 1
                failure = failure_of(error)
                if failure.kind != "transient" or tries >= self.limits.attempts:
                    raise
                pause = self.pause_s(tries)
                self.note("retry", {"what": what, "code": failure.code, "detail": failure.detail, "pause_s": pause})
                await self.clock.sleep(pause)

    def _failed(self, kind: EventKind, error: BaseException, enclave_id: str = "") -> Event:
        failure = failure_of(error)
        return Event(kind, enclave_id, code=failure.code, detail=failure.detail, failure=failure.kind)

    def _at_once(self, kind: EventKind) -> Callable[[Effect, State, Emit], Awaitable[Event]]:
        async def work(effect: Effect, _state: State, _emit: Emit) -> Event:
            return Event(kind, effect.enclave_id)

        return work

    async def _until_exit(self, enclave_id: str, work: Awaitable[Event]) -> Event:
        """The work's event, or NODE_EXITED when the node's process ends first."""
        watch = asyncio.ensure_future(self.nodes.wait_exit(enclave_id))
        job = asyncio.ensure_future(work)
        try:
            await asyncio.wait({watch, job}, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                return job.result()
            ended = watch.result()
            code = "HOST_REBOOTED" if ended.rebooted else "NODE_EXITED"
            return Event(EventKind.NODE_EXITED, enclave_id, code=code, detail=ended.text)
        finally:
            for task in (watch, job):
                task.cancel()
            await asyncio.gather(watch, job, return_exceptions=True)

    def _pace_s(self, waited_s: float) -> float:
        """How long until the next look: often at first, since downtime is counted here."""
        return min(self.limits.probe_interval_s, max(0.05, waited_s / 10))

    # --- the running node --------------------------------------------------------------------------------------------

    async def _keep_node(self, effect: Effect, state: State, emit: Emit) -> NoReturn:
        """Keep the node up until that is wanted no more, and tell how it goes.

        The journal holds already that the node is to run. So a crash is told and the node started again without
        waiting for the crash to be stored: a full disk must not keep it down.
        """
        release = _release(state, effect)
        crashes = state.crashes
        while True:
            try:
                if not await self.nodes.is_alive(effect.enclave_id):
                    if crashes:
                        await self.clock.sleep(self.pause_s(crashes))
                    await self.nodes.start(release, first_install=False)
            except Exception as error:
                emit(self._failed(EventKind.NODE_START_FAILED, error, effect.enclave_id))
                crashes += 1
                continue
            served: list[bool] = []
            emit(await self._until_exit(effect.enclave_id, self._tell_when_serving(effect, crashes, emit, served)))
            crashes = 1 if served else crashes + 1

    async def _tell_when_serving(self, effect: Effect, crashes: int, emit: Emit, served: list[bool]) -> Event:
        """A node that crashed counts as serving only after it did so for a while: crash loops are to be seen."""
        health = await self._wait_serving(effect.enclave_id, None)
        while crashes:
            await self.clock.sleep(self.limits.steady_s if health.status == "serving" else self.limits.probe_interval_s)
            health = await self.nodes.health(effect.enclave_id)
            if health.status == "serving":
                break
        if health.status == "serving":
            emit(Event(EventKind.NODE_SERVING, effect.enclave_id))
            served.append(True)
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def _wait_serving(self, enclave_id: str, deadline_s: float | None) -> NodeHealth:
        """The node's health once it serves, has failed, or the deadline is over."""
        began = self.clock.monotonic()
        while True:
            health = await self.nodes.health(enclave_id)
            waited = self.clock.monotonic() - began
            if health.status in ("serving", "failed") or (deadline_s is not None and waited >= deadline_s):
                return health
            await self.clock.sleep(self._pace_s(waited))

    async def _await_source(self, effect: Effect, state: State, _emit: Emit) -> Event:
        while state.running is not None:
            health = await self._wait_serving(effect.enclave_id, None)
            if health.status == "serving":
                break
            await self.clock.sleep(self.limits.probe_interval_s)
        return Event(EventKind.SOURCE_SERVING, effect.enclave_id)

    # --- before the old node stops -----------------------------------------------------------------------------------

    async def _backoff(self, effect: Effect, state: State, _emit: Emit) -> Event:
        record = state.record(effect.enclave_id)
        await self.clock.sleep(self.pause_s(record.abandoned + record.reverted))
        return Event(EventKind.BACKOFF_OVER, effect.enclave_id)

    async def _retire(self, effect: Effect, state: State, _emit: Emit) -> Event:
        while (left := state.previous_until_unix_s - self.clock.now()) > 0:
            await self.clock.sleep(min(left, 3600.0))
        if self.limits.remove_previous:
            try:
                await self._retry("remove the previous version", lambda: self.nodes.remove_slot(effect.enclave_id))
            except Exception as error:
                self.note("retire_failed", {"enclave_id": effect.enclave_id, "detail": str(error)})
        return Event(EventKind.RETIRED, effect.enclave_id)

    async def _stage(self, effect: Effect, state: State, _emit: Emit) -> Event:
        release = _release(state, effect)
        try:
            await self._retry("download", lambda: self._fetch(release))
        except Exception as error:
            return self._failed(EventKind.STAGE_FAILED, error, effect.enclave_id)
        return Event(EventKind.STAGED, effect.enclave_id)

    async def _fetch(self, release: Release) -> None:
        await self.nodes.stage(release, lambda facts: self.note("download", facts))

    async def _gates(self, effect: Effect, state: State, _emit: Emit) -> Event:
        release = _release(state, effect)
        while True:
            now = self.clock.now()
            shut = self._shut_gates(effect, state)
            if not shut:
                try:
                    findings = await self.nodes.preflight(
                        release, state.running.enclave_id if state.running else "", state.first_install
                    )
                    shut = tuple(gates.Shut(item.code, item.detail) for item in findings)
                except Exception as error:
                    failure = failure_of(error)
                    shut = (gates.Shut("GATE_PREFLIGHT", failure.detail),)
                if not shut:
                    self.note("gates", {"shut": []})
                    return Event(EventKind.GATES_OPEN, effect.enclave_id)
                await self._tell_gates(shut, min(PREFLIGHT_PAUSE_S, self.limits.backoff_max_s))
            else:
                await self._tell_gates(shut, gates.recheck_after_s(shut, now))

    def _shut_gates(self, effect: Effect, state: State) -> tuple[gates.Shut, ...]:
        return gates.shut_gates(
            self.rules,
            enclave_id=effect.enclave_id,
            since_unix_s=state.target_since_unix_s,
            now_unix_s=self.clock.now(),
            hold=state.hold,
            approved=state.approved,
            override=state.override,
        )

    async def _tell_gates(self, shut: tuple[gates.Shut, ...], pause_s: float) -> None:
        self.note(
            "gates",
            {"shut": [{"code": item.code, "detail": item.detail, "opens_unix_s": item.opens_unix_s} for item in shut]},
        )
        await self.clock.sleep(pause_s)

    async def _collect(self, effect: Effect, state: State, _emit: Emit) -> Event:
        target = state.target.enclave_id if state.target else ""

        async def ask() -> str:
            try:
                evidence = await self._evidence(target, effect.enclave_id)
                return await self.vault.collect(effect.enclave_id, evidence)
            except Exception:
                key_set_id = await self._earlier_copy(effect.enclave_id)
                if not key_set_id:
                    raise
                self.note("sealed_copy_used", {"key_set_id": key_set_id})
                return key_set_id

        try:
            key_set_id = await self._retry("collect keys", ask)
        except Exception as error:
            return self._failed(EventKind.COLLECT_FAILED, error, effect.enclave_id)
        return Event(EventKind.COLLECTED, effect.enclave_id, key_set_id=key_set_id)

    async def _earlier_copy(self, source_id: str) -> str:
        """The key set sealed in an earlier try, where the node is down and it is the very set that the node has now.

        Raises NO_KEYS_ANYWHERE where the node runs but cannot unseal its keys, and the vault has none either.
        """
        if await self.nodes.is_alive(source_id):
            health = await self.nodes.health(source_id)
            if health.status == "waiting_for_keys" and not await self.vault.holds_keys_of(source_id, ""):
                raise DcupgradeError(
                    code="NO_KEYS_ANYWHERE",
                    what=f"keys of {source_id}",
                    why="the running version cannot unseal them and the vault has no copy",
                    kind="invariant",
                )
            return ""
        key_set_id = await self.nodes.key_set_id()
        return key_set_id if key_set_id and await self.vault.holds_keys_of(source_id, key_set_id) else ""

    async def _permit(self, effect: Effect, state: State, _emit: Emit) -> Event:
        source = state.running.enclave_id if state.running else ""

        async def ask() -> int:
            evidence = await self._evidence(effect.enclave_id, source)
            return await self.vault.permit(source, effect.enclave_id, effect.key_set_id, evidence)

        try:
            expires = await self._retry("release permit", ask)
        except Exception as error:
            return self._failed(EventKind.PERMIT_FAILED, error, effect.enclave_id)
        if shut := self._shut_gates(effect, state):
            return Event(EventKind.GATES_SHUT, effect.enclave_id, code=shut[0].code, detail=shut[0].detail)
        return Event(EventKind.PERMITTED, effect.enclave_id, expires_unix_s=expires)

    async def _evidence(self, target_id: str, source_id: str) -> Mapping[str, Any]:
        return await self.chain.evidence(target_id, source_id, await self.vault.status())

    # --- from stop to commit -----------------------------------------------------------------------------------------

    async def _stop_node(self, effect: Effect, _state: State, _emit: Emit) -> Event:
        try:
            await self._retry("stop the node", lambda: self.nodes.stop(effect.enclave_id))
        except Exception as error:
            return self._failed(EventKind.STOP_FAILED, error, effect.enclave_id)
        return Event(EventKind.NODE_STOPPED, effect.enclave_id)

    async def _launch(self, effect: Effect, state: State, _emit: Emit) -> Event:
        release = _release(state, effect)
        try:
            await self._retry("launch", lambda: self.nodes.start(release, first_install=state.first_install))
        except Exception as error:
            return self._failed(EventKind.LAUNCH_FAILED, error, effect.enclave_id)
        return Event(EventKind.LAUNCHED, effect.enclave_id)

    async def _deliver(self, effect: Effect, _state: State, _emit: Emit) -> Event:
        return await self._until_exit(effect.enclave_id, self._watch_delivery(effect))

    async def _watch_delivery(self, effect: Effect) -> Event:
        began = self.clock.monotonic()
        last, refused_since = "the vault was not asked yet", None
        while True:
            health = await self.nodes.health(effect.enclave_id)
            if problem := _problem(health, effect.enclave_id):
                return Event(EventKind.DELIVERY_FAILED, effect.enclave_id, *problem, failure="rejected")
            try:
                delivery = await self.vault.delivery(effect.enclave_id)
                last = f"vault: {delivery.state} {delivery.code} {delivery.detail}, node: {health.status}"
                self.note("delivery", {"state": delivery.state, "node": health.status})
                # a node that sealed this very key set in an earlier try serves without asking again
                unasked = delivery.state == "waiting" and health.canary and health.key_set_id == effect.key_set_id
                if health.status == "serving" and (unasked or delivery.state in self.limits.confirmed):
                    return Event(EventKind.DELIVERED, effect.enclave_id)
                now = self.clock.monotonic()
                refused_since = (refused_since or now) if delivery.state == "refused" else None
                if refused_since is not None and (
                    delivery.code.startswith(FINAL_REFUSALS) or now - refused_since >= self.limits.refusal_patience_s
                ):
                    code = delivery.code or "DELIVERY_REFUSED"
                    return Event(EventKind.DELIVERY_FAILED, effect.enclave_id, code, last, failure="rejected")
            except Exception as error:
                failure = failure_of(error)
                last = failure.detail
                if failure.code == "VAULT_REPLACED":
                    return self._failed(EventKind.DELIVERY_FAILED, error, effect.enclave_id)
            waited = self.clock.monotonic() - began
            if waited >= self.limits.delivery_deadline_s:
                return Event(
                    EventKind.DELIVERY_FAILED, effect.enclave_id, "DELIVERY_DEADLINE", last, failure="transient"
                )
            await self.clock.sleep(self._pace_s(waited))

    async def _probation(self, effect: Effect, state: State, _emit: Emit) -> Event:
        return await self._until_exit(effect.enclave_id, self._watch_probation(effect, state))

    async def _watch_probation(self, effect: Effect, state: State) -> Event:
        health = await self._wait_serving(effect.enclave_id, self.limits.ready_deadline_s)
        began = self.clock.monotonic()
        silent = 0
        while True:
            passed = self.clock.monotonic() - began
            silent = silent + 1 if health.status == "silent" else 0
            problem = _problem(health, effect.enclave_id)
            if problem is None and health.status != "serving" and (silent == 0 or silent >= self.limits.silent_probes):
                problem = ("NODE_NOT_READY", f"its health report says {health.status!r} {health.detail}")
            if problem is not None:
                return Event(EventKind.UNHEALTHY, effect.enclave_id, *problem, failure="rejected")
            self.note("probation", {"passed_s": passed, "whole_s": self.limits.probation_s, "canary": health.canary})
            if passed >= self.limits.probation_s and silent == 0:
                if health.canary is None and not state.first_install and "durable" in self.limits.confirmed:
                    why = "its health report says nothing about the canary"
                    return Event(EventKind.UNHEALTHY, effect.enclave_id, "CANARY_FAILED", why, failure="rejected")
                return Event(EventKind.HEALTHY, effect.enclave_id)
            await self.clock.sleep(min(self.limits.probe_interval_s, max(0.05, self.limits.probation_s - passed)))
            health = await self.nodes.health(effect.enclave_id)

    async def _commit(self, effect: Effect, state: State, _emit: Emit) -> Event:
        tries = 0
        while True:
            try:
                await self.nodes.commit(effect.enclave_id)
                break
            except Exception as error:
                tries += 1
                failure = failure_of(error)
                facts = {"code": "COMMIT_NOT_ACKNOWLEDGED", "detail": failure.detail, "pause_s": self.pause_s(tries)}
                self.note("retry", {"what": "commit", **facts})
                await self.clock.sleep(self.pause_s(tries))
        if state.key_set_id:
            try:
                await self._retry("tell the vault", lambda: self.vault.committed(effect.enclave_id, state.key_set_id))
            except Exception as error:
                # the vault then keeps its sealed copy for longer than it need, which is the safe side
                self.note("vault_not_told", {"detail": failure_of(error).detail})
        return Event(EventKind.COMMIT_DONE, effect.enclave_id)

    # --- the way back ------------------------------------------------------------------------------------------------

    async def _start_source(self, effect: Effect, state: State, _emit: Emit) -> Event:
        release = _release(state, effect)
        if not await self.nodes.slot_is_good(effect.enclave_id):
            try:
                await self._retry("fetch the previous version again", lambda: self._fetch(release))
            except Exception as error:
                why = f"its files are missing or were changed, and cannot be had again: {failure_of(error).detail}"
                return _source_failed(effect, "SOURCE_SLOT_DAMAGED", why)
        found = _source_failed(effect, "SOURCE_WONT_START", "it was not tried yet")
        for tries in range(1, self.limits.launches + 1):
            try:
                await self.nodes.start(release, first_install=False)
            except Exception as error:
                failure = failure_of(error)
                code = failure.code if failure.code == "DATA_LOCKED" else "SOURCE_WONT_START"
                found = _source_failed(effect, code, failure.detail)
            else:
                ended = await self._until_exit(effect.enclave_id, self._watch_source(effect))
                if ended.kind is EventKind.SOURCE_SERVING or ended.code in ("KEYS_UNREACHABLE", "NO_KEYS_ANYWHERE"):
                    return ended
                found = _source_failed(effect, "SOURCE_WONT_START", ended.detail or ended.code)
                await self._stop_quietly(effect.enclave_id)
            if tries < self.limits.launches:
                self.note("retry", {"what": "start the previous version", "code": found.code, "detail": found.detail})
                await self.clock.sleep(self.pause_s(tries))
        return found

    async def _stop_quietly(self, enclave_id: str) -> None:
        try:
            await self.nodes.stop(enclave_id)
        except Exception as error:
            self.note("stop_failed", {"enclave_id": enclave_id, "detail": failure_of(error).detail})

    async def _watch_source(self, effect: Effect) -> Event:
        began = self.clock.monotonic()
        keys = ""
        while True:
            health = await self.nodes.health(effect.enclave_id)
            waited = self.clock.monotonic() - began
            if health.status == "serving":
                return Event(EventKind.SOURCE_SERVING, effect.enclave_id)
            if health.status == "waiting_for_keys":
                keys = await self._ask_about_keys(effect.enclave_id)
                if keys == "":
                    why = "it cannot unseal its own keys and the vault has no copy"
                    return _source_failed(effect, "NO_KEYS_ANYWHERE", why)
            if waited >= self.limits.ready_deadline_s or health.status == "failed":
                if keys:
                    return _source_failed(effect, "KEYS_UNREACHABLE", keys)
                return _source_failed(effect, "SOURCE_WONT_START", health.detail or f"its health is {health.status!r}")
            await self.clock.sleep(self._pace_s(waited))

    async def _ask_about_keys(self, source_id: str) -> str:
        """Why the source still waits for its keys; empty when the vault has none for it."""
        try:
            if not await self.vault.holds_keys_of(source_id, ""):
                return ""
            delivery = await self.vault.delivery(source_id)
            return f"the vault holds them, hand-over: {delivery.state} {delivery.code} {delivery.detail}"
        except Exception as error:
            return failure_of(error).detail


def _source_failed(effect: Effect, code: str, detail: str) -> Event:
    return Event(EventKind.SOURCE_FAILED, effect.enclave_id, code, detail, failure="invariant")
