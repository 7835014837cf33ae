"""The vault's port: tokens, malformed requests, floods, slow and broken connections."""

import asyncio
import gzip
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
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
from keyvault.vault import token_proof
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
                    assert await refused(call) == "VAULT_NOT_PROVEN"
        for header in ("", f"Bearer {TOKEN}", "DCUpgrade x", f"DCUpgrade {'0' * 64}.{'0' * 80}.{'0' * 64}.{'0' * 64}"):
            status, answer = await raw(client, "/vault/retain", b"{}", {"Authorization": header})
            assert (status, answer["code"]) == (401, "VAULT_TOKEN_REFUSED")
        assert (await client.health())["enclave_id"] == VAULT


async def raw(client: VaultClient, path: str, body: bytes, headers: Mapping[str, str] = {}) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(base_url(client) + path, data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


async def nonces_of(client: VaultClient) -> token_proof.Nonces:
    return await client._challenge()


async def proven(client: VaultClient, path: str, body: bytes) -> tuple[int, Any]:
    """A call that proves the token, with a body that `VaultClient` would not send."""
    call = token_proof.make_call(TOKEN.encode(), await nonces_of(client), "POST", path, body)
    return await raw(client, path, body, {"Authorization": call.header()})


async def test_a_proof_serves_one_call_with_its_own_method_path_and_body() -> None:
    body = json.dumps({"key_set_id": KEYS_ID, "until_unix_s": 1}).encode()
    async with serving(Host().vault()) as client:
        other = await nonces_of(client)

        async def retain(call: token_proof.Call, sent: bytes = body, path: str = "/vault/retain") -> str:
            return str((await raw(client, path, sent, {"Authorization": call.header()}))[1]["code"])

        call = token_proof.make_call(TOKEN.encode(), await nonces_of(client), "POST", "/vault/retain", body)
        assert await retain(call, path="/vault/committed") == "VAULT_TOKEN_REFUSED"
        assert await retain(replace(call, nonces=other)) == "VAULT_TOKEN_REFUSED"
        assert await retain(call) == "PERMIT_KEY_SET_UNKNOWN"  # the control: it was let in
        assert await retain(call) == "VAULT_TOKEN_REFUSED"  # and is not let in twice
        call = token_proof.make_call(TOKEN.encode(), await nonces_of(client), "POST", "/vault/retain", body)
        assert await retain(call, body + b" ") == "VAULT_TOKEN_REFUSED"


async def test_a_nonce_of_another_vault_process_or_an_expired_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Host().vault()) as client, serving(Host().vault()) as other:
        for at in (other, client):
            nonces = await nonces_of(at)
            call = token_proof.make_call(TOKEN.encode(), nonces, "POST", "/vault/selftest", b"{}")
            with monkeypatch.context() as patch:
                if at is client:
                    patch.setattr(token_proof.VaultNonces, "TTL_S", 0.0)
                    nonces = await nonces_of(at)
                    call = token_proof.make_call(TOKEN.encode(), nonces, "POST", "/vault/selftest", b"{}")
                status, answer = await raw(client, "/vault/selftest", b"{}", {"Authorization": call.header()})
            assert (status, answer["kind"]) == (401, "transient")


class Squatter:
    """A program on the vault's port that stores requests. It answers from `answers` by path, or as a relay."""

    def __init__(self, relay_to: str | None = None) -> None:
        self.seen: list[bytes] = []
        self.relay_to = relay_to

    async def handle(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        body = await request.read()
        self.seen.append(f"{request.method} {request.path_qs} {request.raw_headers}".encode() + body)
        if self.relay_to is None:
            return aiohttp.web.json_response({"nonce": "00" * 40, "proof": "00" * 32, "key_sets": []})
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, self.relay_to + request.path_qs, data=body or None) as answer,
        ):
            told = await answer.json()
        return aiohttp.web.json_response(told if "nonce" in told else {"key_set_id": KEYS_ID, "epoch": 1})

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        app = aiohttp.web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        server = guarded_server.GuardedServer(app)
        try:
            yield f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
        finally:
            await server.stop()


async def test_who_listens_in_the_vaults_place_learns_neither_the_token_nor_what_is_asked() -> None:
    squatter = Squatter()
    async with squatter.listening() as url, VaultClient(url, TOKEN) as client:
        for call in (client.status(), client.retain(KEYS_ID, 1), client.collect("http://127.0.0.1:1", OLD)):
            assert await refused(call) == "VAULT_NOT_PROVEN"
    assert len(squatter.seen) == 3  # the challenges, and nothing after them
    assert not any(TOKEN.encode() in seen or KEYS_ID.encode() in seen or OLD.encode() in seen for seen in squatter.seen)


async def test_an_answer_that_the_vault_did_not_make_is_not_believed() -> None:
    """The agent stops the old node because the vault reports that the keys are sealed."""
    async with serving(Host().vault()) as vault:
        squatter = Squatter(base_url(vault))
        async with squatter.listening() as url, VaultClient(url, TOKEN) as client:
            assert await refused(client.collect("http://127.0.0.1:1", OLD)) == "VAULT_NOT_PROVEN"
    assert len(squatter.seen) == 2
    assert not any(TOKEN.encode() in seen for seen in squatter.seen)


async def test_exit_of_v1_needs_the_proof_too(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    async with serving(Host(policy=policy(allow_v1=True)).vault()) as client, aiohttp.ClientSession() as session:
        monkeypatch.setattr(os, "kill", lambda _, number: killed.append(number))
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}):
            async with session.get(base_url(client) + "/exit", headers=headers) as answer:
                assert answer.status == 401
        assert killed == []
        call = token_proof.make_call(TOKEN.encode(), await nonces_of(client), "GET", "/exit", b"")
        async with session.get(base_url(client) + "/exit", headers={"Authorization": call.header()}) as answer:
            assert answer.status == 200
        assert killed == [signal.SIGTERM]


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
        status, answer = await proven(client, path, body)
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
