"""Images and removals over a stand-in for the engine's API; the real engine is in tests/e2e."""

import base64
import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import aiodocker
import pytest

from process_supervisor import container_images as module
from process_supervisor.container_driver import LABEL_COMMAND, LABEL_NODE, LABEL_OWNER, ContainerDriver
from process_supervisor.container_images import ImageStore, image_in
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.limits import ArchiveLimits
from process_supervisor.sources import ImageReference
from tests.doubles.docker_engine import LIMITS, MANIFEST, NEW, OLD, THIRD, FakeEngine, archive
from tests.doubles.release_archives import ENCLAVE, member, release_tar, tar_bytes


@pytest.mark.parametrize(
    ("about", "info", "accepted"),
    [
        ({}, {"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]]}, False),
        ({}, {"DriverStatus": None}, False),
        ({}, {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}, True),
        ({"Descriptor": {"digest": THIRD}}, {}, True),
    ],
    ids=["classic", "no facts", "containerd before API 1.48", "containerd"],
)
async def test_what_an_archive_names_is_what_the_engine_has(
    fake: FakeEngine,
    docker: aiodocker.Docker,
    tmp_path: Path,
    about: dict[str, object],
    info: dict[str, object],
    accepted: bool,
) -> None:
    """The tag moved between the load and the inspection; containerd's store has ids of another kind."""
    fake.loads = {"dc/node:2": THIRD}
    fake.says = [{"stream": "Loaded image: dc/node:2\n"}]
    fake.about, fake.info = about, info
    if accepted:
        loaded = await ImageStore(docker).load(archive(tmp_path), LIMITS, ENCLAVE)
        assert loaded is not None
        assert loaded.image_id == THIRD
        return
    with pytest.raises(ProcessSupervisorError) as caught:
        await ImageStore(docker).load(archive(tmp_path), LIMITS, ENCLAVE)
    assert (caught.value.code, caught.value.kind) == ("CONTAINER_IMAGE_CHANGED", "transient")
    assert fake.tags == {}


def test_a_bomb_does_not_reach_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar"
    limits = ArchiveLimits(total_bytes_max=1_000_000)
    for layers in ([bytes(1_000_001)], [bytes(600_000)] * 2):
        members = [member(f"{number}/layer.tar", data) for number, data in enumerate(layers)]
        for order in ([MANIFEST, *members], [*members, MANIFEST]):
            path.write_bytes(tar_bytes(*order))
            with pytest.raises(ProcessSupervisorError, match="ARCHIVE_TOO_LARGE"):
                image_in(path, limits)
    path.write_bytes(gzip.compress(tar_bytes(MANIFEST, member("a/layer.tar", bytes(900_000)), compress=False)))
    assert image_in(path, limits)
    path.write_bytes(release_tar())
    assert image_in(path, limits) is None


@pytest.mark.parametrize("text", [b"[]", b"{}", b"[{}, {}]", b"x", b"[1]", b'{"a": 1}', b"5", b"[{}]", b"[" * 100_000])
def test_a_manifest_that_is_not_of_one_image(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(tar_bytes(member("manifest.json", text)))
    with pytest.raises(ProcessSupervisorError, match="ARCHIVE_CORRUPT"):
        image_in(path, LIMITS.archive)


@pytest.mark.parametrize("name", ["{}.json", "blobs/sha256/{}", "sha256:{}", "config.json"])
def test_the_configuration_names_the_image_however_its_file_is_called(tmp_path: Path, name: str) -> None:
    """Docker before and after 25, go-containerregistry (crane, kaniko), and programs that go by content alone."""
    config = b'{"architecture": "amd64"}'
    digest = hashlib.sha256(config).hexdigest()
    manifest = json.dumps([{"Config": name.format(digest)}]).encode()
    path = tmp_path / "image.tar"
    path.write_bytes(tar_bytes(member(name.format(digest), config), member("manifest.json", manifest)))
    assert image_in(path, LIMITS.archive) == f"sha256:{digest}"


async def test_a_tag_is_pinned_to_the_digest_that_its_own_repository_knows(
    fake: FakeEngine, docker: aiodocker.Docker
) -> None:
    fake.tags = {"dc/node:1": OLD}
    fake.go_on.set()
    digests = [f"sha256:{digit * 64}" for digit in "ab"]
    fake.digests = [f"mirror.example/node@{digests[0]}", f"dc/node@{digests[1]}"]
    pulled = await ImageStore(docker).pull(ImageReference("dc/node", "1", None), None, LIMITS, lambda _: None)
    assert pulled.reference == f"dc/node@{digests[1]}"


async def test_a_pull_that_says_nothing_any_more_ends(
    fake: FakeEngine, docker: aiodocker.Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PULL_SILENCE_S_MAX", 0.05)
    with pytest.raises(ProcessSupervisorError) as caught:
        await ImageStore(docker).pull(ImageReference("dc/node", "1", None), None, LIMITS, lambda _: None)
    assert (caught.value.code, caught.value.kind) == ("CONTAINER_IMAGE_MISSING", "transient")
    assert "fell silent" in caught.value.why


async def test_reading_an_image_leaves_nothing_at_the_engine(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path
) -> None:
    path = tmp_path / "files"
    assert await ImageStore(docker).release_files(OLD, path, LIMITS)
    assert path.read_bytes() == release_tar()
    small = replace(LIMITS, archive=ArchiveLimits(total_bytes_max=100))
    with pytest.raises(ProcessSupervisorError, match="ARCHIVE_TOO_LARGE"):
        await ImageStore(docker).release_files(OLD, path, small)
    assert fake.deleted == [("made", "1")] * 2


async def test_a_container_that_its_stop_would_remove_is_not_taken_over(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path
) -> None:
    shown: dict[str, object] = {
        "Id": "a" * 64,
        "Name": "/dcupgrade-node",
        "Image": OLD,
        "State": {"Running": True},
        "Config": {},
        "Mounts": [{"Source": str(tmp_path)}],
    }
    fake.containers = [{**shown, "HostConfig": {"AutoRemove": True}}]
    driver = ContainerDriver(docker, owner="me", notes=tmp_path)
    with pytest.raises(ProcessSupervisorError, match=r"NODE_NOT_ADOPTABLE.*--rm"):
        await driver.take_over("node", "a" * 64, tmp_path)
    fake.containers = [{**shown, "HostConfig": {"AutoRemove": False}}]
    assert (await driver.take_over("node", "a" * 64, tmp_path)).container_id == "a" * 64


async def test_nameless_volumes_of_a_container_that_was_taken_over_stay(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path
) -> None:
    base: dict[str, object] = {"Image": OLD, "State": {"Running": False}, "Mounts": []}
    ours = {LABEL_NODE: "node", LABEL_OWNER: "me", LABEL_COMMAND: "x"}
    fake.containers = [
        {**base, "Id": "a" * 64, "Name": "/dcupgrade-node-1", "Config": {"Labels": ours}},
        {**base, "Id": "b" * 64, "Name": "/dcnode", "Config": {"Labels": {LABEL_NODE: "node", LABEL_OWNER: "me"}}},
    ]
    await ContainerDriver(docker, owner="me", notes=tmp_path).remove("node")
    assert {(name[0], volumes) for name, volumes in fake.deleted} == {("a", "1"), ("b", None)}


async def test_an_engine_of_another_api_version_is_agreed_with_anew(fake: FakeEngine, docker: aiodocker.Docker) -> None:
    fake.tags = {"dc/node:1": OLD}
    store = ImageStore(docker)
    assert await store.has(OLD)
    fake.api_version = "1.44"
    assert await store.has(OLD)
    assert fake.versions.count("") == 2


async def test_an_image_of_another_architecture_is_refused(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path
) -> None:
    fake.tags, fake.architecture = {"dc/node:1": OLD, "dc/node:2": NEW}, "arm64"
    fake.go_on.set()
    fake.says = [{"stream": "Loaded image: dc/node:2\n"}]
    store = ImageStore(docker)
    for bring in (
        store.pull(ImageReference("dc/node", "1", None), None, LIMITS, lambda _: None),
        store.load(archive(tmp_path), LIMITS, ENCLAVE),
    ):
        with pytest.raises(ProcessSupervisorError) as caught:
            await bring
        assert (caught.value.code, caught.value.kind) == ("CONTAINER_IMAGE_FOREIGN", "transient")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("toomanyrequests: You have reached your pull rate limit", "CONTAINER_REGISTRY_BUSY"),
        ("received unexpected HTTP status: 429 Too Many Requests", "CONTAINER_REGISTRY_BUSY"),
        ("Get http://r.example/v2/: unauthorized: authentication required", "CONTAINER_REGISTRY_DENIED"),
        ("Get https://r.example/v2/x: no basic auth credentials", "CONTAINER_REGISTRY_DENIED"),
        (
            "Get http://r.example/v2/: dial tcp: connect: connection refused",
            "CONTAINER_REGISTRY_UNREACHABLE",
        ),
        ("received unexpected HTTP status: 502 Bad Gateway", "CONTAINER_REGISTRY_UNREACHABLE"),
        ("what no registry of ours ever said", "CONTAINER_IMAGE_MISSING"),
        ("manifest for dc/node:1 not found: manifest unknown", None),
        ("pull access denied for dc/node, repository does not exist or may require 'docker login'", None),
    ],
)
async def test_an_image_of_before_serves_only_where_the_registry_says_that_it_has_none(
    fake: FakeEngine, docker: aiodocker.Docker, said: str, code: str | None
) -> None:
    fake.tags, fake.pull_error = {"dc/node:1": OLD}, said
    pulling = ImageStore(docker).pull(ImageReference("dc/node", "1", None), None, LIMITS, lambda _: None)
    if code is None:
        assert (await pulling).image_id == OLD
        return
    with pytest.raises(ProcessSupervisorError) as caught:
        await pulling
    assert (caught.value.code, caught.value.kind) == (code, "transient")


async def test_credentials_go_with_the_pull(fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {"r.example:5000": {"auth": base64.b64encode(b"me:secret").decode()}}}))
    fake.tags = {"r.example:5000/dc/node:1": OLD, "dc/node:1": OLD}
    fake.go_on.set()
    store = ImageStore(docker, config)
    for name in ("r.example:5000/dc/node", "dc/node"):
        await store.pull(ImageReference(name, "1", None), None, LIMITS, lambda _: None)
    assert fake.auth[1] is None
    assert json.loads(base64.urlsafe_b64decode(fake.auth[0] or "")) == {
        "username": "me",
        "password": "secret",
        "serveraddress": "r.example:5000",
    }


