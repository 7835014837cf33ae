"""Decide finality by trust in one endpoint, or in a quorum of endpoints."""

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
#: Endpoints asked in addition to the number that must agree.
ASKED_MORE: Final = 2


class SingleDecider:
    """Believes the primary endpoint's claim (unsafe, as the name of the mode says)."""

    learned = 0

    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool

    def facts(self) -> dict[str, object]:
        """Nothing is needed for a restart."""
        return {}

    async def decide(self, event: Event, last: FinalHeight | None) -> FinalBlock | None:
        """Accept the primary's finalized heads only."""
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
        """Count votes at the event's height. If they are too few, ask endpoints that have passed that height."""
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
        """Ask a few more endpoints than needed, in parallel, until enough agree, so that the slowest does not delay.

        Endpoints that have passed the block come first. They may never announce it, because nodes announce only the
        last block of a batch.
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
        """Return the hash that enough endpoints call final. Two URLs of one endpoint count once."""
        counts = Counter(one for one, _voice in {(one, voice(url)) for url, one in votes.items()})
        return next((one for one, count in counts.items() if count >= self._needed), None)

    def _count(self, number: int, votes: dict[str, str], announced: dict[str, str]) -> FinalBlock | None:
        """Return the block that the quorum agrees on. Accuse endpoints that announced another one by themselves.

        An endpoint that was asked by number is not accused.
        """
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
