"""Posts webhooks: through the settings' proxy, without following redirects."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

import aiohttp

from process_supervisor.http_headers import retry_after_s
from process_supervisor.outbound import Outbound

POST_TIMEOUT_S = 10.0
_BUSY = frozenset({429, 503})


def poster(outbound: Outbound) -> Callable[[str, bytes, Mapping[str, str]], Awaitable[tuple[int, float]]]:
    """Return a function that posts a body and returns the status and the seconds that the receiver asks to wait.

    It raises OSError with the reason if there is no answer.
    """

    async def post(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, float]:
        timeout = aiohttp.ClientTimeout(total=POST_TIMEOUT_S)
        try:
            async with await outbound.request("POST", url, data=body, headers=dict(headers), timeout=timeout) as answer:
                wait_s = retry_after_s(answer.headers, time.time()) if answer.status in _BUSY else 0.0
                return answer.status, wait_s
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OSError(str(error) or type(error).__name__) from error

    return post
