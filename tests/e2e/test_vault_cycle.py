"""The vault as real processes under the simulated CPU: collect, permit, deliver, durable, return to the source."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devnet.tools import free_port
from keyvault.client import VaultClient
from tests.e2e.vault_parts.kit import TOKEN, Bench, ready

pytestmark = pytest.mark.e2e


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.stop()


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
