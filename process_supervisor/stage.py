"""Stage a release: download, unpack aside, verify, and only then give it its final name `slots/<enclave id>/`.

A source is not authenticated, so its faults say nothing about the release, and errors here are transient. There is one
exception: content that arrived complete, and whose digest, measurement or SIGSTRUCT contradicts the chain, is
`rejected`. Even that may be the fault of a mirror; the caller of `stage` decides how often to retry.
"""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from .archive import unpack
from .content_id import ContentId, decode_cid
from .errors import ProcessSupervisorError
from .fetch import Progress, ProgressFn, fetch
from .limits import DownloadLimits
from .outbound import Outbound
from .part_file import Fetched, discard_part, disk_error
from .race import AllFailedError, Pace, Runner, first_good
from .slots import (
    RELEASE_FILES,
    SIGSTRUCT_FILE,
    STAGE_FILE,
    Identity,
    StagedRelease,
    StageFacts,
    Verify,
    open_slot,
    prepare,
    remove_leftovers,
    remove_path,
    set_aside,
    staging_lock,
    sync_folder,
    verify_folder,
    write_file,
)
from .sources import ImageReference, UrlSource, decode_source, is_enclave_id
from .threads import in_thread

EXTRA_FILE_BYTES_MAX = 64 * 1024
Plan = list[tuple[UrlSource | ImageReference, tuple[ContentId, ...]]]
"""The sources in the order of the attempts, each with the CIDs that its content must match."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """What to stage: the signed enclave id, its sources, and small extra files for the slot.

    `extra_files` (name to content, such as the network signature) are written by the agent, and updated when a slot is
    used again. `image_id` names an image that the engine has; then nothing is fetched. `weakest` is the weakest
    accepted proof of identity. For "sigstruct", `signed_enclave` is the path of the signed enclave in images, and
    `sigstruct_in` (blocking) extracts the SIGSTRUCT from that file, or raises. `version` is stored if the release's own
    files do not name it.
    """

    enclave_id: str
    sources: tuple[str, ...]
    cids: tuple[str, ...] = ()
    version: str = ""
    image_id: str = ""
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    weakest: Identity = "measured"
    signed_enclave: str = ""
    sigstruct_in: Callable[[Path], bytes] | None = None


@dataclass(frozen=True, slots=True)
class ReleaseImage:
    """An image at the engine: its id and its reference (pinned to a digest if one is known)."""

    image_id: str
    reference: str


class Images(Protocol):
    """The part of a container engine that staging uses; implemented by `container_images.ImageStore`."""

    async def has(self, image_id: str) -> bool:
        """Tell whether the engine has this image."""

    async def pull(
        self, reference: ImageReference, pinned: str | None, limits: DownloadLimits, progress: ProgressFn
    ) -> ReleaseImage:
        """Pull an image, by the digest `pinned` if its reference was resolved to that before."""

    async def load(self, archive: Path, limits: DownloadLimits, enclave_id: str) -> ReleaseImage | None:
        """Load an archive of one image and keep the image. None if the file is not such an archive."""

    async def keep(self, image_id: str, enclave_id: str) -> str:
        """Tag the image, so that the engine does not prune it; returns the tag."""

    async def release_files(self, image_id: str, path: Path, limits: DownloadLimits) -> bool:
        """Write the image's release folder to `path` as a tar; False if the image has none."""

    async def copy_file(self, image_id: str, inside: str, path: Path, limits: DownloadLimits) -> bool:
        """Copy one plain file of the image to `path`, links followed; False if there is none at `inside`."""


def _quiet(_: Progress) -> None:
    return None


