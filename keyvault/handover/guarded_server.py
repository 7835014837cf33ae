"""An HTTP server that strangers cannot keep busy. The vault, nodes and the agent's API use it.

The number of connections is limited. At the limit, a new connection replaces the one whose client has been silent for
longest: idle, in the middle of a header or body, or not reading its answer. A connection whose complete request is
being answered is never replaced. An honest client is silent for milliseconds at most; the port accepts too few
connections in that time to displace it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

log = logging.getLogger("keyvault")

HEADER_TIMEOUT_S: Final = 10.0
#: Seconds after which a client that does not read its answer is cut off.
READING_TIMEOUT_S: Final = 10.0
#: Simultaneous connections: several times the number accepted in one round of the event loop (the backlog, 100).
CONNECTIONS_MAX: Final = 512
KEEP_ALIVE_S: Final = 30.0
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
#: Number of connections that are closed if the process has no descriptor left; asyncio accepts again after 1 s.
_PLACES_TO_FREE: Final = 16
_ACCEPT_PAUSE_S: Final = 0.5
_LOG_AGAIN_AFTER_S: Final = 600.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Connections:
    """All open connections of a server, and those that wait for their client, longest silent first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.by_handler: dict[object, _Guard] = {}
        self.waiting: dict[_Guard, None] = {}

    def give_way(self) -> bool:
        """Close the connection whose client has been silent for longest. Returns False if none waits."""
        guard = next(iter(self.waiting), None)
        if guard is None:
            return False
        guard.abort()
        return True


class _Guard(asyncio.Protocol):
    """Wraps aiohttp's protocol of one connection: counts it, and adds deadlines for headers and for reading answers.

    aiohttp has neither: it waits indefinitely for a slow header (slow-loris) and for a client that does not read.
    """

    def __init__(self, handler: asyncio.Protocol, connections: _Connections) -> None:
        self._handler = handler
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._reading_deadline: asyncio.TimerHandle | None = None
        self._request: web.Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
        connections = self._connections
        if len(connections.by_handler) >= connections.most and not connections.give_way():
            self.abort()
            return
        connections.by_handler[self._handler] = self
        self._handler.connection_made(transport)
        self._waits_for_client()
        self._arm()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        self._disarm_reading()
        self._connections.waiting.pop(self, None)
        if self._connections.by_handler.pop(self._handler, None) is not None:  # otherwise it was refused at once
            self._handler.connection_lost(exc if isinstance(exc, Exception) else None)

    def data_received(self, data: bytes) -> None:
        if self._request is None and self._deadline is None:
            self._arm()
        self._handler.data_received(data)
        self._settle()

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()
        self._waits_for_client()
        self._reading_deadline = asyncio.get_running_loop().call_later(READING_TIMEOUT_S, self.abort)

    def resume_writing(self) -> None:
        self._disarm_reading()
        self._handler.resume_writing()
        self._settle()

    def request_began(self, request: web.Request) -> None:
        """The header is complete."""
        self._request = request
        self._disarm()
        self._settle()

    def request_ended(self) -> None:
        """The answer is complete; aiohttp's keep-alive timeout begins."""
        self._request = None
        self._waits_for_client()

    def _settle(self) -> None:
        """Move the connection to the end of the waiting ones, or remove it while its request is being answered."""
        if self._request is not None and self._request.content.is_eof() and self._reading_deadline is None:
            self._connections.waiting.pop(self, None)
        else:
            self._waits_for_client()

    def _waits_for_client(self) -> None:
        if self._connections.by_handler.get(self._handler) is self:
            self._connections.waiting.pop(self, None)
            self._connections.waiting[self] = None

    def _arm(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(HEADER_TIMEOUT_S, self.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _disarm_reading(self) -> None:
        if self._reading_deadline is not None:
            self._reading_deadline.cancel()
            self._reading_deadline = None

    def abort(self) -> None:
        """Close the connection at once."""
        self._disarm()
        self._connections.waiting.pop(self, None)
        if self._transport is not None:
            self._transport.abort()


class GuardedServer:
    """A server for one application: limited connections, deadlines for headers and for reading answers.

    `connections_max`: simultaneous connections; keep it well below the process's limit of descriptors.

        server = GuardedServer(app)
        port = await server.start("127.0.0.1", 6667)
        ...
        await server.stop()
    """

    def __init__(
        self, app: web.Application, *, connections_max: int = CONNECTIONS_MAX, shutdown_timeout_s: float = 60.0
    ) -> None:
        self._connections = _Connections(connections_max)
        app.middlewares.insert(0, self._watch_requests)
        # Our messages are not compressed. Unpacking 90 KB of a stranger could keep this process busy for a second.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            lingering_time=1.0,
            handle_signals=False,
            auto_decompress=False,
            shutdown_timeout=shutdown_timeout_s,
        )
        self._server: asyncio.Server | None = None
        self._freed_at_s = self._logged_at_s = -_LOG_AGAIN_AFTER_S

    @property
    def connections_open(self) -> int:
        """Number of open connections."""
        return len(self._connections.by_handler)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (needed with port 0). Raises OSError."""
        await self._runner.setup()
        factory = self._runner.server
        if factory is None:
            raise RuntimeError("aiohttp made no server")
        loop = asyncio.get_running_loop()
        self._take_accept_errors(loop)
        self._server = await loop.create_server(lambda: _Guard(factory(), self._connections), host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the listener and all connections."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    def _take_accept_errors(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close connections if no descriptor is left. Log it every 10 minutes; asyncio would log each failed accept."""
        before = loop.get_exception_handler()

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if not isinstance(error, OSError) or error.errno not in _NO_DESCRIPTORS or "socket" not in context:
                (before or type(loop).default_exception_handler)(loop, context)
                return
            now = loop.time()
            if now - self._freed_at_s >= _ACCEPT_PAUSE_S:  # asyncio reports a hundred failures at a time
                self._freed_at_s = now
                for _ in range(_PLACES_TO_FREE):
                    self._connections.give_way()
            if now - self._logged_at_s >= _LOG_AGAIN_AFTER_S:
                self._logged_at_s = now
                log.error("no connection can be accepted (%s): silent connections are cut off", error.strerror)

        loop.set_exception_handler(handle)

    @web.middleware
    async def _watch_requests(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        guard = self._connections.by_handler.get(request.protocol)
        if guard is None:
            return await handler(request)
        guard.request_began(request)
        try:
            return await handler(request)
        finally:
            guard.request_ended()
