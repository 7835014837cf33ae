"""Deciding finality by trust: one endpoint, or a quorum of them."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from typing import Final

from chain_watcher.endpoints import answers
from chain_watcher.endpoints.choice import voice
from chain_watcher.endpoints.endpoint import Endpoint, Event
from chain_watcher.endpoints.pool import EndpointPool
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.header import Header

from .headers import FinalBlock, FinalHeight, Headers
from .state_reader import hash_text
from .suspicion import HARMLESS, forged

#: Heights for which votes are kept.
HEIGHTS_MAX: Final = 128
#: Endpoints that are asked beyond the number that has to agree.
ASKED_MORE: Final = 2


class SingleDecider:
    """The primary endpoint's claim (unsafe: the mode says so)."""

    learned = 0

    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool

    def facts(self) -> dict[str, object]:
        """Nothing is needed for a restart."""
        return {}

    async def decide(self, event: Event, last: FinalHeight | None) -> FinalBlock | None:
        """Believe the primary's finalized heads and nobody else's."""
        if event.kind != "finalized" or event.endpoint is not self._pool.primary:
            return None
        return FinalBlock(event.endpoint, Header.from_json(event.value))


class QuorumDecider:
    """A block is final once `needed` endpoints call the same hash final at its height."""

    learned = 0

    def __init__(self, pool: EndpointPool, needed: int, headers: Headers) -> None:
        self._pool = pool
        self._needed = needed
        self._headers = headers
        #: Height -> URL -> hash that was announced as final.
        self._announced: OrderedDict[int, dict[str, str]] = OrderedDict()

    def facts(self) -> dict[str, object]:
        """Nothing is needed for a restart."""
        return {}

    async def decide(self, event: Event, last: FinalHeight | None) -> FinalBlock | None:
        """Count votes at the event's height. While they are too few, ask endpoints that have passed it."""
        if event.kind != "finalized":
            return None
        header = Header.from_json(event.value)
        self._headers.add(header)
        if last is not None and header.number < last.number:
            return None
        announced = self._announced.setdefault(header.number, {})
        while len(self._announced) > HEIGHTS_MAX:
            self._announced.popitem(last=False)
        announced[event.endpoint.url] = hash_text(header)
        votes = dict(announced)
        if self._agreed(votes) is None:
            await self._ask_others(header.number, votes)
        return self._count(header.number, votes, announced)

    async def _ask_others(self, number: int, votes: dict[str, str]) -> None:
        """Ask some more than are needed, at once, until enough agree: the slowest is not waited for.

        First those that have passed the block, which may never announce it: nodes announce the last block of a batch.
        """
        others = [one for one in self._pool.usable() if one.url not in votes and one.claimed_number >= number]
        others.sort(key=lambda one: one.claimed_number == number)
        asked = others[: self._needed + ASKED_MORE]
        waiting = {asyncio.create_task(self._ask(other, number, votes)) for other in asked}
        try:
            while waiting and self._agreed(votes) is None:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _ask(self, other: Endpoint, number: int, votes: dict[str, str]) -> None:
        try:
            answer = answers.block_hash(other.url, await other.ask("chain_getBlockHash", number))
        except ChainWatcherError as problem:
            if problem.code not in HARMLESS:
                self._pool.distrust(other, problem)
            return
        if answer is not None:
            votes[other.url] = answer

    def _agreed(self, votes: dict[str, str]) -> str | None:
        """The hash that enough different voices call final: one endpoint under two URLs is one voice."""
        counts = Counter(one for one, _voice in {(one, voice(url)) for url, one in votes.items()})
        return next((one for one, count in counts.items() if count >= self._needed), None)

    def _count(self, number: int, votes: dict[str, str], announced: dict[str, str]) -> FinalBlock | None:
        """The block that the quorum agrees on. Accused is who announced another one, not who was asked by number."""
        agreed = self._agreed(votes)
        if agreed is None:
            return None
        voters = [endpoint for endpoint in self._pool.usable() if votes.get(endpoint.url) == agreed]
        for endpoint in self._pool.usable():
            if announced.get(endpoint.url, agreed) != agreed:
                why = f"block {number}: {announced[endpoint.url]} instead of {agreed}"
                self._pool.accuse(endpoint, forged("ENDPOINT_DISAGREES", endpoint, why))
        header = self._headers.get(bytes.fromhex(agreed[2:]))
        return FinalBlock(voters[0], header) if voters and header is not None else None
