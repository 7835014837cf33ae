"""The vault as real processes under the simulated CPU: collect, permit, deliver, durable, return to the source."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from devnet.tools import free_port
from keyvault.client import VaultClient
from tests.e2e.vault_parts.kit import TOKEN, Bench, ready

pytestmark = pytest.mark.e2e


async def delivered(client: VaultClient, target: str, state: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (answer := await client.delivery(target))["state"] != state:
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.05)
    return answer


async def test_collect_permit_deliver_durable_and_return_to_the_source(bench: Bench) -> None:
    port = free_port()
    vault, old, new = bench.vault(), bench.node("1.0.0"), bench.node("1.1.0")
    process = bench.start_vault(vault, port)
    source = bench.start_node(old, port, "make", upgraders=vault.enclave_id)
    listening, keys = source.event(), source.event()
    evidence = bench.evidence(new, [(5, old.enclave_id), (9, new.enclave_id)])
    async with VaultClient(f"http://127.0.0.1:{port}", TOKEN) as client:
        assert (await ready(client))["enclave_id"] == vault.enclave_id
        sealed = await client.collect(f"http://127.0.0.1:{listening['port']}", old.enclave_id)
        assert sealed["key_set_id"] == keys["key_set_id"]
        assert source.stop() in (-15, 143)

        target = bench.start_node(new, port, "ask", upgraders=vault.enclave_id)
        assert target.event()["event"] == "listening"
        await delivered(client, new.enclave_id, "challenged")  # it asks and is told NO_PERMIT_YET
        permit = await client.permit(old.enclave_id, new.enclave_id, sealed["key_set_id"], evidence)
        assert permit["block_number"] == 100
        got = target.event()
        assert got["digest"] == keys["digest"]
        assert (await delivered(client, new.enclave_id, "durable"))["instances"] == 1
        await client.committed(new.enclave_id, sealed["key_set_id"])
        assert await client.permit(old.enclave_id, new.enclave_id, sealed["key_set_id"], evidence)

        process.stop()
        bench.start_vault(vault, port)  # the sealed copy and the facts survive the vault
        await ready(client)
        status = await client.status()
        assert [entry["key_set_id"] for entry in status["key_sets"]] == [keys["key_set_id"]]
        assert status["unsafe"] == ["unsafe_unproven_evidence", "unsafe_simulated_tee"]
        back = bench.start_node(old, port, "ask", upgraders=vault.enclave_id)
        assert back.event()["event"] == "listening"
        assert back.event()["digest"] == keys["digest"]


@asynccontextmanager
async def before_secret(vault_port: int, act: Callable[[], Awaitable[None]]) -> AsyncIterator[tuple[int, list[str]]]:
    """A proxy to the vault that does something once, before the first `/secret`. Gives its port and the answers."""
    told: list[str] = []

    async def relay(request: web.Request) -> web.Response:
        if request.path == "/secret" and not any(line.startswith("/secret") for line in told):
            await act()
        async with aiohttp.ClientSession() as session:
            url = URL(f"http://127.0.0.1:{vault_port}{request.rel_url.raw_path_qs}", encoded=True)
            async with session.get(url) as answer:
                body = await answer.read()
                told.append(f"{request.path} {answer.status} {'keys' if len(body) > 500 else 'nothing'}")
                return web.Response(status=answer.status, body=body)

    app = web.Application()
    app.router.add_get("/{path:.*}", relay)
    async with TestServer(app) as server:
        yield server.port or 0, told


async def test_a_vault_that_is_restarted_in_the_middle_of_a_v1_exchange_costs_a_moment(bench: Bench) -> None:
    """Case C10: its challenges are gone, which is no refusal; the node begins again, and gets its keys."""
    port = free_port()
    vault, old, new = bench.vault(allow_v1=True), bench.node("1.0.0"), bench.node("1.1.0")
    processes = [bench.start_vault(vault, port)]
    source = bench.start_node(old, port, "make", upgraders=vault.enclave_id)
    listening, keys = source.event(), source.event()
    evidence = bench.evidence(new, [(5, old.enclave_id), (9, new.enclave_id)])
    async with VaultClient(f"http://127.0.0.1:{port}", TOKEN) as client:
        await ready(client)
        sealed = await client.collect(f"http://127.0.0.1:{listening['port']}", old.enclave_id)
        source.stop()
        await client.permit(old.enclave_id, new.enclave_id, sealed["key_set_id"], evidence)

        async def restart() -> None:
            await asyncio.to_thread(processes[-1].stop)
            processes.append(bench.start_vault(vault, port))
            await ready(client)

        async with before_secret(port, restart) as (way, told):
            target = bench.start_node(new, way, "ask-v1", upgraders=vault.enclave_id)
            events = [await asyncio.to_thread(target.event)]
            while events[-1]["event"] not in ("keys", "refused"):
                events.append(await asyncio.to_thread(target.event))
        assert events[-1].get("digest") == keys["digest"], events
        assert [event["event"] for event in events] == ["listening", "again", "keys"]
        assert told == ["/teerandom 200 nothing", "/secret 200 nothing", "/teerandom 200 nothing", "/secret 200 keys"]
        assert len(processes) == 2
