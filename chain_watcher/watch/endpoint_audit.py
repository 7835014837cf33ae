"""After each change the other endpoints are asked for the same block: liars are named before they are needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chain_watcher.endpoints.endpoint import Endpoint
from chain_watcher.endpoints.pool import EndpointPool
from chain_watcher.errors import ChainWatcherError

from .state_reader import BlockState, StateReader, forged, hash_text
from .suspicion import BY_METADATA, LYING


class Auditor:
    """Reads an accepted state again through every other endpoint, with a reader (and layouts) of its own for each.

    ``blame`` hears of what an endpoint did wrong. Where values come without proof, another value is a disagreement:
    it is counted, and the endpoint is named only when ``outvoted`` says that a quorum stands against it.
    """

    def __init__(
        self,
        pool: EndpointPool,
        make_reader: Callable[[], StateReader],
        blame: Callable[[Endpoint, ChainWatcherError], None],
        *,
        outvoted: bool,
    ) -> None:
        self.checks = 0
        self.disagreements = 0
        self._pool = pool
        self._make_reader = make_reader
        self._blame = blame
        self._outvoted = outvoted
        self._readers: dict[str, StateReader] = {}
        self._newest: BlockState | None = None
        self._wake = asyncio.Event()

    def look_at(self, state: BlockState) -> None:
        """Check this state soon; a newer one takes its place."""
        self._newest = state
        self._wake.set()

    async def run(self) -> None:
        """Audit until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                state = self._newest
                if state is not None:
                    for endpoint in self._pool.usable():
                        await self._check(endpoint, state)
        finally:
            for reader in self._readers.values():
                await reader.close()

    async def _check(self, endpoint: Endpoint, state: BlockState) -> None:
        if endpoint.url == state.endpoint or not endpoint.usable:
            return
        reader = self._readers.setdefault(endpoint.url, self._make_reader())
        try:
            header = await reader.header(endpoint, hash_text(state.header))
            found = await reader.read(endpoint, header, self._pool.genesis_hash or "")
        except ChainWatcherError as problem:
            if problem.code in BY_METADATA:
                problem = forged("ENDPOINT_METADATA_FORGED", endpoint, str(problem))
            if problem.code in LYING:
                self._blame(endpoint, problem)
            return
        self.checks += 1
        if found.values != state.values:
            self.disagreements += 1
            if self._outvoted:
                why = f"block {header.number}: other values than the quorum's"
                self._blame(endpoint, forged("ENDPOINT_DISAGREES", endpoint, why))
