"""First installs that are refused, and running nodes that do not hand over their keys."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from devnet.chain import DevChain
from devnet.lying_proxy import ForgedMetadata, LyingProxy
from devnet.release_builder import NodeTraits, ReleaseKeys
from devnet.world import World

pytestmark = [pytest.mark.e2e]


async def says(world: World, words: str) -> None:
    """Wait until the agent's status, journal or log contains these words."""
    deadline = time.monotonic() + 90
    while words not in json.dumps([await world.status(), world.history()]) + world.tail():
        assert time.monotonic() < deadline, f"{words} was not said\n{world.tail()}"
        await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_a_first_install_needs_leave_and_an_empty_folder(world: World) -> None:
    release = world.builder.good("1.0.0")
    await world.publish(release)

    await world.start_agent()
    await says(world, "FIRST_INSTALL_REFUSED")
    assert world.enclaves()["node"] == []
    await world.stop_agent()

    junk = world.data_dir / "somebody's file"
    junk.write_text("precious")
    await world.start_agent(first_install=True)
    await says(world, "is not empty")
    assert world.enclaves()["node"] == []
    await world.stop_agent()
    assert junk.read_text() == "precious"
    junk.unlink()

    marker = world.data_dir / "keyset.json"
    marker.write_text(json.dumps({"key_set_id": "ab" * 32}))
    await world.start_agent(first_install=True)
    await says(world, "is not empty")
    assert world.enclaves()["node"] == []
    await world.stop_agent()
    assert json.loads(marker.read_text()) == {"key_set_id": "ab" * 32}
    marker.unlink()

    await world.start_agent(first_install=True)
    await world.wait_committed(release.enclave_id)
    await world.wait_serving(release.enclave_id)


@pytest.mark.slow
async def test_on_a_chain_without_the_pallet_nothing_is_installed(
    shared_chain: DevChain, release_keys: ReleaseKeys, tmp_path: Path
) -> None:
    async with LyingProxy(shared_chain.ws_url) as proxy:
        proxy.tell(ForgedMetadata(b"DcNode", b"DcNodf"))
        overrides = {"chain": {"endpoints": [proxy.ws_url]}}
        opened = World.open(tmp_path / "world", shared_chain.ws_url, keys=release_keys, overrides=overrides)
        async with opened as world:
            release = world.builder.good("1.0.0")
            await world.publish(release)
            await world.start_agent(first_install=True)
            await says(world, "CHAIN_WITHOUT_PALLET")
            assert world.enclaves()["node"] == []
            await world.stop_agent()
            proxy.truth()
            await world.start_agent(first_install=True)
            await world.wait_committed(release.enclave_id)
            await world.wait_serving(release.enclave_id)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("refuses", "HANDOVER_ANSWER_MALFORMED"),
        pytest.param("hangs", "HANDOVER_PEER_UNREACHABLE", marks=pytest.mark.slow),
        pytest.param("garbage", "HANDOVER_MESSAGE_MALFORMED", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(600)
async def test_a_running_node_that_does_not_hand_over_is_left_alone(
    shared_chain: DevChain, release_keys: ReleaseKeys, tmp_path: Path, fault: str, code: str
) -> None:
    overrides = {"upgrade": {"attempts": 1}}
    opened = World.open(tmp_path / "world", shared_chain.ws_url, keys=release_keys, overrides=overrides)
    async with opened as world:
        old = world.builder.build("1.0.0", NodeTraits(handover_fault=fault))
        await world.install(old)
        await world.node.put("a", b"kept")
        node, seq = world.enclaves()["node"], world.last_seq()
        await world.publish(world.builder.good("1.1.0"))
        await world.wait_for(
            f"{code} in the journal",
            lambda rows: any(code in f"{row['reason']} {row['detail']}" for row in rows),
            within_s=120,
            after=seq,
        )
        assert {row["state_after"] for row in world.history(seq)} <= {
            *("idle", "staging", "staged", "collecting", "abandoned"),
        }
        assert world.enclaves()["node"] == node
        assert await world.node.get("a") == b"kept"
