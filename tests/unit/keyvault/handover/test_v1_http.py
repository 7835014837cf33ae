"""Handover v1 over HTTP: requests of the field's managers and nodes, and refusals."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from keyvault.errors import KeyvaultError
from keyvault.handover.http_server import new_app
from keyvault.handover.key_set import KeySet
from keyvault.handover.v1 import V1Holder, V1Requester
from keyvault.handover.v1_http import add_upgrader_routes, add_v1_routes, fetch_key_set_v1
from tests.doubles.vault_kit import SECRET, Enclave, sign

NODE, UPGRADER = Enclave("node"), Enclave("upgrader")


@dataclass
class Port:
    v1_holder: V1Holder
    refusal: KeyvaultError | None = None

    async def v1_challenge(self, query: Mapping[str, str]) -> bytes:
        return self.v1_holder.challenge(query, now_s=0.0)

    async def v1_answer(self, query: Mapping[str, str]) -> bytes:
        return self.v1_holder.answer(query, self.hand_out, now_s=0.0)

    def hand_out(self, requester_id: str) -> KeySet:
        if self.refusal is not None:
            raise self.refusal
        assert requester_id == UPGRADER.id
        return KeySet(SECRET)


@pytest.fixture
def port() -> Port:
    return Port(V1Holder(NODE.party))


@pytest.fixture
async def client(port: Port) -> AsyncIterator[TestClient[Any, Any]]:
    app = new_app()
    add_v1_routes(app, port)
    add_upgrader_routes(
        app,
        version=f"{NODE.id}@0.1.0",
        secret_flag=lambda: True,
        upgrade_flag=lambda: False,
    )
    async with TestClient(TestServer(app)) as made:
        yield made


async def fetch(client: TestClient[Any, Any], enclave: Enclave = UPGRADER) -> bytes:
    async with aiohttp.ClientSession() as session:
        key_set = await fetch_key_set_v1(session, str(client.make_url("")).rstrip("/"), enclave.party)
    return bytes(key_set.view())


async def test_a_key_set_travels_over_plain_http_encrypted(client: TestClient[Any, Any]) -> None:
    assert await fetch(client) == SECRET


async def test_not_yet_is_an_empty_answer_and_asked_again(client: TestClient[Any, Any], port: Port) -> None:
    port.refusal = KeyvaultError(code="NO_PERMIT_YET", what="a", why="b", kind="transient")
    with pytest.raises(KeyvaultError) as caught:
        await fetch(client)
    assert (caught.value.code, caught.value.kind) == ("V1_REFUSED", "transient")


async def test_each_of_several_network_signatures_is_tried(client: TestClient[Any, Any]) -> None:
    unknown = bytes(64)
    assert await fetch(client, replace(UPGRADER, signatures=(unknown, sign(UPGRADER.id)))) == SECRET
    assert await fetch(client, replace(UPGRADER, signatures=(sign(UPGRADER.id), unknown))) == SECRET


async def test_a_challenge_from_before_a_restart_is_answered_as_the_field_does(client: TestClient[Any, Any]) -> None:
    requester = V1Requester(UPGRADER.party)
    query = requester.secret_query(V1Holder(NODE.party).challenge(requester.random_query(), now_s=0.0))
    answer = await client.get("/secret", params=query)
    assert (answer.status, await answer.read()) == (200, b"")


@asynccontextmanager
async def field_holder(status: int, text: str) -> AsyncIterator[str]:
    """A foreign holder, which refuses with a status and a text."""
    app = web.Application()

    async def teerandom(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    app.router.add_get("/teerandom", teerandom)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.mark.parametrize(
    ("status", "text", "code", "kind"),
    [
        (400, "verify report failed\nforged line", "V1_REFUSED", "transient"),
        (400, "REPORT_MAC_BAD", "V1_REFUSED", "transient"),
        (400, "NETWORK_SIGNATURE_BAD", "V1_REFUSED", "rejected"),
        (404, "no such page", "HANDOVER_ANSWER_MALFORMED", "rejected"),
        (503, "in a moment", "HANDOVER_ANSWER_MALFORMED", "transient"),
    ],
)
async def test_the_operator_sees_what_the_holder_said(status: int, text: str, code: str, kind: str) -> None:
    async with field_holder(status, text) as url, aiohttp.ClientSession() as session:
        with pytest.raises(KeyvaultError) as caught:
            await fetch_key_set_v1(session, url, UPGRADER.party)
    assert (caught.value.code, caught.value.kind) == (code, kind)
    assert text.splitlines()[0] in caught.value.why
    assert str(caught.value).isprintable()


async def test_a_refused_requester_hears_only_a_code(client: TestClient[Any, Any]) -> None:
    with pytest.raises(KeyvaultError) as caught:
        await fetch(client, replace(UPGRADER, signatures=(bytes(64),)))
    assert caught.value.kind == "rejected"
    assert "verifyreport" not in str(caught.value)


async def test_a_malformed_query_is_a_400(client: TestClient[Any, Any]) -> None:
    answer = await client.get("/teerandom", params={"verifyreport": "nonsense"})
    assert (answer.status, await answer.text()) == (400, "MULTIBASE_INVALID")


@pytest.mark.parametrize(
    ("path", "text"), [("/version", f"{NODE.id}@0.1.0"), ("/secretflag", "true"), ("/upgradeflag", "false")]
)
async def test_managers_of_the_field_get_their_answers(client: TestClient[Any, Any], path: str, text: str) -> None:
    assert await (await client.get(path)).text() == text
