"""Releases by CID: from gateways that serve blocks, and from gateways that serve plain bytes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from devnet.field import ipfs
from process_supervisor import stage as stage_module
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.limits import DownloadLimits
from process_supervisor.stage import stage
from tests.doubles.faulty_server import FaultyServer
from tests.doubles.release_archives import release_tar, sha256
from tests.doubles.staging import BIG, CUT, failure, measure, request

RELEASE = release_tar(BIG)


@pytest.fixture
async def gateway() -> AsyncIterator[ipfs.Gateway]:
    async with ipfs.gateway() as made:
        yield made


def at(limits: DownloadLimits, *gateways: str) -> DownloadLimits:
    return replace(limits, ipfs_gateways=gateways)


async def test_a_cid_of_bytes_is_had_from_a_gateway(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    server.content = release_tar()
    mine = ipfs.raw_block(server.content).text
    gateway = server.url.removesuffix("/release.tar")
    req = request("ghcr.io/x/y:1", cids=(mine,))
    assert (await failure(req, slots, limits)).code == "DOWNLOAD_SOURCE_UNSUPPORTED"
    staged = await stage(req, slots, measure, at(limits, gateway))
    assert staged.source == f"{gateway}/ipfs/{mine}"
    assert len(server.requests) == 1


@pytest.mark.parametrize("how", [{}, {"raw": True, "version": 1}, {"chunk": 5000, "width": 3}])
async def test_a_tree_is_verified_block_by_block(
    gateway: ipfs.Gateway, slots: Path, limits: DownloadLimits, how: dict[str, int]
) -> None:
    """For any layout of the tree."""
    cid = gateway.add(RELEASE, **how)
    seen: list[Any] = []
    staged = await stage(request(cids=(cid,)), slots, measure, at(limits, gateway.url), progress=seen.append)
    assert (staged.digest, staged.size) == (sha256(RELEASE), len(RELEASE))
    assert gateway.asked == ["car"]
    assert {item.total_bytes for item in seen if item.received_bytes} == {len(RELEASE)}


async def test_plain_bytes_prove_themselves_by_a_known_layout(
    gateway: ipfs.Gateway, slots: Path, limits: DownloadLimits
) -> None:
    gateway.gives_cars = False
    cid = gateway.add(RELEASE)
    assert (await stage(request(cids=(cid,)), slots, measure, at(limits, gateway.url))).digest == sha256(RELEASE)
    assert gateway.asked == ["plain", "plain"], "the first answer was not the CAR that was asked for, and is not read"


async def test_bytes_in_an_unknown_layout_are_had_from_another_gateway(
    gateway: ipfs.Gateway, slots: Path, limits: DownloadLimits
) -> None:
    cid = gateway.add(RELEASE, chunk=5000)
    async with ipfs.gateway(gives_cars=False) as other:
        other.add(RELEASE, chunk=5000)
        error = await failure(request(cids=(cid,)), slots, at(limits, other.url))
        assert (error.code, error.kind) == ("DOWNLOAD_SOURCES_FAILED", "transient")
        assert "DOWNLOAD_CAR_INVALID" in error.why
        assert "DOWNLOAD_LAYOUT_UNKNOWN" in error.why
        staged = await stage(request(cids=(cid,)), slots, measure, at(limits, other.url, gateway.url))
    assert staged.source.startswith(gateway.url)


@pytest.mark.parametrize("cars", [True, False])
async def test_a_gateway_with_other_bytes_condemns_nothing(slots: Path, limits: DownloadLimits, cars: bool) -> None:
    async with ipfs.gateway(gives_cars=cars) as liar:
        cid = ipfs.add(RELEASE).text
        liar.files[cid] = (ipfs.add(RELEASE + b"?"), RELEASE + b"?")
        error = await failure(request(cids=(cid,)), slots, at(limits, liar.url))
    assert error.kind == "transient"
    assert not list((slots / ".incoming").glob("*.part"))


async def test_a_car_that_breaks_off_is_asked_for_again(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    root = ipfs.add(RELEASE)
    server.content, server.cut_after = ipfs.car(root), [CUT]
    server.content_type = ipfs.CAR
    staged = await stage(
        request(cids=(root.text,)), slots, measure, at(limits, server.url.removesuffix("/release.tar"))
    )
    assert staged.digest == sha256(RELEASE)
    assert ["Range" in item for item in server.requests] == [False, False], "a CAR is never resumed"
    assert all("format=car" in item[":path"] and "order=dfs; dups=y" in item["Accept"] for item in server.requests)


async def test_a_car_that_ends_too_early_is_truncated(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    root = ipfs.add(RELEASE, chunk=10000)
    server.content = ipfs.car(root, list(root.walk())[:50])
    server.content_type = ipfs.CAR
    server.behave = lambda req: None if "format=car" in req.path_qs else web.Response(status=404)
    error = await failure(request(cids=(root.text,)), slots, at(limits, server.url.removesuffix("/release.tar")))
    assert "DOWNLOAD_TRUNCATED" in error.why
    assert error.kind == "transient"


async def test_the_size_of_a_tree_is_looked_at_before_its_bytes_come(
    gateway: ipfs.Gateway, slots: Path, limits: DownloadLimits
) -> None:
    cid = gateway.add(RELEASE)
    small = replace(at(limits, gateway.url), size_bytes_max=len(RELEASE) - 1)
    assert (await failure(request(cids=(cid,)), slots, small)).code == "DOWNLOAD_TOO_LARGE"
    full = replace(at(limits, gateway.url), free_bytes_min=2**62)
    assert (await failure(request(cids=(cid,)), slots, full)).code == "STAGING_DISK_FULL"


async def test_a_url_of_the_chain_is_not_held_against_a_tree(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    """A tree's CID depends on more than the content; the measurement decides."""
    server.content = release_tar()
    tree = ipfs.add(b"the same in another layout").text
    assert (await stage(request(server.url, cids=(tree,)), slots, measure, limits)).source == server.url


