"""A node of the field on a real engine and registry: taken over from its manager, upgraded, reverted."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tomllib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiodocker
import pytest

from devnet.chain import DevChain
from devnet.docker.engine import PrivateEngine
from devnet.field import ipfs, manager
from devnet.field.image import REPOSITORY, SIGNED_ENCLAVE, ImageBuilder
from devnet.field.registry import image_registry
from devnet.release_builder import BuiltRelease, NodeTraits, ReleaseKeys
from devnet.world import World
from process_supervisor.engine_client import engine
from tests.conftest import ROOT
from tests.e2e.upgrade_parts.followed_page import DCUPGRADE, FollowedPage

pytestmark = [pytest.mark.e2e, pytest.mark.compose, pytest.mark.timeout(900)]


@dataclass
class Field:
    """Everything that a host of the field has, and the agent's world."""

    world: World
    host: manager.Host
    docker: aiodocker.Docker
    private_engine: PrivateEngine
    images: ImageBuilder
    registry: str
    gateway: ipfs.Gateway

    def release(self, version: str, traits: NodeTraits | None = None) -> BuiltRelease:
        return self.world.builder.build(version, traits or NodeTraits(features=("stats",)), name=f"field-{version}")

    async def push(self, release: BuiltRelease, **how: bool) -> str:
        """Build the release's image and push it; returns the reference by tag. Nothing stays at the engine."""
        tag = await asyncio.to_thread(self.images.build, release, **how)
        reference = f"{self.registry}/{REPOSITORY}:{release.version}"

        def push() -> None:
            self.private_engine.docker("tag", tag, reference)
            self.private_engine.docker("push", "--quiet", reference)
            self.private_engine.docker("rmi", "--force", tag, reference)

        await asyncio.to_thread(push)
        return reference

    async def archive_cid(self, release: BuiltRelease) -> str:
        """Build the release's image and add its archive to IPFS; returns its CID. Nothing stays at the engine."""
        tag = await asyncio.to_thread(self.images.build, release)
        path = self.world.folder / f"{release.version}.image.tar"
        await asyncio.to_thread(self.images.save, tag, path)
        data = await asyncio.to_thread(path.read_bytes)
        path.unlink()
        return await asyncio.to_thread(self.gateway.add, data)

    async def command(self, *arguments: str) -> str:
        return await self.world.dcupgrade("--config", str(self.world.settings_path), *arguments)

    async def container(self) -> dict[str, object]:
        """What the engine says of the container with the node's name."""
        found = await self.docker.containers.get(manager.CONTAINER)
        return dict(await found.show())

    async def put(self, name: str) -> None:
        await self.world.node.put(name, name.encode() * 1000)

    async def objects_are_read(self, *names: str) -> None:
        for name in names:
            assert await self.world.node.get(name) == name.encode() * 1000


@pytest.fixture(scope="module")
def five_field_chain() -> Iterator[DevChain]:
    """A chain like the network's newer one, whose program names CIDs."""
    with DevChain(runtime="moved", block_time_ms=500) as chain:
        yield chain


@pytest.fixture
async def gateway() -> AsyncIterator[ipfs.Gateway]:
    async with ipfs.gateway() as made:
        yield made


@pytest.fixture
async def field(
    five_field_chain: DevChain,
    private_engine: PrivateEngine,
    release_keys: ReleaseKeys,
    gateway: ipfs.Gateway,
    tmp_path: Path,
) -> AsyncIterator[Field]:
    host = manager.Host(tmp_path / "host")
    overrides: dict[str, Any] = {
        "node": {
            "driver": "container",
            "command": [],
            "data_dir": str(host.disks),
            "ready_deadline_s": 30.0,
            "stop_grace_s": 10.0,
        },
        "container": {
            "engine": private_engine.url,
            "name": manager.CONTAINER,
            "identity": "sigstruct",
            "signed_enclave": SIGNED_ENCLAVE,
        },
        "download": {"ipfs_gateways": [gateway.url]},
        "vault": {"cpu_dir": str(host.etc / "cpu")},
    }
    opened = World.open(
        tmp_path / "world", five_field_chain.ws_url, overrides=overrides, keys=release_keys, handover="v1"
    )
    images = ImageBuilder(private_engine, release_keys)
    await asyncio.to_thread(images.base)
    with image_registry(tmp_path / "registry") as registry:
        async with opened as world, engine(private_engine.url) as docker:
            about: dict[str, Any] = {
                "port": world.ports["node"],
                "upgrader": f"http://127.0.0.1:{world.ports['vault']}",
            }
            with host.prepared(**about, makes_keys="0.0.1"):
                try:
                    yield Field(world, host, docker, private_engine, images, registry, gateway)
                finally:
                    await world.stop_agent()
                    await asyncio.to_thread(_clean, private_engine)


