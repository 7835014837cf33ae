"""Release images at a real Docker engine: pulled from a registry on loopback, loaded from archives, measured."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from aiohttp import web

from dcupgrade.publishing.container_image import add_release
from devnet.docker.engine import BASE_IMAGE, PrivateEngine
from process_supervisor.container_images import ImageStore, image_in
from process_supervisor.engine_client import engine
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.limits import DownloadLimits
from process_supervisor.sources import ImageReference
from process_supervisor.stage import StageRequest, stage

pytestmark = [pytest.mark.e2e, pytest.mark.compose]
ENCLAVE = "ab" * 32
LIMITS = DownloadLimits(retry_delay_s=0, free_bytes_min=0, allow_file_urls=True, private_addresses=True)


def measure(folder: Path) -> str:
    return ENCLAVE if (folder / "enclave.pyz").read_bytes() == b"image" else "cd" * 32


def layer(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


REGISTRY_CODES = {401: "UNAUTHORIZED", 429: "TOOMANYREQUESTS", 503: "UNAVAILABLE"}
RELEASE = {"release/release.json": b"{}", "release/enclave.pyz": b"image", "release/enclave.sig": b"sig"}


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Registry:
    """The few answers of a registry (distribution spec) that a pull needs. `put` adds an image of one layer."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    host: str = ""
    status: int = 0

    def put(self, tag: str, files: dict[str, bytes], architecture: str = "amd64") -> str:
        plain = layer(files)
        packed = gzip.compress(plain, mtime=0)
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [sha(plain)]},
        }
        body = json.dumps(config).encode()
        kind = "application/vnd.docker"
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{kind}.distribution.manifest.v2+json",
            "config": {"mediaType": f"{kind}.container.image.v1+json", "size": len(body), "digest": sha(body)},
            "layers": [{"mediaType": f"{kind}.image.rootfs.diff.tar.gzip", "size": len(packed), "digest": sha(packed)}],
        }
        text = json.dumps(manifest).encode()
        for data in (packed, body, text):
            self.blobs[sha(data)] = data
        self.tags[tag] = sha(text)
        return sha(text)

    async def answer(self, request: web.Request) -> web.Response:
        reference = request.match_info["reference"]
        digest = self.tags.get(reference, reference)
        if self.status:
            return web.json_response({"errors": [{"code": REGISTRY_CODES[self.status]}]}, status=self.status)
        if digest not in self.blobs:
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        kind = "application/vnd.docker.distribution.manifest.v2+json" if "manifests" in request.path else "x/y"
        headers = {"Docker-Content-Digest": digest, "Content-Type": kind}
        return web.Response(body=self.blobs[digest], headers=headers)


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    made = Registry()

    async def root(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/v2/", root)
    app.router.add_get("/v2/dc/node/{kind}/{reference}", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.host = f"127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def docker(private_engine: PrivateEngine) -> AsyncIterator[aiodocker.Docker]:
    before = set(private_engine.docker("images", "--quiet", "--no-trunc").split())
    async with engine(private_engine.url) as client:
        yield client
    private_engine.remove_containers()
    if private_engine.docker("images", "--quiet", "dc/node:1.1.0").strip():
        private_engine.docker("rmi", "dc/node:1.1.0")
    for image in set(private_engine.docker("images", "--quiet", "--no-trunc").split()) - before:
        private_engine.docker("rmi", "--force", image)


@pytest.fixture
def archive(private_engine: PrivateEngine, docker: aiodocker.Docker, tmp_path: Path) -> Path:
    """What `docker save` makes of an image that carries a release."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "release.tar").write_bytes(layer(RELEASE))
    (context / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\nADD release.tar /\n")
    private_engine.docker("build", "--network", "none", "--tag", "dc/node:1.1.0", str(context))
    private_engine.docker("save", "--output", str(tmp_path / "image.tar"), "dc/node:1.1.0")
    private_engine.docker("rmi", "--force", "dc/node:1.1.0")
    return tmp_path / "image.tar"


def request(*sources: str, **change: Any) -> StageRequest:
    return StageRequest(enclave_id=ENCLAVE, sources=sources, **change)


async def test_an_image_is_pulled_once_and_by_its_digest_from_then_on(
    docker: aiodocker.Docker, registry: Registry, tmp_path: Path
) -> None:
    store, slots = ImageStore(docker), tmp_path / "slots"
    first = registry.put("1.1.0", RELEASE)
    name = f"{registry.host}/dc/node"
    staged = await stage(request(f"{name}:1.1.0"), slots, measure, LIMITS, images=store)
    assert staged.source == f"{name}@{first}"
    assert await store.has(staged.facts.image_id)
    assert (staged.path / "enclave.pyz").read_bytes() == b"image"
    # The tag moves to something else; the pinned digest is what is asked for.
    registry.put("1.1.0", {**RELEASE, "release/enclave.pyz": b"other"})
    await docker.images.delete(staged.facts.image_id, force=True)
    again = await stage(request(f"{name}:1.1.0"), slots, measure, LIMITS, images=store)
    assert again.source == f"{name}@{first}"
    assert again.facts.image_id == staged.facts.image_id
    assert (slots / ".aside" / f"{ENCLAVE}.1").is_dir()
    assert await docker.images.inspect(f"dcupgrade/release:{ENCLAVE}")


async def test_a_reference_by_digest_needs_no_pull_where_it_is_here(
    docker: aiodocker.Docker, registry: Registry, tmp_path: Path
) -> None:
    digest = registry.put("x", RELEASE)
    reference = ImageReference(f"{registry.host}/dc/node", None, digest)
    store = ImageStore(docker)
    pulled = await store.pull(reference, None, LIMITS, lambda _: None)
    registry.tags.clear()
    registry.blobs.clear()
    assert await store.pull(reference, None, LIMITS, lambda _: None) == pulled


async def test_images_that_cannot_be_had(docker: aiodocker.Docker, registry: Registry, tmp_path: Path) -> None:
    store = ImageStore(docker)
    for source, code in (
        (f"{registry.host}/dc/node:none", "CONTAINER_IMAGE_MISSING"),
        ("127.0.0.1:1/dc/node:1", "CONTAINER_REGISTRY_UNREACHABLE"),
        (f"{registry.host}/dc/node@sha256:{'0' * 64}", "CONTAINER_IMAGE_MISSING"),
    ):
        with pytest.raises(ProcessSupervisorError) as caught:
            await stage(request(source), tmp_path / "slots", measure, LIMITS, images=store)
        assert (caught.value.code, caught.value.kind) == (code, "transient")


async def test_the_measurement_of_an_image_decides(
    docker: aiodocker.Docker, registry: Registry, tmp_path: Path
) -> None:
    store, slots = ImageStore(docker), tmp_path / "slots"
    registry.put("bad", {**RELEASE, "release/enclave.pyz": b"other"})
    with pytest.raises(ProcessSupervisorError) as caught:
        await stage(request(f"{registry.host}/dc/node:bad"), slots, measure, LIMITS, images=store)
    assert caught.value.code == "STAGING_ENCLAVE_ID_MISMATCH"
    registry.put("evil", {**RELEASE, "release/more": b"x"})
    with pytest.raises(ProcessSupervisorError) as caught:
        await stage(request(f"{registry.host}/dc/node:evil"), slots, measure, LIMITS, images=store)
    assert caught.value.code == "ARCHIVE_PATH_REFUSED"
    assert not (slots / ENCLAVE).exists()


async def test_an_image_without_release_files_has_to_be_allowed(
    docker: aiodocker.Docker, registry: Registry, tmp_path: Path
) -> None:
    store, slots = ImageStore(docker), tmp_path / "slots"
    registry.put("bare", {"bin/node": b"x"})
    source = f"{registry.host}/dc/node:bare"
    with pytest.raises(ProcessSupervisorError) as caught:
        await stage(request(source), slots, measure, LIMITS, images=store)
    assert (caught.value.code, caught.value.kind) == ("CONTAINER_IMAGE_UNMEASURED", "transient")
    staged = await stage(request(source, weakest="attested"), slots, measure, LIMITS, images=store)
    assert staged.facts.identity == "attested"
    assert await stage(request(source, weakest="attested"), slots, measure, LIMITS, images=store) == staged


async def test_an_archive_of_an_image_is_loaded(
    private_engine: PrivateEngine, docker: aiodocker.Docker, archive: Path, tmp_path: Path
) -> None:
    private_engine.docker("tag", BASE_IMAGE, "dc/node:1.1.0")
    held = await docker.images.inspect("dc/node:1.1.0")
    assert image_in(archive, LIMITS.archive)
    store, slots = ImageStore(docker), tmp_path / "slots"
    staged = await stage(request(archive.as_uri()), slots, measure, LIMITS, images=store)
    assert (staged.path / "enclave.pyz").read_bytes() == b"image"
    assert f"sha256:{staged.digest}" == sha(archive.read_bytes())  # noqa: ASYNC240
    assert await store.has(staged.facts.image_id)
    # An archive does not get to say what the machine's own tags mean.
    assert (await docker.images.inspect("dc/node:1.1.0"))["Id"] == held["Id"] != staged.facts.image_id
    assert not list((slots / ".incoming").glob("*.part*"))


async def test_a_release_that_was_added_to_a_base_image_is_measured(
    private_engine: PrivateEngine, docker: aiodocker.Docker, tmp_path: Path
) -> None:
    base, made = tmp_path / "base.tar", tmp_path / "node.image.tar"
    private_engine.docker("save", "--output", str(base), BASE_IMAGE)
    image = add_release(base, {name.removeprefix("release/"): data for name, data in RELEASE.items()}, made)
    staged = await stage(request(made.as_uri()), tmp_path / "slots", measure, LIMITS, images=ImageStore(docker))
    assert (staged.facts.image_id, staged.facts.identity) == (image, "measured")
    assert (staged.path / "enclave.pyz").read_bytes() == b"image"


async def test_archives_that_are_no_image(docker: aiodocker.Docker, tmp_path: Path) -> None:
    store = ImageStore(docker)
    for number, text in enumerate((b"[]", b"{}", b"[{}, {}]", b"x", b"[1]", b'[{"Config": "x.json"}]')):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(layer({"manifest.json": text}))
        with pytest.raises(ProcessSupervisorError) as caught:
            await store.load(path, LIMITS, ENCLAVE)
        assert caught.value.code == "ARCHIVE_CORRUPT"
    path.write_bytes(layer({"manifest.json": b'[{"Config": "x.json", "Layers": []}]', "x.json": b"no configuration"}))
    with pytest.raises(ProcessSupervisorError) as caught:
        await store.load(path, LIMITS, ENCLAVE)
    assert caught.value.code in ("CONTAINER_ENGINE_ERROR", "CONTAINER_IMAGE_MISSING")
    path.write_bytes(layer(RELEASE))
    assert await store.load(path, LIMITS, ENCLAVE) is None


async def test_what_a_registry_answers_instead_of_an_image(
    docker: aiodocker.Docker, registry: Registry, tmp_path: Path
) -> None:
    store = ImageStore(docker)
    registry.put("1", RELEASE)
    for status, code in (
        (401, "CONTAINER_REGISTRY_DENIED"),
        (429, "CONTAINER_REGISTRY_BUSY"),
        (503, "CONTAINER_REGISTRY_UNREACHABLE"),
    ):
        registry.status = status
        with pytest.raises(ProcessSupervisorError) as caught:
            await stage(request(f"{registry.host}/dc/node:1"), tmp_path / "slots", measure, LIMITS, images=store)
        assert (caught.value.code, caught.value.kind) == (code, "transient"), caught.value


async def test_an_image_for_another_architecture(docker: aiodocker.Docker, registry: Registry, tmp_path: Path) -> None:
    registry.put("1", RELEASE, architecture="s390x")
    with pytest.raises(ProcessSupervisorError) as caught:
        await stage(
            request(f"{registry.host}/dc/node:1"), tmp_path / "slots", measure, LIMITS, images=ImageStore(docker)
        )
    assert (caught.value.code, caught.value.kind) == ("CONTAINER_IMAGE_FOREIGN", "transient")


async def test_the_signed_enclave_in_an_image(docker: aiodocker.Docker, registry: Registry, tmp_path: Path) -> None:
    store = ImageStore(docker)
    registry.put("1", {"usr/bin/dcstorage": b"signed"})
    asked = request(
        f"{registry.host}/dc/node:1",
        weakest="sigstruct",
        signed_enclave="/usr/bin/dcstorage",
        sigstruct_in=lambda path: path.read_bytes(),
    )
    staged = await stage(asked, tmp_path / "slots", lambda _: ENCLAVE, LIMITS, images=store)
    assert (staged.path / "enclave.sig").read_bytes() == b"signed"
    assert await store.missing_program(staged.facts.image_id, {"Entrypoint": ["/usr/bin/dcstorage"]}) != ""
