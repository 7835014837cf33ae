"""Ask a node over HTTP, with bounds on time and size."""

import asyncio
from dataclasses import dataclass

import aiohttp

from .limits import KIB

BODY_BYTES_MAX = 64 * KIB


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """An answer to a probe: `ok` means status 200; `error` says why there was no answer at all."""

    ok: bool
    status: int | None
    body: bytes
    error: str | None


async def probe(url: str, timeout_s: float, session: aiohttp.ClientSession | None = None) -> ProbeResult:
    """GET `url` once, within `timeout_s` seconds in total. Failures of the other side are returned, never raised."""
    try:
        async with asyncio.timeout(timeout_s):
            if session is not None:
                return await _probe(session, url)
            async with aiohttp.ClientSession() as own:
                return await _probe(own, url)
    except TimeoutError:
        return ProbeResult(False, None, b"", f"no answer within {timeout_s:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return ProbeResult(False, None, b"", str(error) or type(error).__name__)


async def _probe(session: aiohttp.ClientSession, url: str) -> ProbeResult:
    async with session.get(url, allow_redirects=False) as response:
        body = bytearray()
        async for data in response.content.iter_chunked(16 * KIB):
            body += data
            if len(body) > BODY_BYTES_MAX:
                return ProbeResult(False, response.status, b"", f"the answer exceeds {BODY_BYTES_MAX} bytes")
        return ProbeResult(response.status == 200, response.status, bytes(body), None)
