"""Endpoints behind an HTTP proxy: a tunnel for ws:// as for wss:// (case C8)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chain_watcher.endpoints.messages import RpcError
from chain_watcher.endpoints.rpc import RpcClient, RpcLimits, open_session
from chain_watcher.endpoints.tunnel import no_proxy, proxy_of
from tests.doubles.certificates import certificate
from tests.doubles.chain_endpoint import FakeChain, FakeNode
from tests.doubles.watching import ID_1, publish, watching

LIMITS = RpcLimits(connect_timeout_s=5.0, request_timeout_s=5.0)


class Proxy:
    """An HTTP proxy with CONNECT only; it connects every name to `port` on loopback."""

    def __init__(self, port: int, answer: str = "200 Connection established") -> None:
        self.port, self.answer = port, answer
        self.heads: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        writer.write(f"HTTP/1.1 {self.answer}\r\nVia: test\r\n\r\n".encode())
        if not self.answer.startswith("200"):
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(pipe(reader, back), pipe(there, writer))


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def serving(proxy: Proxy) -> AsyncIterator[Proxy]:
    tasks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(proxy.serve(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def test_an_endpoint_that_only_the_proxy_reaches() -> None:
    chain = FakeChain()
    await chain.advance(publish(chain, ID_1, 1))
    async with FakeNode(chain) as node, serving(Proxy(node.port)) as proxy:
        url = "ws://chain.invalid:9944"
        asked: list[str] = []

        def proxy_for(asked_for: str) -> str:
            asked.append(asked_for)
            return proxy.url

        async with watching(url, proxy_for=proxy_for) as watch:
            assert (await watch.view()).endpoint == url
        assert asked == ["http://chain.invalid:9944"]
        assert all(head.startswith("CONNECT chain.invalid:9944 HTTP/1.1\r\n") for head in proxy.heads)
        assert len(proxy.heads) == 3


async def test_credentials_of_the_proxy_are_sent() -> None:
    async with FakeNode(FakeChain()) as node, serving(Proxy(node.port)) as proxy:
        async with open_session(proxy.url.replace("http://", "http://me:p%40ss@")) as session:
            client = await RpcClient.connect(session, "ws://chain.invalid:1", LIMITS)
            await client.close()
        assert "Proxy-Authorization: Basic bWU6cEBzcw==" in proxy.heads[0]


async def test_a_wss_endpoint_is_verified_by_its_own_name_through_the_tunnel(tmp_path: Path) -> None:
    """TLS ends at the endpoint, inside the tunnel: the proxy sees only a name and a port."""
    ca, context = certificate(tmp_path)
    async with (
        FakeNode(FakeChain(), tls=context) as node,
        serving(Proxy(node.port)) as proxy,
        open_session(proxy.url) as session,
    ):
        client = await RpcClient.connect(session, "wss://chain.invalid:443", LIMITS, ca_file=str(ca))
        assert await client.call("chain_getBlockHash", [0]) == node.chain.genesis_hash
        await client.close()
        assert proxy.heads[0].startswith("CONNECT chain.invalid:443 HTTP/1.1\r\n")
        for url, pinned in (("wss://chain.invalid:443", None), ("wss://other.invalid:443", str(ca))):
            with pytest.raises(RpcError, match="RPC_TLS_FAILED"):
                await RpcClient.connect(session, url, LIMITS, ca_file=pinned)


@pytest.mark.parametrize("answer", ["407 Proxy Authentication Required", "503 Busy", "garbage"])
async def test_a_proxy_that_refuses(answer: str) -> None:
    async with serving(Proxy(1, answer)) as proxy, open_session(proxy.url) as session:
        with pytest.raises(RpcError, match=r"RPC_CONNECT_FAILED.*(refused the tunnel|proxy)"):
            await RpcClient.connect(session, "ws://chain.invalid:1", LIMITS)


async def test_a_proxy_that_is_away() -> None:
    async with open_session("http://127.0.0.1:1") as session:
        with pytest.raises(RpcError, match=r"RPC_CONNECT_FAILED.*proxy 127.0.0.1"):
            await RpcClient.connect(session, "ws://chain.invalid:1", LIMITS)


def test_which_url_is_asked_about() -> None:
    seen: list[str] = []

    def strict(url: str) -> str | None:
        seen.append(url)
        if "bad" in url:
            raise ValueError("port")
        return None

    assert [proxy_of(url, strict) for url in ("ws://a:1", "wss://b", "ws://bad:99999999")] == [None] * 3
    assert seen == ["http://a:1", "https://b", "http://bad:99999999"]
    assert no_proxy("http://a") is None