async def test_the_settings_say_where_in_a_gateways_address_the_cid_goes(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    gateway = server.url.replace("/release.tar", "/get/{cid}/file?download=true").replace("http:", "HTTP:")
    tree = ipfs.add(server.content).text
    error = await failure(request(cids=(tree,)), slots, limits)
    assert (error.code, error.kind) == ("DOWNLOAD_SOURCE_UNSUPPORTED", "transient")
    assert "download.ipfs_gateways" in error.action
    await stage(request(cids=(tree,)), slots, measure, at(limits, gateway))
    paths = [item[":path"] for item in server.requests]
    assert paths[0].startswith(f"/get/{tree}/file?download=true&format=car")
    assert paths[1] == f"/get/{tree}/file?download=true"


@pytest.mark.parametrize("host", ["127.0.0.1", "{cid}.ipfs.localhost"])
async def test_a_gateway_exempts_only_what_is_asked_of_it(
    server: FaultyServer, slots: Path, limits: DownloadLimits, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Case B7: a release cannot use the gateway's exemption for another program on its host."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *args, **kwargs: resolve("127.0.0.1", *args, **kwargs))
    server.content = release_tar()
    base = server.url.removesuffix("/release.tar")
    strict = at(replace(limits, own_hosts=frozenset()), base.replace("127.0.0.1", host))
    error = await failure(request(f"{base}/shutdown"), slots, strict)
    assert (error.code, error.kind) == ("DOWNLOAD_ADDRESS_REFUSED", "transient")
    assert server.requests == []
    cid = ipfs.raw_block(server.content).text
    await stage(request(f"{base}/shutdown", cids=(cid,)), slots, measure, strict)
    assert [item[":path"] for item in server.requests] == [f"/ipfs/{cid}" if host == "127.0.0.1" else "/"]


async def test_a_page_of_a_gateway_in_place_of_a_raw_cid_condemns_nothing(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    """Decision 21: it speaks of the gateway, other than at a URL that the release itself names."""
    cid = ipfs.raw_block(release_tar()).text
    server.content = b"<html>sign in</html>"
    gateway = server.url.removesuffix("/release.tar")
    error = await failure(request(cids=(cid,)), slots, at(limits, gateway))
    assert (error.code, error.kind) == ("DOWNLOAD_DIGEST_MISMATCH", "transient")
    assert "download.ipfs_gateways" in error.action
    assert (await failure(request(server.url, cids=(cid,)), slots, limits)).kind == "rejected"
    assert (await failure(request(server.url, cids=(cid,)), slots, at(limits, gateway))).kind == "transient"


@pytest.mark.parametrize("order", [1, -1])
def test_a_mismatch_at_a_gateway_is_not_taken_for_one_that_condemns_whichever_came_last(order: int) -> None:
    failures: list[Exception] = [
        ProcessSupervisorError(code="DOWNLOAD_DIGEST_MISMATCH", what="x", why="y", kind=kind)
        for kind in ("rejected", "transient")
    ]
    error = stage_module._combined(failures[::order], request())
    assert (getattr(error, "code", ""), getattr(error, "kind", "")) == ("DOWNLOAD_SOURCES_FAILED", "transient")


async def test_the_plain_bytes_and_the_car_of_one_url_have_a_part_file_each(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    """The release names the URL from which our gateway's CAR is requested; both requests run at once."""
    root = ipfs.add(RELEASE)
    url = server.url.removesuffix("/release.tar") + f"/ipfs/{root.text}?format=car&car-order=dfs&car-dups=y"
    parts: list[set[Path]] = []
    both = asyncio.Event()

    async def half(data: bytes) -> AsyncIterator[bytes]:
        yield data[:CUT]
        await both.wait()
        yield data[CUT:]

    def behave(req: web.Request) -> web.StreamResponse:
        of_the_car = "ipld.car" in req.headers.get("Accept", "")
        if of_the_car:
            both.set()
        body = ipfs.car(root) if of_the_car else b"<html>" + bytes(2 * CUT)
        return web.Response(body=half(body), content_type=ipfs.CAR)

    def progress(_: Any) -> None:
        parts.append(set((slots / ".incoming").glob("*.part")))

    server.behave = behave
    own = replace(at(limits, server.url.removesuffix("/release.tar")), slow_s=0.05, slow_bytes_per_s=2**30)
    staged = await stage(request(url, cids=(root.text,)), slots, measure, own, progress=progress)
    assert staged.digest == sha256(RELEASE)
    assert max(map(len, parts)) >= 2  # three if this machine is slow and the plain bytes of the CID are begun too
