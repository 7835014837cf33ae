"""A node's health report is untrusted JSON: any content is either a valid report or counts as no answer."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from dcupgrade.adapters.node_http import TEXT_CHARS_MAX, NodeHttp
from dcupgrade.adapters.node_process import key_set_id_of
from dcupgrade.upgrade.ports import NodeHealth
from tests.doubles.node_driver import settings_of


class Node:
    def __init__(self) -> None:
        self.body = b""

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(body=self.body)


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
async def asked(node: Node, data_dir: Path) -> AsyncIterator[NodeHttp]:
    app = web.Application()
    app.add_routes([web.get("/health", node.health)])
    server = TestServer(app)
    async with server, aiohttp.ClientSession() as session:
        http = NodeHttp(settings_of(data_dir), session)
        http.url = str(server.make_url("")).rstrip("/")
        yield http


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1000,
        b"[" * 60_000,
        b'{"status":' * 1000,
        b"{" + b'"a":{' * 5000,
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"status": "serving", "status": "failed"}',
        b'{"status": NaN}',
        b'{"status": ["serving"]}',
        b'{"status": "fine"}',
        b"{}",
        b"",
        b"x" * 70_000,
    ],
    ids=lambda body: body[:12],
)
async def test_a_report_that_is_none_is_silence(node: Node, asked: NodeHttp, body: bytes) -> None:
    node.body = body
    assert (await asked.health("a" * 64)).status == "silent"


async def test_fields_of_the_wrong_type_count_as_absent_and_texts_are_bounded(node: Node, asked: NodeHttp) -> None:
    node.body = json.dumps(
        {"status": "serving", "canary": "true", "committed": 1, "enclave_id": ["a"], "detail": "x" * 5000}
    ).encode()
    health = await asked.health("a" * 64)
    assert health == NodeHealth("serving", detail="x" * TEXT_CHARS_MAX)


async def test_a_good_report_is_taken_as_it_is(node: Node, asked: NodeHttp) -> None:
    node.body = json.dumps(
        {"status": "serving", "canary": True, "committed": True, "enclave_id": "a" * 64, "key_set_id": "k", "more": 1}
    ).encode()
    assert await asked.health("a" * 64) == NodeHealth("serving", "a" * 64, "", True, True, "k")


@pytest.mark.parametrize("content", [b"[" * 5000, b"[]", b"{", b'{"key_set_id": "' + b"k" * 5000 + b'"}', b"\xff"])
def test_a_marker_that_is_none_names_no_key_set(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keyset.json").write_bytes(content)
    assert key_set_id_of(tmp_path) == ""


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "huge"])
def test_a_marker_that_is_no_plain_file_names_no_key_set_and_holds_up_nothing(tmp_path: Path, kind: str) -> None:
    """Case A6, of the other file that is read in the data folder."""
    marker = tmp_path / "keyset.json"
    match kind:
        case "fifo":
            os.mkfifo(marker)
        case "device":
            marker.symlink_to("/dev/zero")
        case "folder":
            marker.mkdir()
        case "huge":
            marker.touch()
            os.truncate(marker, 3 << 30)
    assert key_set_id_of(tmp_path) == ""
