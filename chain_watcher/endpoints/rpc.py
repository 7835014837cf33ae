"""JSON-RPC 2.0 over one aiohttp websocket: deadlines, heartbeat, bounded messages, subscriptions.

Requests are sent one at a time: released Substrate nodes leave Nagle's algorithm on, so frames sent close together
wait for each other's delayed ACK (measured: 44 ms instead of 2). For prompt notifications, open a second client and use
it only for the subscription.
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

from .messages import RpcError, answer_chars_max, closed, garbage, handshake_refusal, parse, refusal, too_big
from .tunnel import TunnelConnector

#: Notifications kept for a subscription id that is not known yet: some servers send them before the id itself.
EARLY_NOTIFICATIONS_MAX: Final = 32
SUBSCRIPTION_ID_CHARS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """Limits of one connection; the names carry the units.

    A websocket message of more than `message_bytes_max` closes the connection. Each answer has its own, smaller limit
    (`messages.ANSWER_CHARS_MAX_OF`).
    """

    connect_timeout_s: float = 10.0
    request_timeout_s: float = 15.0
    heartbeat_s: float = 15.0
    message_bytes_max: int = 16 * 1024 * 1024
    notification_bytes_max: int = 2 * 1024 * 1024
    notifications_max: int = 32


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return a verifying TLS context; with `ca_file` (PEM) only that CA is trusted.

    Raises RPC_TLS_FAILED if the file cannot be read.
    """
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


def open_session(proxy: str | None = None) -> aiohttp.ClientSession:
    """Open a session for `RpcClient.connect`, through the HTTP proxy at the URL `proxy` if one is given.

    Redirects are not followed: an endpoint could redirect to an address inside this host's network, or from wss to ws.
    """
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    connector = TunnelConnector(proxy) if proxy is not None else None
    return aiohttp.ClientSession(connector=connector, trace_configs=[trace])


async def _refuse_redirect(
    _session: aiohttp.ClientSession, _context: object, found: aiohttp.TraceRequestRedirectParams
) -> None:
    why = f"HTTP {found.response.status} to the websocket handshake; redirects are not followed"
    raise RpcError(code="RPC_CONNECT_FAILED", what=str(found.url), why=why, action="Check the address")


@dataclass(slots=True)
class _Pending:
    """One request that waits for its answer; `opens` is the subscription that the answer opens."""

    future: asyncio.Future[Any]
    opens: Subscription | None
    answer_chars_max: int


class Subscription:
    """Notifications of one subscription. At most `notifications_max` are queued; beyond that the oldest is dropped.

    After the connection has ended, iterating raises RPC_CLOSED or the error that ended it.
    """

    def __init__(self, client: RpcClient, unsubscribe: str, limit: int) -> None:
        self._client = client
        self._unsubscribe = unsubscribe
        self._waiting: deque[Any] = deque(maxlen=limit)
        self._wake = asyncio.Event()
        self.id: str | int | None = None
        self.dropped = 0

    def deliver(self, value: Any) -> None:
        """Take one notification; drop the oldest waiting one when the queue is full."""
        if len(self._waiting) == self._waiting.maxlen:
            self.dropped += 1
        self._waiting.append(value)
        self._wake.set()

    def wake(self) -> None:
        """Wake the reader, so that it notices the end of the connection."""
        self._wake.set()

    async def next(self) -> Any:
        """Return the next notification, in the order of arrival."""
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
        """Unsubscribe; errors are ignored."""
        await self._client.forget(self, self._unsubscribe)


@dataclass(slots=True)
class RpcCounters:
    """Counters for status and metrics: requests, notifications, received bytes and others."""

    requests: int = 0
    notifications: int = 0
    received_bytes: int = 0
    unexpected: int = 0


