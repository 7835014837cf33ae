"""The JSON-RPC client against a node that misbehaves in every way a socket allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import pytest

from chain_watcher.endpoints.messages import RpcError
from chain_watcher.endpoints.rpc import RpcClient, RpcLimits, open_session, tls_context
from chain_watcher.errors import CODES
from tests.doubles.certificates import certificate
from tests.doubles.chain_endpoint import FakeChain, FakeNode, RpcFaultError, until

LIMITS = RpcLimits(request_timeout_s=5.0, message_bytes_max=200_000, notifications_max=4)
FINALIZED: tuple[str, list[Any], str] = ("chain_subscribeFinalizedHeads", [], "chain_unsubscribeFinalizedHeads")


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with FakeNode(FakeChain()) as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


@pytest.fixture
async def client(node: FakeNode, session: aiohttp.ClientSession) -> AsyncIterator[RpcClient]:
    opened = await RpcClient.connect(session, node.url, LIMITS)
    yield opened
    await opened.close()


async def failure(client: RpcClient, method: str, timeout_s: float | None = None) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await client.call(method, timeout_s=timeout_s)
    assert caught.value.code in CODES
    return caught.value


async def test_a_question_gets_its_answer(client: RpcClient, node: FakeNode) -> None:
    assert await client.call("chain_getBlockHash", [0]) == node.chain.genesis_hash
    assert client.counters.requests == 1
    assert client.latency_s > 0


async def test_questions_go_out_one_at_a_time(client: RpcClient, node: FakeNode) -> None:
    released = asyncio.Event()

    async def slow() -> str:
        await released.wait()
        return "slow"

    node.overrides["chain_getFinalizedHead"] = slow
    first = asyncio.create_task(client.call("chain_getFinalizedHead"))
    second = asyncio.create_task(client.call("chain_getBlockHash", [0]))
    await until(lambda: node.asked)
    assert [name for name, _ in node.asked] == ["chain_getFinalizedHead"]
    released.set()
    assert await first == "slow"
    assert await second == node.chain.genesis_hash


async def test_no_answer_within_the_deadline_and_a_late_one_is_ignored(client: RpcClient, node: FakeNode) -> None:
    node.raw["chain_getFinalizedHead"] = '{"jsonrpc":"2.0","id":77,"result":"for nobody"}'
    problem = await failure(client, "chain_getFinalizedHead", timeout_s=0.05)
    assert (problem.code, problem.kind) == ("RPC_TIMEOUT", "transient")
    await until(lambda: client.counters.unexpected == 1)
    assert await client.call("chain_getBlockHash", [0]) == node.chain.genesis_hash


@pytest.mark.parametrize(
    "garbage",
    [
        "not json",
        "[1,2]",
        "7",
        "{}",
        '{"method":"x"}',
        '{"method":"x","params":{"subscription":[]}}',
        '{"method":"x","params":{"subscription":"a"}}',
        '{"id":1}',
        '{"id":1,"error":"text"}',
        "[" * 100_000,
    ],
)
async def test_garbage_ends_the_connection(client: RpcClient, node: FakeNode, garbage: str) -> None:
    node.raw["rpc_methods"] = garbage
    assert (await failure(client, "rpc_methods")).code == "RPC_GARBAGE"


async def test_an_error_answer_keeps_the_connection(client: RpcClient, node: FakeNode) -> None:
    def refuse() -> None:
        raise RpcFaultError(4003, "State already discarded")

    node.overrides["chain_getFinalizedHead"] = refuse
    problem = await failure(client, "chain_getFinalizedHead")
    assert (problem.code, problem.rpc_code) == ("RPC_REFUSED", 4003)
    assert (await failure(client, "no_such")).code == "RPC_METHOD_MISSING"
    assert client.failure is None


async def test_a_rate_limit_carries_its_pause(client: RpcClient, node: FakeNode) -> None:
    def refuse() -> None:
        raise RpcFaultError(-32005, "too many")

    node.overrides["chain_getFinalizedHead"] = refuse
    problem = await failure(client, "chain_getFinalizedHead")
    assert problem.code == "RPC_RATE_LIMITED"
    assert problem.retry_after_s


async def test_a_message_over_the_limit(client: RpcClient, node: FakeNode) -> None:
    node.overrides["state_getMetadata"] = lambda: "x" * 300_000
    assert (await failure(client, "state_getMetadata")).code == "RPC_MESSAGE_TOO_BIG"


async def test_a_notification_over_its_limit(session: aiohttp.ClientSession, node: FakeNode) -> None:
    """Many of them may be queued, so each must be small; answers come one at a time."""
    client = await RpcClient.connect(session, node.url, RpcLimits(notification_bytes_max=1000))
    heads = await client.subscribe(*FINALIZED)
    await heads.next()
    node.overrides["state_getMetadata"] = lambda: "x" * 2000
    assert len(await client.call("state_getMetadata")) == 2000
    await node.notify(FINALIZED[0], "x" * 2000)
    with pytest.raises(RpcError, match="RPC_MESSAGE_TOO_BIG"):
        await heads.next()
    await client.close()


async def test_a_cut_connection_wakes_questions_and_subscriptions(client: RpcClient, node: FakeNode) -> None:
    heads = await client.subscribe(*FINALIZED)
    await heads.next()
    waiting = asyncio.create_task(heads.next())
    node.frozen = True
    asking = asyncio.create_task(client.call("chain_getBlockHash", [0]))
    await until(lambda: client.counters.requests == 2)
    await node.cut()
    for task in (waiting, asking):
        with pytest.raises(RpcError, match="RPC_CLOSED"):
            await task
    assert (await failure(client, "rpc_methods")).code == "RPC_CLOSED"


@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_close_that_is_cancelled_closes_all_the_same(client: RpcClient, turns: int) -> None:
    """Else aiohttp reports the socket at whatever later moment it is collected."""
    closing = asyncio.create_task(client.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    assert client._ws._response.connection is None


async def test_a_half_open_socket_is_found_by_the_heartbeat(session: aiohttp.ClientSession) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do the websocket handshake, then answer nothing."""
        request = await reader.readuntil(b"\r\n\r\n")
        key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")).split()[1]
        import base64
        import hashlib

        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # noqa: S324
        writer.write(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ")
        writer.write(accept + b"\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = await RpcClient.connect(session, url, RpcLimits(heartbeat_s=0.05))
    with pytest.raises(RpcError, match="RPC_CLOSED"):
        await client.call("chain_getBlockHash", [0])
    await client.close()
    server.close()
    await server.wait_closed()


async def test_notifications_come_in_order_and_the_oldest_give_way(client: RpcClient, node: FakeNode) -> None:
    heads = await client.subscribe(*FINALIZED)
    for number in range(8):
        await node.notify(FINALIZED[0], number)
    await until(lambda: client.counters.notifications == 9)
    assert [await heads.next() for _ in range(4)] == [4, 5, 6, 7]
    assert heads.dropped == 5
    await heads.cancel()
    assert node.count(FINALIZED[2]) == 1


async def test_a_notification_ahead_of_its_subscription_id_is_kept(client: RpcClient, node: FakeNode) -> None:
    node.muted.add("chain_subscribeNewHeads")
    socket = next(iter(node.sockets))
    note = '{"jsonrpc":"2.0","method":"x","params":{"subscription":"sub1","result":"early"}}'
    await socket.send_str(note)
    await socket.send_str(note.replace("sub1", "sub9"))
    heads = await client.subscribe("chain_subscribeNewHeads", [], "chain_unsubscribeNewHeads")
    assert await heads.next() == "early"


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1", "http//nonsense", "ws://127.0.0.1:99999"])
async def test_an_address_where_nobody_listens(session: aiohttp.ClientSession, url: str) -> None:
    with pytest.raises(RpcError, match="RPC_CONNECT_FAILED"):
        await RpcClient.connect(session, url, LIMITS)


async def test_http_answers_to_the_handshake(session: aiohttp.ClientSession) -> None:
    async def limit(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(status=429, headers={"Retry-After": "9"})

    application = aiohttp.web.Application()
    application.router.add_get("/", limit)
    runner = aiohttp.web.AppRunner(application)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    with pytest.raises(RpcError) as caught:
        await RpcClient.connect(session, f"ws://127.0.0.1:{port}", LIMITS)
    assert (caught.value.code, caught.value.retry_after_s) == ("RPC_RATE_LIMITED", 9.0)
    with pytest.raises(RpcError, match=r"RPC_CONNECT_FAILED.*404"):
        await RpcClient.connect(session, f"ws://127.0.0.1:{port}/other", LIMITS)
    await runner.cleanup()


async def test_a_redirect_is_not_followed(node: FakeNode) -> None:
    async def redirect(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(status=302, headers={"Location": node.url.replace("ws:", "http:")})

    application = aiohttp.web.Application()
    application.router.add_get("/", redirect)
    runner = aiohttp.web.AppRunner(application)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    async with open_session() as session:
        with pytest.raises(RpcError, match=r"RPC_CONNECT_FAILED.*302.*not followed"):
            await RpcClient.connect(session, f"ws://127.0.0.1:{runner.addresses[0][1]}", LIMITS)
        assert not node.sockets
        await (await RpcClient.connect(session, node.url, LIMITS)).close()
    await runner.cleanup()


async def test_a_handshake_that_breaks_says_nothing_of_the_certificate(session: aiohttp.ClientSession) -> None:
    """A restarting gateway is retried soon; only a refused certificate causes a long pause."""

    async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(bytes.fromhex("15030300020250"))  # a fatal alert: internal error
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(alert, "127.0.0.1", 0)
    with pytest.raises(RpcError, match="RPC_CONNECT_FAILED"):
        await RpcClient.connect(session, f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}", LIMITS)
    server.close()
    await server.wait_closed()


async def test_tls_is_verified_and_the_ca_can_be_pinned(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    ca, context = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = certificate(tmp_path / "other")
    async with FakeNode(FakeChain(), tls=context) as node:
        client = await RpcClient.connect(session, node.url, LIMITS, ca_file=str(ca))
        assert await client.call("chain_getBlockHash", [0]) == node.chain.genesis_hash
        await client.close()
        for wrong in (None, str(other)):
            with pytest.raises(RpcError, match="RPC_TLS_FAILED"):
                await RpcClient.connect(session, node.url, LIMITS, ca_file=wrong)


def test_a_pinned_ca_that_cannot_be_read() -> None:
    with pytest.raises(RpcError, match="RPC_TLS_FAILED"):
        tls_context("/nonexistent/ca.pem")
