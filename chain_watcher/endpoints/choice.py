"""Choice of the primary endpoint, identity of the endpoint behind a URL, and the pause before a new attempt. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from .endpoint import Endpoint


def choose(
    endpoints: Iterable[Endpoint],
    current: Endpoint | None,
    now: float,
    grace_s: float,
    height: Callable[[Endpoint], int],
) -> Endpoint | None:
    """Return the primary: the current one while it keeps up, else the highest, then the fastest; None without any."""
    usable = [endpoint for endpoint in endpoints if endpoint.usable]
    if not usable:
        return None
    if current is not None and current in usable:
        behind = current.behind_since
        if behind is None or now - behind <= grace_s:
            return current
    return max(usable, key=lambda endpoint: (height(endpoint), -endpoint.latency_s))


@lru_cache(maxsize=1024)
def voice(url: str) -> str:
    """Return the identity of the endpoint behind a URL, so that one endpoint has only one vote.

    Different spellings of one address (case, default port, ws or wss, a trailing slash) give the same identity.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        return url
    address = (parts.hostname or "").rstrip(".")
    if port not in (None, {"ws": 80, "wss": 443}.get(parts.scheme)):
        address += f":{port}"
    return f"{address}{parts.path.rstrip('/')}?{parts.query}"


def backoff_s(failures: int, first_s: float, max_s: float, random: float) -> float:
    """Return the pause in seconds after consecutive `failures`: 50 to 100 % of `first_s * 2^(failures-1)`, capped."""
    whole = min(max_s, first_s * 2.0 ** min(max(failures - 1, 0), 30))
    return whole * (0.5 + 0.5 * random)