def _clean(private_engine: PrivateEngine) -> None:
    private_engine.remove_containers()
    private_engine.docker("volume", "prune", "--force")
    listed = private_engine.docker("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines()
    doomed = {line.split()[1] for line in listed if REPOSITORY in line or line.startswith("dcupgrade/release")}
    if doomed:
        private_engine.docker("rmi", "--force", *sorted(doomed))


async def test_a_node_of_the_field_is_taken_over_upgraded_and_gone_back_to(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/migration.md from the manager to the agent, upgrades of every kind, and the page back to the manager."""
    world, first = field.world, field.release("0.0.1")
    reference = await field.push(first)
    await world.publish(first, origin_url=reference)
    await asyncio.to_thread(field.private_engine.docker, "pull", "--quiet", reference)
    first_id = await manager.start_node(field.docker, reference, field.host)
    await manager.start_upgrader(field.docker, reference)
    await world.wait_serving(first.enclave_id)
    await field.put("first")

    async with manager.Service(field.host.folder) as service:
        page = _page(field, service, monkeypatch)
        assert "true" in await page.follow(1)
        await page.follow(2)
        told = await page.follow(3)
    assert '"Propagation"' not in told, "the manager's own form of a bind is kept"
    assert f"{field.host.disks}:/opt/dcnetio/disks:shared" in told
    assert "is this agent's node now" in told
    assert (await field.container())["Id"] == first_id
    assert (world.history()[0]["kind"], world.history()[0]["running"]) == ("adopted", first.enclave_id)

    await _by_reference(field, first_id)
    await field.objects_are_read("first")
    await field.put("second")
    third = await _by_cid(field)
    await field.objects_are_read("first", "second")
    await _does_not_start(field, third)
    await field.objects_are_read("first", "second")
    last = await _manager_runs(field, third)
    await _manager_begins_in_mid_upgrade(field, last)
    await field.objects_are_read("first", "second")

    async with manager.Service(field.host.folder) as service:
        await service.stop()
        page = _page(field, service, monkeypatch)
        await page.follow(4)
        assert service.runs
        found = await field.container()
        assert found["HostConfig"]["RestartPolicy"]["Name"] == "always"  # type: ignore[index]
        assert found["State"]["Running"]  # type: ignore[index]
        await field.objects_are_read("first", "second")


def _page(field: Field, service: manager.Service, monkeypatch: pytest.MonkeyPatch) -> FollowedPage:
    """The page on this host: what the trial has otherwise than a host of the field comes from the environment."""
    world = field.world
    values = tomllib.loads(world.settings_path.read_text())
    checkpoint = world.folder / "checkpoint.json"  # of a chain without GRANDPA: nobody looks into it
    checkpoint.write_text(json.dumps({"block_number": 0, "set_id": 0, "authorities": [["ab" * 32, 1]]}))
    values["chain"]["checkpoint_file"] = str(checkpoint)
    values["vault"] |= {"start": True, "token_file": str(world.state_dir / "vault.token")}
    values.setdefault("upgrade", {})["stagger_s"] = 0
    for section, keys in values.items():
        for key, value in keys.items():
            text = ",".join(value) if isinstance(value, list) else str(value)
            monkeypatch.setenv(f"DCUPGRADE_{section}__{key}".upper(), text)
    monkeypatch.setenv("DCUPGRADE_CONFIG", str(world.settings_path))

    async def start_agent() -> None:
        await world.start_agent()
        await world.wait_for("the node taken over", lambda rows: rows != [], within_s=60)

    async def stop_agent() -> None:
        await world.stop_agent()

    return FollowedPage(
        text=(ROOT / "docs" / "migration.md").read_text(encoding="utf-8"),
        folder=world.folder / f"page-{world.last_seq()}",
        programs={
            "dcupgrade": DCUPGRADE,
            "docker": f"{shutil.which('docker')} --host {field.private_engine.url}",
            "runuser": "sh -c 'shift 3; exec \"$@\"' runuser",
        },
        paths={"/etc/dcupgrade/dcupgrade.toml": str(world.settings_path)},
        services={
            "disable --now dc.service": service.stop,
            "enable --now dc.service": service.start,
            "enable --now dcupgrade-vault.service dcupgrade.service": start_agent,
            "disable --now dcupgrade.service dcupgrade-vault.service": stop_agent,
        },
        environ=dict(os.environ),
    )


async def _by_reference(field: Field, first_id: str) -> None:
    """By tag. The tag moves after it was resolved; the first resolved image runs."""
    world, second = field.world, field.release("0.0.2")
    seq = world.last_seq()
    reference = await field.push(second)
    await field.command("hold", "--reason", "look first")
    await world.publish(second, origin_url=reference)
    await world.wait_for("staged", lambda rows: any(r["state_after"] == "staged" for r in rows), within_s=60, after=seq)
    another = await asyncio.to_thread(world.builder.build, "0.0.2", NodeTraits(does_not_start=True), name="moved-tag")
    await field.push(another)
    for _ in range(100):
        plan = json.loads(await field.command("plan", "--json"))
        if plan["changes"]:
            break
        await asyncio.sleep(0.1)
    assert plan["identity"] == "sigstruct"
    assert "Env: with DCSTORAGE_VERSION=0.0.2" in plan["changes"]
    await field.command("unhold")
    await world.wait_committed(second.enclave_id, after=seq)
    await world.wait_serving(second.enclave_id)
    found = await field.container()
    assert found["Id"] != first_id
    assert found["HostConfig"]["RestartPolicy"]["Name"] == "no"  # type: ignore[index]
    assert "DCSTORAGE_VERSION=0.0.2" in found["Config"]["Env"]  # type: ignore[index]
    status = json.loads(await field.command("status", "--json"))
    assert status["identity"] == dict.fromkeys(status["identity"], "sigstruct")


async def _by_cid(field: Field) -> BuiltRelease:
    """The chain's reference leads nowhere; the archive on IPFS is verified while it comes, and loaded."""
    world, third, seq = field.world, field.release("0.0.3"), field.world.last_seq()
    cid = await field.archive_cid(third)
    await world.publish(third, origin_url=f"{field.registry}/dcnetio/nowhere:0.0.3", cids=(cid,))
    await world.wait_committed(third.enclave_id, after=seq)
    await world.wait_serving(third.enclave_id)
    assert field.gateway.asked[0] == "car"  # on a busy machine it may count as slow; then the bytes are asked for too
    assert "DCSTORAGE_VERSION=0.0.3" in (await field.container())["Config"]["Env"]  # type: ignore[index]
    return third


async def _does_not_start(field: Field, serving: BuiltRelease) -> None:
    """The previous container serves again, under its name."""
    world = field.world
    before, seq = (await field.container())["Id"], world.last_seq()
    broken = field.release("0.0.4", NodeTraits(does_not_start=True))
    await world.publish(broken, origin_url=await field.push(broken))

    def reverted(rows: list[dict[str, object]]) -> bool:
        states = [row["state_after"] for row in rows]
        return "reverted" in states and states[-1] == "idle" and rows[-1]["running"] == serving.enclave_id

    await world.wait_for("0.0.4 reverted", reverted, within_s=90, after=seq)
    await world.wait_serving(serving.enclave_id)
    assert (await field.container())["Id"] == before


async def _manager_runs(field: Field, serving: BuiltRelease) -> BuiltRelease:
    """Nothing is stopped while the field's manager runs."""
    world, seq = field.world, field.world.last_seq()
    last = field.release("0.0.5")
    async with manager.Service(field.host.folder):
        await world.publish(last, origin_url=await field.push(last))
        await world.wait_for(
            "staged", lambda rows: any(r["state_after"] == "staged" for r in rows), within_s=60, after=seq
        )
        for _ in range(100):
            plan = await field.command("plan")
            if "OTHER_MANAGER_RUNNING" in plan:
                break
            await asyncio.sleep(0.1)
        assert "dc upgrade daemon" in plan
        await world.wait_serving(serving.enclave_id)
        assert [row["state_after"] for row in world.history(seq)][-1] == "staged"
    await world.wait_committed(last.enclave_id, after=seq)
    await world.wait_serving(last.enclave_id)
    return last


async def _manager_begins_in_mid_upgrade(field: Field, serving: BuiltRelease) -> None:
    """It replaces the new version's container by its own, which the agent never touches.

    Once that one is gone, the version of before serves again.
    """
    world, seq = field.world, field.world.last_seq()
    target = field.release("0.0.6")
    reference = await field.push(target)
    await world.publish(target, origin_url=reference)
    await world.wait_for(
        "launched", lambda rows: any(r["state_after"] == "delivering" for r in rows), within_s=90, after=seq
    )
    async with manager.Service(field.host.folder):
        theirs = await manager.replace_node(field.docker, reference, field.host)
        await world.wait_for("halted", lambda rows: rows[-1]["state_after"] == "halted", within_s=120, after=seq)
        status = await field.command("status")
        found = await field.container()
        assert (found["Id"], found["State"]["Running"]) == (theirs, True)  # type: ignore[index]
    assert "halted" in status
    await field.docker.containers.container(theirs).delete(force=True)
    await world.wait_serving(serving.enclave_id)
