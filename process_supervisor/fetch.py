"""Downloads one artefact from one source into a part file: streamed, resumed, limited, hashed, verified.

A part file `<name>.part` has `<name>.part.json` beside it, which says what it is a part of. Resuming follows RFC 9110
section 14: `Range` with `If-Range`, and only where the server gave a strong validator.
"""

import asyncio
import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

import aiohttp
from multidict import CIMultiDictProxy

from .errors import Kind, ProcessSupervisorError
from .limits import MIB, DownloadLimits
from .sources import ContentId, DigestCheck, UrlSource
from .threads import in_thread

SPACE_CHECK_BYTES = 16 * MIB
MODIFIED_AGE_MIN = timedelta(seconds=60)
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRIED_STATUS = frozenset({408, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})\Z")


@dataclass(frozen=True, slots=True)
class Progress:
    """What staging is doing: bytes received so far, and how many there are in all where the server said so."""

    stage: Literal["download", "unpack", "verify", "ready"]
    source: str
    received_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole artefact in the part file: its size in bytes, SHA-256 as hex, and the source that gave it.

    `resumed` tells that it was put together from several answers, or from what an earlier run left on the disk.
    """

    path: Path
    size: int
    sha256: str
    source: str
    resumed: bool = False


ProgressFn = Callable[[Progress], None]
Sleep = Callable[[float], Awaitable[None]]


class _AttemptError(Exception):
    """An attempt failed; `retry` says whether the same source may do better at once."""

    def __init__(self, error: ProcessSupervisorError, *, retry: bool) -> None:
        super().__init__(error)
        self.error = error
        self.retry = retry


def _error(code: str, source: str, why: str, action: str, kind: Kind = "transient") -> ProcessSupervisorError:
    return ProcessSupervisorError(code=code, what=f"download of {source}", why=why, action=action, kind=kind)


def disk_error(error: OSError, path: Path) -> ProcessSupervisorError:
    """The error to report for an OSError while writing below `path`."""
    if error.errno in _DISK_FULL:
        return ProcessSupervisorError(
            code="STAGING_DISK_FULL",
            what=f"writing below {path}",
            why=str(error.strerror),
            action="Free some space; the download goes on where it stopped",
        )
    return ProcessSupervisorError(
        code="STAGING_DISK_ERROR",
        what=f"writing below {path}",
        why=str(error),
        action="Make the slots folder writable for the user that the agent runs as",
    )


def require_space(folder: Path, needed: int, limits: DownloadLimits) -> None:
    """Raise STAGING_DISK_FULL unless `needed` bytes fit into `folder`'s file system beside the reserve."""
    free = shutil.disk_usage(folder).free
    if free < needed + limits.free_bytes_min:
        raise ProcessSupervisorError(
            code="STAGING_DISK_FULL",
            what=f"writing below {folder}",
            why=f"{free} bytes are free, {needed} are needed beside a reserve of {limits.free_bytes_min}",
            action="Free some space; the download goes on where it stopped",
        )


