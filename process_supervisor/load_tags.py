"""Tags at a Docker engine around the load of an archive: what the load does to them is undone, also after a crash.

An archive is not verified yet, and other programs start what tags name. So tags that are here keep pointing to the
images that they point to, and tags that the archive brings are removed. What was there before is noted on disk for the
time of a load: an agent that was killed in its middle undoes it at its next start.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiodocker

from .engine_client import engine_errors
from .plain_file import read_plain
from .slots import write_file
from .sources import is_enclave_id
from .threads import in_thread

NOTE_SUFFIX = ".load"
NOTE_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TagsBefore:
    """Tags with the ids of their images: `now` when this load began, `first` when the first try at it began.

    They differ if an earlier try was broken off. `image_id` is the id that the archive names.
    """

    image_id: str
    first: Mapping[str, str]
    now: Mapping[str, str]


class LoadTags:
    """The tags of one engine, and the notes of one agent's loads in the folder `notes` (None: nothing is noted)."""

    def __init__(self, docker: aiodocker.Docker, notes: Path | None) -> None:
        self._docker, self._notes = docker, notes
        self._under_way: set[str] = set()
        self._guard = asyncio.Lock()

    async def begin(self, enclave_id: str, image_id: str) -> TagsBefore:
        """Note the tags of now, before an archive that names this image is loaded."""
        async with self._guard:
            now = await self._list()
            earlier = await asyncio.to_thread(self._read, enclave_id)
            before = TagsBefore(image_id, earlier.first if earlier is not None else now, now)
            if self._notes is not None:
                text = json.dumps({"image_id": before.image_id, "tags": dict(before.first)})
                await in_thread(write_file, self._path(self._notes, enclave_id), text.encode())
            self._under_way.add(enclave_id)
        return before

    async def end(self, enclave_id: str, before: TagsBefore, loaded: set[str] | None, kept: str) -> None:
        """Undo what a load did to tags, except to `kept`, and forget its note.

        Tags are the load's if they name one of the images `loaded`. Where that is not known, because the load broke, if
        they name an image which had no tag. What others tagged meanwhile stays.
        """
        try:
            if loaded is None:
                tagged = set(before.now.values())
                await self._undo(before.now, kept, {one for one in (await self._list()).values() if one not in tagged})
            else:
                await self._undo(before.first, kept, loaded)
            if loaded is not None or before.first == before.now:
                await in_thread(self._forget, enclave_id)
        finally:
            self._under_way.discard(enclave_id)

    async def undo_unfinished(self) -> None:
        """Undo what the loads of an earlier agent did that it did not come to undo itself.

        Engines with containerd's store give images other ids than archives name: there the note waits until the release
        is loaded again.
        """
        noted = await asyncio.to_thread(self._noted)
        if not noted or await self.by_containerd():
            return
        for enclave_id in noted:
            async with self._guard:
                if enclave_id in self._under_way:
                    continue
                before = await asyncio.to_thread(self._read, enclave_id)
                if before is not None:
                    await self._undo(before.first, kept_tag(enclave_id), {before.image_id})
                await in_thread(self._forget, enclave_id)

    async def _undo(self, before: Mapping[str, str], kept: str, images: set[str]) -> None:
        """Point back the tags of `before` that name one of `images` now, and remove the others that do."""
        for tag, found in (await self._list()).items():
            if tag == kept or found not in images or before.get(tag) == found:
                continue
            if tag in before:
                await self.tag(before[tag], tag)
            else:
                await self.untag(tag, noprune=True)

    async def by_containerd(self) -> bool:
        """Whether the engine keeps images in containerd's store."""
        # Engines before API 1.48 do not show it at an image (`Descriptor`), only in their facts.
        with engine_errors("facts of the engine"):
            info = await self._docker.system.info()
        return any("io.containerd" in str(row) for row in info.get("DriverStatus") or ())

    async def _list(self) -> dict[str, str]:
        """Return every tag at the engine with the id of its image. The tags named in an archive are not trusted."""
        with engine_errors("list of images"):
            listed = await self._docker.images.list()
        return {tag: str(item["Id"]) for item in listed for tag in item.get("RepoTags") or () if "<none>" not in tag}

    async def tag(self, image_id: str, reference: str) -> None:
        """Point a tag to an image."""
        repository, _, tag = reference.rpartition(":")
        with engine_errors(f"tag {reference}"):
            await self._docker.images.tag(image_id, repository, tag=tag)

    async def untag(self, reference: str, *, noprune: bool = False) -> None:
        """Remove a tag; with `noprune` an image stays also if this was its last one."""
        with engine_errors(f"tag {reference}"):
            try:
                await self._docker.images.delete(reference, noprune=noprune)
            except aiodocker.DockerError as error:
                if error.status not in (404, 409):  # it is gone already, or a container still has it
                    raise

    # --- notes; blocking ---------------------------------------------------------------------------------------------

    @staticmethod
    def _path(notes: Path, enclave_id: str) -> Path:
        return notes / f"{enclave_id}{NOTE_SUFFIX}"

    def _noted(self) -> list[str]:
        """Enclave ids of the releases whose load was not finished."""
        if self._notes is None or not self._notes.is_dir():
            return []
        return sorted(path.stem for path in self._notes.glob(f"*{NOTE_SUFFIX}") if is_enclave_id(path.stem))

    def _read(self, enclave_id: str) -> TagsBefore | None:
        """The note of an earlier load; None if there is none that can be used."""
        if self._notes is None:
            return None
        try:
            values = json.loads(read_plain(self._path(self._notes, enclave_id), NOTE_BYTES_MAX))
            tags = {str(tag): str(image_id) for tag, image_id in values["tags"].items()}
            return TagsBefore(str(values["image_id"]), tags, tags)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def _forget(self, enclave_id: str) -> None:
        if self._notes is not None:
            self._path(self._notes, enclave_id).unlink(missing_ok=True)


def kept_tag(enclave_id: str) -> str:
    """Return the tag by which a release's image is kept."""
    return f"dcupgrade/release:{enclave_id}"
