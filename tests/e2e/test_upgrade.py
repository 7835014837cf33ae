"""Whole upgrades: a signed release upgrades a running node, and the new version reads the old one's data."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from devnet import scan
from devnet.chain import DevChain
from devnet.reference_node.objects import KeySet
from devnet.release_builder import ReleaseKeys
from devnet.world import World
from keyvault.client import VaultClient
from keyvault.errors import KeyvaultError

pytestmark = [pytest.mark.e2e]

PATH_OF_AN_UPGRADE = [
    *("staging", "staged", "collecting", "sealed", "stopping", "launching", "delivering", "probation", "committed"),
    "idle",
]


def objects() -> dict[str, bytes]:
    sizes = [1, 8 * 1024 * 1024, *(2**exponent for exponent in range(1, 22, 2))]
    return {f"o{index}": random.Random(index).randbytes(size) for index, size in enumerate(sizes)}


async def upgrade(world: World) -> list[str]:
    """Install 1.0.0, store objects, publish 1.1.0, read all back from it; returns the states that were passed."""
    old, new = world.builder.good("1.0.0"), world.builder.good("1.1.0")
    await world.install(old)
    stored = objects()
    for name, data in stored.items():
        await world.node.put(name, data)
    seq = world.last_seq()
    await world.publish(new)
    rows = await world.wait_committed(new.enclave_id, after=seq)
    health = await world.wait_serving(new.enclave_id)
    assert health["version"] == "1.1.0"
    assert health["canary"] is True
    assert health["committed"] is True
    assert health["tee"] == "simulated"
    assert await world.node.names() == sorted(stored)
    for name, data in stored.items():
        assert await world.node.get(name) == data
    return [row["state_after"] for row in rows if row["state_before"] != row["state_after"]]


def key_set_in(pid: int, key_set_id: str) -> KeySet:
    try:
        found = scan.find_key_set(pid, key_set_id)
    except PermissionError:
        pytest.skip("this user may not read the memory of other processes")
    assert found is not None, "the control failed: the keys are not even where they must be"
    return found


async def timed(work: Awaitable[object]) -> float:
    """Return how many seconds it took."""
    began = time.monotonic()
    await work
    return time.monotonic() - began


async def found_passing_through(world: World, source_id: str, wanted: dict[str, bytes]) -> bool:
    """The vault has keys in memory only while it uses them: stop it at such moments and search.

    The agent is searched at the same moments; a find there fails the test.
    """
    token = (world.state_dir / "vault.token").read_text()
    draw = random.Random(1)
    async with VaultClient(f"http://127.0.0.1:{world.ports['vault']}", token) as client:
        takes_s = min([await timed(client.collect(world.node.url, source_id)) for _ in range(3)])
        for _ in range(120):
            running = world.enclaves()
            (vault,), (agent,) = running["vault"], running["agent"]
            collecting = asyncio.create_task(client.collect(world.node.url, source_id))
            await asyncio.sleep(draw.uniform(0, takes_s))
            os.kill(vault, signal.SIGSTOP)
            try:
                found = await asyncio.to_thread(scan.search_memory, vault, wanted)
                assert await asyncio.to_thread(scan.search_memory, agent, wanted) == set()
            finally:
                os.kill(vault, signal.SIGCONT)
            try:
                await collecting
            except KeyvaultError as error:  # searching a busy machine takes longer than the vault lets a request take
                if error.code != "VAULT_UNREACHABLE":
                    raise
            if {"data key, raw", "name key, raw"} <= found:
                return True
    return False


async def test_keys_go_from_node_to_vault_to_node_and_nowhere_else(world: World) -> None:
    old, new = world.builder.good("1.0.0"), world.builder.good("1.1.0")
    await world.install(old)
    await world.node.put("a", b"of the old version")
    health = await world.wait_serving(old.enclave_id)
    (old_node,) = world.enclaves()["node"]
    keys = await asyncio.to_thread(key_set_in, old_node, health["key_set_id"])
    wanted = scan.needles(keys)

    seq = world.last_seq()
    await world.publish(new)
    await world.wait_committed(new.enclave_id, after=seq)
    assert await world.node.get("a") == b"of the old version"
    assert (await world.wait_serving(new.enclave_id))["key_set_id"] == health["key_set_id"]

    running = world.enclaves()
    (new_node,), (vault,), (agent,) = running["node"], running["vault"], running["agent"]
    assert new_node != old_node
    assert await asyncio.to_thread(key_set_in, new_node, keys.id) == keys
    assert await found_passing_through(world, new.enclave_id, wanted)
    # At rest the vault has wiped them from its own memory too.
    for pid in (agent, vault, *running["cpu"]):
        assert await asyncio.to_thread(scan.search_memory, pid, wanted) == set(), world.processes()[pid]
    assert await asyncio.to_thread(scan.search_files, world.folder, wanted) == {}

    # The scan of files would have found them: the control for what was just asserted.
    planted = world.state_dir / "logs" / "planted.log"
    planted.write_bytes(b"text " + keys.encoded.hex().encode())
    assert list(scan.search_files(world.folder, wanted)) == [planted]


async def test_the_whole_upgrade_and_the_new_versions_feature(world: World) -> None:
    world.by_command_line = True
    assert await upgrade(world) == PATH_OF_AN_UPGRADE
    async with world.session.get(f"{world.node.url}/stats") as answer:
        assert await answer.json() == {"objects": len(objects()), "bytes": sum(map(len, objects().values()))}
    status = await world.status()
    assert status is not None
    assert status["state"]["running"]["version"] == "1.1.0"
    assert status["state"]["previous"]["version"] == "1.0.0"
    told = await world.dcupgrade("--config", str(world.settings_path), "history", "--steps")
    assert "delivering" in told
    assert "committed" in told


@pytest.mark.slow
async def test_another_pallet_index_and_the_five_field_program_work_unchanged(
    release_keys: ReleaseKeys, tmp_path: Path
) -> None:
    async with (
        DevChain(runtime="moved", block_time_ms=500) as chain,
        World.open(tmp_path / "world", chain.ws_url, keys=release_keys) as world,
    ):
        assert await upgrade(world) == PATH_OF_AN_UPGRADE


@pytest.mark.slow
async def test_a_release_published_while_every_connection_is_cut_is_found(
    shared_chain: DevChain, release_keys: ReleaseKeys, tmp_path: Path
) -> None:
    cut_s = float(os.environ.get("CUT_S", "30"))
    opened = World.open(tmp_path / "world", shared_chain.ws_url, keys=release_keys, through_proxy=True)
    async with opened as world:
        old, new = world.builder.good("1.0.0"), world.builder.good("1.1.0")
        await world.install(old)
        await world.node.put("a", b"kept")
        seq = world.last_seq()
        if world.proxy is None:
            raise AssertionError("this world has no proxy")
        await world.proxy.cut()
        await asyncio.gather(world.publish(new), asyncio.sleep(cut_s))
        assert [row for row in world.history(seq) if row["target"]] == []
        assert await world.node.get("a") == b"kept"
        await world.proxy.start()
        await world.wait_committed(new.enclave_id, after=seq)
        assert await world.node.get("a") == b"kept"
        assert (await world.wait_serving(new.enclave_id))["version"] == "1.1.0"


async def test_nodes_of_the_field_are_upgraded_over_handover_v1(
    shared_chain: DevChain, release_keys: ReleaseKeys, tmp_path: Path
) -> None:
    opened = World.open(tmp_path / "world", shared_chain.ws_url, keys=release_keys, handover="v1")
    async with opened as world:
        old, new = world.builder.good("1.0.0"), world.builder.good("1.1.0")
        await world.install(old)
        await world.node.put("a", b"kept over v1")
        seq = world.last_seq()
        await world.publish(new)
        rows = await world.wait_committed(new.enclave_id, after=seq)
        # Such a node ends itself once, after it has sealed what it received: that is no failure.
        assert [row["reason"] for row in rows if row["reason"]] == ["NODE_EXITED"]
        assert (await world.wait_serving(new.enclave_id))["version"] == "1.1.0"
        assert await world.node.get("a") == b"kept over v1"
        async with world.session.post(f"{world.node.url}/v2/hello", data=b"{}") as answer:
            assert answer.status == 404
