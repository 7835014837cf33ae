"""The upgrade on a real network with GRANDPA finality and proofs: agent and vault trust no endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chain_watcher.watch.operator_queries import find_checkpoint
from devnet.chain import DevChain
from devnet.chain_process import WASM_FILES, ChainProcess
from devnet.extrinsics import ALICE_ED25519, Root
from devnet.network import Network
from devnet.release_builder import ReleaseKeys
from devnet.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.node]

SLOT_MS = 1000
"""The upgrade must begin within so many seconds of finality's return."""


@asynccontextmanager
async def proven_world(folder: Path, node: ChainProcess) -> AsyncIterator[World]:
    """A world whose agent and vault pin a checkpoint of this chain and accept nothing without proof."""
    await node.wait_finalized(1)
    answer = await find_checkpoint([node.ws_url])
    checkpoint: dict[str, Any] = answer.checkpoint.to_json()
    await asyncio.to_thread(folder.mkdir)
    pinned = folder / "checkpoint.json"
    await asyncio.to_thread(pinned.write_text, json.dumps(checkpoint))
    async with World.open(
        folder / "world",
        node.ws_url,
        keys=ReleaseKeys.draw(folder / "keys"),
        overrides={"chain": {"finality": "proven", "unsafe_unproven_reads": False, "checkpoint_file": str(pinned)}},
        vault_policy={"evidence_mode": "proven", "unsafe_unproven_evidence": False, "checkpoint": checkpoint},
    ) as world:
        yield world


async def install(world: World) -> dict[str, bytes]:
    await world.install(world.builder.good("1.0.0"))
    stored = {f"o{size}": bytes(range(256)) * size for size in (0, 1, 7, 4096)}
    for name, data in stored.items():
        await world.node.put(name, data)
    return stored


async def read_back(world: World, stored: dict[str, bytes]) -> None:
    for name, data in stored.items():
        assert await world.node.get(name) == data


async def test_nothing_is_acted_upon_before_finality_and_the_upgrade_follows_its_return(tmp_path: Path) -> None:
    async with Network(block_time_ms=SLOT_MS) as network, proven_world(tmp_path / "trial", network.full) as world:
        stored = await install(world)
        new = world.builder.good("1.1.0")
        seq = world.last_seq()
        network.bob.pause()
        await network.full.wait_grown(2)  # a round that was under way may still end
        stalled, _ = await network.full.finalized()
        await world.publish_unverified(new, new.signature)
        best, _ = await network.full.best()
        await network.full.wait_grown(3)
        assert (await network.full.finalized())[0] == stalled
        assert [row for row in world.history(seq) if row["state_after"] == "staging"] == []
        health = await world.node.health()
        assert health is not None
        assert health["version"] == "1.0.0"
        network.bob.resume()
        await network.full.wait_finalized(best)
        await world.wait_committed(new.enclave_id, after=seq)
        await read_back(world, stored)
        status = await world.status()
        assert status is not None
        assert status["chain"]["finality"] == "proven"
        assert status["chain"]["unsafe"] == []
        assert status["chain"]["lying"] == []


async def test_a_release_on_a_fork_that_is_dropped_is_never_acted_upon(tmp_path: Path) -> None:
    async with Network(block_time_ms=SLOT_MS) as network, proven_world(tmp_path / "trial", network.full) as world:
        await install(world)
        doomed = world.builder.good("1.1.0")
        seq = world.last_seq()
        await network.part("bob", "full")
        fork = Root(network.full.ws_url)
        dropped = await fork.later(fork.set_enclave_id, doomed.enclave_id, doomed.signature)
        program = (world.server.url(doomed.archive.name), "", doomed.enclave_id, "1.1.0")
        await fork.later(fork.set_dc_program, *program)
        network.bob.pause()
        kept = Root(network.alice.ws_url)
        for text in ("bkept", "bkept2"):  # the same nonces on the other side: the doomed calls cannot come back
            await kept.later(kept.set_enclave_id, "ee" * 32, text)
        fork_height, _ = await network.full.best()
        while (await network.alice.best())[0] <= fork_height + 3:  # noqa: ASYNC110 - the chain gives no event for it
            await asyncio.sleep(0.1)
        network.bob.resume()
        await network.heal()
        height, _ = await network.alice.best()
        await network.full.wait_finalized(height + 1)
        number = int((await network.full.call("chain_getHeader", dropped))["number"], 16)
        assert await network.full.call("chain_getBlockHash", number) != dropped
        assert [row for row in world.history(seq) if row["state_after"] == "staging"] == []
        health = await world.node.health()
        assert health is not None
        assert health["version"] == "1.0.0"


async def test_an_upgrade_across_new_authorities_and_a_live_runtime_upgrade(tmp_path: Path) -> None:
    async with DevChain("node", block_time_ms=SLOT_MS) as chain, proven_world(tmp_path / "trial", chain) as world:
        stored = await install(world)
        root = Root(chain.ws_url)
        for weight in (7, 9):
            arguments = {"authorities": [(ALICE_ED25519, weight)], "in_blocks": 1, "median_finalized": None}
            block = await root.later(root.sudo, "Devnet", "schedule_authorities", arguments)
            await chain.wait_finalized(int((await chain.call("chain_getHeader", block))["number"], 16) + 3)
        new = world.builder.good("1.1.0")
        seq = world.last_seq()
        await root.later(root.set_enclave_id, new.enclave_id, new.signature)
        await root.later(root.set_code, WASM_FILES["moved"])
        program = (world.server.url(new.archive.name), "", new.enclave_id, "1.1.0", ("bafkqaaa",))
        await root.later(root.set_dc_program, *program)
        await world.wait_committed(new.enclave_id, after=seq)
        await read_back(world, stored)
