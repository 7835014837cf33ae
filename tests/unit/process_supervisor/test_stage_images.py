"""Staging of container images over a stand-in for the engine; the real one is in tests/e2e."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.fetch import ProgressFn
from process_supervisor.limits import DownloadLimits
from process_supervisor.slots import StageFacts
from process_supervisor.sources import ImageReference
from process_supervisor.stage import ReleaseImage, StageRequest, stage
from tests.doubles.faulty_server import FaultyServer
from tests.doubles.release_archives import ENCLAVE, member, release_tar, tar_bytes

IMAGE_ID = "sha256:" + "1" * 64
DIGEST = "sha256:" + "2" * 64


def measure(folder: Path) -> str:
    image, sigstruct = folder / "enclave.pyz", folder / "enclave.sig"
    good = image.read_bytes().startswith(b"image") if image.exists() else sigstruct.read_bytes() == b"for " + b"ab" * 32
    return ENCLAVE if good else "cd" * 32


@dataclass
class FakeImages:
    """An engine that has one image; `calls` tells what was asked."""

    files: bytes | None = field(default_factory=release_tar)
    signed: bytes | None = None
    here: bool = True
    archive_magic: bytes = b"IMAGE"
    error: ProcessSupervisorError | None = None
    calls: list[tuple[str, object]] = field(default_factory=list)

    async def has(self, image_id: str) -> bool:
        self.calls.append(("has", image_id))
        return self.here and image_id == IMAGE_ID

    async def pull(
        self, reference: ImageReference, pinned: str | None, limits: DownloadLimits, progress: ProgressFn
    ) -> ReleaseImage:
        self.calls.append(("pull", pinned))
        if self.error is not None:
            raise self.error
        return ReleaseImage(IMAGE_ID, f"{reference.name}@{DIGEST}")

    async def load(self, archive: Path, limits: DownloadLimits, enclave_id: str) -> ReleaseImage | None:
        self.calls.append(("load", archive.name))
        if self.error is not None:
            raise self.error
        is_image = archive.read_bytes().startswith(self.archive_magic)  # noqa: ASYNC240
        return ReleaseImage(IMAGE_ID, "dc/node:1") if is_image else None

    async def keep(self, image_id: str, enclave_id: str) -> str:
        self.calls.append(("keep", enclave_id))
        return f"dcupgrade/release:{enclave_id}"

    async def copy_file(self, image_id: str, inside: str, path: Path, limits: DownloadLimits) -> bool:
        if self.signed is None or inside != "/usr/bin/dcstorage":
            return False
        path.write_bytes(self.signed)  # noqa: ASYNC240
        return True

    async def release_files(self, image_id: str, path: Path, limits: DownloadLimits) -> bool:
        if self.files is None:
            return False
        path.write_bytes(self.files)  # noqa: ASYNC240
        return True


def request(*sources: str, **change: Any) -> StageRequest:
    return StageRequest(enclave_id=ENCLAVE, sources=sources, **change)


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


async def test_an_image_without_release_files_has_to_be_allowed(slots: Path, limits: DownloadLimits) -> None:
    images = FakeImages(None)
    with pytest.raises(ProcessSupervisorError) as caught:
        await stage(request("dc/node:1"), slots, measure, limits, images=images)
    assert (caught.value.code, caught.value.kind) == ("CONTAINER_IMAGE_UNMEASURED", "transient")
    allowed = request("dc/node:1", weakest="attested", version="0.0.2")
    staged = await stage(allowed, slots, measure, limits, images=images)
    assert staged.facts.identity == "attested"
    assert json.loads((staged.path / "release.json").read_text())["version"] == "0.0.2"
    assert await stage(allowed, slots, measure, limits, images=images) == staged
    # What was let in by a setting is out when the setting is.
    with pytest.raises(ProcessSupervisorError):
        await stage(request("dc/node:1"), slots, measure, limits, images=images)
    assert not (slots / ENCLAVE).exists()


SIGSTRUCT_REQUEST: dict[str, Any] = {
    "weakest": "sigstruct",
    "signed_enclave": "/usr/bin/dcstorage",
    "sigstruct_in": lambda path: path.read_bytes().removeprefix(b"ELF "),
}


async def test_the_sigstruct_in_an_image_names_its_enclave(slots: Path, limits: DownloadLimits) -> None:
    images = FakeImages(None, signed=b"ELF for " + ENCLAVE.encode())
    asked = request("dc/node:1", **SIGSTRUCT_REQUEST)
    staged = await stage(asked, slots, measure, limits, images=images)
    assert staged.facts.identity == "sigstruct"
    assert (staged.path / "enclave.sig").read_bytes() == b"for " + ENCLAVE.encode()
    assert await stage(asked, slots, measure, limits, images=images) == staged
    (staged.path / "enclave.sig").write_bytes(b"for another")
    assert await stage(asked, slots, measure, limits, images=images) == staged
    assert (slots / ".aside" / f"{ENCLAVE}.1").is_dir()


@pytest.mark.parametrize("weakest", ["sigstruct", "attested"])
async def test_a_signed_enclave_that_lies_is_refused_even_where_less_would_do(
    slots: Path, limits: DownloadLimits, weakest: str
) -> None:
    asked = request("dc/node:1", **{**SIGSTRUCT_REQUEST, "weakest": weakest})
    for images, code, kind in (
        (FakeImages(None, signed=b"ELF for another"), "STAGING_ENCLAVE_ID_MISMATCH", "rejected"),
        (FakeImages(None), "CONTAINER_SIGNED_ENCLAVE_MISSING", "transient"),
    ):
        with pytest.raises(ProcessSupervisorError) as caught:
            await stage(asked, slots, measure, limits, images=images)
        assert (caught.value.code, caught.value.kind) == (code, kind)
        assert not (slots / ENCLAVE).exists()


async def test_an_image_that_is_here_is_staged_without_a_pull(slots: Path, limits: DownloadLimits) -> None:
    images = FakeImages()
    staged = await stage(request(image_id=IMAGE_ID), slots, measure, limits, images=images)
    assert (staged.facts.image_id, staged.source) == (IMAGE_ID, IMAGE_ID)
    assert images.calls == [("keep", ENCLAVE)]


async def test_a_tag_whose_image_was_bad_is_resolved_anew(slots: Path, limits: DownloadLimits) -> None:
    images = FakeImages(release_tar(b"other"))
    for _ in range(2):
        with pytest.raises(ProcessSupervisorError, match="STAGING_ENCLAVE_ID_MISMATCH"):
            await stage(request("dc/node:1"), slots, measure, limits, images=images)
    assert [what for name, what in images.calls if name == "pull"] == [None, None]


def test_a_slot_of_an_earlier_version_of_this_program_is_understood() -> None:
    old = {"digest": "1", "size": 1, "source": "s", "image_id": "", "measured": True}
    assert StageFacts.from_json(json.dumps(old).encode()).identity == "measured"
    assert StageFacts.from_json(json.dumps({**old, "measured": False}).encode()).identity == "attested"


async def test_the_archive_serves_where_the_image_cannot_be_had(
    server: FaultyServer, slots: Path, limits: DownloadLimits
) -> None:
    server.content = release_tar()
    missing = ProcessSupervisorError(code="CONTAINER_IMAGE_MISSING", what="x", why="y")

    class NoPull(FakeImages):
        async def pull(
            self, reference: ImageReference, pinned: str | None, limits: DownloadLimits, progress: ProgressFn
        ) -> ReleaseImage:
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
