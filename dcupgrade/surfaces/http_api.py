"""The agent's HTTP interface on loopback: status page, JSON API, server-sent events, metrics, and actions with a token.

Reading needs no token; the page shows nothing secret. Actions need the operator's token in a header. Another site's
page cannot set that header without a CORS preflight, which is never granted (against CSRF). The Host header must be an
allowed one (against DNS rebinding).
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import prometheus_client
from aiohttp import web

from dcupgrade.errors import failure_of
from dcupgrade.machine import picture
from dcupgrade.machine.operator_commands import ARGUMENTS, require_valid
from dcupgrade.machine.picture import machine_svg
from dcupgrade.machine.plan import Plan
from dcupgrade.machine.state import Name
from dcupgrade.printable import storable

from . import page_html
from .metrics import AgentCollector
from .overview import Explain, overview
from .upgrades import ROWS_PER_UPGRADE, upgrades

log = logging.getLogger("dcupgrade")

BODY_MAX_BYTES = 16384
HISTORY_MAX = 1000
UPGRADES_MAX = 200
UPGRADES_SHOWN = 25
"""How many upgrades the page shows."""
STREAMS_MAX = 32
"""How many readers of /api/v1/events there may be at once: each has a queue of its own."""
READERS_MAX = 32
"""How many requests may wait for their turn to read the journal."""
KEEP_ALIVE_S = 15.0
"""A stream without news sends a comment so often: by that a reader who is gone is noticed."""
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Site:
    """What the HTTP interface shows and may do; the service fills it in.

    `status` returns JSON-able facts, `plan` the plan, `events` a stream of facts, `history(limit, all)` journal rows,
    `counts` transitions by name. `enqueue(kind, who, arguments)` queues an operator command and returns its number.
    `outcome(number)` returns a command's outcome, None while it waits. `explain(code)` returns what a code means and
    what to do about it.
    """

    status: Callable[[], Awaitable[dict[str, Any]]]
    plan: Callable[[], Awaitable[Plan]]
    events: Callable[[], AsyncIterator[dict[str, Any]]]
    history: Callable[[int, bool], Awaitable[list[dict[str, Any]]]]
    counts: Callable[[], Awaitable[Mapping[str, float]]]
    enqueue: Callable[[str, str, Mapping[str, Any]], Awaitable[int]]
    outcome: Callable[[int], Awaitable[Mapping[str, Any] | None]]
    explain: Explain
    token: str
    allowed_hosts: frozenset[str] = field(default_factory=frozenset)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(site: Site, *, keep_alive_s: float = KEEP_ALIVE_S) -> web.Application:
    """Make the aiohttp application of the status page and API."""
    app = web.Application(middlewares=[_guard(site.allowed_hosts)], client_max_size=BODY_MAX_BYTES)
    face = _Face(site, keep_alive_s)
    app.add_routes(
        [
            web.get("/", face.page),
            web.get("/page.css", face.file),
            web.get("/page.js", face.file),
            web.get("/icon.svg", face.icon),
            web.get("/machine.svg", face.picture),
            web.get("/healthz", face.healthz),
            web.get("/metrics", face.metrics),
            web.get("/api/v1/status", face.status),
            web.get("/api/v1/plan", face.plan),
            web.get("/api/v1/history", face.history),
            web.get("/api/v1/upgrades", face.upgrades),
            web.get("/api/v1/machine", face.machine),
            web.get("/api/v1/commands/{number:[0-9]{1,15}}", face.command),
            web.get("/api/v1/events", face.events),
            web.post("/api/v1/actions/{action}", face.act),
        ]
    )
    return app


def _guard(allowed: frozenset[str]) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = _host_name(request.host)
        if host not in allowed and host != "localhost" and not _is_loopback(host):
            return _error(403, "HTTP_HOST_REFUSED", f"the Host header names {host!r}")
        try:
            answer = await handler(request)
        except web.HTTPServiceUnavailable as error:
            answer = _error(error.status, "HTTP_BUSY", error.reason)
        except web.HTTPException as error:
            answer = _error(error.status, "HTTP_REFUSED", error.reason or "refused")
        except ConnectionError:
            raise
        except Exception as error:
            failure = failure_of(error)
            if failure.code == "JOURNAL_BUSY":
                answer = _error(503, failure.code, failure.detail)
            else:
                log.exception("%s %s failed", request.method, request.path)
                answer = _error(500, failure.code, "see the agent's log")
        if not answer.prepared:
            answer.headers.update(SECURITY_HEADERS)
        return answer

    return guard


def _host_name(host: str) -> str:
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _limit(request: web.Request, most: int) -> int | None:
    """Return the query's limit: 50 if it has none, None if it is not a number from 1 to `most`."""
    limit = request.query.get("limit", "50")
    fits = limit.isdecimal() and len(limit) <= len(str(most)) and 1 <= int(limit) <= most
    return int(limit) if fits else None


def _error(status: int, code: str, why: str) -> web.Response:
    return web.json_response({"code": code, "why": why}, status=status)


