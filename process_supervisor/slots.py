"""The slots folder: verified releases, each named by its enclave id; everything else is kept apart.

Names that begin with a dot are internal; their content is unverified:

    <enclave id>/               a verified release
    .incoming/<id>.<source>.part[.json]  a download to be resumed; one for each source
    .incoming/<id>.new/         being unpacked and verified; removed at the next try
    .incoming/<id>.pin          the digest that an image reference was resolved to
    .incoming/<id>.lock         held while this release is staged
    .aside/<id>.<n>/            a slot that failed verification, kept for a person to examine: the last ASIDE_KEPT

Files of an abandoned release in .incoming are removed when another release is staged LEFTOVER_S or more later. All
files of a release are removed together with its slot.
"""

import asyncio
import fcntl
import inspect
import json
import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from .errors import ProcessSupervisorError
from .sources import is_enclave_id
from .threads import in_thread

RELEASE_FILES = frozenset({"release.json", "enclave.pyz", "enclave.sig"})
SIGSTRUCT_FILE = "enclave.sig"
STAGE_FILE = "stage.json"
Identity = Literal["measured", "sigstruct", "attested"]
"""How a release's enclave id is proven before it is started, strongest first: its files measure to it; the SIGSTRUCT
of its signed enclave names it; nothing says so before the node attests itself to the vault."""
IDENTITIES: tuple[Identity, ...] = ("measured", "sigstruct", "attested")
FILES_BY_IDENTITY: dict[Identity, frozenset[str]] = {
    "measured": RELEASE_FILES,
    "sigstruct": frozenset({"release.json", SIGSTRUCT_FILE}),
    "attested": frozenset({"release.json"}),
}
ASIDE_KEPT = 3
LEFTOVER_S = 7 * 86400.0

