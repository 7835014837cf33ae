"""HTTP serving that the vault and nodes share: bounded bodies in time, errors as JSON, the handover routes.

Refusals travel as ``{"code", "what", "why", "action", "kind"}`` with status 409 (rejected), 503 (transient) or 500
(invariant).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from aiohttp import web

from attestation.errors import AttestationError
from keyvault.errors import KeyvaultError

from .messages import MESSAGE_BYTES_MAX

log = logging.getLogger("keyvault")

BODY_TIMEOUT_S: Final = 10.0
HEADER_TIMEOUT_S: Final = 10.0
#: A client that does not read its answers may keep them waiting for so long.
READING_TIMEOUT_S: Final = 10.0
CONNECTIONS_MAX: Final = 256
_STATUS: Final = {"rejected": 409, "transient": 503, "invariant": 500}
_STATUS_BY_CODE: Final = {
    "HANDOVER_MESSAGE_MALFORMED": 400,
    "VAULT_REQUEST_MALFORMED": 400,
    "VAULT_EVIDENCE_MALFORMED": 400,
    "VAULT_TOKEN_REFUSED": 401,
    "VAULT_PATH_UNKNOWN": 404,
    "VAULT_REQUEST_TOO_SLOW": 408,
    "HANDOVER_MESSAGE_TOO_LARGE": 413,
    "HANDOVER_SESSIONS_FULL": 429,
}


def as_keyvault_error(error: Exception) -> KeyvaultError:
    """Return any error of this side as one that may be told; what is not ours is told by its type only."""
    if isinstance(error, KeyvaultError):
        return error
    if isinstance(error, AttestationError):
        return KeyvaultError(code=error.code, what=error.what, why=error.why, action=error.action, kind=error.kind)
    return KeyvaultError(
        code="VAULT_INTERNAL",
        what="the request failed",
        why=type(error).__name__,
        action="Look into the log; nothing was handed out.",
        kind="invariant",
    )


def error_response(error: Exception) -> web.Response:
    """Return the HTTP answer for an error."""
    told = as_keyvault_error(error)
    return web.json_response(told.to_json(), status=_STATUS_BY_CODE.get(told.code, _STATUS[told.kind]))


def shown_path(request: web.Request) -> str:
    """Return the path as it came, for texts and logs: decoded, a line break in it would forge a line of the log."""
    return request.rel_url.raw_path[:80].encode("ascii", "backslashreplace").decode("ascii")


def refuse_browsers(request: web.Request) -> None:
    """Raise ``HANDOVER_MESSAGE_MALFORMED`` for what a web page sends: it reaches loopback too, and could flood it."""
    if "Origin" in request.headers or "Sec-Fetch-Site" in request.headers:
        raise KeyvaultError(
            code="HANDOVER_MESSAGE_MALFORMED",
            what=f"{shown_path(request)} was refused",
            why="a web page in a browser sent it",
            action="Close that page; no browser takes part in a handover.",
        )


async def read_body(request: web.Request, limit: int) -> bytes:
    """Return the body of at most ``limit`` bytes, which must arrive within 10 s."""
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            if request.content_length is not None:
                return await request.content.readexactly(request.content_length)
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise KeyvaultError(
            code="VAULT_REQUEST_TOO_SLOW",
            what="the request was dropped",
            why=f"its body did not arrive within {BODY_TIMEOUT_S:.0f} s",
            kind="transient",
        ) from None
    except (asyncio.IncompleteReadError, web.RequestPayloadError, ConnectionError):
        raise KeyvaultError(
            code="HANDOVER_MESSAGE_MALFORMED", what="the request was refused", why="its body broke off"
        ) from None
    return bytes(body)


def _too_large(limit: int) -> KeyvaultError:
    return KeyvaultError(
        code="HANDOVER_MESSAGE_TOO_LARGE", what="the request was refused", why=f"its body has more than {limit} bytes"
    )


_logged: dict[str, float] = {}
_LOG_AGAIN_AFTER_S: Final = 600.0
_LOGGED_MAX: Final = 256


def log_refusal(error: KeyvaultError | AttestationError) -> None:
    """Log a refusal once: who polls every second and is refused alike each time is not worth a line each time."""
    text, now = str(error), time.monotonic()
    if now - _logged.get(text, -_LOG_AGAIN_AFTER_S) < _LOG_AGAIN_AFTER_S:
        return
    if len(_logged) >= _LOGGED_MAX:
        del _logged[next(iter(_logged))]
    _logged[text] = now
    log.log(logging.INFO if error.kind == "transient" else logging.WARNING, "%s", text)


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer every error as JSON; log refusals once with code and reason, unexpected errors without their values."""
    guard = request.app[_GUARDS].get(request.protocol)
    if guard is not None:
        guard.request_began()
    try:
        return await handler(request)
    except web.HTTPException as error:
        return error_response(
            KeyvaultError(
                code="VAULT_PATH_UNKNOWN", what=f"{request.method} {shown_path(request)} was refused", why=error.reason
            )
        )
    except (KeyvaultError, AttestationError) as error:
        log_refusal(error)
        return error_response(error)
    except Exception as error:
        # A traceback shows source lines, not values; the text of a foreign error could quote key material.
        frames = error.__traceback__
        while frames is not None and frames.tb_next is not None:
            frames = frames.tb_next
        place = f"{frames.tb_frame.f_code.co_name}:{frames.tb_lineno}" if frames is not None else "?"
        log.error("VAULT_INTERNAL: %s in %s (%s)", type(error).__name__, place, shown_path(request))
        return error_response(error)
    finally:
        if guard is not None:
            guard.request_ended()


