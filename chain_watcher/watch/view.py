"""The values that the watcher yields: the chain's state at a final block, and early announcements of best blocks."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.release import VerifiedRelease

from .config import Finality

#: Limit of waiting announcements; the oldest are dropped.
ANNOUNCED_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class ChainView:
    """The relevant finalized state. Either `program` or `refusal` is set.

    `listed` maps enclave ids to the lowest height at which they were added. `unproven_reads` is set if values were
    accepted without a storage proof (`unsafe_unproven_reads`).
    """

    block_number: int
    block_hash: str
    timestamp_ms: int
    finality: Finality
    program: VerifiedRelease | None
    refusal: ChainWatcherError | None
    listed: Mapping[str, int]
    endpoint: str
    unproven_reads: bool = False


@dataclass(frozen=True, slots=True)
class Announced:
    """A release announced by one endpoint's best block BEFORE finality. Use it only to fetch early.

    The signatures are verified, and as far as is known the id is newer than the finalized program. The block, the URLs
    and the height are one endpoint's claim and may never become final.
    """

    release: VerifiedRelease
    endpoint: str


class NewsQueue:
    """Queue of views and announcements. Views come first, and announcements never displace them."""

    def __init__(self, views_max: int) -> None:
        self._views: deque[ChainView] = deque(maxlen=views_max)
        self._announced: OrderedDict[str, Announced] = OrderedDict()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """The number of views that wait."""
        return len(self._views)

    def put(self, news: ChainView | Announced) -> None:
        """Queue a view, or an announcement, which replaces one of the same id."""
        if isinstance(news, ChainView):
            self._views.append(news)
        else:
            self._announced[news.release.enclave_id] = news
            while len(self._announced) > ANNOUNCED_MAX:
                self._announced.popitem(last=False)
        self._wake.set()

    async def news(self) -> AsyncIterator[ChainView | Announced]:
        """Yield views and announcements."""
        while True:
            if self._views:
                yield self._views.popleft()
            elif self._announced:
                yield self._announced.popitem(last=False)[1]
            else:
                self._wake.clear()
                await self._wake.wait()

    async def views(self) -> AsyncIterator[ChainView]:
        """Yield views alone."""
        while True:
            while self._views:
                yield self._views.popleft()
            self._wake.clear()
            await self._wake.wait()
