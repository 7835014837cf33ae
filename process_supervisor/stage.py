"""Stages a release: download, unpack aside, verify, and only then give it its final name `slots/<enclave id>/`.

Layout of the slots folder (all names below a dot are ours and unverified):

    <enclave id>/               a verified release
    .incoming/<id>.part[.json]  a download to be resumed
    .incoming/<id>.new/         being unpacked and verified; removed at the next try
    .incoming/<id>.lock         held while this release is staged
    .aside/<id>.<n>/            a slot that failed verification, kept for a person to look at
"""

import asyncio
import fcntl
import inspect
import json
import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from process_supervisor.archive import unpack
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.fetch import Fetched, Progress, ProgressFn, discard_part, disk_error, fetch
from process_supervisor.limits import DownloadLimits
from process_supervisor.sources import ContentId, ImageReference, UrlSource, decode_cid, decode_source, is_enclave_id

RELEASE_FILES = frozenset({"release.json", "enclave.pyz", "enclave.sig"})
STAGE_FILE = "stage.json"
EXTRA_FILE_BYTES_MAX = 64 * 1024

Verify = Callable[[Path], Awaitable[str] | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """What to stage: the signed enclave id, where it may be had, and small files that go into the slot with it.

    `members` are the archive's files, exactly. `extra_files` (name to content, such as the network signature) are
    written by us and kept up to date when a slot is used again.
    """

    enclave_id: str
    sources: tuple[str, ...]
    cids: tuple[str, ...] = ()
    members: frozenset[str] = RELEASE_FILES
    extra_files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedRelease:
    """A verified release in its slot; `digest` (SHA-256, hex) and `size` (bytes) are those of the archive."""

    path: Path
    enclave_id: str
    digest: str
    size: int
    source: str


def _quiet(_: Progress) -> None:
    return None


async def stage(
    request: StageRequest,
    slots: Path,
    verify: Verify,
    limits: DownloadLimits | None = None,
    progress: ProgressFn = _quiet,
    session: aiohttp.ClientSession | None = None,
) -> StagedRelease:
    """Bring a release into its slot, or find it there and verify it again.

    `verify` gets a folder with the unpacked files and returns the enclave id they measure to, or raises; a plain
    function is called in a thread. Sources are tried in turn, then the CIDs at the gateways. One reason alone is raised
    as it is (`verify`'s own errors too); different ones as DOWNLOAD_SOURCES_FAILED. Also raises STAGING_*.
    """
    limits = limits or DownloadLimits()
    plan, refusals = _plan(request, limits)
    try:
        await asyncio.to_thread(_prepare, slots)
        with _staging_lock(slots, request.enclave_id):
            existing = await open_slot(slots, request.enclave_id, verify, request.extra_files, request.members)
            if existing is not None:
                progress(Progress("ready", existing.source, existing.size, existing.size))
                return existing
            if session is not None:
                return await _stage_from(plan, refusals, request, slots, verify, limits, progress, session)
            async with aiohttp.ClientSession(auto_decompress=False) as own:
                return await _stage_from(plan, refusals, request, slots, verify, limits, progress, own)
    except OSError as error:
        raise disk_error(error, slots) from error


def _plan(
    request: StageRequest, limits: DownloadLimits
) -> tuple[list[tuple[UrlSource, tuple[ContentId, ...]]], list[Exception]]:
    """The sources in the order in which they are tried, each with the CIDs its content must match; and refusals."""
    bad_extra = [
        name
        for name, data in request.extra_files.items()
        if name in request.members or "/" in name or name.startswith(".") or len(data) > EXTRA_FILE_BYTES_MAX
    ]
    if not is_enclave_id(request.enclave_id) or bad_extra:
        raise ProcessSupervisorError(
            code="STAGING_REQUEST_INVALID",
            what=f"staging {request.enclave_id[:80]!r}",
            why=f"extra files {bad_extra} are not allowed" if bad_extra else "the enclave id is not 64 lower-case hex",
            action="The release on the chain is malformed",
            kind="rejected",
        )
    refusals: list[Exception] = []
    cids: list[ContentId] = []
    urls: list[UrlSource] = []
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
        if isinstance(decoded, ImageReference):
            refusals.append(_needs_containers(text))
        else:
            urls.append(decoded)
    plan = [(url, tuple(cids)) for url in urls]
    for gateway in limits.ipfs_gateways:
        base = gateway.rstrip("/")
        plan += [(UrlSource(base.split(":")[0], f"{base}/ipfs/{item.text}"), (item,)) for item in cids]
    return plan, refusals


def _needs_containers(text: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="DOWNLOAD_SOURCE_UNSUPPORTED",
        what=f"source {text[:200]!r}",
        why="it is a container image, and this node runs as a process",
        action="Set the container driver, or publish an archive too",
        kind="rejected",
    )


def _prepare(slots: Path) -> None:
    for folder in (slots, slots / ".incoming", slots / ".aside"):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _staging_lock(slots: Path, enclave_id: str) -> Iterator[None]:
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


async def _stage_from(
    plan: list[tuple[UrlSource, tuple[ContentId, ...]]],
    refusals: list[Exception],
    request: StageRequest,
    slots: Path,
    verify: Verify,
    limits: DownloadLimits,
    progress: ProgressFn,
    session: aiohttp.ClientSession,
) -> StagedRelease:
    part = slots / ".incoming" / f"{request.enclave_id}.part"
    failures = list(refusals)
    for source, cids in plan:
        try:
            fetched = await fetch(session, source, cids, part, limits, progress)
            progress(Progress("unpack", source.url, fetched.size, fetched.size))
            return await _unpack_and_name(fetched, request, slots, verify, limits, progress)
        except OSError:
            raise
        except ProcessSupervisorError as error:
            if error.code.startswith("STAGING_DISK"):
                raise
            failures.append(error)
        except Exception as error:  # verify raises what its package raises; every source gets its chance
            failures.append(error)
    raise _combined(failures, request)


def _combined(failures: list[Exception], request: StageRequest) -> Exception:
    # A source that only another driver can use says less than a source that failed.
    telling = [item for item in failures if getattr(item, "code", "") != "DOWNLOAD_SOURCE_UNSUPPORTED"] or failures
    if telling and len({getattr(item, "code", type(item).__name__) for item in telling}) == 1:
        return telling[-1]
    transient = any(getattr(item, "kind", "") == "transient" for item in telling)
    return ProcessSupervisorError(
        code="DOWNLOAD_SOURCES_FAILED" if telling else "STAGING_REQUEST_INVALID",
        what=f"staging {request.enclave_id}",
        why="; ".join(str(item) for item in telling) or "the release names no source",
        action="Tell the publisher which of its sources are bad; nothing was changed here",
        kind="transient" if transient else "rejected",
    )


async def _unpack_and_name(
    fetched: Fetched,
    request: StageRequest,
    slots: Path,
    verify: Verify,
    limits: DownloadLimits,
    progress: ProgressFn,
) -> StagedRelease:
    fresh = slots / ".incoming" / f"{request.enclave_id}.new"
    try:
        await asyncio.to_thread(_unpack_aside, fetched, fresh, request, limits)
        progress(Progress("verify", fetched.source, fetched.size, fetched.size))
        await _verify_folder(fresh, request.enclave_id, verify)
    except Exception:
        # These bytes are bad as a whole: resuming them would only bring the same again.
        await asyncio.to_thread(_discard_all, fetched.path, fresh)
        raise
    final = slots / request.enclave_id
    await asyncio.to_thread(_give_final_name, fresh, final, fetched.path)
    progress(Progress("ready", fetched.source, fetched.size, fetched.size))
    return StagedRelease(
        path=final, enclave_id=request.enclave_id, digest=fetched.sha256, size=fetched.size, source=fetched.source
    )


def _discard_all(part: Path, fresh: Path) -> None:
    discard_part(part)
    shutil.rmtree(fresh, ignore_errors=True)


def _unpack_aside(fetched: Fetched, fresh: Path, request: StageRequest, limits: DownloadLimits) -> None:
    if fresh.is_symlink() or fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(mode=0o755)
    unpack(fetched.path, fresh, limits.archive, request.members)
    facts = {"digest": fetched.sha256, "size": fetched.size, "source": fetched.source}
    _write_file(fresh / STAGE_FILE, json.dumps(facts).encode())
    for name, data in request.extra_files.items():
        _write_file(fresh / name, data)
    sync_folder(fresh)


def _give_final_name(fresh: Path, final: Path, part: Path) -> None:
    os.rename(fresh, final)
    sync_folder(final.parent)
    discard_part(part)


def _write_file(path: Path, data: bytes) -> None:
    """Write aside, sync, rename: the file has its old content or the new one, whatever happens."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
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


async def _verify_folder(folder: Path, enclave_id: str, verify: Verify) -> None:
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
    members: frozenset[str] = RELEASE_FILES,
) -> StagedRelease | None:
    """The release in its slot, verified anew; None if there is none. A bad slot is set aside, and None returned.

    Nothing that lies there is trusted: its files are looked at (plain files of known names only) and measured again.
    """
    path = slots / enclave_id
    if not is_enclave_id(enclave_id):
        return None
    try:
        facts = await asyncio.to_thread(_inspect, path, members, extra_files or {})
        if facts is None:
            return None
        digest, size, source = facts
        await _verify_folder(path, enclave_id, verify)
    except OSError:
        raise
    except Exception:  # whatever makes it unverifiable: it is not used, and not deleted either
        await asyncio.to_thread(set_aside, slots, enclave_id)
        return None
    for name, data in (extra_files or {}).items():
        await asyncio.to_thread(_refresh, path / name, data)
    return StagedRelease(path=path, enclave_id=enclave_id, digest=digest, size=size, source=source)


def _refresh(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        _write_file(path, data)
        sync_folder(path.parent)


def _inspect(path: Path, members: frozenset[str], extra_files: Mapping[str, bytes]) -> tuple[str, int, str] | None:
    """Digest, size and source as noted at staging, None without a slot; ValueError if it holds not what it should."""
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
    # A crash inside _write_file leaves such a file; it is no part of the release.
    asides = {f".{name}.new" for name in extra_files}
    if not members <= found or found - members - set(extra_files) - asides - {STAGE_FILE}:
        raise ValueError(f"the slot holds {sorted(found)}")
    try:
        facts = json.loads((path / STAGE_FILE).read_text(encoding="utf-8"))
        return str(facts["digest"]), int(facts["size"]), str(facts["source"])
    except (FileNotFoundError, KeyError, TypeError) as error:
        raise ValueError("the slot's stage.json is missing or malformed") from error


def set_aside(slots: Path, enclave_id: str) -> Path:
    """Move a slot that cannot be used to `.aside/<id>.<n>` and return that path. Blocking."""
    folder = slots / ".aside"
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while os.path.lexists(folder / f"{enclave_id}.{number}"):
        number += 1
    target = folder / f"{enclave_id}.{number}"
    os.rename(slots / enclave_id, target)
    sync_folder(folder)
    sync_folder(slots)
    return target


def remove_slot(slots: Path, enclave_id: str) -> None:
    """Delete a slot for good; safe to do twice and after a crash in its middle. Blocking."""
    if not is_enclave_id(enclave_id):
        raise ValueError("not an enclave id")
    doomed = slots / ".incoming" / f"{enclave_id}.removed"
    if doomed.exists():
        shutil.rmtree(doomed)
    if os.path.lexists(slots / enclave_id):
        doomed.parent.mkdir(parents=True, exist_ok=True)
        # Renamed first: a half-deleted folder never carries a slot's name.
        os.rename(slots / enclave_id, doomed)
        sync_folder(slots)
        shutil.rmtree(doomed)
