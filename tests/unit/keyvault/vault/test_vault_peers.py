"""Other peers of the vault: other enclaves, impostors in a node's place, several instances at once."""

import asyncio

import aiohttp
import pytest

from keyvault.errors import KeyvaultError, Kind
from keyvault.handover import http_server as web
from keyvault.handover.guarded_server import GuardedServer
from tests.doubles.vault_host import (
    KEYS_ID,
    OLD,
    VAULT,
    Host,
    NewNode,
    base_url,
    collect,
    node_serving,
    permit,
    policy,
    refused,
    serving,
)
from tests.doubles.vault_kit import SECRET


async def test_an_older_signed_node_cannot_take_the_keys_from_a_running_node_that_names_its_vault() -> None:
    async with node_serving("node 1", upgraders=frozenset({VAULT})) as (url, _):
        assert await refused(NewNode("node 0").ask(url)) == "PEER_NOT_UPGRADER"
        async with serving(Host().vault()) as client:
            assert (await client.collect(url, OLD))["key_set_id"] == KEYS_ID
    async with node_serving("node 1") as (url, _):  # the control: a signature has no role in it (docs/threat-model.md)
        assert await NewNode("node 0").ask(url) == SECRET


async def test_a_node_that_follows_the_chain_gives_no_keys_to_a_vault_it_names_and_the_network_revoked() -> None:
    listed = {VAULT}
    async with node_serving("node 1", upgraders=frozenset({VAULT}), is_listed=listed.__contains__) as (url, _):
        async with serving(Host().vault()) as client:
            assert (await client.collect(url, OLD))["key_set_id"] == KEYS_ID
        listed.clear()
        host = Host()
        async with serving(host.vault()) as client:
            assert await refused(client.collect(url, OLD)) == "HANDOVER_UPGRADER_UNLISTED"
        assert not any("keys" in name for name in host.disk.files)


async def test_a_node_that_cannot_tell_whether_its_vault_is_listed_gives_nothing() -> None:
    def unknown(_: str) -> bool:
        raise LookupError("no finalized block yet")

    host = Host()
    async with node_serving("node 1", is_listed=unknown) as (url, _), serving(host.vault()) as client:
        assert await refused(client.collect(url, OLD)) == "VAULT_INTERNAL"
    assert not any("keys" in name for name in host.disk.files)


@pytest.mark.parametrize(
    ("status", "told", "code", "kind"),
    [
        (500, "VAULT_REPLACED", "HANDOVER_ANSWER_MALFORMED", "transient"),
        (409, "VAULT_FACTS_MISSING", "HANDOVER_ANSWER_MALFORMED", "rejected"),
        (503, "NODE_IS_BUSY", "HANDOVER_ANSWER_MALFORMED", "transient"),
        (409, "NODE_IS_BUSY", "HANDOVER_ANSWER_MALFORMED", "transient"),
        (503, "HANDOVER_NOTHING_HELD", "HANDOVER_NOTHING_HELD", "transient"),
    ],
)
async def test_who_answers_in_a_nodes_place_does_not_speak_for_the_vault(
    status: int, told: str, code: str, kind: Kind
) -> None:
    app = web.new_app()

    async def hello(_: aiohttp.web.Request) -> aiohttp.web.Response:
        refusal = KeyvaultError(code=told, what="no", why="because", kind="invariant" if "VAULT" in told else kind)
        return aiohttp.web.json_response(refusal.to_json(), status=status)

    app.router.add_post("/v2/hello", hello)
    server = GuardedServer(app)
    url = f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}"
    try:
        async with serving(Host().vault()) as client:
            with pytest.raises(KeyvaultError, match="because") as caught:
                await client.collect(url, OLD)
    finally:
        await server.stop()
    assert (caught.value.code, caught.value.kind) == (code, kind)


async def test_hand_outs_at_once_are_counted_one_by_one() -> None:
    host = Host(policy=policy(instances_max=2))
    async with serving(host.vault()) as client:
        await collect(client)
        await permit(client)
        asked = [NewNode("node 2").ask(base_url(client)) for _ in range(6)]
        outcomes = await asyncio.gather(*map(refused, asked))
        assert len([code for code in outcomes if code == "nothing was refused"]) <= 2
        assert set(outcomes) <= {"nothing was refused", "PERMIT_INSTANCES_SPENT", "PERMIT_ALREADY_DURABLE"}
    assert host.vault().status()["permits"][0]["instances"] <= 2
