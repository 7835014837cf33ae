"""Headers that were seen, and the final blocks decided from them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

from chain_watcher.endpoints.endpoint import Endpoint, Event
from chain_watcher.proof.header import Header

from .state_reader import ask_header
from .suspicion import forged

#: Headers kept in memory: a thousand of a large network, whatever an endpoint makes up.
HEADERS_BYTES_MAX: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FinalBlock:
    """A header that is final, where to ask about it, and the justification (SCALE bytes) in mode `proven`."""

    endpoint: Endpoint
    header: Header
    justification: bytes | None = None


@dataclass(frozen=True, slots=True)
class FinalHeight:
    """Number and hash (32 bytes) of a block that was final before."""

    number: int
    hash: bytes


class Headers:
    """Headers by hash, each checked by its hash when it came in. The newest are kept, by number and by size."""

    def __init__(self, size_max: int, bytes_max: int = HEADERS_BYTES_MAX) -> None:
        self._known: OrderedDict[bytes, Header] = OrderedDict()
        self._size_max = size_max
        self._bytes_max = bytes_max
        self._bytes = 0

    def add(self, header: Header) -> None:
        """Keep a header; the oldest are dropped."""
        if header.hash not in self._known:
            self._bytes += len(header.encoded)
        self._known[header.hash] = header
        while len(self._known) > self._size_max or self._bytes > self._bytes_max:
            self._bytes -= len(self._known.popitem(last=False)[1].encoded)

    def get(self, block_hash: bytes) -> Header | None:
        """Return the header of that hash, if known."""
        return self._known.get(block_hash)

    def __len__(self) -> int:
        return len(self._known)

    async def fetch(self, endpoint: Endpoint, block_hash: bytes) -> Header | None:
        """Return the header of that hash, from here or from the endpoint; None where it does not have it either.

        Asked for by hash, so that no endpoint can slip in another one. Raises ENDPOINT_HEADER_FORGED, ENDPOINT_GARBAGE,
        RPC_*.
        """
        header = self._known.get(block_hash)
        if header is None:
            header = await ask_header(endpoint, "0x" + block_hash.hex())
            if header is not None:
                self.add(header)
        return header


async def line_between(
    headers: Headers, endpoint: Endpoint, tip: Header, floor: int, length_max: int
) -> list[Header] | None:
    """Return the headers from `floor + 1` to `tip`, oldest first, linked by hash.

    None where there are more than `length_max`, or where the endpoint does not have all of them.
    """
    if tip.number - floor > length_max:
        return None
    line = [tip]
    while line[-1].number > floor + 1:
        child = line[-1]
        parent = await headers.fetch(endpoint, child.parent_hash)
        if parent is None:
            return None
        if parent.number != child.number - 1:
            raise forged("ENDPOINT_HEADER_FORGED", endpoint, f"the parent of {child.number} is {parent.number}")
        line.append(parent)
    line.reverse()
    return line


class Decider(Protocol):
    """Turns events into final headers."""

    @property
    def learned(self) -> int:
        """How much was proven so far: a turn that proved something was not wasted."""

    async def decide(self, event: Event, last: FinalHeight | None) -> FinalBlock | None:
        """Return the header above `last` that `event` makes final, if it does."""

    def facts(self) -> dict[str, object]:
        """Return what a restart needs to know, as JSON."""
