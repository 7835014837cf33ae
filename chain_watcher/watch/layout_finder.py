"""Find the storage layout of a runtime: in the cache, else in an endpoint's metadata, for which there is no proof."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from chain_watcher.endpoints.answers import hex_bytes
from chain_watcher.endpoints.endpoint import Endpoint
from chain_watcher.endpoints.messages import RpcError
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.layout import Layout
from chain_watcher.proof.metadata import METADATA_BYTES_MAX, layout_of

from .layout_cache import LayoutCache
from .suspicion import forged

#: Metadata is some hundred kilobytes and comes once for each runtime.
METADATA_TIMEOUT_S: Final = 30.0
ANSWERS_KEPT: Final = 64
#: Seconds before metadata is fetched again that was refused or did not match the values.
ASK_AGAIN_S: Final = 300.0
#: If no layout is pinned, this many other endpoints are asked to confirm metadata.
WITNESSES_MAX: Final = 5


class LayoutFinder:
    """Finds layouts through any endpoint.

    With `pins`, a layout must have one of these hashes. Without pins, the endpoints that `others` returns are asked for
    the same metadata; it is refused if a majority contradicts it.
    """

    def __init__(
        self,
        cache: LayoutCache,
        *,
        pins: frozenset[str],
        others: Callable[[Endpoint], list[Endpoint]],
        now: Callable[[], float],
    ) -> None:
        self.cache = cache
        self.asked = 0
        self.confirmed = 0
        self._pins = pins
        self._others = others
        self._now = now
        #: What each endpoint (URL) gave for each runtime, or why it was refused, and when it was asked.
        self._answers: OrderedDict[tuple[str, int], tuple[Layout | ChainWatcherError, float]] = OrderedDict()
        self._anew_at: dict[tuple[str, int], float] = {}
        self._reading: dict[tuple[str, int], asyncio.Task[Layout]] = {}

    async def close(self) -> None:
        """Cancel metadata reads that nobody awaits any more."""
        reading = list(self._reading.values())
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)

    async def save(self) -> None:
        """Store the layouts for the next start."""
        await asyncio.to_thread(self.cache.save)

    def forget(self, endpoint: Endpoint, genesis_hash: str, version: int) -> None:
        """Remove the layout of a runtime, and the endpoint's answer for it."""
        self.cache.drop(genesis_hash, version)
        self._answers.pop((endpoint.url, version), None)

    async def layout(self, endpoint: Endpoint, at: str, version: int, genesis_hash: str) -> Layout:
        """Return the layout of runtime `version`; `at` is a block that this runtime is in force for.

        Raises LAYOUT_NOT_PINNED, LAYOUT_INVALID, CHAIN_WITHOUT_PALLET, METADATA_UNREADABLE, ENDPOINT_METADATA_FORGED,
        ENDPOINT_GARBAGE, RPC_*.
        """
        known = self.cache.get(genesis_hash, version)
        return known if known is not None else await self.given_by(endpoint, at, version)

    async def given_by(self, endpoint: Endpoint, at: str, version: int) -> Layout:
        """Return the layout in this endpoint's own metadata, which is fetched once.

        Fetching and parsing may take long. They continue if the caller is cancelled, and its next call waits for the
        rest.
        """
        key = (endpoint.url, version)
        given, asked_at = self._answers.get(key, (None, 0.0))
        if isinstance(given, Layout):
            return given
        if given is not None and self._now() - asked_at < ASK_AGAIN_S:
            raise given
        reading = self._reading.get(key)
        if reading is None:
            reading = asyncio.create_task(self._read(endpoint, at, version), name=f"metadata {key}")
            self._reading[key] = reading
            reading.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(reading)

    async def given_anew_by(self, endpoint: Endpoint, at: str, version: int) -> Layout:
        """Fetch the metadata again, because values do not match the known layout: it may have changed since.

        An endpoint is asked at most once per `ASK_AGAIN_S`, because asking does not help if the chain's own values are
        at fault.
        """
        key = (endpoint.url, version)
        if self._now() - self._anew_at.get(key, -ASK_AGAIN_S) >= ASK_AGAIN_S:
            self._anew_at[key] = self._now()
            self._answers.pop(key, None)
            while len(self._anew_at) > ANSWERS_KEPT:
                del self._anew_at[next(iter(self._anew_at))]
        return await self.given_by(endpoint, at, version)

    def _keep(self, key: tuple[str, int], done: asyncio.Task[Layout]) -> None:
        self._reading.pop(key, None)
        if done.cancelled():
            return
        problem = done.exception()
        if problem is None:
            self._answers[key] = done.result(), self._now()
        elif (
            isinstance(problem, ChainWatcherError) and problem.kind == "rejected" and not isinstance(problem, RpcError)
        ):
            self._answers[key] = problem, self._now()
        while len(self._answers) > ANSWERS_KEPT:
            self._answers.popitem(last=False)

    async def _read(self, endpoint: Endpoint, at: str, version: int) -> Layout:
        text, known = await self._fetch(endpoint, at, version)
        if known is not None:
            return known
        found = await _parse(endpoint, text)
        if self._pins and found.hash not in self._pins:
            raise ChainWatcherError(
                code="LAYOUT_NOT_PINNED",
                what=f"{endpoint.url}, runtime {version}",
                why=f"layout {found.hash} is none of the {len(self._pins)} pinned ones",
                action="Where the chain's runtime was upgraded, review its layout and pin it",
            )
        if not self._pins:
            await self._confirm(endpoint, at, text, found, version)
        self.cache.accept(version, text, found)
        return found

    async def _fetch(self, endpoint: Endpoint, at: str, version: int) -> tuple[str, Layout | None]:
        """Fetch metadata; return it, and its layout if it was accepted before."""
        text = await endpoint.ask("state_getMetadata", at, timeout_s=METADATA_TIMEOUT_S)
        self.asked += 1
        return text, self.cache.accepted(version, text) if isinstance(text, str) else None

    async def _confirm(self, endpoint: Endpoint, at: str, text: str, found: Layout, version: int) -> None:
        """Raise ENDPOINT_METADATA_FORGED if more endpoints give a different layout than the same one."""
        same, other = 1, 0
        for witness in self._others(endpoint)[:WITNESSES_MAX]:
            try:
                answer, known = await self._fetch(witness, at, version)
                layout = found if answer == text else known or await _parse(witness, answer)
            except ChainWatcherError:
                continue
            same, other = (same + 1, other) if layout == found else (same, other + 1)
        if other > same:
            why = f"runtime {version}: {other} endpoints give another layout, {same} this one"
            raise forged("ENDPOINT_METADATA_FORGED", endpoint, why)
        self.confirmed += same - 1


async def _parse(endpoint: Endpoint, text: object) -> Layout:
    """Parse metadata in a thread, because it takes about 0.1 s of CPU time that would block the event loop."""
    metadata = hex_bytes(endpoint.url, text, METADATA_BYTES_MAX, "metadata")
    return await asyncio.to_thread(layout_of, metadata)