async def stage(
    request: StageRequest,
    slots: Path,
    verify: Verify,
    limits: DownloadLimits | None = None,
    progress: ProgressFn = _quiet,
    images: Images | None = None,
) -> StagedRelease:
    """Bring a release into its slot, or find it there and verify it again.

    `verify` gets a folder with the unpacked files (for an image without release files: only the SIGSTRUCT). It returns
    the enclave id that they prove, or raises; a function that is not async is called in a thread. Sources are tried in
    turn, then the CIDs at the gateways; while all running sources are slow, the next one is started in parallel. With
    `images`, a source may be an image reference or the URL of an image's archive. The slot then holds the files of that
    image that prove its identity. If there is only one reason of failure, it is raised unchanged (also `verify`'s own
    errors); several different ones are raised as DOWNLOAD_SOURCES_FAILED. Also raises STAGING_*, CONTAINER_*.
    """
    limits = limits or DownloadLimits()
    plan, refusals = _plan(request, limits, containers=images is not None)
    try:
        await in_thread(prepare, slots)
        with ExitStack() as held:
            await in_thread(held.enter_context, staging_lock(slots, request.enclave_id))
            existing = await _existing(request, slots, verify, images)
            if existing is not None:
                progress(Progress("ready", existing.source, existing.size, existing.size))
                return existing
            await in_thread(remove_leftovers, slots, time.time())
            async with Outbound(limits.proxies) as outbound:
                return await _Staging(request, slots, verify, limits, progress, outbound, images).run(plan, refusals)
    except OSError as error:
        raise disk_error(error, slots) from error


async def _existing(request: StageRequest, slots: Path, verify: Verify, images: Images | None) -> StagedRelease | None:
    existing = await open_slot(slots, request.enclave_id, verify, request.extra_files, request.weakest)
    if existing is None or images is None or not existing.facts.image_id or await images.has(existing.facts.image_id):
        return existing
    # The files are good, but the engine has lost the image they came with.
    await in_thread(set_aside, slots, request.enclave_id)
    return None


def _plan(request: StageRequest, limits: DownloadLimits, *, containers: bool) -> tuple[Plan, list[Exception]]:
    """The plan, and why the other sources cannot be used."""
    bad_extra = [
        name
        for name, data in request.extra_files.items()
        if name in RELEASE_FILES or "/" in name or name.startswith(".") or len(data) > EXTRA_FILE_BYTES_MAX
    ]
    if not is_enclave_id(request.enclave_id) or bad_extra:
        raise ProcessSupervisorError(
            code="STAGING_REQUEST_INVALID",
            what=f"staging {request.enclave_id[:80]!r}",
            why=f"extra files {bad_extra} are not allowed" if bad_extra else "the enclave id is not 64 lower-case hex",
            action="The release on the chain is malformed",
        )
    refusals: list[Exception] = []
    cids: list[ContentId] = []
    plan: Plan = []
    for text in dict.fromkeys(request.cids):
        try:
            cids.append(decode_cid(text))
        except ProcessSupervisorError as error:
            refusals.append(error)
    for text in dict.fromkeys(request.sources):
        try:
            decoded = decode_source(text)
        except ProcessSupervisorError as error:
            refusals.append(error)
            continue
        if isinstance(decoded, ImageReference) and not containers:
            refusals.append(_needs_containers(text))
        else:
            # The root of a tree depends on more than the file's content, so only answers of gateways are checked
            # against it.
            plan.append((decoded, tuple(item for item in cids if not item.is_tree)))
    for gateway in limits.ipfs_gateways:
        plan += [(source, (item,)) for item in cids for source in _at_gateway(gateway, item)]
    if cids and not limits.ipfs_gateways:
        refusals.append(_needs_gateway(cids[0]))
    return plan, refusals


def _at_gateway(gateway: str, cid: ContentId) -> list[UrlSource]:
    """Return the URLs of a CID at a gateway: with `{cid}` replaced, else below `/ipfs/`. A tree's blocks come first.

    Many gateways do not deliver blocks, and a download of blocks cannot be resumed. The plain bytes have neither
    problem, but they can be verified against a tree only if it has one of the known layouts.
    """
    url = gateway if "{cid}" in gateway else f"{gateway.rstrip('/')}/ipfs/{{cid}}"
    plain = UrlSource(url.partition(":")[0].lower(), url.replace("{cid}", cid.text), own=True)
    if not cid.is_tree:
        return [plain]
    with_query = plain.url + ("&" if "?" in plain.url else "?")
    return [replace(plain, url=f"{with_query}format=car&car-order=dfs&car-dups=y", form="car"), plain]


