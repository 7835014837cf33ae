"""JSON-RPC 2.0 over one aiohttp websocket: deadlines, heartbeat, bounded messages, subscriptions.

Questions go out one at a time: released Substrate nodes leave Nagle's algorithm on, so frames sent close together
wait for each other's delayed ACK (measured: 44 ms instead of 2). Whoever wants prompt notifications opens a second
client and leaves it to the subscription alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from chain_watcher.errors import ChainWatcherError, Kind

#: JSON-RPC error codes of a server that asks for fewer requests (jsonrpsee, public gateways) and of a missing method.
RATE_LIMIT_CODES: Final = frozenset({-32005, -32029, -32999, 429})
#: A server's wish to be left alone is granted up to here.
RETRY_AFTER_MAX_S: Final = 3600.0
METHOD_NOT_FOUND: Final = -32601
#: Notifications for a subscription id not known yet (some servers send them before the id itself), at most so many.
EARLY_NOTIFICATIONS_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """Limits of one connection; the names carry the units."""

    connect_timeout_s: float = 10.0
    request_timeout_s: float = 15.0
    heartbeat_s: float = 15.0
    message_bytes_max: int = 16 * 1024 * 1024
    notification_bytes_max: int = 3 * 1024 * 1024  # a storage value of 1 MiB comes as hex
    notifications_max: int = 32


class RpcError(ChainWatcherError):
    """A ChainWatcherError of the transport, with the server's error code and its wish to be left alone, if any."""

    def __init__(
        self,
        *,
        code: str,
        what: str,
        why: str,
        action: str = "",
        kind: Kind = "transient",
        rpc_code: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code=code, what=what, why=why, action=action, kind=kind)
        self.rpc_code = rpc_code
        self.retry_after_s = retry_after_s


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """A verifying TLS context; with ``ca_file`` (PEM) only that CA is trusted. RPC_TLS_FAILED if it cannot be read."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as problem:
        raise RpcError(
            code="RPC_TLS_FAILED",
            what="pinned CA",
            why=f"{ca_file}: {problem}",
            action="Name a PEM file that holds the CA of the endpoint",
            kind="rejected",
        ) from problem


def open_session() -> aiohttp.ClientSession:
    """A session for ``RpcClient.connect``. Redirects are not followed: an endpoint could name an address inside this
    host's network, or turn wss into ws."""
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    return aiohttp.ClientSession(trace_configs=[trace])


async def _refuse_redirect(
    _session: aiohttp.ClientSession, _context: object, found: aiohttp.TraceRequestRedirectParams
) -> None:
    why = f"HTTP {found.response.status} to the websocket handshake; redirects are not followed"
    raise RpcError(code="RPC_CONNECT_FAILED", what=str(found.url), why=why, action="Check the address")


def _closed(url: str, why: str) -> RpcError:
    return RpcError(code="RPC_CLOSED", what=url, why=why, action="The watcher reconnects")


@dataclass(slots=True)
class _Pending:
    """One question on the wire; ``kind`` is the subscription that its answer opens."""

    future: asyncio.Future[Any]
    opens: Subscription | None


class Subscription:
    """Notifications of one server-side subscription, newest kept: at most ``notifications_max`` wait to be read.

    Iterating raises RPC_CLOSED (or what broke the connection) once the connection is gone.
    """

    def __init__(self, client: RpcClient, unsubscribe: str, limit: int) -> None:
        self._client = client
        self._unsubscribe = unsubscribe
        self._waiting: deque[Any] = deque(maxlen=limit)
        self._wake = asyncio.Event()
        self.id: str | int | None = None
        self.dropped = 0

    def deliver(self, value: Any) -> None:
        """Take one notification; the oldest waiting one gives way when the queue is full."""
        if len(self._waiting) == self._waiting.maxlen:
            self.dropped += 1
        self._waiting.append(value)
        self._wake.set()

    def wake(self) -> None:
        """Let a reader notice that the connection ended."""
        self._wake.set()

    async def next(self) -> Any:
        """The next notification, in the order of arrival."""
        while not self._waiting:
            failure = self._client.failure
            if failure is not None:
                raise failure
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.popleft()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Any]:
        while True:
            yield await self.next()

    async def cancel(self) -> None:
        """Tell the server that nobody listens any more; errors do not matter then."""
        await self._client.forget(self, self._unsubscribe)


@dataclass(slots=True)
class RpcCounters:
    """Facts for health pages: questions asked, notifications and bytes received."""

    requests: int = 0
    notifications: int = 0
    received_bytes: int = 0
    unexpected: int = 0


