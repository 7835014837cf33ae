"""Downloads from a server with faults, and slots that only ever hold what was verified."""

import asyncio
import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import aiohttp
import cid
import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from process_supervisor import fetch as fetch_module
from process_supervisor import slots as slots_module
from process_supervisor import stage as stage_module
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.fetch import Progress, fetch
from process_supervisor.limits import DownloadLimits
from process_supervisor.slots import open_slot, remove_slot
from process_supervisor.sources import UrlSource
from process_supervisor.stage import StageRequest, stage

from .conftest import ENCLAVE, FaultyServer, member, release_tar, sha256, tar_bytes

# Above what the client's socket buffers hold (aiohttp drops those when a connection breaks), so that a part remains.
BIG = b"image" * 200_000
CUT = 700_000
OTHER = "cd" * 32
# Names the root of a tree; it cannot be compared with a stream of bytes.
TREE_CID = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"
SIGNATURE = {"network.sig": b"bsignature"}


class OtherPackageError(Exception):
    """Stands for the error of whoever measures the artefact."""

    code = "SIGSTRUCT_MRENCLAVE_MISMATCH"
    kind = "rejected"


def measure(folder: Path) -> str:
    """Stands for the measurement: an image that begins with `image` is ENCLAVE, one that begins with `bad` is not."""
    image = (folder / "enclave.pyz").read_bytes()
    if image.startswith(b"bad"):
        raise OtherPackageError("the SIGSTRUCT names another MRENCLAVE")
    return ENCLAVE if image.startswith(b"image") else "cd" * 32


def request(*sources: str, cids: tuple[str, ...] = ()) -> StageRequest:
    return StageRequest(enclave_id=ENCLAVE, sources=sources, cids=cids, extra_files=SIGNATURE)


def part_of(slots: Path) -> Path:
    """The one part file that there is."""
    (part,) = (slots / ".incoming").glob(f"{ENCLAVE}.*.part")
    return part


async def failure(req: StageRequest, slots: Path, limits: DownloadLimits) -> ProcessSupervisorError:
    with pytest.raises(ProcessSupervisorError) as caught:
        await stage(req, slots, measure, limits)
    assert not (slots / ENCLAVE).exists()
    return caught.value


