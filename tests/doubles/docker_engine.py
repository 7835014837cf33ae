"""A stand-in for the part of a Docker engine's API that images and removals need."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiodocker
from aiohttp import web

from process_supervisor.engine_client import engine
from process_supervisor.limits import DownloadLimits
from tests.doubles.release_archives import ENCLAVE, member, release_tar, tar_bytes

OLD, NEW, THIRD = ("sha256:" + digit * 64 for digit in "123")
LIMITS = DownloadLimits()
KEPT = f"dcupgrade/release:{ENCLAVE}"
MANIFEST = member("manifest.json", json.dumps([{"Config": f"{'2' * 64}.json", "RepoTags": ["dc/node:2"]}]).encode())


@dataclass
class FakeEngine:
    """The part of the Engine API for images and removals. A load adds `loads` (tag to id) and answers `says`.

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


@asynccontextmanager
async def served(fake: FakeEngine) -> AsyncIterator[aiodocker.Docker]:
    """Serve it; gives a client of it."""
    runner = web.AppRunner(fake.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with engine(f"tcp://127.0.0.1:{runner.addresses[0][1]}") as client:
        yield client
    fake.go_on.set()
    await runner.cleanup()


def archive(folder: Path) -> Path:
    """Make an archive of an image, with the parts that are read."""
    path = folder / "image.tar"
    path.write_bytes(tar_bytes(MANIFEST, compress=False))
    return path