class _Guard(asyncio.Protocol):
    """Stands before aiohttp's protocol of one connection: deadlines for headers and for reading, a place in the count.

    aiohttp has neither of these deadlines (slow-loris), and waits for ever for who does not read its answers.
    """

    def __init__(self, handler: asyncio.Protocol, guards: dict[object, _Guard]) -> None:
        self._handler = handler
        self._guards = guards
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._reading_deadline: asyncio.TimerHandle | None = None
        self._in_request = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
        if len(self._guards) >= CONNECTIONS_MAX:
            self._abort()
            return
        self._guards[self._handler] = self
        self._handler.connection_made(transport)
        self._arm()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        self._disarm_reading()
        if self._guards.pop(self._handler, None) is not None:
            self._handler.connection_lost(exc if isinstance(exc, Exception) else None)

    def data_received(self, data: bytes) -> None:
        if not self._in_request and self._deadline is None:
            self._arm()
        self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()
        self._reading_deadline = asyncio.get_running_loop().call_later(READING_TIMEOUT_S, self._abort)

    def resume_writing(self) -> None:
        self._disarm_reading()
        self._handler.resume_writing()

    def request_began(self) -> None:
        """The header is complete."""
        self._in_request = True
        self._disarm()

    def request_ended(self) -> None:
        """The answer is made; aiohttp's own keep-alive timeout counts from here."""
        self._in_request = False

    def _arm(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(HEADER_TIMEOUT_S, self._abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _disarm_reading(self) -> None:
        if self._reading_deadline is not None:
            self._reading_deadline.cancel()
            self._reading_deadline = None

    def _abort(self) -> None:
        self._disarm()
        if self._transport is not None:
            self._transport.abort()


_GUARDS: Final = web.AppKey("guards", dict[object, _Guard])


class GuardedServer:
    """A listening server for an application made by ``new_app``: bounded connections, headers and bodies in time."""

    def __init__(self, app: web.Application) -> None:
        self._guards = app[_GUARDS]
        # No message of ours is compressed; unpacking a stranger's would let 90 KB keep this process busy for a second.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=30.0,
            lingering_time=1.0,
            handle_signals=False,
            auto_decompress=False,
        )
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (useful with port 0). Raises OSError."""
        await self._runner.setup()
        factory = self._runner.server
        if factory is None:
            raise RuntimeError("aiohttp made no server")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Guard(factory(), self._guards), host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the listener and all connections."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()


def new_app() -> web.Application:
    """Return an application whose errors are JSON and whose connections ``GuardedServer`` can watch."""
    app = web.Application(middlewares=[_errors])
    app[_GUARDS] = {}
    return app


class HandoverPort(Protocol):
    """Whoever answers the four messages of a holder; see ``keyvault.handover.holder.Holder``."""

    async def on_hello(self, body: bytes) -> bytes:
        """Return the challenge."""

    async def on_request(self, body: bytes) -> bytes:
        """Return the delivery."""

    async def on_received(self, body: bytes) -> bytes:
        """Return the acknowledgement."""

    async def on_durable(self, body: bytes) -> bytes:
        """Return the acknowledgement."""


def add_handover_routes(app: web.Application, port: HandoverPort) -> None:
    """Add ``POST /v2/hello``, ``/v2/request``, ``/v2/received``, ``/v2/durable``."""

    def route(step: Callable[[bytes], Awaitable[bytes]]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            refuse_browsers(request)
            body = await read_body(request, MESSAGE_BYTES_MAX)
            return web.Response(body=await step(body), content_type="application/json")

        return handle

    app.router.add_post("/v2/hello", route(port.on_hello))
    app.router.add_post("/v2/request", route(port.on_request))
    app.router.add_post("/v2/received", route(port.on_received))
    app.router.add_post("/v2/durable", route(port.on_durable))
