"""The part file of a download: written, hashed, resumed, limited, verified.

Beside a part file `<name>.part` lies `<name>.part.json`, which describes the artefact. All calls block and are made in
threads.
"""

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from .content_id import ContentId
from .errors import ProcessSupervisorError
from .limits import MIB, DownloadLimits
from .sources import DigestCheck, UrlSource

SPACE_CHECK_BYTES = 16 * MIB
META_BYTES_MAX = 16 * 1024
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete artefact in the part file: its size in bytes, SHA-256 as hex, and its source.

    `resumed` is set if it was assembled from several answers, or from bytes that an earlier run left on the disk.
    """

    path: Path
    size: int
    sha256: str
    source: str
    resumed: bool = False


def download_error(code: str, source: str, why: str, action: str) -> ProcessSupervisorError:
    """Make the transient error of one source. It says nothing about the release."""
    return ProcessSupervisorError(code=code, what=f"download of {source}", why=why, action=action)


def disk_error(error: OSError, path: Path) -> ProcessSupervisorError:
    """The error to report for an OSError while writing below `path`."""
    if error.errno in _DISK_FULL:
        return ProcessSupervisorError(
            code="STAGING_DISK_FULL",
            what=f"writing below {path}",
            why=str(error.strerror),
            action="Free some space; the download continues where it stopped",
        )
    return ProcessSupervisorError(
        code="STAGING_DISK_ERROR",
        what=f"writing below {path}",
        why=str(error),
        action="Make the slots folder writable for the user that the agent runs as",
    )


def require_space(folder: Path, needed: int, limits: DownloadLimits) -> None:
    """Raise STAGING_DISK_FULL unless `folder`'s file system has room for `needed` bytes in addition to the reserve."""
    free = shutil.disk_usage(folder).free
    if free < needed + limits.free_bytes_min:
        raise ProcessSupervisorError(
            code="STAGING_DISK_FULL",
            what=f"writing below {folder}",
            why=f"{free} bytes are free, {needed} are needed beside a reserve of {limits.free_bytes_min}",
            action="Free some space; the download continues where it stopped",
        )


class Part:
    """The part file with its running digest.

    `size` is the number of bytes in the file, `farthest` the largest size it ever had, and `thrown_away` the number of
    received bytes that were discarded.
    """

    def __init__(self, path: Path, source: UrlSource, cids: tuple[ContentId, ...], limits: DownloadLimits) -> None:
        self.path = path
        self.size = 0
        self.farthest = 0
        self.thrown_away = 0
        self.total: int | None = None
        self.validator: str | None = None
        self.resumed = False
        self._file = -1
        self._meta = _meta_path(path)
        self._source = source
        self._cids = cids
        self._limits = limits
        self._space_checked_at = 0
        self._check = DigestCheck(source.sha256, cids, at_gateway=source.own)

    def open(self) -> None:
        """Continue the file of an earlier try if it is from this source and can be validated; otherwise start again."""
        try:
            meta = json.loads(_read_start(self._meta))
            usable = meta["url"] == self._source.url and isinstance(meta["validator"], str)
            size = self.path.stat().st_size
            usable = usable and isinstance(meta["total"], int | None) and 0 < size <= self._limits.size_bytes_max
            if not usable or (meta["total"] is not None and size > meta["total"]):
                raise ValueError("not resumable")
            self._file = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            self.reset(None, None)
            return
        self.size, self.total, self.validator, self.resumed = size, meta["total"], meta["validator"], True
        self.farthest = size
        while data := os.read(self._file, self._limits.chunk_bytes):
            self._check.update(data)

    def reset(self, validator: str | None, total: int | None) -> None:
        """Start from byte 0, and store the validator for a later resume."""
        self.close()
        self.path.unlink(missing_ok=True)
        self._check = DigestCheck(self._source.sha256, self._cids, at_gateway=self._source.own)
        self.thrown_away += self.size
        self.size, self.total, self.validator, self.resumed, self._space_checked_at = 0, total, validator, False, 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o600)
        self._write_meta()

    def extend(self, total: int) -> None:
        """Record that an answer continues the part, which now has several pieces of an artefact of `total` bytes."""
        self.resumed = True
        if self.total != total:
            self.total = total
            self._write_meta()

    def require_room(self) -> None:
        """Check the announced size against the limits and the disk; the unpacked files need about as much again."""
        if self.total is not None:
            if self.total > self._limits.size_bytes_max:
                raise self._too_large(f"the server announces {self.total} bytes")
            require_space(self.path.parent, 2 * self.total - self.size, self._limits)

    def append(self, data: bytes | bytearray) -> None:
        """Write and hash the next bytes. Raises DOWNLOAD_TOO_LARGE, STAGING_DISK_FULL, OSError."""
        if self.size + len(data) > self._limits.size_bytes_max:
            raise self._too_large("more bytes keep coming")
        if self.size >= self._space_checked_at:
            require_space(self.path.parent, len(data), self._limits)
            self._space_checked_at = self.size + SPACE_CHECK_BYTES
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, self.size)
            self._check.update(view[:written])
            self.size += written
            view = view[written:]
        self.farthest = max(self.farthest, self.size)

    def finish(self) -> Fetched:
        """Sync and verify the complete file.

        Raises DOWNLOAD_TRUNCATED (the file is kept, to be continued), DOWNLOAD_DIGEST_MISMATCH and
        DOWNLOAD_LAYOUT_UNKNOWN (the file is removed).
        """
        source = self._source.url
        if self.total is not None and self.size != self.total:
            why = f"{self.size} of {self.total} bytes were received"
            raise download_error("DOWNLOAD_TRUNCATED", source, why, "It continues where it stopped")
        try:
            self._check.verify(f"download of {source}")
        except ProcessSupervisorError:
            self.discard()
            raise
        os.fsync(self._file)
        return Fetched(self.path, self.size, self._check.sha256, source, self.resumed)

    def discard(self) -> None:
        """Remove the file and what is known about it."""
        self.close()
        discard_part(self.path)

    def close(self) -> None:
        """Close the file; safe to do twice."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _write_meta(self) -> None:
        meta = {"url": self._source.url, "validator": self.validator, "total": self.total}
        self._meta.write_text(json.dumps(meta), encoding="utf-8")

    def _too_large(self, why: str) -> ProcessSupervisorError:
        self.discard()
        why = f"{why}, {self._limits.size_bytes_max} are allowed"
        return download_error("DOWNLOAD_TOO_LARGE", self._source.url, why, "Raise the limit if this is right")


def discard_part(path: Path) -> None:
    """Remove a part file and what is known about it."""
    path.unlink(missing_ok=True)
    _meta_path(path).unlink(missing_ok=True)


def _meta_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(META_BYTES_MAX)
