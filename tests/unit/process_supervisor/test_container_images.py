"""Images and removals over a stand-in for the engine's API; the real engine is in tests/e2e."""

import asyncio
import base64
import gzip
import hashlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiodocker
import pytest
from aiohttp import web

from process_supervisor import container_images as module
from process_supervisor.container_driver import LABEL_COMMAND, LABEL_NODE, LABEL_OWNER, ContainerDriver
from process_supervisor.container_images import ImageStore, image_in
from process_supervisor.engine_client import engine
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.limits import ArchiveLimits, DownloadLimits
from process_supervisor.sources import ImageReference

from .conftest import ENCLAVE, member, release_tar, tar_bytes

OLD, NEW, THIRD = ("sha256:" + digit * 64 for digit in "123")
LIMITS = DownloadLimits()
KEPT = f"dcupgrade/release:{ENCLAVE}"
MANIFEST = member("manifest.json", json.dumps([{"Config": f"{'2' * 64}.json", "RepoTags": ["dc/node:2"]}]).encode())


@dataclass
class FakeEngine:
    """The part of the Engine API that images and removals need. A load gives `loads` (tag to id), then says `says`.

    An image that loses its last tag is gone.
    """

    tags: dict[str, str] = field(default_factory=dict)
    loads: dict[str, str] = field(default_factory=dict)
    says: list[dict[str, object] | str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    containers: list[dict[str, object]] = field(default_factory=list)
    deleted: list[tuple[str, str | None]] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    api_version: str = "1.41"
    architecture: str = "amd64"
    pull_error: str = ""
    auth: list[str | None] = field(default_factory=list)
    stats: dict[str, dict[str, object]] = field(default_factory=dict)
    image_config: dict[str, object] = field(default_factory=dict)
    about: dict[str, object] = field(default_factory=dict)
    info: dict[str, object] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/version", self.version)
        app.router.add_get("/{v}/version", self.version)
        app.router.add_get("/{v}/info", self.facts)
        app.router.add_get("/{v}/images/json", self.list_images)
        app.router.add_get("/{v}/images/{name:.+}/json", self.inspect)
        app.router.add_post("/{v}/images/load", self.load)
        app.router.add_post("/{v}/images/create", self.pull)
        app.router.add_post("/{v}/images/{name:.+}/tag", self.tag)
        app.router.add_delete("/{v}/images/{name:.+}", self.untag)
        app.router.add_get("/{v}/containers/json", self.list_containers)
        app.router.add_get("/{v}/containers/{id}/json", self.container)
        app.router.add_post("/{v}/containers/create", self.create)
        app.router.add_get("/{v}/containers/{id}/archive", self.files)
        app.middlewares.append(self.only_known_versions)
        app.router.add_delete("/{v}/containers/{id}", self.delete)
        return app

    @web.middleware
    async def only_known_versions(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.match_info.get("v", f"v{self.api_version}") != f"v{self.api_version}":
            text = f"client version {request.match_info['v'][1:]} is too old. Minimum is {self.api_version}"
            return web.json_response({"message": text}, status=400)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def version(self, request: web.Request) -> web.Response:
        asked = request.match_info.get("v", "")
        self.versions.append(asked)
        return web.json_response({"ApiVersion": self.api_version, "Os": "linux", "Arch": "amd64"})

    async def facts(self, _: web.Request) -> web.Response:
        return web.json_response(self.info)

    async def list_containers(self, _: web.Request) -> web.Response:
        return web.json_response(self.containers)

    async def list_images(self, _: web.Request) -> web.Response:
        ids = set(self.tags.values())
        return web.json_response(
            [{"Id": item, "RepoTags": [tag for tag, found in self.tags.items() if found == item]} for item in ids]
        )

    async def inspect(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        found = name if name.startswith("sha256:") else self.tags.get(name)
        if found is None or found in self.gone:
            return web.json_response({"message": "no such image"}, status=404)
        about = {"Os": "linux", "Architecture": self.architecture, "Config": self.image_config, **self.about}
        return web.json_response({"Id": found, "RepoDigests": self.digests, **about})

    async def load(self, request: web.Request) -> web.Response:
        await request.read()
        self.tags |= self.loads
        return web.Response(
            text="".join(item if isinstance(item, str) else json.dumps(item) + "\n" for item in self.says)
        )

    async def pull(self, request: web.Request) -> web.StreamResponse:
        self.auth.append(request.headers.get("X-Registry-Auth"))
        if self.pull_error:
            return web.json_response({"message": self.pull_error}, status=500)
        response = web.StreamResponse()
        await response.prepare(request)
        await self.go_on.wait()
        return response

    async def tag(self, request: web.Request) -> web.Response:
        self.tags[f"{request.query['repo']}:{request.query['tag']}"] = request.match_info["name"]
        return web.Response(status=201)

    async def untag(self, request: web.Request) -> web.Response:
        found = self.tags.pop(request.match_info["name"], None)
        if found is None:
            return web.json_response({"message": "no such image"}, status=404)
        if found not in self.tags.values():
            self.gone.add(found)
        return web.json_response([])

    async def container(self, request: web.Request) -> web.Response:
        found = next((item for item in self.containers if item["Id"] == request.match_info["id"]), None)
        return web.json_response(found) if found else web.json_response({"message": "none"}, status=404)

    async def create(self, _: web.Request) -> web.Response:
        return web.json_response({"Id": "made"}, status=201)

    async def files(self, request: web.Request) -> web.Response:
        path = request.query["path"]
        if request.method == "HEAD":
            if path not in self.stats:
                return web.Response(status=404, content_type="application/json")
            text = base64.b64encode(json.dumps(self.stats[path]).encode()).decode()
            return web.Response(headers={"X-Docker-Container-Path-Stat": text})
        if path == "/usr/bin/dcstorage":
            return web.Response(body=tar_bytes(member("dcstorage", b"signed"), compress=False))
        return web.Response(body=release_tar(), content_type="application/x-tar")

    async def delete(self, request: web.Request) -> web.Response:
        self.deleted.append((request.match_info["id"], request.query.get("v")))
        return web.Response(status=204)


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def docker(fake: FakeEngine) -> AsyncIterator[aiodocker.Docker]:
    runner = web.AppRunner(fake.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with engine(f"tcp://127.0.0.1:{runner.addresses[0][1]}") as client:
        yield client
    fake.go_on.set()
    await runner.cleanup()


def archive(folder: Path) -> Path:
    path = folder / "image.tar"
    path.write_bytes(tar_bytes(MANIFEST, compress=False))
    return path


@pytest.mark.parametrize(
    ("says", "code"),
    [
        ([{"stream": "Loaded image: dc/node:2\n"}, {"stream": "Loaded image: python:3\n"}], None),
        ([{"stream": "Loaded image: dc/node:2\n"}, {"errorDetail": {}, "error": "x"}], "CONTAINER_ENGINE_ERROR"),
        ([], "CONTAINER_IMAGE_MISSING"),
        (["half a line"], "CONTAINER_ENGINE_UNREACHABLE"),
    ],
)
async def test_an_archive_neither_moves_the_machines_tags_nor_leaves_its_own(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path, says: list[dict[str, object] | str], code: str | None
) -> None:
    """Not even one whose manifest.json, as we read it, names other tags than the engine finds in it."""
    here = {"python:3": OLD, "other:1": THIRD}
    fake.tags = dict(here)
    fake.loads = {"dc/node:2": NEW, "python:3": NEW, "alpine:latest": NEW, "dcupgrade/release:other": NEW}
    fake.says = says
    store = ImageStore(docker)
    if code is None:
        loaded = await store.load(archive(tmp_path), LIMITS, ENCLAVE)
        assert loaded is not None
        assert loaded.image_id == NEW
        assert fake.tags == {**here, KEPT: NEW}
        assert await store.has(NEW)
        return
    with pytest.raises(ProcessSupervisorError) as caught:
        await store.load(archive(tmp_path), LIMITS, ENCLAVE)
    assert caught.value.code == code
    assert fake.tags == here


@pytest.mark.parametrize(
    ("before", "brought"),
    [
        ({}, {KEPT: NEW}),
        ({KEPT: OLD}, {}),
        ({KEPT: OLD}, {KEPT: NEW}),
        ({"mine:1": NEW}, {}),
        ({"mine:1": NEW}, {KEPT: NEW}),
    ],
)
async def test_the_tag_that_keeps_a_loaded_image_is_ours_whatever_was_there(
    fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path, before: dict[str, str], brought: dict[str, str]
) -> None:
    fake.tags, fake.loads = dict(before), {"dc/node:2": NEW, **brought}
    fake.says = [{"stream": "Loaded image: dc/node:2\n"}]
    store = ImageStore(docker)
    await store.load(archive(tmp_path), LIMITS, ENCLAVE)
    assert fake.tags == {**before, KEPT: NEW}
    assert await store.has(NEW)


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
    """Somebody moved the tag between the load and the look at it; containerd's store has ids of another kind."""
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


async def test_what_others_tag_during_a_load_stays(fake: FakeEngine, docker: aiodocker.Docker, tmp_path: Path) -> None:
    fake.tags = {"built:1": OLD}
    fake.loads = {"dc/node:2": NEW, "built:1": THIRD}  # the second one by a build of somebody
    fake.says = [{"stream": "Loaded image: dc/node:2\n"}]
    await ImageStore(docker).load(archive(tmp_path), LIMITS, ENCLAVE)
    assert fake.tags["built:1"] == THIRD


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


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Addresses by name, as this host resolves them; others are unknown here."""
    made: dict[str, list[str]] = {}

    async def getaddrinfo(_: object, host: str, *__: object, **___: object) -> list[tuple[object, ...]]:
        if host not in made:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in made[host]]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return made


@pytest.mark.parametrize(
    "registry",
    [
        *("127.0.0.1:5000", "localhost", "localhost:5000", "LOCALHOST", "127.1:5000", "0.0.0.0:5000", "10.1.2.3"),
        *("169.254.169.254:80", "192.168.0.1:5000", "[::1]:5000", "[fe80::1]", "[::ffff:10.1.2.3]", "[fd00::5]:443"),
        *("inside.example", "half.example:5000", "a.localhost"),
    ],
)
async def test_no_registry_at_a_private_address_is_asked_unless_the_settings_say_so(
    fake: FakeEngine, docker: aiodocker.Docker, names: dict[str, list[str]], registry: str
) -> None:
    names |= {"inside.example": ["10.1.2.3"], "half.example": ["93.184.215.14", "fe80::1%eth0"]}
    reference = ImageReference(f"{registry}/dc/node", "1", None)
    fake.tags = {f"{reference.name}:1": OLD}
    fake.go_on.set()
    store = ImageStore(docker)
    other = replace(LIMITS, own_hosts=frozenset({"other.example"}))
    with pytest.raises(ProcessSupervisorError) as caught:
        await store.pull(reference, None, other, lambda _: None)
    assert (caught.value.code, caught.value.kind) == ("DOWNLOAD_ADDRESS_REFUSED", "transient")
    assert "download.private_addresses" in caught.value.action
    assert fake.auth == [], "the engine was not asked to pull"
    host = urlsplit(f"//{registry}").hostname or ""
    named, allowed = replace(LIMITS, own_hosts=frozenset({host})), replace(LIMITS, private_addresses=True)
    for limits in (named, allowed):
        assert (await store.pull(reference, None, limits, lambda _: None)).image_id == OLD


@pytest.mark.parametrize("name", ["dc/node", "docker.io/dc/node", "public.example/dc/node", "unknown.example/dc/node"])
async def test_other_registries_are_the_engines_to_reach(
    fake: FakeEngine, docker: aiodocker.Docker, names: dict[str, list[str]], name: str
) -> None:
    """One without a host is the engine's own, which its settings name; its proxy may know a name that we do not."""
    names |= {"public.example": ["93.184.215.14"], "index.docker.io": ["10.0.0.1"]}
    fake.tags = {f"{name}:1": OLD}
    fake.go_on.set()
    assert (
        await ImageStore(docker).pull(ImageReference(name, "1", None), None, LIMITS, lambda _: None)
    ).image_id == OLD


async def test_an_image_that_is_here_by_its_digest_needs_no_registry(
    fake: FakeEngine, docker: aiodocker.Docker
) -> None:
    digest = "sha256:" + "a" * 64
    name = "127.0.0.1:5000/dc/node"
    fake.tags, fake.digests = {f"{name}@{digest}": OLD}, [f"{name}@{digest}"]
    pulled = await ImageStore(docker).pull(ImageReference(name, None, digest), None, LIMITS, lambda _: None)
    assert pulled.image_id == OLD


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