class _Part:
    """The part file with its running digest. All methods block; the event loop calls them in threads."""

    def __init__(self, path: Path, source: UrlSource, cids: tuple[ContentId, ...], limits: DownloadLimits) -> None:
        self.path = path
        self.size = 0
        self.total: int | None = None
        self.validator: str | None = None
        self.resumed = False
        self._meta = path.with_name(path.name + ".json")
        self._source = source
        self._cids = cids
        self._limits = limits
        self._space_checked_at = 0
        self._check = DigestCheck(source.sha256, cids)

    def open(self) -> None:
        """Take up what an earlier try left, if it is of this source and can be validated; otherwise start anew."""
        try:
            meta = json.loads(self._meta.read_text(encoding="utf-8"))
            usable = meta["url"] == self._source.url and isinstance(meta["validator"], str)
            size = self.path.stat().st_size
            usable = usable and isinstance(meta["total"], int | None) and 0 < size <= self._limits.size_bytes_max
            if not usable or (meta["total"] is not None and size > meta["total"]):
                raise ValueError("not resumable")
        except (OSError, ValueError, KeyError, TypeError):
            self.reset(None, None)
            return
        self.size, self.total, self.validator, self.resumed = size, meta["total"], meta["validator"], True
        with self.path.open("rb") as file:
            while data := file.read(self._limits.chunk_bytes):
                self._check.update(data)

    def reset(self, validator: str | None, total: int | None) -> None:
        """Start from byte 0, remembering by what a later resume can be validated."""
        self.path.unlink(missing_ok=True)
        self._check = DigestCheck(self._source.sha256, self._cids)
        self.size, self.total, self.validator, self.resumed, self._space_checked_at = 0, total, validator, False, 0
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.close(fd)
        meta = {"url": self._source.url, "validator": validator, "total": total}
        self._meta.write_text(json.dumps(meta), encoding="utf-8")

    def require_room(self) -> None:
        """Check the announced size against the limits and the disk; the unpacked files need about as much again."""
        if self.total is not None:
            if self.total > self._limits.size_bytes_max:
                raise self._too_large(f"the server announces {self.total} bytes")
            require_space(self.path.parent, 2 * self.total - self.size, self._limits)

    def append(self, data: bytes) -> None:
        """Write and hash the next bytes. Raises DOWNLOAD_TOO_LARGE, STAGING_DISK_FULL, OSError."""
        if self.size + len(data) > self._limits.size_bytes_max:
            raise self._too_large("more bytes keep coming")
        if self.size >= self._space_checked_at:
            require_space(self.path.parent, len(data), self._limits)
            self._space_checked_at = self.size + SPACE_CHECK_BYTES
        with self.path.open("r+b") as file:
            file.seek(self.size)
            file.write(data)
        self._check.update(data)
        self.size += len(data)

    def finish(self) -> Fetched:
        """Sync and verify the whole. Raises DOWNLOAD_TRUNCATED, DOWNLOAD_DIGEST_MISMATCH (nothing is kept then)."""
        source = self._source.url
        if self.total is not None and self.size != self.total:
            why = f"{self.size} of {self.total} bytes were received"
            raise _error("DOWNLOAD_TRUNCATED", source, why, "It goes on where it stopped")
        try:
            self._check.verify(f"download of {source}")
        except ProcessSupervisorError:
            self.discard()
            raise
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return Fetched(self.path, self.size, self._check.sha256, source, self.resumed)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._meta.unlink(missing_ok=True)

    def _too_large(self, why: str) -> ProcessSupervisorError:
        self.discard()
        why = f"{why}, {self._limits.size_bytes_max} are allowed"
        return _error("DOWNLOAD_TOO_LARGE", self._source.url, why, "Raise the limit if this is right", "rejected")


def discard_part(path: Path) -> None:
    """Remove a part file and what is known about it."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".json").unlink(missing_ok=True)


async def fetch(
    session: aiohttp.ClientSession,
    source: UrlSource,
    cids: tuple[ContentId, ...],
    path: Path,
    limits: DownloadLimits,
    progress: ProgressFn,
    sleep: Sleep = asyncio.sleep,
) -> Fetched:
    """Download `source` into the part file `path`, resuming what is there. Raises DOWNLOAD_*, STAGING_DISK_*."""
    part = _Part(path, source, cids, limits)
    try:
        async with asyncio.timeout(limits.total_s_max):
            await in_thread(part.open)
            if source.scheme == "file":
                return await _copy_file(source, part, limits, progress)
            return await _fetch_http(session, source, part, limits, progress, sleep)
    except TimeoutError as error:
        why = f"it took longer than {limits.total_s_max:g} s ({part.size} bytes received)"
        raise _error("DOWNLOAD_DEADLINE", source.url, why, "It goes on where it stopped") from error
    except OSError as error:
        raise disk_error(error, path.parent) from error


async def _copy_file(source: UrlSource, part: _Part, limits: DownloadLimits, progress: ProgressFn) -> Fetched:
    if not limits.allow_file_urls:
        why = "the settings do not allow sources on this machine"
        raise _error("DOWNLOAD_FILE_URL_REFUSED", source.url, why, "Publish it behind an http(s) URL", "rejected")

    def opened() -> int:
        # O_NONBLOCK: opening a FIFO must not hang; a check of the type follows.
        fd = os.open(url2pathname(urlsplit(source.url).path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a plain file")
        part.reset(None, status.st_size)
        return fd

    try:
        fd = await in_thread(opened)
    except OSError as error:
        raise _error("DOWNLOAD_UNREACHABLE", source.url, str(error), "Look at the path") from error
    try:
        await in_thread(part.require_room)
        while data := await in_thread(os.read, fd, limits.chunk_bytes):
            await in_thread(part.append, data)
            progress(Progress("download", source.url, part.size, part.total))
    finally:
        os.close(fd)
    return await in_thread(part.finish)


async def _fetch_http(
    session: aiohttp.ClientSession,
    source: UrlSource,
    part: _Part,
    limits: DownloadLimits,
    progress: ProgressFn,
    sleep: Sleep,
) -> Fetched:
    failures = 0
    while True:
        before = part.size
        try:
            return await _attempt(session, source, part, limits, progress)
        except _AttemptError as failure:
            # Progress earns another try: a long download over a bad line ends by its deadline, not by a count.
            failures = 1 if part.size > before else failures + 1
            if not failure.retry or failures >= limits.attempts_max:
                raise failure.error from failure
        await sleep(limits.retry_delay_s * 2 ** (failures - 1))


async def _attempt(
    session: aiohttp.ClientSession, source: UrlSource, part: _Part, limits: DownloadLimits, progress: ProgressFn
) -> Fetched:
    if part.total is not None and part.size == part.total:
        return await in_thread(part.finish)
    headers = {"Accept-Encoding": "identity"}
    if part.size and part.validator is not None:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    try:
        async with await _get(session, source.url, headers, limits) as response:
            await in_thread(_accept_response, response.status, response.headers, part, source)
            await in_thread(part.require_room)
            async for data in response.content.iter_chunked(limits.chunk_bytes):
                await in_thread(part.append, data)
                progress(Progress("download", source.url, part.size, part.total))
        return await in_thread(part.finish)
    except aiohttp.ClientPayloadError as error:
        why = f"the connection ended after {part.size} bytes"
        raise _AttemptError(_error("DOWNLOAD_TRUNCATED", source.url, why, "It goes on later"), retry=True) from error
    except (aiohttp.ClientError, aiohttp.InvalidURL) as error:
        why = str(error) or type(error).__name__
        failure = _error("DOWNLOAD_UNREACHABLE", source.url, why, "Look at the network and at the server")
        raise _AttemptError(failure, retry=True) from error
    except ProcessSupervisorError as error:
        if error.code == "DOWNLOAD_DIGEST_MISMATCH" and part.resumed:
            # It may be the pieces that do not belong together. Only what came in one piece tells about the source.
            await in_thread(part.reset, None, None)
            raise _AttemptError(error, retry=True) from error
        if error.code == "DOWNLOAD_TRUNCATED":
            raise _AttemptError(error, retry=True) from error
        raise


async def _get(
    session: aiohttp.ClientSession, url: str, headers: dict[str, str], limits: DownloadLimits
) -> aiohttp.ClientResponse:
    """GET with redirects followed by hand: only to http(s), never from https to http, a bounded number of times."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s_max, sock_read=limits.idle_s_max)
    secure = False
    current = url
    for _ in range(limits.redirects_max + 1):
        scheme = urlsplit(current).scheme
        if scheme not in ("http", "https") or (secure and scheme != "https"):
            raise _redirect_refused(url, f"it leads to {current[:200]}")
        secure = secure or scheme == "https"
        response = await session.get(current, headers=headers, timeout=timeout, allow_redirects=False)
        location = response.headers.get("Location")
        if response.status not in _REDIRECTS or location is None:
            return response
        response.release()
        try:
            current = urljoin(current, location)
            urlsplit(current)
        except ValueError as error:
            raise _redirect_refused(url, f"it leads to {location[:200]!r}: {error}") from error
    raise _redirect_refused(url, f"more than {limits.redirects_max} redirects")


