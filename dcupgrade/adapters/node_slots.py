"""The slots port: files of node versions, one folder per version, over the process supervisor."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from attestation.artefact.files import verify_artefact
from attestation.artefact.signed_files import read_signed_enclave, verify_sigstruct
from attestation.network import decode_multibase, encode_multibase
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.stages import StagedRelease
from dcupgrade.machine.state import Release
from dcupgrade.settings.derive import download_limits
from dcupgrade.settings.schema import Settings
from dcupgrade.upgrade.ports import Progress
from process_supervisor.driver import NodeDriver
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.fetch import Progress as DownloadProgress
from process_supervisor.limits import DownloadLimits
from process_supervisor.slots import STAGE_FILE, StageFacts, remove_slot
from process_supervisor.sources import is_enclave_id
from process_supervisor.stage import StageRequest, stage
from process_supervisor.threads import in_thread

from .node_containers import NodeContainers
from .node_process import folder_names, key_set_id_of, living, node_name

if TYPE_CHECKING:
    from process_supervisor.container_images import ImageStore

log = logging.getLogger("dcupgrade")


class NodeSlots:
    """The slots of one agent, below its state folder."""

    def __init__(self, settings: Settings, driver: NodeDriver, containers: NodeContainers | None = None) -> None:
        self._settings, self._driver = settings, driver
        self._images = containers.images if containers is not None else None
        self.folder = settings.agent.state_dir / "slots"
        self._good: dict[str, tuple[tuple[int, ...], ...]] = {}

    async def stage(
        self, release: Release, progress: Progress, *, allow_file_urls: bool = False, image_id: str = ""
    ) -> StagedRelease:
        """Download and verify the release, then name its slot. Raises the errors of `process_supervisor.stage.stage`.

        `image_id` names an image that the engine already has.
        """
        limits = replace(download_limits(self._settings), allow_file_urls=allow_file_urls)
        return await self._stage(release, limits, progress, self._images, image_id)

    async def fetch_early(self, release: Release) -> None:
        """Fetch a release that is not final yet: nothing goes to the container engine."""
        if self._images is not None and not self._settings.node.command:
            raise ProcessSupervisorError(
                code="DOWNLOAD_SOURCE_UNSUPPORTED",
                what=f"early fetch of {release.enclave_id}",
                why="an image is neither pulled nor loaded before its release is final",
            )
        await self._stage(release, download_limits(self._settings), lambda _: None, None)

    async def _stage(
        self,
        release: Release,
        limits: DownloadLimits,
        progress: Progress,
        images: ImageStore | None,
        image_id: str = "",
    ) -> StagedRelease:
        def tell(item: DownloadProgress) -> None:
            progress(
                {
                    "phase": item.stage,
                    "source": item.source,
                    "done_bytes": item.received_bytes,
                    "total_bytes": item.total_bytes,
                }
            )

        container = self._settings.container
        sources = [url for url in (release.origin_url, release.mirror_url) if url]
        request = StageRequest(
            enclave_id=release.enclave_id,
            sources=tuple(sources if self._settings.download.prefer == "origin" else reversed(sources)),
            cids=release.cids,
            version=release.version,
            image_id=image_id,
            extra_files={"network.sig": _signature_file(release)},
            weakest=container.identity,
            signed_enclave=container.signed_enclave,
            sigstruct_in=read_signed_enclave,
        )
        staged = await stage(request, self.folder, verify_folder, limits, tell, images=images)
        return StagedRelease(staged.enclave_id)

    async def slot_is_good(self, enclave_id: str) -> bool:
        """Verify the slot; files that did not change since they were verified are not read again."""
        folder = self.folder / enclave_id
        try:
            facts, mark = await asyncio.to_thread(_seen, folder)
            if self._good.get(enclave_id) != mark:
                proven = facts.identity == "attested" or await asyncio.to_thread(verify_folder, folder) == enclave_id
                if not proven:
                    return False
                self._good[enclave_id] = mark
            if facts.image_id and self._images is not None and not await self._has_image(facts.image_id):
                log.warning("slot of %s: the engine has lost its image", enclave_id)
                return False
        except Exception as error:
            log.warning("slot of %s: %s", enclave_id, error)
            return False
        return True

    async def _has_image(self, image_id: str) -> bool:
        """Return whether the engine has the image; True if the engine does not answer, since that shows nothing."""
        try:
            return self._images is None or await self._images.has(image_id)
        except ProcessSupervisorError:
            return True

    async def identities(self, enclave_ids: Sequence[str]) -> dict[str, str]:
        """Return how the ids of staged versions are proven: "measured", "sigstruct", "attested"; "" if not staged."""
        return await asyncio.to_thread(lambda: {one: _identity(self.folder / one) for one in enclave_ids})

    async def staged(self) -> list[str]:
        """Enclave ids of the slots."""
        return sorted(name for name in await asyncio.to_thread(folder_names, self.folder) if is_enclave_id(name))

    async def remove_slot(self, enclave_id: str) -> None:
        """Delete the slot of a version that does not run."""
        if await living(self._driver, enclave_id) is not None:
            raise DcupgradeError(
                code="NODE_STILL_RUNS", what=f"slot of {enclave_id}", why="this version runs", kind="invariant"
            )
        await self._driver.remove(node_name(enclave_id))
        if self._images is not None:
            await self._images.forget(enclave_id)
        await in_thread(remove_slot, self.folder, enclave_id)

    async def discover(self) -> Release | None:
        """Return the version whose process is alive, else the one that was started last on data that has keys."""
        found: list[tuple[bool, float, str]] = []
        for name in await asyncio.to_thread(folder_names, self.folder):
            record = await self._driver.find(node_name(name)) if len(name) == 64 else None
            if record is not None:
                found.append((await living(self._driver, name) is not None, record.started_unix_s, name))
        if not found:
            return None
        if not max(found)[0] and not await asyncio.to_thread(key_set_id_of, self._settings.node.data_dir):
            return None
        enclave_id = max(found)[2]
        if not await self.slot_is_good(enclave_id):
            return None
        return await asyncio.to_thread(_release_in, self.folder / enclave_id)


def _identity(slot: Path) -> str:
    try:
        return StageFacts.from_json((slot / STAGE_FILE).read_bytes()).identity
    except (OSError, ValueError):
        return ""


def _seen(slot: Path) -> tuple[StageFacts, tuple[tuple[int, ...], ...]]:
    """Return the facts stored at staging, and file attributes that change when a file is changed."""
    facts = StageFacts.from_json((slot / STAGE_FILE).read_bytes())
    files = [(slot / name).stat() for name in sorted({*facts.members, STAGE_FILE, "network.sig"})]
    return facts, tuple((item.st_ino, item.st_size, item.st_mtime_ns, item.st_ctime_ns) for item in files)


def _release_in(slot: Path) -> Release:
    version = json.loads((slot / "release.json").read_text(encoding="utf-8")).get("version", "")
    texts = (slot / "network.sig").read_text(encoding="ascii").split()
    return Release(slot.name, version=str(version), signatures=tuple(decode_multibase(item) for item in texts))


def verify_folder(folder: Path) -> str:
    """Return the enclave id of a release in its folder. Blocking.

    Its image is measured and compared with its SIGSTRUCT. If there is only a SIGSTRUCT, that is verified.
    """
    image, sigstruct = folder / "enclave.pyz", folder / "enclave.sig"
    if image.exists():
        return verify_artefact(image, sigstruct, production=True)
    return verify_sigstruct(sigstruct.read_bytes())


def _signature_file(release: Release) -> bytes:
    return "".join(f"{encode_multibase(item)}\n" for item in release.signatures).encode()