def _needs_gateway(cid: ContentId) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="DOWNLOAD_SOURCE_UNSUPPORTED",
        what=f"CID {cid.text}",
        why="no IPFS gateway is set",
        action="Set download.ipfs_gateways, or publish an http(s) URL too",
    )


def _needs_containers(text: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="DOWNLOAD_SOURCE_UNSUPPORTED",
        what=f"source {text[:200]!r}",
        why="it is a container image, and this node runs as a process",
        action="Set the container driver, or publish an archive too",
    )


@dataclass(slots=True)
class _Staging:
    """One run through the sources of a release. Several may download at once; only one is unpacked at a time."""

    request: StageRequest
    slots: Path
    verify: Verify
    limits: DownloadLimits
    progress: ProgressFn
    outbound: Outbound
    images: Images | None
    parts_in_use: set[Path] = field(default_factory=set)
    unpacking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def _incoming(self) -> Path:
        return self.slots / ".incoming" / self.request.enclave_id

    def _part(self, source: UrlSource) -> Path:
        """Return a part file for each source, so that trying the mirror keeps the other source's part.

        One URL may be several sources, as plain bytes and as a CAR for instance, and two may download at once.
        """
        mark = hashlib.sha256(repr(source).encode()).hexdigest()[:16]
        return self._incoming.with_name(f"{self.request.enclave_id}.{mark}.part")

    async def run(self, plan: Plan, refusals: list[Exception]) -> StagedRelease:
        """Stage from the first source with a good artefact."""
        if self.request.image_id:
            digest = self.request.image_id.removeprefix("sha256:")
            return await self._from_image(ReleaseImage(self.request.image_id, self.request.image_id), digest, 0, "")

        def runner(source: UrlSource | ImageReference, cids: tuple[ContentId, ...]) -> Runner[StagedRelease]:
            if isinstance(source, ImageReference):
                return lambda pace: self._from_reference(source, pace)
            return lambda pace: self._from_url(source, cids, pace)

        def new_pace() -> Pace:
            return Pace(self.limits.slow_bytes_per_s, self.limits.slow_s)

        try:
            staged = await first_good([runner(*item) for item in plan], new_pace, _is_of_the_disk)
        except AllFailedError as error:
            raise _combined([*refusals, *error.failures], self.request) from None
        await in_thread(self._discard_parts)
        facts = staged.facts
        self.progress(Progress("ready", facts.source, facts.size, facts.size))
        return staged

    async def _from_url(self, source: UrlSource, cids: tuple[ContentId, ...], pace: Pace) -> StagedRelease:
        fetched = await self._fetch(source, cids, pace)
        try:
            return await self._from_file(fetched)
        except OSError:
            raise
        except Exception:
            if not fetched.resumed or await in_thread(fetched.path.exists):
                raise
        # Pieces from several answers, or from before a power cut, may not belong together. They must not condemn the
        # release; only a file received in one piece may. The bad file is gone, so this starts at the first byte.
        return await self._from_file(await self._fetch(source, cids, pace))

    async def _fetch(self, source: UrlSource, cids: tuple[ContentId, ...], pace: Pace) -> Fetched:
        part = self._part(source)
        self.parts_in_use.add(part)

        def progress(item: Progress) -> None:
            pace.report(item.received_bytes)
            self.progress(item)

        try:
            fetched = await fetch(self.outbound, source, cids, part, self.limits, progress)
        except ProcessSupervisorError as error:
            if error.code != "STAGING_DISK_FULL" or not await in_thread(self._discard_parts, self.parts_in_use):
                raise
            fetched = await fetch(self.outbound, source, cids, part, self.limits, progress)
        pace.steady()
        return fetched

    def _discard_parts(self, but: Collection[Path] = ()) -> int:
        """Remove this release's part files except those in `but`; return how many were removed."""
        doomed = [path for path in self._incoming.parent.glob(f"{self.request.enclave_id}.*part") if path not in but]
        for path in doomed:
            discard_part(path)
        return len(doomed)

    async def _from_file(self, fetched: Fetched) -> StagedRelease:
        async with self.unpacking:
            if self.images is not None:
                try:
                    image = await self.images.load(fetched.path, self.limits, self.request.enclave_id)
                except ProcessSupervisorError as error:
                    if error.code not in ("CONTAINER_ENGINE_ERROR", "CONTAINER_ENGINE_UNREACHABLE"):
                        await in_thread(discard_part, fetched.path)
                    raise
                if image is not None:
                    await in_thread(discard_part, fetched.path)
                    return await self._from_image(image, fetched.sha256, fetched.size, fetched.source)
            return await self._unpack_and_name(fetched, _facts(fetched))

    async def _from_reference(self, source: ImageReference, pace: Pace) -> StagedRelease:
        if self.images is None:
            raise _needs_containers(str(source))
        pace.steady()
        pin = self._incoming.with_name(f"{self.request.enclave_id}.pin")
        pins = await in_thread(_read_pins, pin)
        image = await self.images.pull(source, pins.get(str(source)), self.limits, self.progress)
        digest = image.reference.rpartition("@")[2] if "@" in image.reference else None
        async with self.unpacking:
            staged = await self._from_image(image, image.image_id.removeprefix("sha256:"), 0, image.reference)
        # Pin the digest only after the image proved good; until then the publisher may correct the tag.
        if digest is not None and digest != pins.get(str(source)):
            await in_thread(write_file, pin, json.dumps({**pins, str(source): digest}).encode())
        return staged

    async def _from_image(self, image: ReleaseImage, digest: str, size: int, source: str) -> StagedRelease:
        if self.images is None:
            raise _needs_containers(source)
        await self.images.keep(image.image_id, self.request.enclave_id)
        path = self._incoming.with_name(f"{self.request.enclave_id}.files")
        identity = await self._take_proof(self.images, image, path)
        source = source or image.image_id
        facts = StageFacts(digest=digest, size=size, source=source, image_id=image.image_id, identity=identity)
        return await self._unpack_and_name(Fetched(path, size, digest, source), facts)

    async def _take_proof(self, images: Images, image: ReleaseImage, path: Path) -> Identity:
        """Copy the strongest proof of the image's enclave id to `path`; returns the kind of proof."""
        request = self.request
        if await images.release_files(image.image_id, path, self.limits):
            return "measured"
        if request.weakest == "measured":
            raise ProcessSupervisorError(
                code="CONTAINER_IMAGE_UNMEASURED",
                what=f"image {image.reference}",
                why="it carries no release files, so its enclave id would be proven only later",
                action="Publish images that have their release files in /release, or set container.identity",
            )
        if request.signed_enclave and request.sigstruct_in is not None:
            if not await images.copy_file(image.image_id, request.signed_enclave, path, self.limits):
                raise ProcessSupervisorError(
                    code="CONTAINER_SIGNED_ENCLAVE_MISSING",
                    what=f"image {image.reference}",
                    why=f"it has no file {request.signed_enclave}",
                    action="Correct container.signed_enclave, or ask the publisher where the signed enclave lies",
                )
            return "sigstruct"
        if request.weakest == "attested":
            await in_thread(path.unlink, True)
            return "attested"
        raise ProcessSupervisorError(
            code="CONTAINER_SIGNED_ENCLAVE_MISSING",
            what=f"image {image.reference}",
            why="the settings do not name its signed enclave",
            action="Set container.signed_enclave to its path in the image",
        )

    async def _unpack_and_name(self, fetched: Fetched, facts: StageFacts) -> StagedRelease:
        fresh = self._incoming.with_name(f"{self.request.enclave_id}.new")
        self.progress(Progress("unpack", fetched.source, fetched.size, fetched.size))
        try:
            await in_thread(_unpack_aside, fetched, facts, fresh, self.request, self.limits)
            self.progress(Progress("verify", fetched.source, fetched.size, fetched.size))
            if facts.identity != "attested":
                await verify_folder(fresh, self.request.enclave_id, self.verify)
        except OSError:
            # The received file is good: once there is room again, it is unpacked without another download.
            await in_thread(remove_path, fresh)
            raise
        except Exception:
            # The complete file is bad, so resuming it would give the same result.
            await in_thread(_discard_all, fetched.path, fresh)
            raise
        final = self.slots / self.request.enclave_id
        await in_thread(_give_final_name, fresh, final, fetched.path)
        return StagedRelease(path=final, enclave_id=self.request.enclave_id, facts=facts)