@dataclass(slots=True, eq=False)
class RpcClient:
    """One open connection; made by ``connect``. All errors are ``RpcError``."""

    url: str
    limits: RpcLimits
    _ws: aiohttp.ClientWebSocketResponse
    _now: Callable[[], float]
    failure: RpcError | None = None
    counters: RpcCounters = field(default_factory=RpcCounters)
    latency_s: float = 0.0
    _pending: dict[int, _Pending] = field(default_factory=dict)
    _subscriptions: dict[str | int, Subscription] = field(default_factory=dict)
    _early: deque[tuple[str | int, Any]] = field(default_factory=lambda: deque(maxlen=EARLY_NOTIFICATIONS_MAX))
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _next_id: int = 0
    _reader: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        session: aiohttp.ClientSession,
        url: str,
        limits: RpcLimits,
        *,
        ca_file: str | None = None,
        now: Callable[[], float] | None = None,
    ) -> RpcClient:
        """Open a websocket to ``url`` (ws:// or wss://). RPC_CONNECT_FAILED, RPC_TLS_FAILED, RPC_RATE_LIMITED."""
        tls: ssl.SSLContext | bool = True
        if url.startswith("wss://"):
            tls = await asyncio.to_thread(tls_context, ca_file)
        try:
            async with asyncio.timeout(limits.connect_timeout_s):
                ws = await session.ws_connect(
                    url, ssl=tls, heartbeat=limits.heartbeat_s, max_msg_size=limits.message_bytes_max, compress=0
                )
        except aiohttp.ClientConnectorCertificateError as problem:
            raise RpcError(
                code="RPC_TLS_FAILED", what=url, why=str(problem), action="Check the endpoint's certificate or the CA"
            ) from problem
        except aiohttp.WSServerHandshakeError as problem:
            raise _handshake_error(url, problem) from problem
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            why = str(problem) or type(problem).__name__
            raise RpcError(code="RPC_CONNECT_FAILED", what=url, why=why, action="Check the address") from problem
        client = cls(url=url, limits=limits, _ws=ws, _now=now or asyncio.get_running_loop().time)
        client._reader = asyncio.create_task(client._read(), name=f"rpc {url}")
        return client

    async def call(self, method: str, params: list[Any] | None = None, *, timeout_s: float | None = None) -> Any:
        """Ask one question and return its ``result``. RPC_TIMEOUT, RPC_CLOSED, RPC_REFUSED, RPC_METHOD_MISSING, ..."""
        return await self._ask(method, params or [], None, timeout_s or self.limits.request_timeout_s)

    async def subscribe(self, method: str, params: list[Any], unsubscribe: str) -> Subscription:
        """Open a subscription; ``unsubscribe`` is the method that ends it."""
        subscription = Subscription(self, unsubscribe, self.limits.notifications_max)
        await self._ask(method, params, subscription, self.limits.request_timeout_s)
        return subscription

    async def forget(self, subscription: Subscription, unsubscribe: str) -> None:
        """End a subscription on both sides."""
        if subscription.id is None or self.failure is not None:
            return
        if self._subscriptions.pop(subscription.id, None) is not None:
            try:
                await self.call(unsubscribe, [subscription.id])
            except RpcError:
                return

    async def close(self) -> None:
        """Close the socket and end the reader; safe to do twice."""
        self._fail(_closed(self.url, "closed by this side"))
        reader, self._reader = self._reader, None
        try:
            if reader is not None:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
        finally:  # also when this is cancelled meanwhile
            # A peer need not answer the close frame; the session drops the transport then.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._ws.close()

    async def _ask(self, method: str, params: list[Any], opens: Subscription | None, timeout_s: float) -> Any:
        async with self._turn:
            if self.failure is not None:
                raise self.failure
            self._next_id += 1
            number = self._next_id
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._pending[number] = _Pending(future, opens)
            self.counters.requests += 1
            started = self._now()
            question = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            try:
                async with asyncio.timeout(timeout_s):
                    await self._ws.send_str(json.dumps(question, separators=(",", ":")))
                    result = await future
            except TimeoutError as problem:
                raise RpcError(
                    code="RPC_TIMEOUT", what=f"{self.url} {method}", why=f"no answer within {timeout_s:g} s"
                ) from problem
            except (ConnectionError, aiohttp.ClientError, RuntimeError) as problem:
                raise self._fail(_closed(self.url, str(problem) or type(problem).__name__)) from problem
            finally:
                self._pending.pop(number, None)
                if future.done() and not future.cancelled():
                    future.exception()  # seen, even when the caller was cancelled meanwhile
            taken = self._now() - started
            self.latency_s = taken if self.latency_s == 0.0 else 0.8 * self.latency_s + 0.2 * taken
            return result

    async def _read(self) -> None:
        failure = _closed(self.url, "connection lost")
        try:
            async for message in self._ws:
                if message.type is aiohttp.WSMsgType.TEXT:
                    self.counters.received_bytes += len(message.data)
                    self._take(message.data)
                elif message.type is aiohttp.WSMsgType.BINARY:
                    raise self._garbage("a binary frame")
                else:
                    break
            failure = self._end_of_stream()
        except RpcError as problem:
            failure = problem
        except (aiohttp.ClientError, OSError) as problem:
            failure = _closed(self.url, str(problem) or type(problem).__name__)
        finally:
            self._fail(failure)
        await self._ws.close()

    def _end_of_stream(self) -> RpcError:
        problem = self._ws.exception()
        if self._ws.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
            why = f"a message over {self.limits.message_bytes_max} bytes"
            return RpcError(code="RPC_MESSAGE_TOO_BIG", what=self.url, why=why)
        return _closed(self.url, str(problem) if problem else f"close code {self._ws.close_code}")

    def _garbage(self, why: str) -> RpcError:
        return RpcError(
            code="RPC_GARBAGE", what=self.url, why=why, action="Check that this address is a Substrate node's RPC port"
        )

    def _take(self, text: str) -> None:
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise self._garbage("not JSON") from problem
        if not isinstance(message, dict):
            raise self._garbage("not a JSON object")
        if "method" in message:
            if len(text) > self.limits.notification_bytes_max:
                why = f"a notification over {self.limits.notification_bytes_max} bytes"
                raise RpcError(code="RPC_MESSAGE_TOO_BIG", what=self.url, why=why)
            self._take_notification(message)
        elif "id" in message:
            self._take_answer(message)
        else:
            raise self._garbage("neither an answer nor a notification")

    def _take_notification(self, message: dict[str, Any]) -> None:
        params = message.get("params")
        if not isinstance(params, dict) or not isinstance(params.get("subscription"), str | int):
            raise self._garbage("a notification without subscription")
        if "result" not in params:
            raise self._garbage("a notification without result")
        self.counters.notifications += 1
        subscription = self._subscriptions.get(params["subscription"])
        if subscription is None:
            self._early.append((params["subscription"], params["result"]))
        else:
            subscription.deliver(params["result"])

    def _take_answer(self, message: dict[str, Any]) -> None:
        pending = self._pending.get(message["id"]) if isinstance(message["id"], int) else None
        if pending is None or pending.future.done():
            self.counters.unexpected += 1  # late, after its deadline
            return
        if message.get("error") is not None:
            pending.future.set_exception(self._refusal(message["error"]))
        elif "result" not in message:
            raise self._garbage("an answer without result")
        else:
            if pending.opens is not None:
                self._open(pending.opens, message["result"])
            pending.future.set_result(message["result"])

    def _open(self, subscription: Subscription, identity: Any) -> None:
        """Register inside the reader, so that no notification that follows at once is missed."""
        if not isinstance(identity, str | int):
            raise self._garbage("a subscription id that is neither text nor number")
        subscription.id = identity
        self._subscriptions[identity] = subscription
        waiting, self._early = self._early, deque(maxlen=EARLY_NOTIFICATIONS_MAX)
        for early_id, value in waiting:
            if early_id == identity:
                subscription.deliver(value)
            else:
                self._early.append((early_id, value))

    def _refusal(self, error: Any) -> RpcError:
        if not isinstance(error, dict) or not isinstance(error.get("code"), int):
            return self._garbage("an error without code")
        number: int = error["code"]
        why = f"{error.get('message', 'no message')} ({number})"[:300]
        if number in RATE_LIMIT_CODES:
            return RpcError(code="RPC_RATE_LIMITED", what=self.url, why=why, rpc_code=number, retry_after_s=30.0)
        if number == METHOD_NOT_FOUND:
            return RpcError(code="RPC_METHOD_MISSING", what=self.url, why=why, rpc_code=number, kind="rejected")
        return RpcError(code="RPC_REFUSED", what=self.url, why=why, rpc_code=number)

    def _fail(self, failure: RpcError) -> RpcError:
        """Remember the first reason, and hand it to everyone who waits."""
        if self.failure is None:
            self.failure = failure
            for pending in self._pending.values():
                if not pending.future.done():
                    pending.future.set_exception(self.failure)
            for subscription in self._subscriptions.values():
                subscription.wake()
        return self.failure


def _handshake_error(url: str, problem: aiohttp.WSServerHandshakeError) -> RpcError:
    if problem.status == 429:
        wish = problem.headers.get("Retry-After", "") if problem.headers else ""
        wait_s = min(float(wish), RETRY_AFTER_MAX_S) if wish.isdecimal() else 30.0
        return RpcError(code="RPC_RATE_LIMITED", what=url, why="HTTP 429", rpc_code=429, retry_after_s=wait_s)
    return RpcError(code="RPC_CONNECT_FAILED", what=url, why=f"HTTP {problem.status} to the websocket handshake")
