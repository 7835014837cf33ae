"""A TCP proxy that can cut all connections and refuse new ones, for trials with an unreachable chain."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from .tools import free_port


@dataclass(slots=True)
class TcpProxy:
    """Forwards `port` on loopback to `target_port` unless it is cut, and counts the bytes in both directions."""

    target_port: int
    port: int = 0
    forwarded_bytes: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Listen on `port`, which stays the same after a cut.

        The port is reserved: the kernel could give an unreserved one to an outgoing connection during a cut.
        """
        self.port = self.port or free_port()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Close every connection and refuse new ones until `start` is called again."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        # A cut is a normal end here; an unhandled cancellation would be logged by asyncio.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._forward(reader, writer)
        writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        pumps = [
            asyncio.create_task(self._pump(reader, far_writer)),
            asyncio.create_task(self._pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.forwarded_bytes += len(data)
            writer.write(data)
            await writer.drain()