def _redirect_refused(url: str, why: str) -> ProcessSupervisorError:
    return _error("DOWNLOAD_REDIRECT_REFUSED", url, why, "Publish a URL that leads to the archive", "rejected")


def _accept_response(status: int, headers: CIMultiDictProxy[str], part: _Part, source: UrlSource) -> None:
    """Bring the part file into the state that this answer continues, or raise _AttemptError."""
    if status == 200:
        part.reset(_strong_validator(headers), _length(headers))
        return
    if status == 206 and part.size and _continues(headers, part):
        part.resumed = True
        return
    if status in (206, 416):
        part.reset(None, None)
        failure = _error("DOWNLOAD_TRUNCATED", source.url, "the server answered with the wrong range", "")
        raise _AttemptError(failure, retry=True)
    failure = _error("DOWNLOAD_HTTP_STATUS", source.url, f"the server answered {status}", "Look at the URL")
    raise _AttemptError(failure, retry=status >= 500 or status in _RETRIED_STATUS)


def _continues(headers: CIMultiDictProxy[str], part: _Part) -> bool:
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    if match is None:
        return False
    first, last, total = (int(text) for text in match.groups())
    validator = _strong_validator(headers)
    return (
        first == part.size
        and last + 1 == total
        and (part.total is None or part.total == total)
        and (validator is None or validator == part.validator)
    )


def _strong_validator(headers: CIMultiDictProxy[str]) -> str | None:
    """By what the server can tell later that nothing changed: an entity tag, or a time long before its own clock's.

    A time is weak where the artefact may have changed twice within it (RFC 9110, 8.8.2.2 and 13.1.5).
    """
    etag = headers.get("ETag")
    if etag is not None:
        return etag if re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', etag) else None
    modified = headers.get("Last-Modified", "")
    try:
        age = parsedate_to_datetime(headers.get("Date", "")) - parsedate_to_datetime(modified)
    except (ValueError, TypeError):  # no date, or only one of them has a zone
        return None
    return modified if age >= MODIFIED_AGE_MIN else None


def _length(headers: CIMultiDictProxy[str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
