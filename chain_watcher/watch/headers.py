"""Headers that were seen, and the final blocks decided from them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

from chain_watcher.endpoints.endpoint import Endpoint, Event
from chain_watcher.proof.header import Header

from .state_reader import StateReader, forged

#: Headers kept in memory: a thousand of a large network, whatever an endpoint makes up.
HEADERS_BYTES_MAX: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FinalBlock:
    """A header that is final, and where to ask about it."""

    endpoint: Endpoint
    header: Header
    justification: bytes | None = None


class Headers:
    """Headers by hash, the newest kept, by number and by size; each was checked by its hash when it came in."""

    def __init__(self, size_max: int, bytes_max: int = HEADERS_BYTES_MAX) -> None:
        self._known: OrderedDict[bytes, Header] = OrderedDict()
        self._size_max = size_max
        self._bytes_max = bytes_max
        self._bytes = 0

    def add(self, header: Header) -> None:
        """Remember; the oldest give way."""
        if header.hash not in self._known:
            self._bytes += len(header.encoded)
        self._known[header.hash] = header
        while len(self._known) > self._size_max or self._bytes > self._bytes_max:
            self._bytes -= len(self._known.popitem(last=False)[1].encoded)

    def get(self, block_hash: bytes) -> Header | None:
        """The header of that hash, if known."""
        return self._known.get(block_hash)

    def __len__(self) -> int:
        return len(self._known)


async def ancestry(
    reader: StateReader, headers: Headers, endpoint: Endpoint, tip: Header, floor: int, gap_max: int
) -> list[Header] | None:
    """The headers from ``floor + 1`` to ``tip``, oldest first, linked by hash; None when they are over ``gap_max``.

    What is not known is asked for by its hash, so that no endpoint can slip in another header.
    """
    if tip.number - floor > gap_max:
        return None
    chain = [tip]
    while chain[-1].number > floor + 1:
        child = chain[-1]
        parent = headers.get(child.parent_hash)
        if parent is None:
            parent = await reader.header(endpoint, "0x" + child.parent_hash.hex())
            headers.add(parent)
        if parent.number != child.number - 1:
            raise forged("ENDPOINT_HEADER_FORGED", endpoint, f"the parent of {child.number} is {parent.number}")
        chain.append(parent)
    chain.reverse()
    return chain


class Decider(Protocol):
    """Turns events into final headers."""

    async def decide(self, event: Event, last: Header | None) -> FinalBlock | None:
        """The header above ``last`` that ``event`` makes final, if it does."""
