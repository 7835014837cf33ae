"""Strangers' connections displace no honest client: silent ones are replaced by new ones, and closed in time."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from keyvault.handover import guarded_server
from keyvault.handover.guarded_server import GuardedServer

ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Site:
    """An application whose answers can be held back."""

    def __init__(self, connections_max: int) -> None:
        self.release = asyncio.Event()
        self.entered = asyncio.Event()
        app = web.Application()
        app.router.add_get("/", self.at_once)
        app.router.add_get("/slow", self.slow)
        app.router.add_post("/upload", self.upload)
        self.server = GuardedServer(app, connections_max=connections_max, shutdown_timeout_s=0.1)
        self.port = 0

    async def at_once(self, _: web.Request) -> web.Response:
        return web.Response(text="here")

    async def slow(self, _: web.Request) -> web.Response:
        self.entered.set()
        await self.release.wait()
        return web.Response(text="late")

    async def upload(self, request: web.Request) -> web.Response:
        self.entered.set()
        return web.Response(text=str(len(await request.read())))

    async def connect(self, sent: bytes = b"") -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        await writer.drain()
        return reader, writer

    async def get(self, path: str = "/") -> str:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}{path}") as answer:
            return await answer.text()


@asynccontextmanager
async def site(connections_max: int) -> AsyncIterator[Site]:
    made = Site(connections_max)
    made.port = await made.server.start("127.0.0.1", 0)
    try:
        yield made
    finally:
        made.release.set()
        await made.server.stop()


async def ended(connection: Connection) -> bool:
    """Whether the server ends the connection without an answer."""
    try:
        return await asyncio.wait_for(connection[0].read(), 30) == b""
    except ConnectionError:
        return True


def close(*connections: Connection) -> None:
    for _, writer in connections:
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", ASK, b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nsome"],
    ids=["silent", "half a header", "idle after an answer", "half a body"],
)
async def test_connections_that_wait_for_their_client_give_way_to_newcomers(sent: bytes) -> None:
    async with site(8) as made:
        strangers = [await made.connect(sent) for _ in range(8)]
        for reader, _ in strangers if sent == ASK else []:
            assert b"here" in await asyncio.wait_for(reader.readuntil(b"here"), 30)
        for _ in range(3):
            assert await asyncio.wait_for(made.get(), 30) == "here"
        assert made.server.connections_open <= 8
        assert await ended(strangers[0])
        close(*strangers)


async def test_a_request_that_is_being_answered_never_gives_way() -> None:
    async with site(4) as made:
        waiting = asyncio.create_task(made.get("/slow"))
        await made.entered.wait()
        strangers = [await made.connect() for _ in range(20)]
        assert await made.get() == "here"
        made.release.set()
        assert await waiting == "late"
        close(*strangers)


async def test_a_client_that_sends_its_body_outlives_those_that_are_silent() -> None:
    async with site(4) as made:
        reader, writer = await made.connect(b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
        await made.entered.wait()
        strangers = []
        for _ in range(10):
            strangers += [await made.connect() for _ in range(2)]
            assert await made.get() == "here"  # a round trip: what was sent before it has arrived
            writer.write(b"x")
            await writer.drain()
            assert await made.get() == "here"
        assert (await asyncio.wait_for(reader.readuntil(b"10"), 30)).endswith(b"10")
        writer.close()
        close(*strangers)


async def test_where_every_request_is_being_answered_the_newcomer_is_turned_away() -> None:
    async with site(2) as made:
        waiting = [asyncio.create_task(made.get("/slow")) for _ in range(2)]
        async with asyncio.timeout(30):
            while made.server.connections_open < 2:  # noqa: ASYNC110 - both requests are on their way
                await asyncio.sleep(0.001)
            while made.server._connections.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        newcomer = await made.connect(ASK)
        assert await ended(newcomer)
        close(newcomer)
        made.release.set()
        assert await asyncio.gather(*waiting) == ["late", "late"]


async def test_more_silent_connections_than_places_do_not_keep_anybody_out() -> None:
    async with site(guarded_server.CONNECTIONS_MAX) as made:
        strangers = [await made.connect() for _ in range(guarded_server.CONNECTIONS_MAX + 100)]
        assert await asyncio.wait_for(made.get(), 30) == "here"
        assert made.server.connections_open <= guarded_server.CONNECTIONS_MAX
        close(*strangers)


async def test_without_descriptors_silent_connections_are_cut_off_and_it_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    other: list[str] = []
    loop.set_exception_handler(lambda _, context: other.append(str(context["message"])))
    try:
        async with site(50) as made:
            strangers = [await made.connect() for _ in range(30)]
            assert await made.get() == "here"
            for _ in range(200):  # what asyncio does in one pass where accept() fails
                error = OSError(errno.EMFILE, "Too many open files")
                loop.call_exception_handler({"message": "no accept", "exception": error, "socket": object()})
            loop.call_exception_handler({"message": "another error", "exception": ValueError("x")})
            assert await ended(strangers[0])
            assert await made.get() == "here"
            assert 0 < made.server.connections_open < 20
            close(*strangers)
    finally:
        loop.set_exception_handler(before)
    lines = [record.getMessage() for record in caplog.records if "descriptor" in record.getMessage().lower()]
    lines += [record.getMessage() for record in caplog.records if "Too many open files" in record.getMessage()]
    assert len(lines) == 1
    assert other == ["another error"]
