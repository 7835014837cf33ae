"""Deciding finality by trust: one endpoint, or a quorum of them."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict

from chain_watcher.endpoints.endpoint import BLOCK_HASH, Endpoint, Event
from chain_watcher.endpoints.pool import EndpointPool, voice
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.header import Header

from .headers import FinalBlock, Headers
from .state_reader import forged, hash_text


class SingleDecider:
    """The primary endpoint's word (unsafe: the mode says so)."""

    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool

    async def decide(self, event: Event, last: Header | None) -> FinalBlock | None:
        """Believe the primary's finalized heads and nobody else's."""
        if event.kind != "finalized" or event.endpoint is not self._pool.primary:
            return None
        return FinalBlock(event.endpoint, Header.from_json(event.value))


class QuorumDecider:
    """``needed`` endpoints call the same hash final at a height."""

    def __init__(self, pool: EndpointPool, needed: int, headers: Headers, heights_max: int = 128) -> None:
        self._pool = pool
        self._needed = needed
        self._headers = headers
        self._votes: OrderedDict[int, dict[str, str]] = OrderedDict()
        self._heights_max = heights_max

    async def decide(self, event: Event, last: Header | None) -> FinalBlock | None:
        """Count votes at the event's height; as long as they are too few, endpoints that have passed it are asked."""
        if event.kind != "finalized":
            return None
        header = Header.from_json(event.value)
        self._headers.add(header)
        if last is not None and header.number < last.number:
            return None
        votes = self._votes.setdefault(header.number, {})
        while len(self._votes) > self._heights_max:
            self._votes.popitem(last=False)
        votes[event.endpoint.url] = hash_text(header)
        await self._ask_others(header.number, votes)
        return self._count(header.number, votes)

    async def _ask_others(self, number: int, votes: dict[str, str]) -> None:
        """All at once, and no longer than until they agree: the slowest is not waited for."""
        waiting = {
            asyncio.create_task(self._ask(other, number, votes))
            for other in self._pool.usable()
            if other.url not in votes and other.claimed_number >= number
        }
        try:
            while waiting and self._agreed(votes) is None:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _ask(self, other: Endpoint, number: int, votes: dict[str, str]) -> None:
        try:
            answer = await other.ask("chain_getBlockHash", number)
        except ChainWatcherError as problem:
            self._pool.distrust(other, problem)
            return
        if isinstance(answer, str) and BLOCK_HASH.fullmatch(answer):
            votes[other.url] = answer

    def _agreed(self, votes: dict[str, str]) -> str | None:
        """The hash that enough different voices call final: one endpoint under two URLs is one voice."""
        counts = Counter(one for one, _voice in {(one, voice(url)) for url, one in votes.items()})
        return next((one for one, count in counts.items() if count >= self._needed), None)

    def _count(self, number: int, votes: dict[str, str]) -> FinalBlock | None:
        agreed = self._agreed(votes)
        if agreed is None:
            return None
        voters = [endpoint for endpoint in self._pool.usable() if votes.get(endpoint.url) == agreed]
        for endpoint in self._pool.usable():
            if votes.get(endpoint.url, agreed) != agreed:
                why = f"block {number}: {votes[endpoint.url]} instead of {agreed}"
                self._pool.accuse(endpoint, forged("ENDPOINT_DISAGREES", endpoint, why))
        header = self._headers.get(bytes.fromhex(agreed[2:]))
        return FinalBlock(voters[0], header) if voters and header is not None else None
