"""The reference node: keys are made once for a data folder, and its HTTP API keeps its contract."""

import asyncio
import errno
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from devnet.reference_node.app import NodeState, add_node_routes
from devnet.reference_node.main import _V1
from devnet.reference_node.objects import CHUNK_BYTES, KeySet, NodeError, ObjectStore
from keyvault.errors import KeyvaultError
from keyvault.handover.http_server import new_app
from keyvault.handover.key_set import KeySet as HandoverKeySet
from tests.doubles.reference_nodes import node


def test_a_vault_that_left_the_list_gets_no_keys_over_v1_where_the_node_knows_the_list(tmp_path: Path) -> None:
    listed = tmp_path / "listed"
    listed.write_text("aa\nbb\n")
    follower, other = node(tmp_path, enclave_list=listed), node(tmp_path)
    first, second = (
        _V1(one.party(), one._handover, lambda: HandoverKeySet(KeySet.draw().encoded)) for one in (follower, other)
    )
    first.hand_out("aa").wipe()
    listed.write_text("bb\n")
    with pytest.raises(KeyvaultError, match="HANDOVER_UPGRADER_UNLISTED"):
        first.hand_out("aa")
    second.hand_out("aa").wipe()  # the control: a node that does not follow the chain


async def test_keys_are_made_by_the_first_start_and_found_by_the_next(tmp_path: Path) -> None:
    first = node(tmp_path, first_install=True)
    await first.bring_up()
    assert first.state.status == "serving"
    again = node(tmp_path, first_install=True)
    await again.bring_up()
    assert (again.state.status, again.state.key_set_id) == ("serving", first.state.key_set_id)


@pytest.mark.parametrize("left", ["keyset.json", "canary.json", "objects/", "sealed/"])
def test_no_keys_are_made_beside_anything_that_belongs_to_others(tmp_path: Path, left: str) -> None:
    asyncio.run(node(tmp_path, first_install=True).bring_up())
    (tmp_path / "objects" / "ab").write_bytes(b"x")
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    kept = {path: path.read_bytes() for name, path in files.items() if name.startswith(left)}
    assert kept
    for path in files.values():
        if path not in kept:
            path.unlink()
    new = node(tmp_path, "1.1.0", first_install=True)
    asyncio.run(new.bring_up())
    assert new.state.error is not None
    assert new.state.error.code == "NODE_FIRST_INSTALL_REFUSED"
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_a_lost_marker_does_not_let_other_keys_write_a_canary_of_their_own(tmp_path: Path) -> None:
    keys = KeySet.draw()
    node(tmp_path).open_data(keys)
    (tmp_path / "keyset.json").unlink()
    canary = (tmp_path / "canary.json").read_bytes()
    with pytest.raises(NodeError, match="NODE_CANARY_UNREADABLE"):
        node(tmp_path).open_data(KeySet.draw())
    assert (tmp_path / "canary.json").read_bytes() == canary
    assert node(tmp_path).marked() is None
    node(tmp_path).open_data(keys)
    assert node(tmp_path).marked() == keys.id


def test_data_without_canary_get_none(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "ab").write_bytes(b"x")
    with pytest.raises(NodeError, match="NODE_CANARY_UNREADABLE"):
        node(tmp_path).open_data(KeySet.draw())
    assert not (tmp_path / "canary.json").exists()


def test_a_damaged_marker_is_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / "keyset.json").write_text("{")
    with pytest.raises(NodeError, match="NODE_MARKER_UNREADABLE"):
        node(tmp_path).open_data(KeySet.draw())
    assert (tmp_path / "keyset.json").read_text() == "{"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[TestClient[Any, Any]]:
    state = NodeState("ab" * 32, "1.0.0", "simulated", frozenset(), "serving", ObjectStore(tmp_path, KeySet.draw()))

    async def commit() -> None:
        state.committed = True

    app = new_app()
    add_node_routes(app, state, commit)
    async with TestClient(TestServer(app)) as made:
        yield made


