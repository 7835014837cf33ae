"""Slots contain verified files only, also after damage, cancellation or interruption."""

import asyncio
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from process_supervisor import slots as slots_module
from process_supervisor import stage as stage_module
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.fetch import Progress, fetch
from process_supervisor.limits import DownloadLimits
from process_supervisor.outbound import Outbound
from process_supervisor.slots import open_slot, remove_slot
from process_supervisor.sources import UrlSource
from process_supervisor.stage import StageRequest, stage
from tests.doubles.faulty_server import FaultyServer
from tests.doubles.release_archives import ENCLAVE, member, release_tar, sha256, tar_bytes
from tests.doubles.staging import OTHER, SIGNATURE, OtherPackageError, failure, measure, request


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
    assert downloads
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
    """Stands for the end of the process."""


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
    server: FaultyServer, outbound: Outbound, tmp_path: Path, limits: DownloadLimits
) -> None:
    server.content = os.urandom(20_000)
    part = tmp_path / "p"
    for meta in ("", "[]", '{"url":1}', json.dumps({"url": "http://other/", "validator": '"v1"', "total": 20_000})):
        part.write_bytes(b"x" * 100)
        part.with_name("p.json").write_text(meta)
        fetched = await fetch(outbound, UrlSource("http", server.url), (), part, limits, lambda _: None)
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
