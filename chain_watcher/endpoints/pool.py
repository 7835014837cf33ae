"""A pool of chain endpoints: permanent connections, comparison of heights, failover, back-off, and accusations.

All usable endpoints stay connected, so that a failover needs no reconnect and finalized heights can be compared. The
pool delivers bytes and facts; the watcher decides what to believe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from chain_watcher.errors import ChainWatcherError

from . import answers
from .choice import backoff_s, choose
from .clock import Clock
from .connection import Connection, wrong_genesis
from .endpoint import ACCUSATIONS_KEPT, JUSTIFICATIONS, Endpoint, Event, EventKind, unexpected
from .event_queue import EventQueue
from .messages import closed
from .rpc import RpcLimits, Subscription, open_session
from .tunnel import ProxyFor, no_proxy, proxy_of

REFUSED_CODES: Final = frozenset({"ENDPOINT_WRONG_GENESIS", "RPC_TLS_FAILED"})


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Times and distances of the pool; the names carry the units.

    While a finalized head has no justification, the endpoint is asked for it every `unproven_ask_s`. After
    `unproven_claim_s` the head counts as unproven.
    """

    backoff_first_s: float = 0.5
    backoff_max_s: float = 20.0
    refused_retry_s: float = 600.0
    liar_retry_s: float = 3600.0
    unproven_ask_s: float = 2.0
    unproven_claim_s: float = 30.0
    block_silence_s: float = 45.0
    lag_grace_s: float = 2.0
    events_max: int = 1024
    events_of_a_kind_max: int = 16