def _facts(fetched: Fetched) -> StageFacts:
    return StageFacts(digest=fetched.sha256, size=fetched.size, source=fetched.source)


def _read_pins(path: Path) -> dict[str, str]:
    """Return the digests to which references of this release were resolved, by reference."""
    try:
        pins = json.loads(path.read_bytes())
        return {name: digest for name, digest in pins.items() if isinstance(digest, str)}
    except (FileNotFoundError, ValueError, AttributeError, RecursionError):
        return {}


def _combined(failures: list[Exception], request: StageRequest) -> Exception:
    of_the_disk = [item for item in failures if _is_of_the_disk(item)]
    if of_the_disk:
        return of_the_disk[-1]
    # A source that only another driver can use says less than a source that failed.
    telling = [item for item in failures if getattr(item, "code", "") != "DOWNLOAD_SOURCE_UNSUPPORTED"] or failures
    kinds = {(getattr(item, "code", type(item).__name__), getattr(item, "kind", "")) for item in telling}
    if len(kinds) == 1:
        return telling[-1]
    # Reject the release only if every source gave content that contradicts the chain.
    condemned = bool(telling) and all(getattr(item, "kind", "") == "rejected" for item in telling)
    return ProcessSupervisorError(
        code="DOWNLOAD_SOURCES_FAILED" if telling else "STAGING_REQUEST_INVALID",
        what=f"staging {request.enclave_id}",
        why="; ".join(str(item) for item in telling) or "the release names no source",
        action="Tell the publisher which of its sources are bad; nothing was changed here",
        kind="rejected" if condemned else "transient",
    )


