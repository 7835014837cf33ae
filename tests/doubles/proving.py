"""A chain whose blocks are justified, and a watcher of it in mode `proven`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from nacl.signing import SigningKey

from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.proof.layout import standard_layout

from .chain_endpoint import FakeChain, FakeNode, hash256
from .watching import Watching, watching

PINNED = standard_layout(fields=4).hash


def voters(name: str) -> list[SigningKey]:
    return [SigningKey(hash256(f"{name} {number}".encode())) for number in range(4)]


class ProvenChain(FakeChain):
    """A chain that votes, with the checkpoint at its genesis."""

    def __init__(self) -> None:
        super().__init__()
        genesis = self.main[0]
        genesis.state[b"genesis"] = b"x"
        self.start = Checkpoint(0, 0, tuple(self.authorities()))

    def settings(self) -> dict[str, Any]:
        return {"finality": "proven", "checkpoint": self.start.to_json(), "genesis_hash": self.genesis_hash}


@contextlib.asynccontextmanager
async def proven(chain: ProvenChain, *nodes: FakeNode, **settings: Any) -> AsyncIterator[Watching]:
    async with watching(*nodes, **{**chain.settings(), **settings}) as watch:
        yield watch
