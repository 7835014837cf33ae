"""Images of releases at a Docker engine: pulled by digest, loaded from an archive, or already present."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import aiodocker
import aiohttp
from aiodocker.jsonstream import json_stream_stream

from .archive import read_member
from .engine_client import CONNECT_S_MAX, engine_errors
from .errors import ProcessSupervisorError
from .fetch import Progress, ProgressFn
from .image_files import ImageFiles
from .limits import MIB, ArchiveLimits, DownloadLimits
from .load_tags import LoadTags, kept_tag
from .registry_address import require_registry_allowed
from .registry_credentials import auth_header
from .sources import ImageReference
from .stage import ReleaseImage

MANIFEST_BYTES_MAX = 1 * MIB
IMAGE_MEMBERS_MAX = 4096
PULL_SILENCE_S_MAX = 600.0
_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}\Z")
_CONFIG_FILE = re.compile(r"(?:\A|/|\Asha256:)([0-9a-f]{64})(?:\.json)?\Z")
#: The engine passes a registry's answer on as text. The first group of words found in it determines the code.
_REGISTRY_WORDS = (
    ("CONTAINER_REGISTRY_BUSY", ("toomanyrequests", "too many requests", "status: 429", "rate limit")),
    (
        "CONTAINER_REGISTRY_DENIED",
        (
            "unauthorized",
            "authentication required",
            "no basic auth credentials",
            "denied",
            "status: 401",
            "status: 403",
        ),
    ),
    (
        "CONTAINER_REGISTRY_UNREACHABLE",
        (
            *("connection refused", "connection reset", "no such host", "dial tcp", "timeout", "timed out", "eof"),
            *("x509", "tls:", "server gave http response", "status: 5", "network is unreachable", "bad gateway"),
        ),
    ),
)
_NOT_THERE = ("manifest unknown", "not found", "name unknown", "repository does not exist")
_PULL_ADVICE = {
    "CONTAINER_IMAGE_MISSING": "Look at the registry and at the engine's access to it",
    "CONTAINER_REGISTRY_BUSY": "Nothing: it is asked again later; a login raises the limit of some registries",
    "CONTAINER_REGISTRY_DENIED": "Run `docker login` for it as the agent's user (container.registry_config)",
    "CONTAINER_REGISTRY_UNREACHABLE": "Look at the network between engine and registry, and at its certificates",
}


def image_in(archive: Path, limits: ArchiveLimits) -> str | None:
    """The id of the one image in an archive as `docker save` makes it; None if the file is no such archive. Blocking.

    The id is the digest of the image's configuration; most programs use it as the name of that file. The engine
    verifies that the content has this digest; this function limits the unpacked size. Raises ARCHIVE_*; an archive of
    more than one image is refused.
    """
    bytes_max = limits.total_bytes_max  # a layer is a member: it may have all that the whole may have
    whole = ArchiveLimits(members_max=IMAGE_MEMBERS_MAX, member_bytes_max=bytes_max, total_bytes_max=bytes_max)
    data = read_member(archive, "manifest.json", whole, MANIFEST_BYTES_MAX)
    if data is None:
        return None
    try:
        manifest = json.loads(data)
        if len(manifest) != 1 or not isinstance(manifest[0], dict):
            raise ValueError(f"it describes {len(manifest)} images")
        name = str(manifest[0].get("Config"))
        if named := _CONFIG_FILE.search(name):
            return f"sha256:{named[1]}"
        config = read_member(archive, name, whole, MANIFEST_BYTES_MAX)
        if config is None:
            raise ValueError("it names no configuration that is there")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ProcessSupervisorError(
            code="ARCHIVE_CORRUPT",
            what="image archive",
            why=f"its manifest.json is not that of one image ({error})",
            action="This artefact is not used; tell its publisher",
        ) from error
    return f"sha256:{hashlib.sha256(config).hexdigest()}"


class ImageStore(ImageFiles):
    """What staging needs of a Docker engine.

    `registry_config` is the file of `docker login`; None uses no login. `notes` is a folder for notes of loads.
    """

    def __init__(
        self, docker: aiodocker.Docker, registry_config: Path | None = None, notes: Path | None = None
    ) -> None:
        super().__init__(docker)
        self._registry_config = registry_config
        self._tags = LoadTags(docker, notes)

    async def inspect(self, name: str) -> dict[str, Any] | None:
        """The engine's facts about an image by id or reference; None if it has none."""
        with engine_errors(f"image {name[:100]}"):
            try:
                return await self._docker.images.inspect(name)
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return None
                raise

    async def has(self, image_id: str) -> bool:
        """Whether the engine has this very image."""
        found = await self.inspect(image_id)
        return found is not None and found["Id"] == image_id

    async def pull(
        self, reference: ImageReference, pinned: str | None, limits: DownloadLimits, progress: ProgressFn
    ) -> ReleaseImage:
        """Bring an image here. `pinned` is the digest that the same reference was resolved to before, if it was.

        A tag is resolved only once. A local image (loaded by hand) is accepted if the registry reports that it does not
        know the image. Without that report it is not accepted, since it may be an older image. Raises
        DOWNLOAD_ADDRESS_REFUSED, CONTAINER_IMAGE_*, CONTAINER_REGISTRY_*.
        """
        digest = reference.digest or pinned
        wanted = f"{reference.name}@{digest}" if digest else f"{reference.name}:{reference.tag or 'latest'}"
        found = await self.inspect(wanted) if digest else None
        if found is None:
            await require_registry_allowed(reference.name, limits)
            why = await self._pull(reference.name, wanted, progress)
            _require_answer(wanted, why)
            found = await self.inspect(wanted)
            if found is None:
                raise ProcessSupervisorError(
                    code="CONTAINER_IMAGE_MISSING",
                    what=f"image {wanted}",
                    why=why or "the pull ended, or fell silent, and the engine does not have it",
                    action="Look at the registry and at the engine's access to it",
                )
        await self._require_native(found, wanted)
        here = [item.rpartition("@")[2] for item in found.get("RepoDigests") or []]
        if digest and digest not in here:
            raise ProcessSupervisorError(
                code="CONTAINER_IMAGE_CHANGED",
                what=f"image {wanted}",
                why=f"the engine has it under {here}",
                action="Remove that image from the engine; the release is pulled again",
            )
        # The same image may be here from another repository too, under a digest that this one does not know.
        own = [item for item in found.get("RepoDigests") or [] if item.rpartition("@")[0] == reference.name]
        pin = digest or next((item.rpartition("@")[2] for item in own), None) or next(iter(here), None)
        return ReleaseImage(_checked_id(found["Id"]), f"{reference.name}@{pin}" if pin else wanted)

    async def _require_native(self, found: Mapping[str, Any], name: str) -> None:
        """Refuse an image for another system or CPU. Otherwise the start would fail after the old node was stopped."""
        with engine_errors("version of the engine"):
            version = await self._docker.version()
        image = [str(found.get(key) or "") for key in ("Os", "Architecture")]
        engine = [str(version.get(key) or "") for key in ("Os", "Arch")]
        if any(
            of_image and of_engine and of_image != of_engine for of_image, of_engine in zip(image, engine, strict=True)
        ):
            raise ProcessSupervisorError(
                code="CONTAINER_IMAGE_FOREIGN",
                what=f"image {name}",
                why=f"it is for {'/'.join(image)}, this engine runs {'/'.join(engine)}",
                action="Ask the publisher for an image of this architecture",
            )

    async def _pull(self, name: str, wanted: str, progress: ProgressFn) -> str:
        """Pull; returns why it did not succeed, or an empty text."""
        layers: dict[str, tuple[int, int]] = {}
        headers = await auth_header(self._registry_config, name) if self._registry_config is not None else {}
        try:
            with engine_errors(f"pull of {wanted}"):
                # If the registry stops answering, the engine does too, and never ends the pull by itself.
                timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S_MAX, sock_read=PULL_SILENCE_S_MAX)
                params = {"fromImage": wanted}
                pull = self._docker._query("images/create", "POST", params=params, headers=headers, timeout=timeout)
                # The client does not close a response that was not read completely; its connection would stay open.
                async with pull as response, response:
                    async for item in json_stream_stream(response):
                        self._tell(item, wanted, layers, progress)
        except ProcessSupervisorError as error:
            if error.code == "CONTAINER_ENGINE_UNREACHABLE":
                raise
            return error.why
        return ""

    @staticmethod
    def _tell(item: Mapping[str, Any], wanted: str, layers: dict[str, tuple[int, int]], progress: ProgressFn) -> None:
        detail = item.get("progressDetail") or {}
        if item.get("status") == "Downloading" and "total" in detail:
            layers[str(item.get("id"))] = (int(detail.get("current", 0)), int(detail["total"]))
            done, total = (sum(column) for column in zip(*layers.values(), strict=True))
            progress(Progress("download", wanted, done, total))

    async def load(self, archive: Path, limits: DownloadLimits, enclave_id: str) -> ReleaseImage | None:
        """Load the one image of an archive and keep it; None if the file is no such archive.

        What the engine has afterwards is the image whose digest the archive names, or CONTAINER_IMAGE_CHANGED. It has
        no tag but ours (see `LoadTags`), also if the load fails in its middle. Raises ARCHIVE_*, CONTAINER_*.
        """
        named = await asyncio.to_thread(image_in, archive, limits.archive)
        if named is None:
            return None
        before = await self._tags.begin(enclave_id, named)
        loaded: set[str] | None = None
        kept = ""
        try:
            names, lines = await self._send(archive)
            facts = [item for item in [await self.inspect(name) for name in names] if item is not None]
            loaded = {item["Id"] for item in facts} or None
            if loaded is None or len(loaded) != 1:
                raise ProcessSupervisorError(
                    code="CONTAINER_IMAGE_MISSING",
                    what=f"load of {archive.name}",
                    why=f"the engine answered {lines[-3:]}",
                    action="Publish an archive that `docker save` made of one image",
                )
            await self._require_named(facts[0], named, f"load of {archive.name}", names[0])
            await self._require_native(facts[0], archive.name)
            image = ReleaseImage(_checked_id(facts[0]["Id"]), names[0])
            kept = await self.keep(image.image_id, enclave_id)
        finally:
            await self._tags.end(enclave_id, before, loaded, kept)
        return image

    async def _send(self, archive: Path) -> tuple[list[str], list[str]]:
        """Have the engine load an archive; the names that it loaded, and all that it said."""
        lines: list[str] = []
        with engine_errors(f"load of {archive.name}"):
            file = await asyncio.to_thread(archive.open, "rb")
            with file:
                async for item in self._docker.images.import_image(_chunks(file), stream=True):
                    lines += str(item.get("stream", "")).splitlines()
        # "Loaded image: <tag>" for each tag, or "Loaded image ID: sha256:<hex>" for an image without one.
        return [line.partition(": ")[2].strip() for line in lines if line.startswith("Loaded image")], lines

    async def _require_named(self, found: Mapping[str, Any], named: str, what: str, tag: str) -> None:
        """Refuse a loaded image whose id is not the one that its archive names."""
        if found["Id"] == named or "Descriptor" in found:
            return
        # With containerd's image store an id is the digest of the manifest, which older archives do not have.
        if await self._tags.by_containerd():
            return
        raise ProcessSupervisorError(
            code="CONTAINER_IMAGE_CHANGED",
            what=what,
            why=f"the archive names {named}, the engine has {str(found['Id'])[:80]} under {tag}",
            action="Nothing: it is loaded again. If it stays so, look who else tags images on this engine",
        )

    async def forget(self, enclave_id: str) -> None:
        """Take our tag off a release's image; the engine removes the image if nothing else names or uses it."""
        await self._tags.untag(kept_tag(enclave_id))

    async def keep(self, image_id: str, enclave_id: str) -> str:
        """Tag the image as ours, so that `docker image prune` leaves it; returns the tag."""
        tag = kept_tag(enclave_id)
        await self._tags.tag(image_id, tag)
        return tag

    async def tend(self) -> None:
        """Undo what loads did that an earlier agent did not finish. Raises CONTAINER_ENGINE_*."""
        await self._tags.undo_unfinished()


def _require_answer(wanted: str, why: str) -> None:
    """Raise CONTAINER_REGISTRY_*, or CONTAINER_IMAGE_MISSING, unless a failed pull says that the image is not there."""
    text = why.lower()
    if not why or any(word in text for word in _NOT_THERE):
        return
    code = next(
        (code for code, words in _REGISTRY_WORDS if any(word in text for word in words)), "CONTAINER_IMAGE_MISSING"
    )
    raise ProcessSupervisorError(code=code, what=f"image {wanted}", why=why, action=_PULL_ADVICE[code])


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while data := await asyncio.to_thread(file.read, MIB):
        yield data


def _checked_id(text: str) -> str:
    if not _IMAGE_ID.match(text):
        raise ProcessSupervisorError(
            code="CONTAINER_ENGINE_ERROR", what="image id", why=f"the engine answered {text[:80]!r}", action=""
        )
    return text