def _is_of_the_disk(error: Exception) -> bool:
    """Return whether the error concerns this machine's disk, so that no other source could succeed."""
    return isinstance(error, OSError) or str(getattr(error, "code", "")).startswith("STAGING_DISK")


def _discard_all(part: Path, fresh: Path) -> None:
    discard_part(part)
    remove_path(fresh)


def _unpack_aside(
    fetched: Fetched, facts: StageFacts, fresh: Path, request: StageRequest, limits: DownloadLimits
) -> None:
    remove_path(fresh)
    fresh.mkdir()
    fresh.chmod(0o755)  # whatever the umask: see archive.py
    if facts.identity == "measured":
        unpack(fetched.path, fresh, limits.archive, facts.members)
    else:
        about = {"enclave_id": request.enclave_id, "version": request.version}
        write_file(fresh / "release.json", json.dumps(about).encode())
    if facts.identity == "sigstruct" and request.sigstruct_in is not None:
        write_file(fresh / SIGSTRUCT_FILE, request.sigstruct_in(fetched.path))
    write_file(fresh / STAGE_FILE, facts.to_json())
    for name, data in request.extra_files.items():
        write_file(fresh / name, data)
    sync_folder(fresh)


def _give_final_name(fresh: Path, final: Path, part: Path) -> None:
    os.rename(fresh, final)
    sync_folder(final.parent)
    discard_part(part)
