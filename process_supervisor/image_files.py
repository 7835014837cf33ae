"""Read files of an image through a container that is created for this and never started: no code of the image runs."""

import asyncio
import base64
import binascii
import json
import posixpath
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp

from .archive import unpack
from .container_template import ContainerTemplate, mounts_of
from .engine_client import CONNECT_S_MAX, engine_errors
from .errors import ProcessSupervisorError
from .limits import DownloadLimits
from .threads import in_thread

RELEASE_FOLDER = "/release"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GO_MODE_DIRECTORY = 1 << 31
_GO_MODE_LINK = 1 << 27
_EXECUTABLE = 0o111


@dataclass(frozen=True, slots=True)
class _Stat:
    """The engine's answer about one path; `target` is the final target of a link."""

    mode: int
    target: str


class ImageFiles:
    """Reads files of images at one engine."""

    def __init__(self, docker: aiodocker.Docker) -> None:
        self._docker = docker

    async def release_files(self, image_id: str, path: Path, limits: DownloadLimits) -> bool:
        """Write the image's release folder to `path` as a tar; False if the image has none."""
        async with self._opened(image_id) as container_id:
            return await self._copy(container_id, f"{RELEASE_FOLDER}/.", path, limits)

    async def copy_file(self, image_id: str, inside: str, path: Path, limits: DownloadLimits) -> bool:
        """Copy one plain file of the image to `path`, links followed; False if there is none at `inside`."""
        aside = path.with_name(f"{path.name}.tar")
        folder = path.with_name(f"{path.name}.d")
        async with self._opened(image_id) as container_id:
            found = await self._stat(container_id, inside)
            real = found.target if found is not None and found.mode & _GO_MODE_LINK else inside
            if found is None or not await self._copy(container_id, real, aside, limits):
                return False
        try:
            await in_thread(_only_file, aside, folder, path, limits)
        finally:
            await in_thread(aside.unlink, True)
        return True

    async def missing_volumes(self, template: ContainerTemplate) -> list[str]:
        """Names of the template's volumes that the engine does not have; it would make new ones, empty."""
        names = {item.source for item in mounts_of(template.host) if item.kind == "volume"}
        with engine_errors("list of volumes"):
            listed = await self._docker._query_json("volumes")
        return sorted(names - {str(item["Name"]) for item in listed.get("Volumes") or ()})

    async def missing_program(self, image_id: str, template: Mapping[str, Any]) -> str:
        """Return which part of the container's command is not in the image, as text; "" if all is there.

        `template` is the top level of the container's body: its Entrypoint, Cmd, Env and WorkingDir win.
        """
        async with self._opened(image_id) as container_id:
            with engine_errors(f"image {image_id[:19]}"):
                own = (await self._docker.images.inspect(image_id)).get("Config") or {}
            argv = template.get("Entrypoint") or own.get("Entrypoint") or template.get("Cmd") or own.get("Cmd")
            if not argv:
                return "the image names no command, and the settings none either"
            cwd = str(template.get("WorkingDir") or own.get("WorkingDir") or "/")
            for path in _candidates(str(argv[0]), cwd, [*(own.get("Env") or ()), *(template.get("Env") or ())]):
                found = await self._stat(container_id, path)
                if found is not None and found.mode & _GO_MODE_LINK:
                    found = await self._stat(container_id, found.target)
                if found is not None and not found.mode & _GO_MODE_DIRECTORY and found.mode & _EXECUTABLE:
                    return ""
        return f"the image has no program {argv[0]!r}"

    @asynccontextmanager
    async def _opened(self, image_id: str) -> AsyncIterator[str]:
        """Create a container of the image; remove it on exit, with the volumes that the engine made for it."""
        with engine_errors(f"files of image {image_id[:19]}"):
            # Creating a container requires a command; it is never started.
            config: dict[str, Any] = {"Image": image_id, "Entrypoint": ["-"], "Cmd": [], "NetworkDisabled": True}
            container = await self._docker.containers.create(config)
            try:
                yield str(container.id)
            finally:
                await container.delete(force=True, v=True)

    async def _stat(self, container_id: str, path: str) -> _Stat | None:
        # Not by `_query`: the client decodes the body of a 404 as JSON, and a HEAD has none.
        url = self._docker._canonicalize_url(f"containers/{container_id}/archive")
        async with self._docker.session.head(url, params={"path": path}) as response:
            if response.status == 404:
                return None
            if response.status != 200:
                raise aiodocker.DockerError(response.status, f"no answer about {path}")
            text = response.headers.get("X-Docker-Container-Path-Stat", "")
        try:
            facts = json.loads(base64.b64decode(text))
            return _Stat(int(facts["mode"]), str(facts.get("linkTarget") or ""))
        except (binascii.Error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ProcessSupervisorError(
                code="CONTAINER_ENGINE_ERROR", what=f"file {path}", why=f"the engine's answer cannot be read ({error})"
            ) from error

    async def _copy(self, container_id: str, inside: str, path: Path, limits: DownloadLimits) -> bool:
        size = 0
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S_MAX, sock_read=limits.idle_s_max)
        query = self._docker._query(f"containers/{container_id}/archive", params={"path": inside}, timeout=timeout)
        try:
            async with query as response, response:
                file = await asyncio.to_thread(path.open, "wb", 0)  # unbuffered: closing it on the loop writes nothing
                with file:
                    async for data in response.content.iter_chunked(limits.chunk_bytes):
                        size += len(data)
                        if size > limits.archive.total_bytes_max:
                            raise ProcessSupervisorError(
                                code="ARCHIVE_TOO_LARGE",
                                what="files of an image",
                                why=f"they have more than {limits.archive.total_bytes_max} bytes",
                                action="This artefact is not used; tell its publisher",
                            )
                        await in_thread(_write_all, file, data)
        except aiodocker.DockerError as error:
            if error.status == 404:
                return False
            raise
        return True


def _write_all(file: RawIOBase, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def _candidates(program: str, cwd: str, env: list[str]) -> list[str]:
    """Where the runtime looks for a program: as `execvp` in the container does."""
    if "/" in program:
        return [posixpath.normpath(posixpath.join(cwd, program))]
    paths = dict(item.partition("=")[::2] for item in env).get("PATH", DEFAULT_PATH)
    return [posixpath.join(folder or cwd, program) for folder in paths.split(":")]


def _only_file(archive: Path, folder: Path, path: Path, limits: DownloadLimits) -> None:
    """Unpack the one file of an archive to `path`."""
    folder.mkdir(exist_ok=True)
    try:
        (only,) = unpack(archive, folder, limits.archive, None)
        (folder / only.name).replace(path)
    finally:
        for item in folder.iterdir():
            item.unlink()
        folder.rmdir()
