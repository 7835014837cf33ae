"""The vault's port: tokens, malformed requests, floods, slow and broken connections."""

import asyncio
import gzip
import json
import socket
from typing import Any

import aiohttp
import pytest
from yarl import URL

from keyvault.client import VaultClient
from keyvault.handover import guarded_server
from keyvault.handover import http_server as web
from keyvault.handover.http_client import exchange
from keyvault.handover.requester import Requester
from keyvault.handover.v1 import V1Requester
from tests.doubles.vault_host import (
    KEYS_ID,
    NEW,
    OLD,
    TOKEN,
    VAULT,
    Host,
    NewNode,
    base_url,
    collect,
    permit,
    policy,
    refused,
    serving,
)
from tests.doubles.vault_kit import SECRET, Enclave


async def test_the_agents_calls_need_the_token() -> None:
    async with serving(Host().vault()) as client:
        for token in ("", "wrong", TOKEN[:-1], TOKEN + "x"):
            async with VaultClient(base_url(client), token) as stranger:
                for call in (stranger.status(), stranger.delivery(NEW), stranger.retain(KEYS_ID, 1)):
                    assert await refused(call) == "VAULT_TOKEN_REFUSED"
        assert (await client.health())["enclave_id"] == VAULT


async def raw(client: VaultClient, path: str, body: bytes, token: str = TOKEN) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(base_url(client) + path, data=body, headers={"Authorization": f"Bearer {token}"}) as answer,
    ):
        return answer.status, await answer.json()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/vault/permit", b"{}"),
        ("/vault/permit", b'{"source_id":1,"target_id":"","key_set_id":"","evidence":{}}'),
        ("/vault/collect", b'{"node_url":"x","node_url":"y"}'),
        ("/vault/collect", b'{"node_url":"http://127.0.0.1:1","source_id":"short","protocol":"v2"}'),
        ("/vault/collect", json.dumps({"node_url": "x", "source_id": OLD, "protocol": "v3"}).encode()),
        ("/vault/collect", json.dumps({"node_url": "x", "source_id": OLD, "protocol": "v2", "more": 1}).encode()),
        ("/vault/retain", json.dumps({"key_set_id": KEYS_ID, "until_unix_s": True}).encode()),
        ("/vault/committed", b"[]"),
    ],
)
async def test_malformed_requests_of_the_agent_are_refused(path: str, body: bytes) -> None:
    async with serving(Host().vault()) as client:
        status, answer = await raw(client, path, body)
        assert (status, answer["code"], answer["kind"]) == (400, "VAULT_REQUEST_MALFORMED", "rejected")


async def test_unknown_paths_methods_and_oversized_bodies_are_refused() -> None:
    async with serving(Host().vault()) as client:
        assert (await raw(client, "/v2/nothing", b""))[0] == 404
        assert (await raw(client, "/healthz", b""))[1]["code"] == "VAULT_PATH_UNKNOWN"
        status, answer = await raw(client, "/v2/hello", b"x" * 200_000)
        assert (status, answer["code"]) == (413, "HANDOVER_MESSAGE_TOO_LARGE")

        async def endless() -> Any:
            for _ in range(100):
                yield b"x" * 4096

        async with (
            aiohttp.ClientSession() as session,
            session.post(base_url(client) + "/v2/hello", data=endless()) as answer,
        ):
            assert answer.status == 413


async def test_hellos_in_the_targets_name_do_not_keep_the_target_from_its_keys() -> None:
    vault = Host().vault()
    async with serving(vault) as client:
        await collect(client)
        await permit(client)
        for _ in range(50):
            hello = Requester(Enclave("node 2").party).hello()
            assert (await raw(client, "/v2/hello", hello))[0] == 200
        assert (await client.status())["sessions_open"] == 50
        assert await NewNode("node 2").ask(base_url(client)) == SECRET


@pytest.mark.parametrize("sent", [b"", b"POST /v2/hello HT", b"POST /v2/hello HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
async def test_a_slow_loris_that_never_ends_its_header_is_cut_off(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Host().vault()) as client:
        port = int(base_url(client).rsplit(":", 1)[1])
        with monkeypatch.context() as patch:  # an honest request on a busy machine gets the whole time
            patch.setattr(guarded_server, "HEADER_TIMEOUT_S", 0.05)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1), 30)
        writer.close()
        assert (await client.health())["status"] == "ok"


async def test_a_slow_body_is_cut_off_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "BODY_TIMEOUT_S", 0.05)
    async with serving(Host().vault()) as client:
        port = int(base_url(client).rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v2/hello HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 30)
        assert b" 408 " in answer
        assert b"VAULT_REQUEST_TOO_SLOW" in answer
        writer.close()


async def test_a_body_that_breaks_off_is_no_error_of_the_vault(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Host().vault()) as client:
        port = int(base_url(client).rsplit(":", 1)[1])
        for head in (b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /v2/hello HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n5\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.close()
        assert (await client.health())["status"] == "ok"
    assert "VAULT_INTERNAL" not in caplog.text


async def test_a_second_request_on_a_kept_connection_has_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Host().vault()) as client:
        port = int(base_url(client).rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"enclave_id" in await asyncio.wait_for(reader.readuntil(b"}"), 30)
        monkeypatch.setattr(guarded_server, "HEADER_TIMEOUT_S", 0.05)
        writer.write(b"GET /health")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 30)
        writer.close()