@dataclass(slots=True, eq=False)
class RpcClient:
    """One open connection, made by `connect`. All errors are `RpcError`."""

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
        """Open a websocket to `url` (ws:// or wss://).

        Raises RPC_CONNECT_FAILED, RPC_TLS_FAILED, RPC_RATE_LIMITED.
        """
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
            raise handshake_refusal(url, problem.status, problem.headers) from problem
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            why = str(problem) or type(problem).__name__
            raise RpcError(code="RPC_CONNECT_FAILED", what=url, why=why, action="Check the address") from problem
        client = cls(url=url, limits=limits, _ws=ws, _now=now or asyncio.get_running_loop().time)
        client._reader = asyncio.create_task(client._read(), name=f"rpc {url}")
        return client

    async def call(self, method: str, params: list[Any] | None = None, *, timeout_s: float | None = None) -> Any:
        """Send one request and return its `result`.

        Raises RPC_TIMEOUT, RPC_CLOSED, RPC_REFUSED, RPC_METHOD_MISSING, RPC_RATE_LIMITED, RPC_GARBAGE,
        RPC_MESSAGE_TOO_BIG.
        """
        return await self._ask(method, params or [], None, timeout_s or self.limits.request_timeout_s)

    async def subscribe(self, method: str, params: list[Any], unsubscribe: str) -> Subscription:
        """Open a subscription; `unsubscribe` is the method that ends it."""
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
        """Close the socket and end the reader; safe to call twice."""
        self._fail(closed(self.url, "closed by this side"))
        reader, self._reader = self._reader, None
        try:
            if reader is not None:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
        finally:  # also if this call is cancelled
            # If the peer does not answer the close frame in time, the session drops the transport.
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
            self._pending[number] = _Pending(future, opens, answer_chars_max(method))
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
                raise self._fail(closed(self.url, str(problem) or type(problem).__name__)) from problem
            finally:
                self._pending.pop(number, None)
                if future.done() and not future.cancelled():
                    future.exception()  # retrieve it even if the caller was cancelled, or asyncio logs it
            taken = self._now() - started
            self.latency_s = taken if self.latency_s == 0.0 else 0.8 * self.latency_s + 0.2 * taken
            return result

    async def _read(self) -> None:
        failure = closed(self.url, "connection lost")
        try:
            async for message in self._ws:
                if message.type is aiohttp.WSMsgType.TEXT:
                    self.counters.received_bytes += len(message.data)
                    self._take(message.data)
                elif message.type is aiohttp.WSMsgType.BINARY:
                    raise garbage(self.url, "a binary frame")
                else:
                    break
            failure = self._end_of_stream()
        except RpcError as problem:
            failure = problem
        except (aiohttp.ClientError, OSError) as problem:
            failure = closed(self.url, str(problem) or type(problem).__name__)
        finally:
            self._fail(failure)
        await self._ws.close()

    def _end_of_stream(self) -> RpcError:
        problem = self._ws.exception()
        if self._ws.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
            return too_big(self.url, f"a message over {self.limits.message_bytes_max} bytes")
        return closed(self.url, str(problem) if problem else f"close code {self._ws.close_code}")

    def _take(self, text: str) -> None:
        awaited = max((one.answer_chars_max for one in self._pending.values()), default=0)
        message = parse(self.url, text, max(awaited, self.limits.notification_bytes_max))
        if "method" in message:
            if len(text) > self.limits.notification_bytes_max:
                raise too_big(self.url, f"a notification over {self.limits.notification_bytes_max} bytes")
            self._take_notification(message)
        elif "id" in message:
            self._take_answer(message)
        else:
            raise garbage(self.url, "neither an answer nor a notification")

    def _take_notification(self, message: dict[str, Any]) -> None:
        params = message.get("params")
        if not isinstance(params, dict) or not isinstance(params.get("subscription"), str | int):
            raise garbage(self.url, "a notification without subscription")
        if "result" not in params:
            raise garbage(self.url, "a notification without result")
        self.counters.notifications += 1
        subscription = self._subscriptions.get(params["subscription"])
        if subscription is None:
            self._early.append((params["subscription"], params["result"]))
        else:
            subscription.deliver(params["result"])

    def _take_answer(self, message: dict[str, Any]) -> None:
        pending = self._pending.get(message["id"]) if isinstance(message["id"], int) else None
        if pending is None or pending.future.done():
            self.counters.unexpected += 1  # it arrived after its deadline
            return
        if message.get("error") is not None:
            pending.future.set_exception(refusal(self.url, message["error"]))
        elif "result" not in message:
            raise garbage(self.url, "an answer without result")
        else:
            if pending.opens is not None:
                self._open(pending.opens, message["result"])
            pending.future.set_result(message["result"])

    def _open(self, subscription: Subscription, identity: Any) -> None:
        """Register the subscription inside the reader, so that a notification that follows immediately is not lost."""
        if not isinstance(identity, str | int) or (
            isinstance(identity, str) and len(identity) > SUBSCRIPTION_ID_CHARS_MAX
        ):
            raise garbage(self.url, "a subscription id that is neither a short text nor a number")
        subscription.id = identity
        self._subscriptions[identity] = subscription
        waiting, self._early = self._early, deque(maxlen=EARLY_NOTIFICATIONS_MAX)
        for early_id, value in waiting:
            if early_id == identity:
                subscription.deliver(value)
            else:
                self._early.append((early_id, value))

    def _fail(self, failure: RpcError) -> RpcError:
        """Store the first failure and raise it in every waiting call and subscription."""
        if self.failure is None:
            self.failure = failure
            for pending in self._pending.values():
                if not pending.future.done():
                    pending.future.set_exception(self.failure)
            for subscription in self._subscriptions.values():
                subscription.wake()
        return self.failure
