"""The holder in Go conforms to the suite, and the Python and Go halves speak with each other."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import pytest

from keyvault.conformance import FLOOD, INSIDE, OUTSIDE, Node, as_json, as_text, run_suite
from keyvault.handover.guarded_server import GuardedServer
from keyvault.handover.http_client import confirm, fetch_key_set
from keyvault.handover.http_server import add_handover_routes, new_app
from keyvault.handover.key_set import KeySet, key_set_id
from keyvault.handover.requester import Requester
from keyvault.handover.v1 import V1Holder
from keyvault.handover.v1_http import add_v1_routes, fetch_key_set_v1
from keyvault.node import NodeHandover, NodePolicy
from tests.doubles.go_peer import go_asks, go_holder
from tests.doubles.vault_kit import GENESIS, KEYS, SECRET, CpuTee, Enclave, enclave_id, secs, sign

pytestmark = pytest.mark.usefixtures("go")


async def test_the_go_holder_conforms() -> None:
    with go_holder() as url:
        async with aiohttp.ClientSession() as session:
            results = await run_suite(Node(session, url, GENESIS, Enclave("suite").party))
    assert as_json(results)["conforms"], as_text(results)
    assert len(results) == len(OUTSIDE) + len(INSIDE) + len(FLOOD)


async def test_the_suite_names_what_a_go_holder_does_otherwise() -> None:
    with go_holder(vaults=enclave_id("another vault")) as url:
        async with aiohttp.ClientSession() as session:
            results = await run_suite(Node(session, url, GENESIS, Enclave("suite").party))
    assert {"handover", "confirmations"} <= {result.name for result in results if result.found}
    assert all("PEER_NOT_UPGRADER" in result.found for result in results if result.name == "handover")


async def test_python_takes_keys_from_go_over_v2_and_v1() -> None:
    with go_holder() as url:
        async with aiohttp.ClientSession() as session:
            requester = Requester(Enclave("vault", expected=frozenset({enclave_id("node")})).party)
            with await fetch_key_set(session, url, requester) as keys:
                assert bytes(keys.view()) == SECRET
                await confirm(session, url, requester, asyncio.sleep(0, result=True))
            with await fetch_key_set_v1(session, url, Enclave("vault").party) as keys:
                assert bytes(keys.view()) == SECRET


class V1Port:
    """A v1 holder that gives SECRET to any enclave that the network signed."""

    def __init__(self) -> None:
        self._holder = V1Holder(Enclave("vault").party)

    async def v1_challenge(self, query: Mapping[str, str]) -> bytes:
        return self._holder.challenge(query, now_s=asyncio.get_running_loop().time())

    async def v1_answer(self, query: Mapping[str, str]) -> bytes:
        return self._holder.answer(query, lambda _: KeySet(SECRET), now_s=asyncio.get_running_loop().time())


@asynccontextmanager
async def python_vault() -> AsyncIterator[tuple[str, NodeHandover]]:
    port = NodeHandover(
        CpuTee(secs("vault")), NodePolicy(KEYS, GENESIS), sign(enclave_id("vault")), lambda: KeySet(SECRET)
    )
    app = new_app()
    add_handover_routes(app, port)
    add_v1_routes(app, V1Port())
    server = GuardedServer(app)
    try:
        yield f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}", port
    finally:
        await server.stop()


@pytest.mark.parametrize("how", ["ask", "ask1"])
async def test_go_takes_keys_from_python(how: str) -> None:
    async with python_vault() as (url, port):
        said = await asyncio.to_thread(go_asks, url, how, vaults=enclave_id("vault"))
        assert said == {"key_set_id": key_set_id(SECRET)}
        assert port.collected_by == (enclave_id("node") if how == "ask" else None)


@pytest.mark.parametrize("how", ["ask", "ask1"])
async def test_go_takes_nothing_from_a_vault_that_it_does_not_expect(how: str) -> None:
    async with python_vault() as (url, _):
        said = await asyncio.to_thread(go_asks, url, how, vaults=enclave_id("another vault"))
        assert said["code"] == "PEER_NOT_UPGRADER"


def test_go_takes_keys_from_go() -> None:
    with go_holder("vault") as url:
        assert go_asks(url) == go_asks(url, "ask1") == {"key_set_id": key_set_id(SECRET)}