class _Face:
    def __init__(self, site: Site, keep_alive_s: float) -> None:
        self._site, self._keep_alive_s = site, keep_alive_s
        self._streams = 0
        self._reading, self._readers = asyncio.Lock(), 0

    @asynccontextmanager
    async def _turn_to_read(self, request: web.Request) -> AsyncIterator[None]:
        """One reader of the journal after another: an entry that the agent makes waits for one read at most.

        Raises HTTPServiceUnavailable above READERS_MAX, and for a client that is gone when its turn comes.
        """
        if self._readers >= READERS_MAX:
            raise web.HTTPServiceUnavailable(reason=f"{READERS_MAX} readers of the journal wait already")
        self._readers += 1
        try:
            async with self._reading:
                if request.transport is None:
                    raise web.HTTPServiceUnavailable(reason="the client is gone")
                yield
        finally:
            self._readers -= 1

    async def page(self, request: web.Request) -> web.Response:
        status = await self._status()
        async with self._turn_to_read(request):
            rows = await self._site.history(UPGRADES_SHOWN * ROWS_PER_UPGRADE, False)
        found = upgrades(rows, UPGRADES_SHOWN, status["now_unix_s"])
        text = page_html.page(status, await self._plan(), found)
        return web.Response(text=storable(text), content_type="text/html")

    async def file(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(page_html.PAGE / request.path.lstrip("/"))

    async def icon(self, request: web.Request) -> web.Response:
        return web.Response(text=page_html.icon(request.query.get("level", "")), content_type="image/svg+xml")

    async def picture(self, _: web.Request) -> web.Response:
        return web.Response(text=machine_svg(styled=False), content_type="image/svg+xml")

    async def healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async def metrics(self, request: web.Request) -> web.Response:
        status = await self._site.status()
        async with self._turn_to_read(request):
            collector = AgentCollector(status, await self._site.counts())
        text = prometheus_client.generate_latest(collector)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def status(self, _: web.Request) -> web.Response:
        return web.json_response(await self._status())

    async def _status(self) -> dict[str, Any]:
        facts = await self._site.status()
        return {**facts, "overview": overview(facts, await self._plan(), self._site.explain)}

    async def plan(self, _: web.Request) -> web.Response:
        return web.json_response(await self._plan())

    async def _plan(self) -> dict[str, Any]:
        return (await self._site.plan()).to_json()

    async def history(self, request: web.Request) -> web.Response:
        limit = _limit(request, HISTORY_MAX)
        if limit is None:
            return _error(400, "HTTP_REFUSED", f"limit is a number from 1 to {HISTORY_MAX}")
        async with self._turn_to_read(request):
            rows = await self._site.history(limit, "all" in request.query)
        return web.json_response({"rows": rows})

    async def upgrades(self, request: web.Request) -> web.Response:
        limit = _limit(request, UPGRADES_MAX)
        if limit is None:
            return _error(400, "HTTP_REFUSED", f"limit is a number from 1 to {UPGRADES_MAX}")
        async with self._turn_to_read(request):
            rows = await self._site.history(limit * ROWS_PER_UPGRADE, False)
        return web.json_response({"upgrades": upgrades(rows, limit, (await self._site.status())["now_unix_s"])})

    async def command(self, request: web.Request) -> web.Response:
        async with self._turn_to_read(request):
            outcome = await self._site.outcome(int(request.match_info["number"]))
        return web.json_response({"outcome": outcome})

    async def machine(self, _: web.Request) -> web.Response:
        return web.json_response({"states": [name.value for name in Name], "edges": picture.edges()})

    async def events(self, request: web.Request) -> web.StreamResponse:
        if self._streams >= STREAMS_MAX:
            return _error(503, "HTTP_BUSY", f"there are {STREAMS_MAX} readers of events already")
        self._streams += 1
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", **SECURITY_HEADERS})
        try:
            await self._stream(request, answer, self._site.events())
        except ConnectionError:
            pass
        finally:
            self._streams -= 1
        return answer

    async def _stream(
        self, request: web.Request, answer: web.StreamResponse, stream: AsyncIterator[dict[str, Any]]
    ) -> None:
        """Write the status, then facts as they arrive. Raises ConnectionError once the client has disconnected."""
        coming = asyncio.ensure_future(anext(stream))
        try:
            await asyncio.sleep(0)  # let the stream begin, so that its end also ends the subscription
            await answer.prepare(request)
            await answer.write(b"event: status\ndata: " + json.dumps(await self._status()).encode() + b"\n\n")
            while True:
                done, _ = await asyncio.wait({coming}, timeout=self._keep_alive_s)
                if not done:
                    await answer.write(b": nothing new\n\n")
                    continue
                await answer.write(b"event: fact\ndata: " + json.dumps(coming.result()).encode() + b"\n\n")
                coming = asyncio.ensure_future(anext(stream))
        finally:
            coming.cancel()
            await asyncio.wait({coming})

    async def act(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._site.token.encode()):
            return _error(401, "HTTP_TOKEN_REFUSED", "the operator's token is missing or wrong")
        action = request.match_info["action"]
        if action not in ARGUMENTS:
            return _error(404, "HTTP_REFUSED", f"there is no action {action!r}; there are {', '.join(ARGUMENTS)}")
        try:
            arguments = await request.json() if request.can_read_body else {}
        except (ValueError, RecursionError):
            return _error(400, "HTTP_REFUSED", "the body is not JSON")
        if not isinstance(arguments, dict):
            return _error(400, "HTTP_REFUSED", "the body is not an object")
        who = arguments.pop("who", "status page")
        try:
            number = await self._site.enqueue(action, who, require_valid(action, who, arguments))
        except ValueError as error:
            return _error(400, "HTTP_REFUSED", str(error))
        return web.json_response({"queued": number})
