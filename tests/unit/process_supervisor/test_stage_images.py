"""Staging of container images over a stand-in for the engine; the real one is in tests/e2e."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.fetch import ProgressFn
from process_supervisor.limits import DownloadLimits
from process_supervisor.slots import StageFacts
from process_supervisor.sources import ImageReference
from process_supervisor.stage import ReleaseImage, StageRequest, stage

from .conftest import ENCLAVE, FaultyServer, member, release_tar, tar_bytes

IMAGE_ID = "sha256:" + "1" * 64
DIGEST = "sha256:" + "2" * 64


def measure(folder: Path) -> str:
    return ENCLAVE if (folder / "enclave.pyz").read_bytes().startswith(b"image") else "cd" * 32


@dataclass
class FakeImages:
    """An engine that has one image; `calls` tells what was asked."""

    files: bytes | None = field(default_factory=release_tar)
    here: bool = True
    archive_magic: bytes = b"IMAGE"
    error: ProcessSupervisorError | None = None
    calls: list[tuple[str, object]] = field(default_factory=list)

    async def has(self, image_id: str) -> bool:
        self.calls.append(("has", image_id))
        return self.here and image_id == IMAGE_ID

    async def pull(self, reference: ImageReference, pinned: str | None, progress: ProgressFn) -> ReleaseImage:
        self.calls.append(("pull", pinned))
        if self.error is not None:
            raise self.error
        return ReleaseImage(IMAGE_ID, f"{reference.name}@{DIGEST}")

    async def load(self, archive: Path, limits: DownloadLimits) -> ReleaseImage | None:
        self.calls.append(("load", archive.name))
        if self.error is not None:
            raise self.error
        is_image = archive.read_bytes().startswith(self.archive_magic)  # noqa: ASYNC240
        return ReleaseImage(IMAGE_ID, "dc/node:1") if is_image else None

    async def keep(self, image_id: str, enclave_id: str) -> None:
        self.calls.append(("keep", enclave_id))

    async def release_files(self, image_id: str, path: Path, limits: DownloadLimits) -> bool:
        if self.files is None:
            return False
        path.write_bytes(self.files)  # noqa: ASYNC240
        return True


def request(*sources: str) -> StageRequest:
    return StageRequest(enclave_id=ENCLAVE, sources=sources)


async def test_a_reference_is_resolved_once(slots: Path, limits: DownloadLimits) -> None:
    images = FakeImages()
    staged = await stage(request("dc/node:1"), slots, measure, limits, images=images)
    assert staged.facts == StageFacts(digest="1" * 64, size=0, source=f"dc/node@{DIGEST}", image_id=IMAGE_ID)
    assert images.calls == [("pull", None), ("keep", ENCLAVE)]
    assert (await stage(request("dc/node:1"), slots, measure, limits, images=images)) == staged
    assert images.calls[2:] == [("has", IMAGE_ID)]
    images.here = False
    await stage(request("dc/node:1"), slots, measure, limits, images=images)
    assert ("pull", DIGEST) in images.calls
    assert (slots / ".aside" / f"{ENCLAVE}.1").is_dir()


@pytest.mark.parametrize("text", [b"", b"[]", b'{"dc/node:1": 5}', b"{"])
async def test_a_damaged_pin_is_no_pin(slots: Path, limits: DownloadLimits, text: bytes) -> None:
    (slots / ".incoming").mkdir(parents=True)
    (slots / ".incoming" / f"{ENCLAVE}.pin").write_bytes(text)
    images = FakeImages()
    await stage(request("dc/node:1"), slots, measure, limits, images=images)
    assert images.calls[0] == ("pull", None)


async def test_an_archive_of_an_image_is_told_from_one_of_files(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    images = FakeImages()
    server.content = b"IMAGE..."
    staged = await stage(request(server.url), slots, measure, limits, images=images)
    assert (staged.facts.image_id, staged.size, staged.source) == (IMAGE_ID, 8, server.url)
    server.content = release_tar()
    other = slots.with_name("other")
    staged = await stage(request(server.url), other, measure, limits, images=images)
    assert staged.facts.image_id == ""
    assert not list((other / ".incoming").glob("*.part*"))


@pytest.mark.parametrize(("code", "kept"), [("ARCHIVE_CORRUPT", False), ("CONTAINER_ENGINE_ERROR", True)])
async def test_a_download_is_kept_where_only_the_engine_failed(
    server: FaultyServer, slots: Path, limits: DownloadLimits, code: str, kept: bool
) -> None:
    server.content = b"IMAGE..."
    images = FakeImages(error=ProcessSupervisorError(code=code, what="x", why="y"))
    with pytest.raises(ProcessSupervisorError) as caught:
        await stage(request(server.url), slots, measure, limits, images=images)
    assert caught.value is images.error
    assert bool(list((slots / ".incoming").glob("*.part"))) == kept


async def test_the_files_of_an_image_are_measured(slots: Path, limits: DownloadLimits) -> None:
    for files, code in (
        (release_tar(b"other"), "STAGING_ENCLAVE_ID_MISMATCH"),
        (tar_bytes(member("../x", b"")), "ARCHIVE_PATH_REFUSED"),
    ):
        with pytest.raises(ProcessSupervisorError) as caught:
            await stage(request("dc/node:1"), slots, measure, limits, images=FakeImages(files))
        assert caught.value.code == code
        assert not (slots / ENCLAVE).exists()


async def test_an_image_without_release_files_is_not_used(slots: Path, limits: DownloadLimits) -> None:
    with pytest.raises(ProcessSupervisorError) as caught:
        await stage(request("dc/node:1"), slots, measure, limits, images=FakeImages(None))
    assert (caught.value.code, caught.value.kind) == ("CONTAINER_IMAGE_UNMEASURED", "transient")
    assert not (slots / ENCLAVE).exists()


async def test_the_archive_serves_where_the_image_cannot_be_had(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    missing = ProcessSupervisorError(code="CONTAINER_IMAGE_MISSING", what="x", why="y")

    class NoPull(FakeImages):
        async def pull(self, reference: ImageReference, pinned: str | None, progress: ProgressFn) -> ReleaseImage:
            raise missing

    staged = await stage(request("dc/node:1", server.url), slots, measure, limits, images=NoPull())
    assert staged.source == server.url
    with pytest.raises(ProcessSupervisorError) as caught:
        await stage(replace(request("dc/node:1"), enclave_id="ef" * 32), slots, measure, limits, images=NoPull())
    assert caught.value is missing


@pytest.mark.parametrize("text", [b"{}", b"[]", b'{"digest":1,"size":1,"source":"","image_id":"","measured":true}'])
def test_malformed_facts_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="malformed"):
        StageFacts.from_json(text)
