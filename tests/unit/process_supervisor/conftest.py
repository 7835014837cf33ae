"""Archives, a file server with faults, and limits without waiting, for the supervisor's tests."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from process_supervisor.limits import DownloadLimits
from process_supervisor.outbound import Outbound

ENCLAVE = "ab" * 32


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def tar_bytes(*members: tuple[tarfile.TarInfo, bytes], compress: bool = True, fmt: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fmt) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0) if compress else buffer.getvalue()


def release_tar(image: bytes = b"image" * 4000, name: str = "node") -> bytes:
    text = f'{{"name":"{name}","version":"1.0.0","enclave_id":"{ENCLAVE}"}}'.encode()
    return tar_bytes(
        member("release.json", text), member("enclave.pyz", image), member("enclave.sig", b"s" * 1808), compress=False
    )


@dataclass
class FaultyServer:
    """Serves `content` at any path, the way `behave` says; `requests` keeps the headers that came."""

    content: bytes = b""
    etag: str | None = '"v1"'
    content_type: str = "application/octet-stream"
    requests: list[dict[str, str]] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)
    behave: Callable[[web.Request], web.StreamResponse | None] | None = None
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append({**request.headers, ":path": request.path_qs})
        special = self.behave(request) if self.behave else None
        if special is not None:
            return special
        first, status = 0, 200
        headers = {"ETag": self.etag} if self.etag else {}
        range_ = request.headers.get("Range", "")
        if range_.startswith("bytes=") and request.headers.get("If-Range") == self.etag:
            first, status = int(range_[6:].rstrip("-")), 206
            headers["Content-Range"] = f"bytes {first}-{len(self.content) - 1}/{len(self.content)}"
        body = self.content[first:]
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length, response.content_type = len(body), self.content_type
        await response.prepare(request)
        cut = self.cut_after.pop(0) if self.cut_after else None
        await response.write(body if cut is None else body[:cut])
        if cut is not None and request.transport is not None:
            # What was written is still sent before the connection goes down.
            request.transport.close()
        return response


@pytest.fixture
async def server() -> AsyncIterator[FaultyServer]:
    faulty = FaultyServer()
    app = web.Application()
    app.router.add_get("/{path:.*}", faulty.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    faulty.url = f"http://127.0.0.1:{runner.addresses[0][1]}/release.tar"
    yield faulty
    await runner.cleanup()


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    async with Outbound() as client:
        yield client


@pytest.fixture
def limits() -> DownloadLimits:
    return DownloadLimits(
        retry_delay_s=0,
        thrown_away_pause_s=0,
        free_bytes_min=0,
        idle_s_max=5,
        total_s_max=20,
        chunk_bytes=4096,
        own_hosts=frozenset({"127.0.0.1", "localhost"}),
    )


@pytest.fixture
def slots(tmp_path: Path) -> Path:
    return tmp_path / "state" / "slots"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
