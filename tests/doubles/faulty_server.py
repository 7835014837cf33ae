"""A file server that resumes downloads and has faults on request."""

from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web


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
