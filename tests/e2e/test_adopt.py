"""A node that was installed and started without the agent is taken over, upgraded and reverted."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from devnet.chain import DevChain
from devnet.release_builder import ROOT, BuiltRelease, ReleaseKeys
from devnet.world import World, WorldError

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


async def somebody_elses_node(world: World, release: BuiltRelease) -> int:
    """Install and start a version by hand, apart from the agent's folder; returns the pid of its main process."""
    slot = world.folder / "by-hand" / release.version
    release.install(slot)
    world.data_dir.mkdir(exist_ok=True)
    world.state_dir.mkdir(exist_ok=True)
    ours = [
        "--data",
        world.data_dir,
        "--port",
        world.ports["node"],
        "--upgrader",
        f"http://127.0.0.1:{world.ports['vault']}",
    ]
    ours += ["--network-signature-file", slot / "network.sig", "--first-install"]
    tee = ["--cpu", world.state_dir / "cpu", "--image", slot / "enclave.pyz", "--sigstruct", slot / "enclave.sig"]
    command = [sys.executable, "-m", "attestation.simulated", "run", *tee, "--", *ours]
    with (world.folder / "by-hand.log").open("wb") as log:
        node = await asyncio.create_subprocess_exec(
            *map(str, command), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    await world.wait_serving(release.enclave_id)
    return node.pid


async def adopt(world: World, *arguments: str) -> str:
    return await world.dcupgrade("--config", str(world.settings_path), "adopt", *arguments)


async def test_a_node_of_before_is_taken_over_upgraded_and_gone_back_to(world: World) -> None:
    old, new = [await asyncio.to_thread(world.builder.good, version) for version in ("1.0.0", "1.1.0")]
    await world.publish(old)
    pid = await somebody_elses_node(world, old)
    await world.node.put("kept", b"data of before")

    await world.start_agent()  # before anybody told it of the node
    await world.wait_for("it looked", lambda rows: any(row["state_after"] == "staged" for row in rows), within_s=90)
    plan = json.loads(await world.dcupgrade("--config", str(world.settings_path), "plan", "--json"))
    assert "dcupgrade adopt" in json.dumps(plan)
    with pytest.raises(WorldError, match="AGENT_ALREADY_RUNNING"):
        await adopt(world)
    await world.stop_agent()
    assert "is this agent's node now" in await adopt(world)
    assert "is this agent's node now" in await adopt(world), "a second time changes nothing"

    seq = world.last_seq()
    await world.start_agent()
    rows = await world.wait_for("the node taken over", lambda rows: rows != [], within_s=90, after=seq)
    assert (rows[0]["kind"], rows[0]["running"]) == ("adopted", old.enclave_id)
    assert pid in world.processes()

    await world.publish(new)
    await world.wait_committed(new.enclave_id, after=seq)
    await world.wait_serving(new.enclave_id)
    assert await world.node.get("kept") == b"data of before"
    assert pid not in world.processes()

    await world.node.put("later", b"data of after")
    await world.dcupgrade("--config", str(world.settings_path), "revert")
    await world.wait_serving(old.enclave_id)
    assert await world.node.get("later") == b"data of after"


async def test_a_node_of_handover_v1_is_taken_over_and_upgraded(
    shared_chain: DevChain, release_keys: ReleaseKeys, tmp_path: Path
) -> None:
    opened = World.open(tmp_path / "world", shared_chain.ws_url, keys=release_keys, handover="v1")
    async with opened as world:
        old, new = [await asyncio.to_thread(world.builder.good, version) for version in ("1.0.0", "1.1.0")]
        await world.publish(old)
        pid = await somebody_elses_node(world, old)
        await world.node.put("kept", b"data of before")
        assert "is this agent's node now" in await adopt(world)
        await world.start_agent()
        await world.publish(new)
        await world.wait_committed(new.enclave_id)
        await world.wait_serving(new.enclave_id)
        assert await world.node.get("kept") == b"data of before"
        assert pid not in world.processes()


async def test_what_cannot_be_taken_over_is_refused_with_the_reason(world: World) -> None:
    with pytest.raises(WorldError, match=r"NODE_NOT_ADOPTABLE.*nothing at .* says that it serves"):
        await adopt(world)
    old, new, unlisted = [
        await asyncio.to_thread(world.builder.good, version) for version in ("1.0.0", "1.1.0", "9.9.9")
    ]
    pid = await somebody_elses_node(world, unlisted)
    with pytest.raises(WorldError, match=r"NODE_NOT_ADOPTABLE.*the chain does not list"):
        await adopt(world)
    assert pid in world.processes()
    await world.publish(unlisted)
    await world.publish(new)
    with pytest.raises(WorldError, match=r"NODE_NOT_ADOPTABLE.*the chain names another version"):
        await adopt(world)
    with pytest.raises(WorldError, match="STAGING_ENCLAVE_ID_MISMATCH"):
        await adopt(world, "--from", old.archive.as_uri())
    marker = world.data_dir / "keyset.json"
    kept = marker.read_text()
    marker.write_text(json.dumps({"key_set_id": "ab" * 32}))
    with pytest.raises(WorldError, match=r"NODE_NOT_ADOPTABLE.*is not the folder that this node works on"):
        await adopt(world)
    marker.write_text(kept)
    assert "is this agent's node now" in await adopt(world, "--from", unlisted.archive.as_uri())
    assert pid in world.processes()
