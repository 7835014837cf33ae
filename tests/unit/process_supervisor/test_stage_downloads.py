"""Downloads from a faulty server: resumed, limited, never mixed, and refused with a reason."""

import asyncio
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from devnet.field import ipfs
from process_supervisor import part_file
from process_supervisor import slots as slots_module
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.http_headers import strong_validator
from process_supervisor.limits import DownloadLimits
from process_supervisor.outbound import Outbound
from process_supervisor.stage import stage
from tests.doubles.faulty_server import FaultyServer
from tests.doubles.release_archives import ENCLAVE, release_tar, sha256
from tests.doubles.staging import BIG, CUT, OTHER, failure, measure, part_of, request


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
    found = strong_validator(CIMultiDictProxy(CIMultiDict(headers)))
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
    first, real = part_of(slots), part_file.require_space

    def require_space(folder: Path, needed: int, limits: DownloadLimits) -> None:
        real(folder, 2**62 if first.exists() else needed, limits)

    monkeypatch.setattr(part_file, "require_space", require_space)
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
        "34" * 32: ["0.part", "pin", "lock"],
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
    kept = {f"{ENCLAVE}.lock", f"{'34' * 32}.pin", f"{'34' * 32}.lock", "notes"}
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


async def test_https_is_not_left_for_http(outbound: Outbound, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        status = 302
        headers = {"Location": "http://plain/a"}  # noqa: RUF012

        def release(self) -> None:
            pass

    async def get(*_: object, **__: object) -> Answer:
        return Answer()

    monkeypatch.setattr(outbound, "request", get)
    with pytest.raises(ProcessSupervisorError) as caught:
        await outbound.get("https://secure/a", {}, DownloadLimits())
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
    assert (error.code, error.kind) == ("DOWNLOAD_TOO_LARGE", "transient")


async def test_a_full_disk_is_told_before_and_while_writing(
    server: FaultyServer, slots: Path, limits: DownloadLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = release_tar()
    error = await failure(request(server.url), slots, replace(limits, free_bytes_min=2**62))
    assert (error.code, error.kind) == ("STAGING_DISK_FULL", "transient")

    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(part_file.Part, "append", full)
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
    other = ipfs.raw_block(b"other").text
    assert (await failure(request(server.url, cids=(other,)), slots, limits)).code == "DOWNLOAD_DIGEST_MISMATCH"
    good = f"{server.url}#sha256={sha256(server.content)}"
    mine = ipfs.raw_block(server.content).text
    assert (await stage(request(good, cids=(mine,)), slots, measure, limits)).path.is_dir()


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
