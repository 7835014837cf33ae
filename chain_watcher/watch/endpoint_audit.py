"""After each change, ask other endpoints for the same block, so that lying endpoints are found before a failover."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from chain_watcher.endpoints.endpoint import Endpoint, unexpected
from chain_watcher.endpoints.pool import EndpointPool
from chain_watcher.errors import ChainWatcherError

from .state_reader import BlockState, StateReader, ask_header, hash_text
from .suspicion import BY_METADATA, LYING, forged

#: Endpoints audited per change, those not audited for longest first. Each may send a megabyte of metadata.
AUDITED_MAX: Final = 16


class Auditor:
    """Reads an accepted state again through other endpoints, with a separate reader (and layouts) for each.

    `blame` is called with each fault of an endpoint. If values come without proof, a different value is only a
    disagreement: it is counted, and the endpoint is accused only if `outvoted` (a quorum contradicts it).
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
        self._audited: dict[str, int] = {}
        self._newest: BlockState | None = None
        self._wake = asyncio.Event()

    def look_at(self, state: BlockState) -> None:
        """Queue this state for an audit; it replaces a waiting one."""
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
                    for endpoint in self._next_ones(state):
                        await self._check(endpoint, state)
        finally:
            for reader in self._readers.values():
                await reader.close()

    def _next_ones(self, state: BlockState) -> list[Endpoint]:
        others = [endpoint for endpoint in self._pool.usable() if endpoint.url != state.endpoint]
        return sorted(others, key=lambda one: self._audited.get(one.url, -1))[:AUDITED_MAX]

    async def _check(self, endpoint: Endpoint, state: BlockState) -> None:
        if not endpoint.usable:
            return
        self._audited[endpoint.url] = state.header.number
        reader = self._readers.setdefault(endpoint.url, self._make_reader())
        try:
            found = await self._read(reader, endpoint, state)
        except ChainWatcherError as problem:
            if problem.code in BY_METADATA and state.proven and any(state.values):
                problem = forged("ENDPOINT_METADATA_FORGED", endpoint, str(problem))
            if problem.code in LYING:
                self._blame(endpoint, problem)
            return
        except Exception as error:
            self._blame(endpoint, unexpected(endpoint, error))
            return
        if found is None:
            return
        self.checks += 1
        if found.values != state.values:
            self.disagreements += 1
            if self._outvoted:
                why = f"block {state.header.number}: other values than the quorum's"
                self._blame(endpoint, forged("ENDPOINT_DISAGREES", endpoint, why))

    async def _read(self, reader: StateReader, endpoint: Endpoint, state: BlockState) -> BlockState | None:
        """Read the state; None if the endpoint does not have the block.

        If metadata may be the cause of an error, it is fetched again first.
        """
        header = await ask_header(endpoint, hash_text(state.header))
        if header is None:
            return None
        genesis = self._pool.genesis_hash or ""
        try:
            return await reader.read(endpoint, header, genesis)
        except ChainWatcherError as problem:
            if problem.code not in BY_METADATA:
                raise
            reader.layouts.forget(endpoint, genesis, state.spec_version)
            return await reader.read(endpoint, header, genesis)
