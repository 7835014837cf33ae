"""A pool of chain endpoints: connections kept hot, health, failover, back-off, and who was caught lying.

Every endpoint holds three sockets: *questions* (one at a time), *signal* (the finality notifications alone, so that
nothing delays them) and *hints* (best heads, storage changes). All usable endpoints stay connected, so that failover
costs no reconnect and finalized heights can be compared. The pool moves bytes and facts; belief is the watcher's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from chain_watcher.errors import ChainWatcherError

from .clock import Clock
from .endpoint import ASKED_FOR, BLOCK_HASH, JUSTIFICATIONS, Endpoint, Event, EventKind
from .rpc import RpcClient, RpcError, RpcLimits, Subscription, open_session

REFUSED_CODES: Final = frozenset({"ENDPOINT_WRONG_GENESIS", "RPC_TLS_FAILED"})


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Times and distances of the pool; the names carry the units."""

    backoff_first_s: float = 0.5
    backoff_max_s: float = 20.0
    refused_retry_s: float = 600.0
    liar_retry_s: float = 3600.0
    unproven_claim_s: float = 30.0
    block_silence_s: float = 45.0
    lag_grace_s: float = 2.0
    events_max: int = 1024
    events_of_a_kind_max: int = 16


def choose(
    endpoints: Iterable[Endpoint],
    current: Endpoint | None,
    now: float,
    grace_s: float,
    height: Callable[[Endpoint], int],
) -> Endpoint | None:
    """The endpoint to lean on: the present one while it keeps up, else the highest, then the quickest."""
    usable = [endpoint for endpoint in endpoints if endpoint.usable]
    if not usable:
        return None
    if current in usable and current is not None:
        behind = current.behind_since
        if behind is None or now - behind <= grace_s:
            return current
    return max(usable, key=lambda endpoint: (height(endpoint), -endpoint.latency_s))