async def test_every_route_of_a_node_answers_to_loopback_names_only(client: TestClient[Any, Any]) -> None:
    """Case B6, of the node's own routes too."""
    routes = [(route.method, route.resource.canonical) for route in client.app.router.routes() if route.resource]
    for method, path in routes:
        async with client.request(method, path, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 421, (method, path)
            if method != "HEAD":
                assert (await answer.json())["code"] == "HANDOVER_HOST_REFUSED"
    assert {path for _, path in routes} >= {"/objects", "/objects/{name}", "/health", "/version", "/commit"}


@pytest.mark.parametrize("name", ["..", ".", "%2e%2e", "..%2fb", "a%2fb", "%00", ".hidden", "a%20b", "-a", "a" * 201])
async def test_names_that_could_be_paths_are_refused(client: TestClient[Any, Any], tmp_path: Path, name: str) -> None:
    for method in ("PUT", "GET", "DELETE"):
        url = URL(str(client.make_url("/objects/")) + name, encoded=True)
        async with client.session.request(method, url, data=b"x" if method == "PUT" else None) as answer:
            assert answer.status in (400, 404, 405)
    assert list((tmp_path / "objects").iterdir()) == []


async def test_a_full_disk_is_told_by_its_code_and_costs_nothing(
    client: TestClient[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client.put("/objects/a", data=b"old") as answer:
        assert answer.status == 201

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        async with client.put("/objects/a", data=b"new") as answer:
            assert answer.status == 507
            assert await answer.json() == {"code": "NODE_DISK_FAILED", "why": "No space left on device"}
    async with client.get("/objects/a") as answer:
        assert await answer.read() == b"old"
    assert len(list((tmp_path / "objects").iterdir())) == 1


async def test_an_object_that_is_deleted_while_all_are_listed_is_left_out(
    client: TestClient[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client.put("/objects/a", data=b"x"):
        pass
    seen = [*(tmp_path / "objects").iterdir(), tmp_path / "objects" / ("0" * 64)]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(seen))
    async with client.get("/objects") as answer:
        assert await answer.json() == {"a": 1}


async def test_a_reader_keeps_the_object_that_it_began_to_read(client: TestClient[Any, Any]) -> None:
    old, new = os.urandom(40 * CHUNK_BYTES), os.urandom(40 * CHUNK_BYTES)
    async with client.put("/objects/a", data=io.BytesIO(old)):
        pass
    async with client.get("/objects/a") as reading:
        begun = await reading.content.readexactly(1)
        async with client.put("/objects/a", data=io.BytesIO(new)) as answer:
            assert answer.status == 201
        assert begun + await reading.read() == old
    async with client.get("/objects/a") as answer:
        assert await answer.read() == new


async def test_damage_found_while_an_object_is_sent_breaks_the_connection(
    client: TestClient[Any, Any], tmp_path: Path
) -> None:
    async with client.put("/objects/a", data=io.BytesIO(os.urandom(4 * CHUNK_BYTES))):
        pass
    (path,) = (tmp_path / "objects").iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    async with client.get("/objects/a") as answer:
        with pytest.raises(ClientPayloadError):
            await answer.read()


async def test_commit_is_for_the_one_who_is_named(client: TestClient[Any, Any]) -> None:
    for body, status in ((b"", 400), (b"[]", 400), (b'{"enclave_id": "cd"}', 409)):
        async with client.post("/commit", data=body) as answer:
            assert answer.status == status
    async with client.get("/health") as answer:
        assert (await answer.json())["committed"] is False
    async with client.post("/commit", json={"enclave_id": "ab" * 32}) as answer:
        assert answer.status == 200
    async with client.get("/health") as answer:
        assert (await answer.json())["committed"] is True


async def test_head_tells_the_size_alone(client: TestClient[Any, Any]) -> None:
    async with client.put("/objects/a", data=b"12345"):
        pass
    async with client.head("/objects/a") as answer:
        assert (answer.status, answer.headers["Content-Length"], await answer.read()) == (200, "5", b"")
