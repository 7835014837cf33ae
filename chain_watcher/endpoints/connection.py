"""One connection to an endpoint: three sockets, the introduction, the subscriptions, the watchdog.

The *questions* socket carries requests, one at a time. The *signal* socket carries only notifications of finality, so
that nothing delays them. The *hints* socket carries the other notifications. Only the questions socket accepts large
messages.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final, Self

import aiohttp

from chain_watcher.errors import ChainWatcherError

from . import answers
from .clock import Clock
from .endpoint import JUSTIFICATIONS, OPTIONAL_METHODS, Endpoint, EventKind
from .messages import RpcError
from .rpc import RpcClient, RpcLimits, Subscription

#: Error codes of a node that does not offer a method, or not under this name.
_NOT_THERE: Final = frozenset({"RPC_METHOD_MISSING", "RPC_REFUSED", "ENDPOINT_GARBAGE"})


def wrong_genesis(endpoint: Endpoint, why: str) -> ChainWatcherError:
    """The error for an endpoint that serves another chain."""
    return ChainWatcherError(
        code="ENDPOINT_WRONG_GENESIS",
        what=endpoint.url,
        why=why,
        action="Point this endpoint at the right chain, or correct genesis_hash",
    )


class Connection:
    """The sockets to `endpoint`; use it as a context manager, which closes them. Raises RPC_* and ENDPOINT_*."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        limits: RpcLimits,
        *,
        clock: Clock,
        ca_file: str | None,
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._limits = limits
        self._clock = clock
        self._ca_file = ca_file
        self._clients: list[RpcClient] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._endpoint.questions = None
        await asyncio.gather(*(client.close() for client in self._clients))

    async def introduce(self) -> str:
        """Open the questions socket; return the genesis hash of the endpoint's chain. Raises ENDPOINT_WRONG_GENESIS."""
        endpoint = self._endpoint
        endpoint.questions = await self._connect(self._limits)
        answer = await endpoint.ask("chain_getBlockHash", 0)
        try:
            genesis = answers.block_hash(endpoint.url, answer)
        except ChainWatcherError:
            genesis = None
        if genesis is None:
            raise wrong_genesis(endpoint, "its block 0 has no hash")
        endpoint.methods = await self._methods()
        return genesis

    async def _methods(self) -> frozenset[str]:
        """Return the optional methods it offers; all if it does not say. A method is dropped once it is refused."""
        endpoint = self._endpoint
        try:
            return OPTIONAL_METHODS & answers.method_names(endpoint.url, await endpoint.ask("rpc_methods"))
        except ChainWatcherError as problem:
            if problem.code in _NOT_THERE:
                return OPTIONAL_METHODS
            raise

    async def subscribe(self, *, justifications: bool) -> list[tuple[EventKind, Subscription]]:
        """Open the subscriptions. The one that reports finality has the signal socket to itself."""
        small = replace(self._limits, message_bytes_max=self._limits.notification_bytes_max)
        signal, hints = await self._connect(small), await self._connect(small)
        sources: list[tuple[EventKind, Subscription]] = []
        if justifications and self._endpoint.offers(JUSTIFICATIONS):
            try:
                source = await signal.subscribe(JUSTIFICATIONS, [], "grandpa_unsubscribeJustifications")
                sources.append(("justification", source))
            except RpcError as problem:
                if problem.code != "RPC_METHOD_MISSING":
                    raise
                self._endpoint.methods -= {JUSTIFICATIONS}
        finalized = await (hints if sources else signal).subscribe(
            "chain_subscribeFinalizedHeads", [], "chain_unsubscribeFinalizedHeads"
        )
        best = await hints.subscribe("chain_subscribeNewHeads", [], "chain_unsubscribeNewHeads")
        return [*sources, ("finalized", finalized), ("best", best)]

    async def watch_silence(self, silence_s: float) -> None:
        """Ask for the head whenever no block has arrived for `silence_s`. Raises ENDPOINT_SILENT if a newer one exists.

        The error ends the connection. A chain without new blocks is not a fault; a dead subscription on a live socket
        is one.
        """
        endpoint = self._endpoint
        while True:
            quiet_s = self._clock.monotonic() - endpoint.progress_at
            if quiet_s < silence_s:
                await self._clock.sleep(silence_s - quiet_s)
                continue
            head = answers.block_hash(endpoint.url, await endpoint.ask("chain_getFinalizedHead"))
            header = await endpoint.ask("chain_getHeader", head)
            # Behind a load balancer, one backend may not know the head of another one yet.
            if header is not None and answers.head_number(endpoint.url, header) > endpoint.claimed_number:
                raise ChainWatcherError(
                    code="ENDPOINT_SILENT",
                    what=endpoint.url,
                    why=f"no finalized head for {quiet_s:.0f} s although it has one",
                    kind="transient",
                )
            await self._clock.sleep(silence_s)

    async def _connect(self, limits: RpcLimits) -> RpcClient:
        client = await RpcClient.connect(
            self._session, self._endpoint.url, limits, ca_file=self._ca_file, now=self._clock.monotonic
        )
        self._clients.append(client)
        return client