@pytest.mark.parametrize(
    ("template", "missing"),
    [
        ({}, ""),
        ({"Entrypoint": ["dcstorage"]}, ""),
        ({"Entrypoint": ["bin/dcstorage"], "WorkingDir": "/usr"}, ""),
        ({"Entrypoint": ["dcstorage"], "Env": ["PATH=/opt/bin"]}, "the image has no program 'dcstorage'"),
        ({"Entrypoint": ["dcstorage_native"]}, "the image has no program 'dcstorage_native'"),
        ({"Entrypoint": ["/usr/share"]}, "the image has no program '/usr/share'"),
        ({"Entrypoint": ["/usr/bin/readme"]}, "the image has no program '/usr/bin/readme'"),
        ({"Entrypoint": ["/usr/bin/link"]}, ""),
    ],
)
async def test_the_program_that_a_container_would_run_is_looked_for(
    fake: FakeEngine, docker: aiodocker.Docker, template: dict[str, object], missing: str
) -> None:
    fake.tags = {"dc/node:1": OLD}
    fake.image_config = {"Entrypoint": ["/usr/bin/dcstorage"], "Env": ["PATH=/usr/bin:/bin"]}
    fake.stats = {
        "/usr/bin/dcstorage": {"mode": 0o755},
        "/usr/bin/readme": {"mode": 0o644},
        "/usr/share": {"mode": 0o755 | 1 << 31},
        "/usr/bin/link": {"mode": 0o777 | 1 << 27, "linkTarget": "/usr/bin/dcstorage"},
    }
    assert await ImageStore(docker).missing_program(OLD, template) == missing
    fake.image_config = {}
    assert "names no command" in await ImageStore(docker).missing_program(OLD, {})


async def test_one_file_is_taken_out_of_an_image(fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path) -> None:
    fake.stats = {
        "/usr/bin/dcstorage": {"mode": 0o755},
        "/dcstorage": {"mode": 0o777 | 1 << 27, "linkTarget": "/usr/bin/dcstorage"},
    }
    store, path = ImageStore(docker), tmp_path / "file"
    for name in ("/usr/bin/dcstorage", "/dcstorage"):
        assert await store.copy_file(OLD, name, path, LIMITS)
        assert path.read_bytes() == b"signed"
        path.unlink()
    assert not await store.copy_file(OLD, "/nowhere", path, LIMITS)
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240
