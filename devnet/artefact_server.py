"""HTTP server for release archives, with Range support and, for tests, planted faults for single files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web


@dataclass(slots=True)
class Fault:
    """A fault of a file: its kind, and how often it occurs (None: always)."""

    times: int | None = 1
    status: int | None = None
    truncate_after_bytes: int | None = None
    truncate_when: Callable[[], bool] | None = None
    """Break the connection only after this event (or 30 s): a slow client may not have read the sent part yet."""
    delay_s: float = 0.0

    def take(self) -> bool:
        """Tell whether this request must fail."""
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0


@dataclass(slots=True)
class ArtefactServer:
    """Serves `folder` on loopback. `faults` maps a file name to its fault."""

    folder: Path
    port: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    chunk_delay_s: float = 0.0
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on a free port; `port` has its number."""
        app = web.Application(middlewares=[self._middleware])
        app.router.add_get("/{name}", self._get)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the socket and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def url(self, name: str) -> str:
        """Return the URL of a file in the folder."""
        return f"http://127.0.0.1:{self.port}/{name}"

    @web.middleware
    async def _middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append((request.path, request.headers.get("Range")))
        return await handler(request)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        path = self.folder / name
        if "/" in name or name.startswith(".") or not path.is_file():
            raise web.HTTPNotFound
        fault = self.faults.get(name)
        if fault is not None and fault.take():
            if fault.delay_s:
                await asyncio.sleep(fault.delay_s)
            if fault.status is not None:
                return web.Response(status=fault.status, text="planted fault")
            if fault.truncate_after_bytes is not None:
                return await self._truncated(request, path, fault.truncate_after_bytes, fault.truncate_when)
        if self.chunk_delay_s:
            return await self._slow(request, path)
        return web.FileResponse(path)

    async def _truncated(
        self, request: web.Request, path: Path, count: int, when: Callable[[], bool] | None
    ) -> web.StreamResponse:
        response, start, size = await _partial(request, path)
        with path.open("rb") as file:
            file.seek(start)
            await response.write(file.read(min(count, size - start)))
        await asyncio.sleep(0.2)  # the sent part arrives before the connection breaks
        for _ in range(600):
            if when is None or when():
                break
            await asyncio.sleep(0.05)
        if request.transport is not None:
            request.transport.close()
        return response

    async def _slow(self, request: web.Request, path: Path) -> web.StreamResponse:
        """Send it in 32 pieces with pauses, so that the progress of a download is visible."""
        response, start, size = await _partial(request, path)
        piece = max(4096, size // 32)
        with path.open("rb") as file:
            file.seek(start)
            while data := file.read(piece):
                await response.write(data)
                await asyncio.sleep(self.chunk_delay_s)
        await response.write_eof()
        return response


async def _partial(request: web.Request, path: Path) -> tuple[web.StreamResponse, int, int]:
    """Return the headers of an answer from an offset on. Clients resume by the ETag, that of `web.FileResponse`."""
    start, facts = request.http_range.start or 0, path.stat()  # noqa: ASYNC240 - a test server
    response = web.StreamResponse(status=206 if start else 200, headers={"Accept-Ranges": "bytes"})
    response.etag = f"{facts.st_mtime_ns:x}-{facts.st_size:x}"
    if start:
        response.headers["Content-Range"] = f"bytes {start}-{facts.st_size - 1}/{facts.st_size}"
    response.content_length = facts.st_size - start
    await response.prepare(request)
    return response, start, facts.st_size
