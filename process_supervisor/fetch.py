"""Download one artefact from one source into a part file: streamed, resumed, retried with growing pauses.

Resuming follows RFC 9110 section 14: `Range` with `If-Range`, and only if the server gave a strong validator.
"""

import asyncio
import errno
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import aiohttp
from multidict import CIMultiDictProxy

from .car_file import CarFile
from .content_id import ContentId
from .errors import ProcessSupervisorError
from .http_headers import content_length, continues_at, retry_after_s, strong_validator
from .limits import DownloadLimits
from .outbound import Outbound
from .part_file import Fetched, Part, disk_error, download_error
from .sources import UrlSource
from .threads import in_thread

WRITE_S_MAX = 0.25
"""What a slow source gives is written after this many seconds, also if it is less than a chunk."""
CAR_TYPE = "application/vnd.ipld.car"
_RETRIED_STATUS = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of staging: bytes received so far, and the total if the server announced it."""

    stage: Literal["download", "unpack", "verify", "ready"]
    source: str
    received_bytes: int
    total_bytes: int | None


ProgressFn = Callable[[Progress], None]
Sleep = Callable[[float], Awaitable[None]]


class _AttemptError(Exception):
    """A failed attempt. `retry` says whether to ask the same source again, after at least `after_s` seconds."""

    def __init__(self, error: ProcessSupervisorError, *, retry: bool, after_s: float = 0.0) -> None:
        super().__init__(error)
        self.error = error
        self.retry = retry
        self.after_s = after_s


async def fetch(
    outbound: Outbound,
    source: UrlSource,
    cids: tuple[ContentId, ...],
    path: Path,
    limits: DownloadLimits,
    progress: ProgressFn,
    sleep: Sleep = asyncio.sleep,
) -> Fetched:
    """Download `source` into the part file `path`, resuming what is there. Raises DOWNLOAD_*, STAGING_DISK_*."""
    checked = () if source.form == "car" else cids  # the blocks of a CAR are verified one by one
    tree = cids[0] if source.form == "car" else None
    download = _Download(outbound, source, tree, Part(path, source, checked, limits), limits, progress, sleep)
    try:
        async with asyncio.timeout(limits.total_s_max):
            await in_thread(download.part.open)
            return await (download.copy_file() if source.scheme == "file" else download.from_server())
    except TimeoutError as error:
        why = f"it took longer than {limits.total_s_max:g} s ({download.part.size} bytes received){download.last}"
        raise download_error("DOWNLOAD_DEADLINE", source.url, why, "It continues where it stopped") from error
    except OSError as error:
        raise disk_error(error, path.parent) from error
    except ProcessSupervisorError:
        if tree is not None:  # a CAR cannot be resumed
            await in_thread(download.part.discard)
        raise
    finally:
        await in_thread(download.part.close)


class _Download:
    """The download of one source's artefact into a part file; if `tree` is set, out of the CAR of that CID.

    `last` is why the last attempt failed, for people.
    """

    def __init__(
        self,
        outbound: Outbound,
        source: UrlSource,
        tree: ContentId | None,
        part: Part,
        limits: DownloadLimits,
        progress: ProgressFn,
        sleep: Sleep,
    ) -> None:
        self.part, self.last = part, ""
        self._outbound, self._source, self._tree, self._limits = outbound, source, tree, limits
        self._car: CarFile | None = None
        self._progress, self._sleep = progress, sleep

    async def copy_file(self) -> Fetched:
        """Copy a file of this machine, if the settings allow such sources."""
        source, limits = self._source, self._limits
        if not limits.allow_file_urls:
            why = "the settings do not allow sources on this machine"
            raise download_error("DOWNLOAD_FILE_URL_REFUSED", source.url, why, "Publish it behind an http(s) URL")

        def opened() -> int:
            # O_NONBLOCK: opening a FIFO must not hang; a check of the type follows.
            fd = os.open(url2pathname(urlsplit(source.url).path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                os.close(fd)
                raise OSError(errno.EINVAL, "not a plain file")
            return fd

        async def chunks(fd: int) -> AsyncIterator[bytes]:
            while data := await in_thread(os.read, fd, limits.chunk_bytes):
                yield data

        try:
            fd = await in_thread(opened)
        except OSError as error:
            raise download_error("DOWNLOAD_UNREACHABLE", source.url, str(error), "Look at the path") from error
        try:
            await in_thread(self.part.reset, None, os.fstat(fd).st_size)
            await in_thread(self.part.require_room)
            await self._take(chunks(fd))
        finally:
            os.close(fd)
        return await in_thread(self.part.finish)

    async def from_server(self) -> Fetched:
        """Download, and retry with growing pauses while that may help. Discarded bytes make the pauses longer."""
        part, limits = self.part, self._limits
        failures, farthest, thrown_away = 0, part.farthest, part.thrown_away
        while True:
            try:
                fetched = await self._attempt()
                if fetched is not None:
                    return fetched
                failures, farthest, pause_s = 0, part.farthest, 0.0
            except _AttemptError as failure:
                # Only new bytes reset the count, so a connection that always breaks at the same point gives up.
                failures = 1 if part.farthest > farthest else failures + 1
                farthest = part.farthest
                if not failure.retry or failures >= limits.attempts_max:
                    raise failure.error from failure
                self.last = f"; the last attempt: {failure.error.why}"
                pause_s = max(limits.retry_delay_s * 2 ** (failures - 1), failure.after_s)
                if part.thrown_away > thrown_away:
                    thrown_away = part.thrown_away
                    pause_s = max(pause_s, limits.thrown_away_pause_s * thrown_away / farthest)
            await self._sleep(pause_s)

    async def _attempt(self) -> Fetched | None:
        """Return the artefact; None if the answer was shorter than requested, so that the rest is requested next."""
        part, source = self.part, self._source
        if part.total is not None and part.size == part.total:
            return await in_thread(part.finish)
        headers = {"Accept-Encoding": "identity"}
        if part.size and part.validator is not None:
            headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
        if self._tree is not None:
            headers["Accept"] = f"{CAR_TYPE}; version=1; order=dfs; dups=y"
        try:
            async with await self._outbound.get(source.url, headers, self._limits, own=source.own) as response:
                await in_thread(self._accept, response.status, response.headers)
                await in_thread(part.require_room)
                before = part.size
                await self._take(response.content.iter_any())
            if response.status == 206 and part.total is not None and before < part.size < part.total:
                return None
            if self._car is not None and not self._car.complete:
                raise download_error("DOWNLOAD_TRUNCATED", source.url, "the CAR ended before the file did", "")
            return await in_thread(part.finish)
        except aiohttp.ClientPayloadError as error:
            why = f"the connection ended after {part.size} bytes"
            failure = download_error("DOWNLOAD_TRUNCATED", source.url, why, "It continues later")
            raise _AttemptError(failure, retry=True) from error
        except (aiohttp.ClientError, aiohttp.InvalidURL) as error:
            why = str(error) or type(error).__name__
            failure = download_error("DOWNLOAD_UNREACHABLE", source.url, why, "Look at the network and at the server")
            raise _AttemptError(failure, retry=True) from error
        except ProcessSupervisorError as error:
            if error.code in ("DOWNLOAD_DIGEST_MISMATCH", "DOWNLOAD_LAYOUT_UNKNOWN") and part.resumed:
                # The pieces may not belong together. Only an artefact received in one piece shows a bad source.
                await in_thread(part.reset, None, None)
                raise _AttemptError(error, retry=True) from error
            if error.code == "DOWNLOAD_TRUNCATED":
                raise _AttemptError(error, retry=True) from error
            raise

    async def _take(self, chunks: AsyncIterator[bytes]) -> None:
        """Write and hash the received bytes. A thread does this with one chunk while the next one is received."""
        block, clock = bytearray(), asyncio.get_running_loop().time
        behind: asyncio.Future[None] | None = None
        written_s = clock()
        try:
            async for data in chunks:
                block += data
                if len(block) >= self._limits.chunk_bytes or clock() - written_s >= WRITE_S_MAX:
                    if behind is not None:
                        await behind
                    self._tell()
                    behind, block = asyncio.ensure_future(in_thread(self._append, block)), bytearray()
                    written_s = clock()
        finally:
            if behind is not None:
                await behind
            # Keep the bytes that arrived before the connection broke.
            if block:
                await in_thread(self._append, block)
            self._tell()

    def _append(self, data: bytearray) -> None:
        """Write and hash received bytes, either of the artefact itself or of a CAR that contains it. Blocking."""
        if self._car is None:
            self.part.append(data)
            return
        try:
            content = self._car.feed(data)
        except ValueError as error:
            raise self._car_invalid(str(error)) from error
        if self.part.total is None and self._car.size is not None:
            self.part.total = self._car.size
            self.part.require_room()
        self.part.append(content)

    def _car_invalid(self, why: str) -> ProcessSupervisorError:
        action = "It is asked for as plain bytes too; if both fail, add another gateway to download.ipfs_gateways"
        return download_error("DOWNLOAD_CAR_INVALID", self._source.url, why, action)

    def _tell(self) -> None:
        self._progress(Progress("download", self._source.url, self.part.size, self.part.total))

    def _accept(self, status: int, headers: CIMultiDictProxy[str]) -> None:
        """Prepare the part file for the answer's body, or raise _AttemptError. Blocking."""
        part, url = self.part, self._source.url
        if status == 200 and self._tree is not None:
            given = headers.get("Content-Type", "")
            if given.partition(";")[0].strip().lower() != CAR_TYPE:
                raise self._car_invalid(f"the gateway answered with {given[:100] or 'nothing that it calls a CAR'}")
            self._car = CarFile(self._tree)
            part.reset(None, None)  # the next CAR may hold the same file in other bytes
            return
        if status == 200:
            part.reset(strong_validator(headers), content_length(headers))
            return
        if status == 206 and part.size:
            total = continues_at(headers, part.size, part.total, part.validator)
            if total is not None:
                part.extend(total)
                return
        if status in (206, 416):
            part.reset(None, None)
            failure = download_error("DOWNLOAD_TRUNCATED", url, "the server answered with the wrong range", "")
            raise _AttemptError(failure, retry=True)
        after_s = retry_after_s(headers, time.time()) if status in (429, 503) else 0.0
        why = f"the server answered {status}" + (f" and asks to wait {after_s:.0f} s" if after_s else "")
        failure = download_error("DOWNLOAD_HTTP_STATUS", url, why, "Look at the URL")
        raise _AttemptError(failure, retry=status >= 500 or status in _RETRIED_STATUS, after_s=after_s)
