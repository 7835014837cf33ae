"""Nodes in Go and in Python take over from each other: one network, one vault, one data folder, v2 and v1."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from devnet.chain import DevChain
from devnet.release_builder import BuiltRelease, ReleaseKeys
from devnet.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("go")]
CHAIN = (("1.0.0", "python"), ("1.1.0", "go"), ("1.2.0", "python"), ("1.3.0", "go"))


def objects(version: str) -> dict[str, bytes]:
    """What is stored while a version runs: empty, small, and of several frames."""
    return {
        f"{version}-empty": b"",
        f"{version}-small": version.encode(),
        f"{version}-large": version.encode() * 200_000,
    }


def release(world: World, version: str, language: str) -> BuiltRelease:
    return replace(world.builder, language=language).good(version)


@pytest.mark.slow
@pytest.mark.parametrize("handover", ["v2", "v1"])
async def test_every_object_outlives_a_chain_of_python_and_go(
    shared_chain: DevChain, release_keys: ReleaseKeys, tmp_path: Path, handover: str
) -> None:
    opened = World.open(tmp_path / "world", shared_chain.ws_url, keys=release_keys, handover=handover)
    async with opened as world:
        stored: dict[str, bytes] = {}
        key_sets = set()
        for number, (version, language) in enumerate(CHAIN):
            built = release(world, version, language)
            if number == 0:
                await world.install(built)
            else:
                seq = world.last_seq()
                await world.publish(built)
                await world.wait_committed(built.enclave_id, after=seq)
            health = await world.wait_serving(built.enclave_id)
            assert health["version"] == version
            key_sets.add(health.get("key_set_id"))
            for name, data in stored.items():
                assert await world.node.get(name) == data, f"{name} as read by {version} in {language}"
            for name, data in objects(version).items():
                await world.node.put(name, data)
                stored[name] = data
            assert await world.node.names() == sorted(stored)
        assert len(key_sets) == 1


@pytest.mark.slow
async def test_a_go_node_is_a_first_version_and_is_gone_back_to(world: World) -> None:
    old, new = release(world, "1.0.0", "go"), release(world, "1.1.0", "python")
    await world.install(old)
    await world.node.put("a", b"of the first version, in Go")
    seq = world.last_seq()
    await world.publish(new)
    await world.wait_committed(new.enclave_id, after=seq)
    assert await world.node.get("a") == b"of the first version, in Go"
    await world.dcupgrade("--config", str(world.settings_path), "revert")
    await world.wait_serving(old.enclave_id)
    assert await world.node.get("a") == b"of the first version, in Go"


async def test_a_go_node_keeps_the_contract_with_clients_and_agent(world: World) -> None:
    built = release(world, "1.1.0", "go")
    await world.install(built)
    session, url = world.session, world.node.url

    async def status(method: str, path: str, **request: Any) -> tuple[int, str]:
        async with session.request(method, f"{url}{path}", **request) as answer:
            return answer.status, await answer.text()

    assert await status("GET", "/version") == (200, f"{built.enclave_id}@1.1.0")
    assert (await status("GET", "/objects/none"))[0] == 404
    assert (await status("PUT", "/objects/..%2fescaped", data=b"x"))[0] in (400, 404)
    assert (await status("PUT", "/objects/" + "x" * 201, data=b"x"))[0] == 400
    await world.node.put("a", b"x")
    assert json.loads((await status("GET", "/stats"))[1]) == {"objects": 1, "bytes": 1}
    assert (await status("DELETE", "/objects/a"))[0] == 204
    assert (await status("DELETE", "/objects/a"))[0] == 404
    for body, expected in (("{}", 400), ("junk", 400), (json.dumps({"enclave_id": "ab" * 32}), 409)):
        assert (await status("POST", "/commit", data=body))[0] == expected
    assert (await status("GET", "/health", headers={"Host": "evil.example"}))[0] == 400
    health = await world.wait_serving(built.enclave_id)
    assert (health["committed"], health["canary"], health["tee"]) == (True, True, "simulated")
    with pytest.raises(aiohttp.ClientResponseError):
        await world.node.get("a")