Verify = Callable[[Path], Awaitable[str] | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """The content of a slot's `stage.json`, for people and for the driver. The slot's files are verified by measuring.

    `digest` (SHA-256, hex) and `size` (bytes) are those of the archive that came from `source`. `image_id` is set where
    the release is a container image. `identity` says how the enclave id was proven (see `Identity`).
    """

    digest: str
    size: int
    source: str
    image_id: str = ""
    identity: Identity = "measured"

    def to_json(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "StageFacts":
        """Decode the file; raises ValueError."""
        try:
            values = json.loads(text)
        except RecursionError as error:
            raise ValueError("stage.json is nested too deeply") from error
        kinds = {"digest": str, "size": int, "source": str, "image_id": str, "identity": str}
        if isinstance(values, dict) and type(values.get("measured")) is bool:  # a slot written by an earlier agent
            values["identity"] = "measured" if values.pop("measured") else "attested"
        if not isinstance(values, dict) or set(values) != set(kinds):
            raise ValueError("stage.json is malformed")
        if any(type(values[name]) is not kind for name, kind in kinds.items()) or values["identity"] not in IDENTITIES:
            raise ValueError("stage.json is malformed")
        return cls(**values)

    @property
    def members(self) -> frozenset[str]:
        """Names of the release's own files in such a slot, without the files that the agent adds."""
        return FILES_BY_IDENTITY[self.identity]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedRelease:
    """A release in its slot that has just been verified."""

    path: Path
    enclave_id: str
    facts: StageFacts

    @property
    def digest(self) -> str:
        """SHA-256 of the archive, hex."""
        return self.facts.digest

    @property
    def size(self) -> int:
        """Bytes of the archive."""
        return self.facts.size

    @property
    def source(self) -> str:
        """Where it came from."""
        return self.facts.source


def prepare(slots: Path) -> None:
    """Make the folders. Blocking."""
    for folder in (slots, slots / ".incoming", slots / ".aside"):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def staging_lock(slots: Path, enclave_id: str) -> Iterator[None]:
    """Hold the lock of a release while it is staged. Raises STAGING_BUSY if another process holds it. Blocking."""
    fd = os.open(slots / ".incoming" / f"{enclave_id}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ProcessSupervisorError(
                code="STAGING_BUSY",
                what=f"staging {enclave_id}",
                why="another process is at it",
                action="Run one agent per state folder",
            ) from error
        yield
    finally:
        os.close(fd)


def remove_leftovers(slots: Path, now: float) -> None:
    """Remove files of unfinished downloads that have not changed for LEFTOVER_S before `now` (Unix time). Blocking.

    Lock and pin of a release that has a slot stay: a pin records the digest to which a reference was resolved.
    """
    old: dict[str, list[Path]] = {}
    for path in (slots / ".incoming").iterdir():
        enclave_id = path.name.partition(".")[0]
        has_slot = os.path.lexists(slots / enclave_id)
        if is_enclave_id(enclave_id) and not (has_slot and path.suffix in (".lock", ".pin")):
            old.setdefault(enclave_id, []).append(path)
    for enclave_id, paths in old.items():
        if any(_age_s(path, now) < LEFTOVER_S for path in paths):
            continue
        with suppress(ProcessSupervisorError), staging_lock(slots, enclave_id):
            for path in paths:
                remove_path(path)


def _age_s(path: Path, now: float) -> float:
    try:
        return now - path.lstat().st_mtime
    except FileNotFoundError:  # another process is staging that release
        return 0.0


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if it exists. Of a symbolic link, only the link is removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a temporary file, sync it, rename it: after a crash the file has either its old or its new content."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o644)  # like the release's files: slots hold no secrets
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(aside, path)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def verify_folder(folder: Path, enclave_id: str, verify: Verify) -> None:
    """Raise STAGING_ENCLAVE_ID_MISMATCH, or what `verify` raises, unless the folder measures to that id."""
    result = await asyncio.to_thread(verify, folder)
    found = await result if inspect.isawaitable(result) else result
    if found != enclave_id:
        raise ProcessSupervisorError(
            code="STAGING_ENCLAVE_ID_MISMATCH",
            what=f"artefact for {enclave_id}",
            why=f"it measures to {found}",
            action="The source serves another build than the signed one; tell the publisher",
            kind="rejected",
        )


async def open_slot(
    slots: Path,
    enclave_id: str,
    verify: Verify,
    extra_files: Mapping[str, bytes] | None = None,
    weakest: Identity = "measured",
) -> StagedRelease | None:
    """Return the release in its slot, verified again; None if there is none, or if the slot is bad and was set aside.

    Nothing in the slot is trusted: it must hold only plain files of known names, and they are verified again.
    `weakest` is the weakest proof of identity that the settings allow now.
    """
    path = slots / enclave_id
    if not is_enclave_id(enclave_id):
        return None
    try:
        facts = await asyncio.to_thread(_inspect, path, extra_files or {})
        if facts is None:
            return None
        if IDENTITIES.index(facts.identity) > IDENTITIES.index(weakest):
            raise ValueError("its identity was never proven as the settings ask for")
        if facts.identity != "attested":
            await verify_folder(path, enclave_id, verify)
    except OSError:
        raise
    except Exception:  # for whatever reason it cannot be verified, it is neither used nor deleted
        await in_thread(set_aside, slots, enclave_id)
        return None
    for name, data in (extra_files or {}).items():
        await in_thread(_refresh, path / name, data)
    return StagedRelease(path=path, enclave_id=enclave_id, facts=facts)


def _refresh(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        write_file(path, data)
        sync_folder(path.parent)


def _inspect(path: Path, extra_files: Mapping[str, bytes]) -> StageFacts | None:
    """Return the facts noted at staging; None without a slot. Raises ValueError if files are missing or unexpected."""
    if not os.path.lexists(path):
        return None
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise ValueError("the slot is not a folder")
    found: set[str] = set()
    for item in path.rglob("*"):
        mode = item.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise ValueError(f"{item.name} is not a plain file")
        found.add(str(item.relative_to(path)))
    try:
        facts = StageFacts.from_json((path / STAGE_FILE).read_bytes())
    except FileNotFoundError as error:
        raise ValueError("the slot has no stage.json") from error
    # A crash inside write_file leaves such a file. It is not part of the release.
    asides = {f".{name}.new" for name in extra_files}
    if not facts.members <= found or found - facts.members - set(extra_files) - asides - {STAGE_FILE}:
        raise ValueError(f"the slot holds {sorted(found)}")
    return facts


def set_aside(slots: Path, enclave_id: str) -> Path:
    """Move an unusable slot to `.aside/<id>.<n>` and return that path. Blocking."""
    folder = slots / ".aside"
    folder.mkdir(parents=True, exist_ok=True)
    ends = [path.name.rpartition(".")[2] for path in folder.glob(f"{enclave_id}.*")]
    kept = sorted(int(end) for end in ends if end.isdecimal())
    number = kept[-1] + 1 if kept else 1
    # A failing disk damages slots again and again; keeping all of them would fill the disk.
    for old in kept[: max(0, len(kept) + 1 - ASIDE_KEPT)]:
        remove_path(folder / f"{enclave_id}.{old}")
    target = folder / f"{enclave_id}.{number}"
    os.rename(slots / enclave_id, target)
    sync_folder(folder)
    sync_folder(slots)
    return target


def remove_slot(slots: Path, enclave_id: str) -> None:
    """Delete a slot and everything that its staging left. Safe to repeat, also after a crash in the middle.

    Blocking. Raises STAGING_BUSY while the release is staged.
    """
    if not is_enclave_id(enclave_id):
        raise ValueError("not an enclave id")
    prepare(slots)
    with staging_lock(slots, enclave_id):
        if os.path.lexists(slots / enclave_id):
            # Rename first, so that a partly deleted folder never has a slot's name.
            doomed = slots / ".incoming" / f"{enclave_id}.removed"
            remove_path(doomed)
            os.rename(slots / enclave_id, doomed)
            sync_folder(slots)
        for path in (*(slots / ".incoming").glob(f"{enclave_id}.*"), *(slots / ".aside").glob(f"{enclave_id}.*")):
            remove_path(path)  # the lock's file too; the lock itself is held until the end
