"""Headers that were seen, and the final blocks decided from them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

from chain_watcher.endpoints.endpoint import Endpoint, Event
from chain_watcher.proof.header import Header

from .state_reader import ask_header
from .suspicion import forged

#: Limit of headers in memory: a thousand of a large network. It holds for invented headers too.
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
    """Headers by hash; each hash was checked on arrival. Number and total size are limited; the newest are kept."""

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
        """Return the header of that hash, from memory or from the endpoint; None if neither has it.

        It is requested by hash, so that no endpoint can substitute another one. Raises ENDPOINT_HEADER_FORGED,
        ENDPOINT_GARBAGE, RPC_*.
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

    None if there are more than `length_max`, or if the endpoint does not have all of them.
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
        """How much was proven so far. A turn that raised this number made progress."""

    async def decide(self, event: Event, last: FinalHeight | None) -> FinalBlock | None:
        """Return the block above `last` that `event` makes final, or None."""

    def facts(self) -> dict[str, object]:
        """Return the facts that a restart needs, as JSON."""