class EndpointPool:
    """Keeps the endpoints connected and queues their events; `random` gives floats in [0, 1).

    `proxy_for` returns the HTTP proxy for an endpoint's URL, or None; it gets the URL with http:// for ws:// and
    https:// for wss://. With `claims_need_proof`, an endpoint's height is capped at the block that the watcher
    confirmed.
    """

    def __init__(
        self,
        urls: Iterable[str],
        *,
        genesis_hash: str | None,
        limits: PoolLimits,
        rpc_limits: RpcLimits,
        clock: Clock,
        random: Callable[[], float],
        ca_file: str | None = None,
        proxy_for: ProxyFor = no_proxy,
        want_justifications: bool = False,
        claims_need_proof: bool = False,
    ) -> None:
        self.endpoints = [Endpoint(url) for url in dict.fromkeys(urls)]
        self.events = EventQueue(limits.events_max, limits.events_of_a_kind_max)
        self.genesis_hash = genesis_hash
        self.confirmed_number: int | None = -1 if claims_need_proof else None
        self.primary: Endpoint | None = None
        self.failovers = 0
        self._limits = limits
        self._rpc_limits = rpc_limits
        self._clock = clock
        self._random = random
        self._ca_file = ca_file
        self._proxy_for = proxy_for
        self._want_justifications = want_justifications

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as group:
            for endpoint in self.endpoints:
                group.create_task(self._serve(endpoint), name=f"endpoint {endpoint.url}")

    # --- choice and judgement

    def choose(self) -> Endpoint | None:
        """Choose the primary again and count a failover if it changes. Return None if no endpoint is usable."""
        now = self._clock.monotonic()
        chosen = choose(self.endpoints, self.primary, now, self._limits.lag_grace_s, self.height)
        if chosen is not self.primary:
            if chosen is not None and self.primary is not None:
                self.failovers += 1
            self.primary = chosen or self.primary
        return chosen

    def usable(self) -> list[Endpoint]:
        """Return all usable endpoints, the primary first, then by latency."""
        found = [endpoint for endpoint in self.endpoints if endpoint.usable]
        return sorted(found, key=lambda endpoint: (endpoint is not self.primary, endpoint.latency_s))

    def height(self, endpoint: Endpoint) -> int:
        """Return the height that an endpoint claims, capped at the confirmed height if claims need proof."""
        if self.confirmed_number is None:
            return endpoint.claimed_number
        return min(endpoint.claimed_number, self.confirmed_number)

    def confirm(self, number: int) -> None:
        """Record that block `number` is final; endpoints that have not reached it are behind."""
        if self.confirmed_number is not None:
            self.confirmed_number = max(self.confirmed_number, number)
            self._compare()

    def accuse(self, endpoint: Endpoint, problem: ChainWatcherError) -> None:
        """Disconnect an endpoint whose claim cannot be true, report it, and do not reconnect for `liar_retry_s`."""
        endpoint.accusation = problem
        endpoint.accusations = [*endpoint.accusations, problem.code][-ACCUSATIONS_KEPT:]
        endpoint.cut.set()

    def distrust(self, endpoint: Endpoint, problem: ChainWatcherError) -> None:
        """Reconnect an endpoint that failed, after the back-off."""
        endpoint.problem = problem
        endpoint.cut.set()

    def ask_for_proofs(self) -> None:
        """Queue an `unproven` event for each endpoint whose finalized head has had no justification for a while.

        The justification may have been sent while the connection was down. If asking does not help, the subscription
        may be dead, and the endpoint is reconnected once. No endpoint is accused: behind a load balancer, one backend
        may announce a block that another backend cannot prove yet.
        """
        now = self._clock.monotonic()
        for endpoint in self.endpoints:
            if self.confirmed_number is None or not endpoint.usable or not endpoint.offers(JUSTIFICATIONS):
                continue
            if endpoint.claimed_number <= self.confirmed_number:
                endpoint.unproven_since, endpoint.unproven_reconnected = None, False
                continue
            if endpoint.unproven_since is None:
                endpoint.unproven_since = endpoint.unproven_asked_at = now
            if now - endpoint.unproven_asked_at >= self._limits.unproven_ask_s:
                endpoint.unproven_asked_at = now
                self._emit(endpoint, "unproven", endpoint.last_head)
            if now - endpoint.unproven_since > self._limits.unproven_claim_s:
                self._name_unproven(endpoint)

    def _name_unproven(self, endpoint: Endpoint) -> None:
        why = f"it announces block {endpoint.claimed_number} as final, proven is block {self.confirmed_number}"
        endpoint.problem = ChainWatcherError(
            code="ENDPOINT_UNPROVEN_HEIGHT", what=endpoint.url, why=why, kind="transient"
        )
        endpoint.unproven_since = None
        if not endpoint.unproven_reconnected:
            endpoint.unproven_reconnected = True
            endpoint.cut.set()

    def excuse_unproven(self) -> None:
        """Restart the timers of unproven heads of all endpoints, because the watcher had no time to process them."""
        for endpoint in self.endpoints:
            endpoint.unproven_since = None

    # --- connections

    def _emit(self, endpoint: Endpoint, kind: EventKind, value: Any = None) -> None:
        self.events.put(Event(endpoint, kind, value))

    async def _serve(self, endpoint: Endpoint) -> None:
        async with open_session(proxy_of(endpoint.url, self._proxy_for)) as session:
            while True:
                await self._serve_once(session, endpoint)

    async def _serve_once(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        """Connect, serve until the connection ends, and pause."""
        endpoint.state = "connecting"
        endpoint.cut.clear()
        connections = endpoint.connections
        try:
            await self._connected(session, endpoint)
        except ChainWatcherError as problem:
            endpoint.note_failure(problem)
        except Exception as error:
            endpoint.note_failure(unexpected(endpoint, error))
        if endpoint.connections > connections:
            self._emit(endpoint, "down", endpoint.accusation or endpoint.problem)
        endpoint.state, known = "waiting", endpoint.accusation
        await self._clock.sleep(self._pause_s(endpoint))
        if endpoint.accusation is not known:  # accused after it had closed the connection
            await self._clock.sleep(self._limits.liar_retry_s)
        endpoint.accusation = None  # the penalty is over; the count and the last reason stay in its facts

    def _pause_s(self, endpoint: Endpoint) -> float:
        if endpoint.accusation is not None:
            return self._limits.liar_retry_s
        if endpoint.problem is not None and endpoint.problem.code in REFUSED_CODES:
            endpoint.state = "refused"
            return self._limits.refused_retry_s
        limits = self._limits
        pause_s = backoff_s(endpoint.failures, limits.backoff_first_s, limits.backoff_max_s, self._random())
        return max(pause_s, endpoint.retry_after_s)

    async def _connected(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        """Serve one connection until it ends. Its end is always an error, which is raised."""
        async with Connection(
            session, endpoint, self._rpc_limits, clock=self._clock, ca_file=self._ca_file
        ) as connection:
            self._require_genesis(endpoint, await connection.introduce())
            sources = await connection.subscribe(justifications=self._want_justifications)
            endpoint.state, endpoint.problem = "connected", None
            endpoint.connections += 1
            endpoint.progress_at = self._clock.monotonic()
            self._emit(endpoint, "up")
            work = [self._pump(endpoint, *source) for source in sources]
            work += [connection.watch_silence(self._limits.block_silence_s), self._await_cut(endpoint)]
            tasks = [asyncio.create_task(one) for one in work]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                await next(iter(done))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _require_genesis(self, endpoint: Endpoint, genesis: str) -> None:
        """Raise ENDPOINT_WRONG_GENESIS for another chain. If none is pinned, the first endpoint's chain counts."""
        if self.genesis_hash is None:
            self.genesis_hash = genesis
        elif genesis != self.genesis_hash:
            raise wrong_genesis(endpoint, f"genesis {genesis} instead of {self.genesis_hash}")

    async def _pump(self, endpoint: Endpoint, kind: EventKind, source: Subscription) -> None:
        first = True
        async for value in source:
            if kind == "finalized":
                number = answers.head_number(endpoint.url, value)
                endpoint.last_head = value
                self._note_head(endpoint, number)
                if first and self._want_justifications and endpoint.offers(JUSTIFICATIONS):
                    self._emit(endpoint, "unproven", value)  # its justification was sent before this connection
                first = False
            elif kind == "justification":
                endpoint.progress_at = self._clock.monotonic()
            self._emit(endpoint, kind, value)

    def _note_head(self, endpoint: Endpoint, number: int) -> None:
        """Compare heights at each finalized head. A head that brings progress resets the count of failures."""
        endpoint.heads += 1
        if number > endpoint.claimed_number:
            endpoint.claimed_number = number
            endpoint.progress_at = self._clock.monotonic()
            endpoint.failures = 0
        self._compare()

    def _compare(self) -> None:
        usable = [endpoint for endpoint in self.endpoints if endpoint.usable]
        top = max((self.height(endpoint) for endpoint in usable), default=-1)
        for endpoint in usable:
            endpoint.behind = top - self.height(endpoint)
            if endpoint.behind == 0:
                endpoint.behind_since = None
            elif endpoint.behind_since is None:
                endpoint.behind_since = self._clock.monotonic()

    async def _await_cut(self, endpoint: Endpoint) -> None:
        await endpoint.cut.wait()
        raise endpoint.accusation or endpoint.problem or closed(endpoint.url, "cut off")