async def test_a_release_gets_its_slot(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    server.content = release_tar()
    seen: list[Progress] = []
    staged = await stage(request(server.url), slots, measure, limits, seen.append)
    assert staged.path == slots / ENCLAVE
    assert (staged.digest, staged.size, staged.source) == (sha256(server.content), len(server.content), server.url)
    names = {"release.json", "enclave.pyz", "enclave.sig", "network.sig", "stage.json"}
    assert {item.name for item in staged.path.iterdir()} == names
    assert (staged.path / "network.sig").read_bytes() == b"bsignature"
    downloads = [item for item in seen if item.stage == "download"]
    assert len(downloads) > 2
    assert downloads[-1].received_bytes == downloads[-1].total_bytes == len(server.content)
    assert [item.stage for item in seen[-3:]] == ["unpack", "verify", "ready"]
    assert [item.name for item in (slots / ".incoming").iterdir()] == [f"{ENCLAVE}.lock"]


async def test_a_second_call_verifies_again_and_downloads_nothing(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    first = await stage(request(server.url), slots, measure, limits)
    (slots / ENCLAVE / "network.sig").write_bytes(b"old")
    (slots / ENCLAVE / ".network.sig.new").write_bytes(b"left by a crash")
    measured: list[Path] = []

    async def verify(folder: Path) -> str:
        measured.append(folder)
        return measure(folder)

    assert await stage(request(server.url), slots, verify, limits) == first
    assert measured == [slots / ENCLAVE]
    assert len(server.requests) == 1
    assert (slots / ENCLAVE / "network.sig").read_bytes() == b"bsignature"


@pytest.mark.parametrize("damage", ["image", "extra", "missing", "link", "facts", "file"])
async def test_a_damaged_slot_is_set_aside_and_staged_anew(
    server: FaultyServer, slots: Path, limits: DownloadLimits, damage: str
) -> None:
    server.content = release_tar()
    await stage(request(server.url), slots, measure, limits)
    slot = slots / ENCLAVE
    if damage == "image":
        (slot / "enclave.pyz").write_bytes(b"other")
    elif damage == "extra":
        (slot / "more").write_bytes(b"")
    elif damage == "missing":
        (slot / "enclave.sig").unlink()
    elif damage == "link":
        (slot / "release.json").unlink()
        (slot / "release.json").symlink_to("/etc/hostname")
    elif damage == "facts":
        (slot / "stage.json").write_text("[]")
    else:
        os.rename(slot, slots / "elsewhere")
        slot.write_bytes(b"a file")
    for number in (1, 2):
        await stage(request(server.url), slots, measure, limits)
        assert (slots / ".aside" / f"{ENCLAVE}.1").exists()
        assert (slot / "enclave.pyz").read_bytes().startswith(b"image")
        if number == 1:
            (slot / "enclave.pyz").write_bytes(b"other")
    assert (slots / ".aside" / f"{ENCLAVE}.2" / "enclave.pyz").read_bytes() == b"other"


def test_what_goes_while_leftovers_are_looked_for(slots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (slots / ".incoming").mkdir(parents=True)
    part = slots / ".incoming" / f"{OTHER}.0.part"
    part.write_bytes(b"x")
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        part.unlink()
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    slots_module.remove_leftovers(slots, 2**40)
    assert not list((slots / ".incoming").glob("*.lock")), "it was left to whoever stages it"


async def test_a_disk_that_goes_bad_is_not_filled_with_damaged_slots(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    (slots / ".aside").mkdir(parents=True)
    (slots / ".aside" / f"{OTHER}.1").mkdir()
    (slots / ".aside" / f"{ENCLAVE}.note").write_text("not ours")
    for number in range(1, 13):
        staged = await stage(request(server.url), slots, measure, limits)
        (staged.path / "enclave.pyz").write_bytes(b"bad %d" % number)
    await stage(request(server.url), slots, measure, limits)
    kept = {path.name: path for path in (slots / ".aside").iterdir()}
    assert set(kept) == {f"{OTHER}.1", f"{ENCLAVE}.note", *(f"{ENCLAVE}.{number}" for number in (10, 11, 12))}
    assert (kept[f"{ENCLAVE}.12"] / "enclave.pyz").read_bytes() == b"bad 12"


async def test_a_broken_download_goes_on_where_it_stopped(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar(BIG)
    server.cut_after = [CUT, CUT // 2]
    staged = await stage(request(server.url), slots, measure, limits)
    ranges = [item.get("Range") for item in server.requests]
    assert ranges[0] is None
    assert all(text and int(text[6:-1]) > 0 for text in ranges[1:])
    assert staged.digest == sha256(server.content)


async def test_another_run_goes_on_where_the_former_died(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar(BIG)
    server.cut_after = [CUT]
    assert (await failure(request(server.url), slots, replace(limits, attempts_max=1))).code == "DOWNLOAD_TRUNCATED"
    size = part_of(slots).stat().st_size
    assert 0 < size <= CUT
    staged = await stage(request(server.url), slots, measure, limits)
    assert server.requests[-1]["Range"] == f"bytes={size}-"
    assert staged.digest == sha256(server.content)


async def test_a_changed_artefact_is_not_glued_to_the_old_part(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content, server.cut_after = release_tar(BIG), [CUT]
    await failure(request(server.url), slots, replace(limits, attempts_max=1))
    server.content, server.etag = release_tar(BIG + b"."), '"v2"'
    staged = await stage(request(server.url), slots, measure, limits)
    assert staged.digest == sha256(server.content)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
async def test_without_a_strong_validator_it_starts_again(
    server: FaultyServer, slots: Path, limits: DownloadLimits, etag: str | None
) -> None:
    server.content, server.cut_after, server.etag = release_tar(BIG), [CUT], etag
    await stage(request(server.url), slots, measure, limits)
    assert [item.get("Range") for item in server.requests] == [None, None]


@pytest.mark.parametrize(
    ("headers", "strong"),
    [
        ({"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "Date": "Thu, 01 Jan 2026 00:01:00 GMT"}, True),
        # It may have changed once more within that minute.
        ({"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "Date": "Thu, 01 Jan 2026 00:00:59 GMT"}, False),
        ({"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "Date": "Thu, 01 Jan 1970 00:00:00 GMT"}, False),
        ({"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}, False),
        ({"Last-Modified": "yesterday", "Date": "Thu, 01 Jan 2026 00:01:00 GMT"}, False),
        ({"Last-Modified": "Thu, 01 Jan 2026 00:00:00", "Date": "Thu, 01 Jan 2026 00:01:00 GMT"}, False),
        ({}, False),
    ],
)
def test_a_time_is_a_validator_where_it_is_long_past(headers: dict[str, str], strong: bool) -> None:
    found = fetch_module._strong_validator(CIMultiDictProxy(CIMultiDict(headers)))
    assert found == (headers["Last-Modified"] if strong else None)


@pytest.mark.parametrize("mirror", ["http://127.0.0.1:1/a.tar", "{server}?mirror"])
async def test_a_look_at_the_mirror_does_not_cost_what_the_origin_gave(
    server: FaultyServer, slots: Path, limits: DownloadLimits, mirror: str
) -> None:
    server.content, server.cut_after = release_tar(BIG), [CUT, CUT // 2]
    req = request(server.url, mirror.format(server=server.url))
    await failure(req, slots, replace(limits, attempts_max=1))
    metas = (slots / ".incoming").glob("*.part.json")
    (origin,) = (path for path in metas if json.loads(path.read_text())["url"] == server.url)
    size = origin.with_suffix("").stat().st_size
    staged = await stage(req, slots, measure, limits)
    assert staged.digest == sha256(server.content)
    assert server.requests[-1]["Range"] == f"bytes={size}-"
    assert [item.name for item in (slots / ".incoming").iterdir()] == [f"{ENCLAVE}.lock"]


async def test_a_part_from_another_source_gives_way_where_there_is_no_room_for_both(
    server: FaultyServer, slots: Path, limits: DownloadLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content, server.cut_after = release_tar(BIG), [CUT]
    await failure(request(server.url), slots, replace(limits, attempts_max=1))
    first, real = part_of(slots), fetch_module.require_space

    def require_space(folder: Path, needed: int, limits: DownloadLimits) -> None:
        real(folder, 2**62 if first.exists() else needed, limits)

    monkeypatch.setattr(fetch_module, "require_space", require_space)
    assert (await stage(request(server.url + "?mirror"), slots, measure, limits)).path == slots / ENCLAVE
    assert not first.exists()


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("damage", ["other bytes under the same tag", "zeros after a power cut"])
async def test_pieces_that_do_not_belong_together_do_not_condemn_a_release(
    server: FaultyServer, slots: Path, limits: DownloadLimits, damage: str, pinned: bool
) -> None:
    server.content, server.cut_after = release_tar(BIG), [CUT]
    whole = sha256(server.content)
    if damage.startswith("other"):
        server.content = release_tar(b"older" * 200_000)
    req = request(server.url + (f"#sha256={whole}" if pinned else ""))
    await failure(req, slots, replace(limits, attempts_max=1))
    if damage.startswith("zeros"):
        part = part_of(slots)
        part.write_bytes(bytes(part.stat().st_size))
    server.content = release_tar(BIG)
    staged = await stage(req, slots, measure, limits)
    assert staged.digest == whole
    assert ["Range" in item for item in server.requests] == [False, True, False]


async def test_what_came_in_one_piece_is_asked_for_once(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar(b"other")
    assert (await failure(request(server.url), slots, limits)).code == "STAGING_ENCLAVE_ID_MISMATCH"
    assert len(server.requests) == 1


async def test_what_a_release_that_was_given_up_left_is_removed(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    incoming = slots / ".incoming"
    names = {
        OTHER: ["0.part", "0.part.json", "new", "files", "removed", "pin", "lock"],
        "ef" * 32: ["part", "lock"],
        "12" * 32: ["0.part", "lock"],
    }
    for enclave_id, ends in names.items():
        for end in ends:
            path = incoming / f"{enclave_id}.{end}"
            if end in ("new", "removed"):
                (path / "inside").mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"{}")
            os.utime(path, (0, 0))
    (slots / ("34" * 32)).mkdir()
    os.utime(incoming / f"{'12' * 32}.0.part")
    (incoming / "notes").write_text("not ours")
    with slots_module.staging_lock(slots, "ef" * 32):
        await stage(request(server.url), slots, measure, limits)
    kept = {f"{ENCLAVE}.lock", f"{OTHER}.pin", f"{OTHER}.lock", "notes"}
    kept |= {f"{'ef' * 32}.part", f"{'ef' * 32}.lock", f"{'12' * 32}.0.part", f"{'12' * 32}.lock"}
    assert {path.name for path in incoming.iterdir()} == kept
    assert (slots / ("34" * 32)).is_dir()


@pytest.mark.parametrize("content_range", ["bytes 0-9/20", "bytes 9000-9100/99999", "rubbish", "bytes 9000-9000/*"])
async def test_a_wrong_range_starts_again(
    server: FaultyServer, slots: Path, limits: DownloadLimits, content_range: str
) -> None:
    server.content, server.cut_after = release_tar(BIG), [CUT]

    def behave(req: web.Request) -> web.StreamResponse | None:
        if "Range" in req.headers:
            return web.Response(status=206, body=b"x" * 10, headers={"Content-Range": content_range, "ETag": '"v1"'})
        return None

    server.behave = behave
    staged = await stage(request(server.url), slots, measure, limits)
    assert staged.digest == sha256(server.content)
    assert ["Range" in item for item in server.requests] == [False, True, False]


async def test_a_416_starts_again(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    server.content, server.cut_after = release_tar(BIG), [CUT]
    server.behave = lambda req: web.Response(status=416) if "Range" in req.headers else None
    assert (await stage(request(server.url), slots, measure, limits)).digest == sha256(server.content)


async def test_a_download_that_always_breaks_is_truncated(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content, server.cut_after, server.etag = release_tar(), [100] * 50, None
    error = await failure(request(server.url), slots, limits)
    assert (error.code, error.kind) == ("DOWNLOAD_TRUNCATED", "transient")


async def test_unreachable_sources(slots: Path, limits: DownloadLimits) -> None:
    error = await failure(request("http://127.0.0.1:1/a.tar"), slots, limits)
    assert (error.code, error.kind) == ("DOWNLOAD_UNREACHABLE", "transient")


async def test_the_mirror_is_used(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    server.content = release_tar()
    staged = await stage(request("http://127.0.0.1:1/a.tar", server.url), slots, measure, limits)
    assert staged.source == server.url


async def test_a_bad_artefact_at_one_source_does_not_hide_the_good_one(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    bad = release_tar(b"bad")
    server.content = release_tar()
    server.behave = lambda req: web.Response(body=bad) if "bad" in req.path else None
    staged = await stage(request(server.url + ".bad", server.url), slots, measure, limits)
    assert staged.source == server.url


@pytest.mark.parametrize("status", [404, 403, 500, 503, 204])
async def test_error_statuses(server: FaultyServer, slots: Path, limits: DownloadLimits, status: int) -> None:
    server.behave = lambda _: web.Response(status=status)
    error = await failure(request(server.url), slots, limits)
    assert (error.code, error.kind) == ("DOWNLOAD_HTTP_STATUS", "transient")
    assert len(server.requests) == (4 if status >= 500 else 1)


async def test_redirects_are_followed_with_care(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    server.content = release_tar()

    def behave(req: web.Request) -> web.StreamResponse | None:
        if req.path.startswith("/hop"):
            left = int(req.path[4:])
            return web.Response(status=302, headers={"Location": f"/hop{left - 1}" if left else "/release.tar"})
        location = {"/evil": "file:///etc/passwd", "/odd": "http://[::1"}.get(req.path)
        return web.Response(status=302, headers={"Location": location}) if location else None

    server.behave = behave
    base = server.url.removesuffix("/release.tar")
    assert (await failure(request(f"{base}/evil"), slots, limits)).code == "DOWNLOAD_REDIRECT_REFUSED"
    assert (await failure(request(f"{base}/odd"), slots, limits)).code == "DOWNLOAD_REDIRECT_REFUSED"
    assert (await failure(request(f"{base}/hop5"), slots, limits)).code == "DOWNLOAD_REDIRECT_REFUSED"
    assert (await stage(request(f"{base}/hop4"), slots, measure, limits)).source == f"{base}/hop4"


async def test_https_is_not_left_for_http(session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        status = 302
        headers = {"Location": "http://plain/a"}  # noqa: RUF012

        def release(self) -> None:
            pass

    async def get(*_: object, **__: object) -> Answer:
        return Answer()

    monkeypatch.setattr(session, "get", get)
    with pytest.raises(ProcessSupervisorError) as caught:
        await fetch_module._get(session, "https://secure/a", {}, DownloadLimits())
    assert caught.value.code == "DOWNLOAD_REDIRECT_REFUSED"


async def test_announced_and_unannounced_sizes_are_limited(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    small = replace(limits, size_bytes_max=10_000)
    assert (await failure(request(server.url), slots, small)).code == "DOWNLOAD_TOO_LARGE"
    assert not list((slots / ".incoming").glob("*.part"))

    def behave(_: web.Request) -> web.StreamResponse:
        async def endless() -> object:
            while True:
                yield b"x" * 4096

        return web.Response(body=endless())  # type: ignore[arg-type]

    server.behave = behave
    error = await failure(request(server.url), slots, small)
    assert (error.code, error.kind) == ("DOWNLOAD_TOO_LARGE", "rejected")


async def test_a_full_disk_is_told_before_and_while_writing(
    server: FaultyServer, slots: Path, limits: DownloadLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = release_tar()
    error = await failure(request(server.url), slots, replace(limits, free_bytes_min=2**62))
    assert (error.code, error.kind) == ("STAGING_DISK_FULL", "transient")

    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch_module._Part, "append", full)
    assert (await failure(request(server.url), slots, limits)).code == "STAGING_DISK_FULL"


async def test_a_disk_that_fills_while_unpacking(
    server: FaultyServer, slots: Path, limits: DownloadLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = release_tar()
    real, calls = os.fsync, 0

    def fsync(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert (await failure(request(server.url), slots, limits)).code == "STAGING_DISK_FULL"
    assert not list((slots / ".incoming").glob("*.new"))
    assert (await stage(request(server.url), slots, measure, limits)).path == slots / ENCLAVE
    assert len(server.requests) == 1, "what was received needs no second download"


async def test_a_slots_folder_that_cannot_be_made(tmp_path: Path, limits: DownloadLimits) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProcessSupervisorError) as caught:
        await stage(request("http://127.0.0.1:1/a"), tmp_path / "file" / "slots", measure, limits)
    assert caught.value.code == "STAGING_DISK_ERROR"


async def test_a_silent_server_ends_by_deadline(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    never = asyncio.Event()

    async def wait(_: web.Request) -> web.StreamResponse:
        await never.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/", wait)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        error = await failure(request(url), slots, replace(limits, total_s_max=0.05))
        assert error.code == "DOWNLOAD_DEADLINE"
        error = await failure(request(url), slots, replace(limits, idle_s_max=0.02, attempts_max=2))
        assert error.code == "DOWNLOAD_UNREACHABLE"
    finally:
        never.set()
        await runner.cleanup()


async def test_digests_and_cids_are_verified(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    server.content = release_tar()
    wrong = f"{server.url}#sha256={'0' * 64}"
    assert (await failure(request(wrong), slots, limits)).code == "DOWNLOAD_DIGEST_MISMATCH"
    other = cid.CIDv1("raw", b"\x12\x20" + bytes(32)).encode("base32").decode()
    assert (await failure(request(server.url, cids=(other,)), slots, limits)).code == "DOWNLOAD_DIGEST_MISMATCH"
    good = f"{server.url}#sha256={sha256(server.content)}"
    mine = cid.CIDv1("raw", b"\x12\x20" + bytes.fromhex(sha256(server.content))).encode("base32").decode()
    assert (await stage(request(good, cids=(mine,)), slots, measure, limits)).path.is_dir()


async def test_a_gateway_serves_a_cid(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    server.content = release_tar()
    mine = cid.CIDv1("raw", b"\x12\x20" + bytes.fromhex(sha256(server.content))).encode("base32").decode()
    gateway = server.url.removesuffix("/release.tar")
    req = request("ghcr.io/x/y:1", cids=(mine,))
    assert (await failure(req, slots, limits)).code == "DOWNLOAD_SOURCE_UNSUPPORTED"
    staged = await stage(req, slots, measure, replace(limits, ipfs_gateways=(gateway,)))
    assert staged.source == f"{gateway}/ipfs/{mine}"


async def test_the_settings_say_where_in_a_gateways_address_the_cid_goes(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    gateway = server.url.replace("/release.tar", "/get/{cid}/file?download=true").replace("http:", "HTTP:")
    req = request(cids=(TREE_CID,))
    error = await failure(req, slots, limits)
    assert (error.code, error.kind) == ("DOWNLOAD_SOURCE_UNSUPPORTED", "rejected")
    assert "download.ipfs_gateways" in error.action
    await stage(req, slots, measure, replace(limits, ipfs_gateways=(gateway,)))
    assert server.requests[-1][":path"] == f"/get/{TREE_CID}/file?download=true"


async def test_what_lies_in_a_slot_can_be_read_by_a_containers_user(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    former = os.umask(0o077)  # as in the agent's unit
    try:
        staged = await stage(request(server.url), slots, measure, limits)
    finally:
        os.umask(former)
    assert staged.path.stat().st_mode & 0o7777 == 0o755
    assert {path.stat().st_mode & 0o7777 for path in staged.path.iterdir()} == {0o644}


async def test_file_urls_need_a_setting(tmp_path: Path, slots: Path, limits: DownloadLimits) -> None:
    (tmp_path / "a b.tar").write_bytes(release_tar())
    url = (tmp_path / "a b.tar").as_uri()
    assert (await failure(request(url), slots, limits)).code == "DOWNLOAD_FILE_URL_REFUSED"
    allowed = replace(limits, allow_file_urls=True)
    assert (await failure(request((tmp_path / "none").as_uri()), slots, allowed)).code == "DOWNLOAD_UNREACHABLE"
    os.mkfifo(tmp_path / "pipe")
    assert (await failure(request((tmp_path / "pipe").as_uri()), slots, allowed)).code == "DOWNLOAD_UNREACHABLE"
    assert (await stage(request(url), slots, measure, allowed)).path.is_dir()


async def test_the_measurement_decides(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    server.content = release_tar(b"bad")
    with pytest.raises(OtherPackageError):
        await stage(request(server.url, server.url + "?mirror"), slots, measure, limits)
    server.content = release_tar(b"other")
    assert (await failure(request(server.url), slots, limits)).code == "STAGING_ENCLAVE_ID_MISMATCH"
    assert sorted(os.listdir(slots)) == [".aside", ".incoming"]
    assert [item.name for item in (slots / ".incoming").iterdir()] == [f"{ENCLAVE}.lock"]


async def test_archives_that_want_out_are_refused(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    server.content = tar_bytes(member("../../evil", b"x"))
    assert (await failure(request(server.url), slots, limits)).code == "ARCHIVE_PATH_REFUSED"
    server.content = b"not an archive" * 100
    assert (await failure(request(server.url), slots, limits)).code == "ARCHIVE_CORRUPT"


async def test_different_reasons_are_all_told(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    server.content = b"not an archive" * 100
    error = await failure(request("http://127.0.0.1:1/", server.url, "image:1"), slots, limits)
    assert (error.code, error.kind) == ("DOWNLOAD_SOURCES_FAILED", "transient")
    assert "DOWNLOAD_UNREACHABLE" in str(error)
    assert "ARCHIVE_CORRUPT" in str(error)


@pytest.mark.parametrize(
    "req",
    [
        StageRequest(enclave_id="AB" * 32, sources=("http://x/",)),
        StageRequest(enclave_id="../" + "a" * 61, sources=("http://x/",)),
        StageRequest(enclave_id=ENCLAVE, sources=()),
        StageRequest(enclave_id=ENCLAVE, sources=("http://x/",), extra_files={"../x": b""}),
        StageRequest(enclave_id=ENCLAVE, sources=("http://x/",), extra_files={"enclave.pyz": b""}),
    ],
)
async def test_malformed_requests(slots: Path, limits: DownloadLimits, req: StageRequest) -> None:
    assert (await failure(req, slots, limits)).code == "STAGING_REQUEST_INVALID"


class Crash(BaseException):
    """The end of the process, as far as the code under test can tell."""


STEPS = ["unpack", "write_file", "sync_folder", "rename", "discard_part"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_at_any_step_leaves_a_good_slot_or_none(
    server: FaultyServer, slots: Path, limits: DownloadLimits, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    server.content = release_tar()
    owner = os if step == "rename" else stage_module
    real = getattr(owner, step)

    def crash(*arguments: object) -> None:
        if after:
            real(*arguments)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, crash)
        with pytest.raises(Crash):
            await stage(request(server.url), slots, measure, limits)
    if (slots / ENCLAVE).exists():
        assert await open_slot(slots, ENCLAVE, measure, SIGNATURE) is not None
    staged = await stage(request(server.url), slots, measure, limits)
    assert measure(staged.path) == ENCLAVE
    assert not list((slots / ".aside").iterdir())


async def test_two_stagings_of_one_release_do_not_meet(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    go_on = asyncio.Event()

    async def verify(folder: Path) -> str:
        await go_on.wait()
        return measure(folder)

    both = [asyncio.create_task(stage(request(server.url), slots, verify, limits)) for _ in range(2)]
    (refused,), (staged,) = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    go_on.set()
    with pytest.raises(ProcessSupervisorError) as caught:
        await refused
    assert caught.value.code == "STAGING_BUSY"
    assert (await staged).path == slots / ENCLAVE


async def test_slots_are_removed_once_and_for_all(server: FaultyServer, slots: Path, limits: DownloadLimits) -> None:
    server.content = release_tar()
    await stage(request(server.url), slots, measure, limits)
    (slots / ".incoming" / f"{ENCLAVE}.removed").mkdir()
    for _ in range(2):
        remove_slot(slots, ENCLAVE)
        assert await open_slot(slots, ENCLAVE, measure) is None
    assert not (slots / ".aside").exists() or not list((slots / ".aside").iterdir())
    with pytest.raises(ValueError, match="enclave id"):
        remove_slot(slots, "..")


async def test_a_part_of_another_source_is_not_resumed(
    server: FaultyServer, session: aiohttp.ClientSession, tmp_path: Path, limits: DownloadLimits
) -> None:
    server.content = os.urandom(20_000)
    part = tmp_path / "p"
    for meta in ("", "[]", '{"url":1}', json.dumps({"url": "http://other/", "validator": '"v1"', "total": 20_000})):
        part.write_bytes(b"x" * 100)
        part.with_name("p.json").write_text(meta)
        fetched = await fetch(session, UrlSource("http", server.url), (), part, limits, lambda _: None)
        assert (fetched.sha256, part.read_bytes()) == (sha256(server.content), server.content)
    assert all("Range" not in item for item in server.requests)


@pytest.mark.parametrize("step", ["_unpack_aside", "_give_final_name"])
async def test_a_cancelled_staging_keeps_its_lock_until_its_thread_is_done(
    server: FaultyServer, slots: Path, limits: DownloadLimits, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    server.content = release_tar()
    entered, go_on = threading.Event(), threading.Event()
    real = getattr(stage_module, step)

    def slow(*arguments: object) -> None:
        entered.set()
        go_on.wait(20)
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stage_module, step, slow)
        staging = asyncio.create_task(stage(request(server.url), slots, measure, limits))
        await asyncio.to_thread(entered.wait, 20)
        staging.cancel()
        for _ in range(3):
            with pytest.raises(ProcessSupervisorError, match="STAGING_BUSY"):
                await stage(request(server.url), slots, measure, limits)
            staging.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await staging
    assert (await stage(request(server.url), slots, measure, limits)).path == slots / ENCLAVE