async def test_a_client_that_does_not_read_its_answers_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_server, "READING_TIMEOUT_S", 0.05)
    async with serving(Host().vault()) as client:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, ("127.0.0.1", int(base_url(client).rsplit(":", 1)[1])))

            async def asks_for_ever() -> None:
                while True:
                    await loop.sock_sendall(deaf, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)

            with pytest.raises(ConnectionError):
                await asyncio.wait_for(asks_for_ever(), 120)
        assert (await client.health())["status"] == "ok"


async def test_a_packed_body_is_not_unpacked() -> None:
    async def packed() -> Any:
        yield gzip.compress(Requester(Enclave("node 2").party).hello())

    async with serving(Host().vault()) as client, aiohttp.ClientSession() as session:
        headers = {"Content-Encoding": "gzip"}
        async with session.post(base_url(client) + "/v2/hello", data=packed(), headers=headers) as answer:
            assert (answer.status, (await answer.json())["code"]) == (400, "HANDOVER_MESSAGE_MALFORMED")


async def test_a_packed_answer_of_a_node_is_not_unpacked() -> None:
    app = web.new_app()
    asked = []

    async def hello(request: aiohttp.web.Request) -> aiohttp.web.Response:
        asked.append(request.headers["Accept-Encoding"])
        body = gzip.compress(bytes(50 * 1024 * 1024))
        return aiohttp.web.Response(body=body, headers={"Content-Encoding": "gzip"})

    app.router.add_post("/v2/hello", hello)
    server = guarded_server.GuardedServer(app)
    port = await server.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession() as session:
            body = await exchange(session, "POST", f"http://127.0.0.1:{port}/v2/hello", b"{}")
        assert len(body) < 96 * 1024
        assert asked == ["identity"]
    finally:
        await server.stop()


@pytest.mark.parametrize("path", ["/healthz", "/vault/status", "/v2/hello", "/teerandom", "/version", "/nothing"])
@pytest.mark.parametrize(
    ("host", "refused"),
    [
        ("evil.example", True),
        ("evil.example:6666", True),
        ("127.0.0.1.evil.example", True),
        ("localhost.evil.example", True),
        ("127.0.0.1@evil.example", True),
        ("10.0.0.1", True),
        ("0.0.0.0", True),  # noqa: S104 - not bound, only named
        ("[::]:6666", True),
        ("", True),
        ("127.0.0.1:6666", False),
        ("LOCALHOST:6666", False),
        ("[::1]:6666", False),
        ("127.1.2.3", False),
    ],
)
async def test_every_route_answers_to_loopback_names_only(path: str, host: str, refused: bool) -> None:
    async with serving(Host(policy=policy(allow_v1=True)).vault()) as client, aiohttp.ClientSession() as session:
        async with session.get(base_url(client) + path, headers={"Host": host}) as answer:
            found = (await answer.read()).decode()
        assert ("HANDOVER_HOST_REFUSED" in found, answer.status == 421) == (refused, refused)


async def test_a_request_that_names_two_hosts_is_refused() -> None:
    async with serving(Host().vault()) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(base_url(client).rsplit(":", 1)[1]))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert b" 200 " not in await asyncio.wait_for(reader.readline(), 30)
        writer.close()


@pytest.mark.parametrize("header", ["Origin", "Sec-Fetch-Site"])
async def test_web_pages_take_no_part_in_a_handover(header: str) -> None:
    async with serving(Host(policy=policy(allow_v1=True)).vault()) as client, aiohttp.ClientSession() as session:
        hello = Requester(Enclave("node 2").party).hello()
        headers = {header: "null"}
        async with session.post(base_url(client) + "/v2/hello", data=hello, headers=headers) as answer:
            assert (answer.status, (await answer.json())["code"]) == (400, "HANDOVER_MESSAGE_MALFORMED")
        query = V1Requester(Enclave("node 2").party).random_query()
        async with session.get(base_url(client) + "/teerandom", params=query, headers=headers) as answer:
            assert (answer.status, await answer.text()) == (400, "HANDOVER_MESSAGE_MALFORMED")
        async with session.get(base_url(client) + "/teerandom", params=query) as answer:  # the control
            assert answer.status == 200
        assert (await client.status())["sessions_open"] == 0


async def test_a_path_forges_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    web._logged.clear()
    async with serving(Host().vault()) as client, aiohttp.ClientSession() as session:
        url = URL(base_url(client) + "/vault/delivery/x%0Awiped%20key%20set%C2%85", encoded=True)
        async with session.get(url) as answer:
            told = await answer.json()
    lines = [record.getMessage() for record in caplog.records if "VAULT_TOKEN_REFUSED" in record.getMessage()]
    assert len(lines) == 1
    assert "x%0Awiped" in lines[0]
    assert lines[0].isprintable()
    assert told["what"].isprintable()


async def test_unexpected_errors_are_told_and_logged_without_their_values(caplog: pytest.LogCaptureFixture) -> None:
    vault = Host().vault()

    async def broken(body: bytes) -> bytes:
        raise ValueError(f"cannot handle {SECRET!r}")

    vault.on_hello = broken  # type: ignore[method-assign]
    async with serving(vault) as client:
        status, answer = await raw(client, "/v2/hello", b"{}")
    assert (status, answer["code"], answer["why"]) == (500, "VAULT_INTERNAL", "ValueError")
    assert SECRET.decode()[:20] not in caplog.text + json.dumps(answer)
    assert "VAULT_INTERNAL" in caplog.text