def voice(url: str) -> str:
    """Who speaks at a URL: two ways of writing one address (case, default port, ws for wss, a last slash) are one."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        return url
    address = (parts.hostname or "").rstrip(".")
    if port not in (None, {"ws": 80, "wss": 443}.get(parts.scheme)):
        address += f":{port}"
    return f"{address}{parts.path.rstrip('/')}?{parts.query}"


def backoff_s(failures: int, limits: PoolLimits, random: float) -> float:
    """Exponential back-off with jitter: between half and the whole of ``first * 2^(failures-1)``, capped."""
    whole = min(limits.backoff_max_s, limits.backoff_first_s * 2.0 ** min(max(failures - 1, 0), 30))
    return whole * (0.5 + 0.5 * random)


def head_number(header: Any) -> int:
    """The number in a JSON-RPC header (padded or not). ENDPOINT_GARBAGE."""
    try:
        number = int(header["number"], 16)
    except (TypeError, KeyError, ValueError) as problem:
        raise ChainWatcherError(code="ENDPOINT_GARBAGE", what="header", why="it has no readable number") from problem
    if not 0 <= number < 2**32:
        raise ChainWatcherError(code="ENDPOINT_GARBAGE", what="header", why="its number is out of range")
    return number


class EndpointPool:
    """Keeps the endpoints connected; hands out events; ``random`` gives floats in [0, 1)."""

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
        want_justifications: bool = False,
        claims_need_proof: bool = False,
    ) -> None:
        self.endpoints = [Endpoint(url) for url in dict.fromkeys(urls)]
        self.genesis_hash = genesis_hash
        self.confirmed_number: int | None = -1 if claims_need_proof else None
        self.primary: Endpoint | None = None
        self.failovers = 0
        self.events_dropped = 0
        self._limits = limits
        self._rpc_limits = rpc_limits
        self._clock = clock
        self._random = random
        self._ca_file = ca_file
        self._want_justifications = want_justifications
        self._events: deque[Event] = deque(maxlen=limits.events_max)
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with open_session() as session, asyncio.TaskGroup() as group:
            for endpoint in self.endpoints:
                group.create_task(self._serve(session, endpoint), name=f"endpoint {endpoint.url}")

    async def event(self, timeout_s: float) -> Event | None:
        """The next event, or None after ``timeout_s`` (so that the caller can look at its timers)."""
        if not self._events:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return None
        return self._events.popleft() if self._events else None

    def has_news_besides(self, endpoint: Endpoint) -> bool:
        """Whether another usable endpoint's word on finality waits to be heard."""
        kinds = ("finalized", "justification")
        return any(one.kind in kinds and one.endpoint is not endpoint and one.endpoint.usable for one in self._events)

    def choose(self) -> Endpoint | None:
        """Choose the primary anew; counts a failover when it changes hands."""
        now = self._clock.monotonic()
        chosen = choose(self.endpoints, self.primary, now, self._limits.lag_grace_s, self.height)
        if chosen is not self.primary:
            if chosen is not None and self.primary is not None:
                self.failovers += 1
            self.primary = chosen or self.primary
        return chosen

    def height(self, endpoint: Endpoint) -> int:
        """How high an endpoint is: what it claims, but no higher than what was confirmed where claims need proof."""
        if self.confirmed_number is None:
            return endpoint.claimed_number
        return min(endpoint.claimed_number, self.confirmed_number)

    def confirm(self, number: int) -> None:
        """The watcher holds block ``number`` for final: who has not got there is behind."""
        if self.confirmed_number is not None:
            self.confirmed_number = max(self.confirmed_number, number)
            self._compare()

    def usable(self) -> list[Endpoint]:
        """All usable endpoints, the primary first, then by latency."""
        found = [endpoint for endpoint in self.endpoints if endpoint.usable]
        return sorted(found, key=lambda endpoint: (endpoint is not self.primary, endpoint.latency_s))

    def accuse(self, endpoint: Endpoint, problem: ChainWatcherError) -> None:
        """It said something that cannot be true: name it, cut it off, and leave it alone for a long time."""
        endpoint.accusation = problem
        endpoint.accusations = [*endpoint.accusations, problem.code][-8:]
        endpoint.cut.set()

    def distrust(self, endpoint: Endpoint, problem: ChainWatcherError) -> None:
        """It failed (not lied): reconnect after the back-off."""
        endpoint.problem = problem
        endpoint.cut.set()

    def _emit(self, endpoint: Endpoint, kind: EventKind, value: Any = None) -> None:
        """Let it wait to be heard; of an endpoint's news of a kind only the newest, so that no flood drowns others'."""
        alike = [one for one in self._events if one.endpoint is endpoint and one.kind == kind]
        if len(alike) >= self._limits.events_of_a_kind_max:
            self._events.remove(alike[0])
            self.events_dropped += 1
        elif len(self._events) == self._events.maxlen:
            self.events_dropped += 1
        self._events.append(Event(endpoint, kind, value))
        self._wake.set()

    async def _serve(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        while True:
            endpoint.state = "connecting"
            endpoint.cut.clear()
            connections = endpoint.connections
            try:
                await self._connected(session, endpoint)
            except ChainWatcherError as problem:
                endpoint.note_failure(problem)
            if endpoint.connections > connections:
                self._emit(endpoint, "down", endpoint.accusation or endpoint.problem)
            endpoint.state, known = "waiting", endpoint.accusation
            await self._clock.sleep(self._pause_s(endpoint))
            if endpoint.accusation is not known:  # found out after it had hung up
                await self._clock.sleep(self._limits.liar_retry_s)
            endpoint.accusation = None  # served its time; the count and the last reason stay in its facts

    def _pause_s(self, endpoint: Endpoint) -> float:
        if endpoint.accusation is not None:
            return self._limits.liar_retry_s
        if endpoint.problem is not None and endpoint.problem.code in REFUSED_CODES:
            endpoint.state = "refused"
            return self._limits.refused_retry_s
        return max(backoff_s(endpoint.failures, self._limits, self._random()), endpoint.retry_after_s)

    async def _connected(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        """One connection from its opening to its end, which is always an error."""
        clients: list[RpcClient] = []

        async def connect() -> RpcClient:
            client = await RpcClient.connect(
                session, endpoint.url, self._rpc_limits, ca_file=self._ca_file, now=self._clock.monotonic
            )
            clients.append(client)
            return client

        pumps: list[asyncio.Task[None]] = []
        try:
            endpoint.questions = questions = await connect()
            await self._introduce(endpoint, questions)
            signal, endpoint.hints = await connect(), await connect()
            sources = await self._subscribe(endpoint, signal, endpoint.hints)
            endpoint.state, endpoint.problem = "connected", None
            endpoint.connections += 1
            endpoint.progress_at = self._clock.monotonic()
            self._emit(endpoint, "up")
            pumps = [asyncio.create_task(self._pump(endpoint, *source)) for source in sources]
            pumps.append(asyncio.create_task(self._watchdog(endpoint, questions)))
            pumps.append(asyncio.create_task(self._await_cut(endpoint)))
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            await next(iter(done))
        finally:
            endpoint.questions = endpoint.hints = None
            for pump in pumps:
                pump.cancel()
            try:
                await asyncio.gather(*pumps, return_exceptions=True)
            finally:  # also when the watcher is stopped just now
                await asyncio.gather(*(client.close() for client in clients))

    async def _introduce(self, endpoint: Endpoint, questions: RpcClient) -> None:
        genesis = await questions.call("chain_getBlockHash", [0])
        if (
            not isinstance(genesis, str)
            or not BLOCK_HASH.fullmatch(genesis)
            or (self.genesis_hash is not None and genesis != self.genesis_hash)
        ):
            raise ChainWatcherError(
                code="ENDPOINT_WRONG_GENESIS",
                what=endpoint.url,
                why=f"genesis {str(genesis)[:80]} instead of {self.genesis_hash or 'a block hash'}",
                action="Point this endpoint at the right chain, or correct genesis_hash",
            )
        self.genesis_hash = genesis
        try:
            listed = await questions.call("rpc_methods")
            endpoint.methods = ASKED_FOR & frozenset(name for name in listed["methods"] if isinstance(name, str))
        except (RpcError, TypeError, KeyError):
            endpoint.methods = frozenset()

    async def _subscribe(
        self, endpoint: Endpoint, signal: RpcClient, hints: RpcClient
    ) -> list[tuple[EventKind, Subscription]]:
        """Open the subscriptions; the one that tells of finality has the signal socket to itself."""
        proven = self._want_justifications and endpoint.offers(JUSTIFICATIONS)
        sources: list[tuple[EventKind, Subscription]] = []
        if proven:
            subscription = await signal.subscribe(JUSTIFICATIONS, [], "grandpa_unsubscribeJustifications")
            sources.append(("justification", subscription))
        finalized = await (hints if proven else signal).subscribe(
            "chain_subscribeFinalizedHeads", [], "chain_unsubscribeFinalizedHeads"
        )
        best = await hints.subscribe("chain_subscribeNewHeads", [], "chain_unsubscribeNewHeads")
        return [*sources, ("finalized", finalized), ("best", best)]

    def accuse_unproven(self) -> None:
        """Deal with endpoints that claim more than they prove, for longer than a justification takes to arrive.

        The first time the subscription may have died: reconnect. The second time in a row it is named.
        """
        now = self._clock.monotonic()
        for endpoint in self.endpoints:
            if self.confirmed_number is None or not endpoint.usable or not endpoint.offers(JUSTIFICATIONS):
                continue
            if endpoint.claimed_number <= self.confirmed_number:
                endpoint.unproven_since, endpoint.unproven_times = None, 0
            elif endpoint.unproven_since is None:
                endpoint.unproven_since = now
            elif now - endpoint.unproven_since > self._limits.unproven_claim_s:
                why = f"claims block {endpoint.claimed_number}, proven is block {self.confirmed_number}"
                problem = ChainWatcherError(code="ENDPOINT_UNPROVEN_HEIGHT", what=endpoint.url, why=why)
                endpoint.unproven_since = None
                endpoint.unproven_times += 1
                if endpoint.unproven_times > 1:
                    self.accuse(endpoint, problem)
                else:
                    self.distrust(endpoint, problem)

    def excuse_unproven(self) -> None:
        """What is not proven yet may be so because it was not followed yet: count the time anew, for all."""
        for endpoint in self.endpoints:
            endpoint.unproven_since = None

    async def watch_storage(self, endpoint: Endpoint, keys: list[str]) -> None:
        """Ask for storage changes of ``keys`` as a hint; runs until the connection ends."""
        if endpoint.hints is None:
            return
        source = await endpoint.hints.subscribe("state_subscribeStorage", [keys], "state_unsubscribeStorage")
        async for value in source:
            self._emit(endpoint, "storage", value)

    async def _pump(self, endpoint: Endpoint, kind: EventKind, source: Subscription) -> None:
        async for value in source:
            if kind == "finalized":
                endpoint.last_head = value
                self._note_head(endpoint, head_number(value))
            elif kind == "justification":
                endpoint.progress_at = self._clock.monotonic()
            self._emit(endpoint, kind, value)

    def _note_head(self, endpoint: Endpoint, number: int) -> None:
        """Heights are compared at each finalized head; a head that brings progress also ends a series of failures."""
        now = self._clock.monotonic()
        endpoint.heads += 1
        if number > endpoint.claimed_number:
            endpoint.claimed_number = number
            endpoint.progress_at = now
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

    async def _watchdog(self, endpoint: Endpoint, questions: RpcClient) -> None:
        """No block for long: a quiet chain, or a dead subscription on a live socket? Ask, and reconnect if dead."""
        while True:
            silent_s = self._clock.monotonic() - endpoint.progress_at
            if silent_s < self._limits.block_silence_s:
                await self._clock.sleep(self._limits.block_silence_s - silent_s)
                continue
            head = await questions.call("chain_getFinalizedHead")
            header = await questions.call("chain_getHeader", [head])
            if head_number(header) > endpoint.claimed_number:
                raise ChainWatcherError(
                    code="ENDPOINT_SILENT",
                    what=endpoint.url,
                    why=f"no finalized head for {silent_s:.0f} s although it has one",
                    kind="transient",
                )
            await self._clock.sleep(self._limits.block_silence_s)

    async def _await_cut(self, endpoint: Endpoint) -> None:
        await endpoint.cut.wait()
        raise endpoint.accusation or endpoint.problem or RpcError(code="RPC_CLOSED", what=endpoint.url, why="cut off")
