"""Turn final blocks into views: link each block to the last one, read its state, verify its release.

Every new best block is read too (one proof each). If a final block is one that was already read, or descends from one,
its view is published without another request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

from chain_watcher.endpoints import answers
from chain_watcher.endpoints.choice import voice
from chain_watcher.endpoints.clock import Clock
from chain_watcher.endpoints.endpoint import Endpoint, unexpected
from chain_watcher.endpoints.pool import EndpointPool
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.evidence import STANDARD_LAYOUTS
from chain_watcher.proof.header import Header
from chain_watcher.proof.release import (
    BlockRef,
    SignatureVerifier,
    VerifiedRelease,
    lowest_heights,
    newer,
    verify_release,
)

from .config import WatcherConfig
from .counters import Counters
from .endpoint_audit import Auditor
from .evidence_maker import ProofBase
from .headers import FinalBlock, FinalHeight, Headers, line_between
from .layout_cache import LayoutCache
from .layout_finder import LayoutFinder
from .read_ahead import ReadAhead
from .state_reader import BlockState, StateReader, behind, hash_text
from .suspicion import forged
from .view import Announced, ChainView, NewsQueue

#: Limit of ids whose lowest height is remembered, so that an id that was removed and added again is not newer.
HEIGHTS_MAX: Final = 4096

Blame = Callable[[Endpoint, ChainWatcherError], None]


class ViewMaker:
    """Publishes views to `news`. `verify` raises unless the network's signatures over an enclave id are good.

    `since` is the block that was final when the watcher last ran; no earlier block is published. `on_final` is called
    after each final block. `blame` is called with the errors of endpoints.
    """

    def __init__(
        self,
        config: WatcherConfig,
        pool: EndpointPool,
        headers: Headers,
        verify: SignatureVerifier,
        *,
        clock: Clock,
        counters: Counters,
        since: FinalHeight | None,
        blame: Blame,
        on_final: Callable[[Header], None],
    ) -> None:
        self.news = NewsQueue(config.limits.views_waiting_max)
        self.state: BlockState | None = None
        self.proof_base: ProofBase | None = None
        self.last: FinalHeight | None = None
        self.last_at = 0.0
        self.refused: dict[str, int] = {}
        #: The final block whose state is still to be read, and since when.
        self.unread: FinalBlock | None = None
        self._unread_at = 0.0
        self._config = config
        self._pool = pool
        self._headers = headers
        self._verify = verify
        self._clock = clock
        self._counters = counters
        self._since = since
        self._blame = blame
        self._on_final = on_final
        self._publish_again = False
        self._heights: dict[str, int] = {}
        self._announced: tuple[Any, ...] = ()
        self._verified: tuple[str, tuple[bytes, ...]] | None = None
        pins = frozenset(config.layout_hashes) or (STANDARD_LAYOUTS if config.finality == "proven" else frozenset())
        self._pins = pins
        layouts = LayoutCache(config.layouts_file, pins)
        self._reader = self._new_reader(layouts)
        self._ahead = ReadAhead(
            self._read,
            headers,
            floor=lambda: self.last,
            states_max=config.limits.known_states_max,
            on_state=self._seen_ahead,
            on_problem=blame,
        )
        self.auditor = Auditor(
            pool, lambda: self._new_reader(layouts.beside()), blame, outvoted=config.finality == "quorum"
        )

    def _new_reader(self, layouts: LayoutCache) -> StateReader:
        finder = LayoutFinder(
            layouts,
            pins=self._pins,
            others=lambda endpoint: [one for one in self._pool.usable() if one is not endpoint],
            now=self._clock.monotonic,
        )
        return StateReader(finder, unproven_allowed=self._config.unsafe_unproven_reads)

    async def run(self) -> None:
        """Audit endpoints and read best blocks ahead until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.auditor.run(), name="audit")
                if self._config.speculate:
                    group.create_task(self._ahead.run(), name="read ahead")
        finally:
            await self._reader.close()

    def hint(self, endpoint: Endpoint, head: Any) -> None:
        """Take a best head (JSON) of the primary and read its state ahead."""
        if self._config.speculate:
            self._ahead.hint(endpoint, head)

    def publish_again(self) -> None:
        """Publish the state again with the next final block, because all connections were lost in between."""
        self._publish_again = self.state is not None

    # --- final blocks

    async def finalized(self, found: FinalBlock) -> None:
        """Take a block that is final according to the mode; publish a view if anything changed.

        Raises ENDPOINT_BEHIND, ENDPOINT_FORKED_FINALITY, ENDPOINT_OTHER_HISTORY, ENDPOINT_HEADER_FORGED, RPC_*.
        """
        header, last = found.header, self.last
        if last is None and self._since is not None and header.number < self._since.number:
            self._counters.went_back += 1
            raise behind(
                found.endpoint, f"block {self._since.number}, which was final before: it is at {header.number}"
            )
        self._headers.add(header)
        self._pool.confirm(header.number)
        if last is not None and header.number <= last.number and (self.state or header.hash != last.hash):
            if header.number == last.number and header.hash != last.hash:
                why = f"block {header.number} is final as 0x{last.hash.hex()}, it says {hash_text(header)}"
                raise forged("ENDPOINT_FORKED_FINALITY", found.endpoint, why)
            if header.number < last.number:
                self._counters.went_back += 1
            elif self._publish_again and self.state is not None:
                self._accept(found, self.state)
            return
        await self._take(found)

    async def read_again(self) -> None:
        """Retry to read the state of a final block, once `retry_s` have passed since the read failed."""
        if self.unread is not None and self._clock.monotonic() - self._unread_at >= self._config.limits.retry_s:
            await self._take(self.unread)

    async def _take(self, found: FinalBlock) -> None:
        """Publish the view for a final block. If its state cannot be read now, the block is kept for a retry."""
        self.unread, self._unread_at = found, self._clock.monotonic()
        line = await self._line_to_last(found)
        ahead = await self._ahead.newest_of(found.endpoint, line)
        if ahead is not None:
            self._counters.answered_ahead += ahead.header == found.header
            self._accept(FinalBlock(found.endpoint, ahead.header, found.justification), ahead)
        if ahead is None or ahead.header != found.header:
            state = await self._read_anywhere(found)
            if state is None:
                return
            self._counters.read_at_finality += 1
            self._accept(found, state)
        self.unread = None
        self._advance(found, line)

    async def _line_to_last(self, found: FinalBlock) -> list[Header]:
        """Return the final blocks since the last one, linked by hash; only `found` if the others are not available.

        Raises ENDPOINT_FORKED_FINALITY if they do not descend from the last one.
        """
        last, header = self.last or self._since, found.header
        if last is None or header.number <= last.number:
            return [header]
        gap_max = self._config.limits.gap_blocks_max
        line = await line_between(self._headers, found.endpoint, header, last.number, gap_max)
        if line is None:
            self._counters.gaps_skipped += 1
            if self._config.finality != "proven":  # a proven block needs no link to the last one
                await self._require_same_history(found.endpoint, last)
            return [header]
        if line[0].parent_hash != last.hash:
            why = (
                f"block {header.number} does not descend from block {last.number} (0x{last.hash.hex()}), which is final"
            )
            raise forged("ENDPOINT_FORKED_FINALITY", found.endpoint, why)
        self._counters.gap_blocks += len(line) - 1
        return line

    async def _require_same_history(self, endpoint: Endpoint, last: FinalHeight) -> None:
        """Raise ENDPOINT_OTHER_HISTORY if the endpoint has another block at a final height; null is accepted.

        The endpoint is not accused: if a backend lags, a hash requested by number may belong to a fork.
        """
        known = answers.block_hash(endpoint.url, await endpoint.ask("chain_getBlockHash", last.number))
        if known not in (None, "0x" + last.hash.hex()):
            why = f"it has block {last.number} as {known}, final before was 0x{last.hash.hex()}"
            raise ChainWatcherError(code="ENDPOINT_OTHER_HISTORY", what=endpoint.url, why=why, kind="transient")

    def _advance(self, found: FinalBlock, line: list[Header]) -> None:
        """Record a final block whose state was read."""
        header = found.header
        if self.last is None or header.number > self.last.number:
            self._counters.finalized_blocks += 1
            self._counters.runtime_upgrades += sum(1 for one in line if one.runtime_updated)
        self.last, self.last_at = FinalHeight(header.number, header.hash), self._clock.monotonic()
        if found.justification is not None and self.state is not None and self._pool.genesis_hash:
            genesis = bytes.fromhex(self._pool.genesis_hash[2:])
            self.proof_base = ProofBase(genesis, header, found.justification, self.state.layout)
        final = {one.hash for one in line}
        for state in self._ahead.drop(header.number):
            if state.header.hash not in final and self.state is not None and state.values != self.state.values:
                self._counters.speculations_never_finalized += 1
        self._on_final(header)

    # --- states

    async def _read(self, endpoint: Endpoint, header: Header) -> BlockState:
        return await self._reader.read(endpoint, header, self._pool.genesis_hash or "")

    async def _read_anywhere(self, found: FinalBlock) -> BlockState | None:
        """Read a final block's state, first from the endpoint that announced it, then from others; None if all fail."""
        others = [endpoint for endpoint in self._pool.usable() if endpoint is not found.endpoint]
        agreed: list[BlockState] = []
        for endpoint in (found.endpoint, *others):
            if not endpoint.usable:
                continue
            try:
                state = await self._read(endpoint, found.header)
            except ChainWatcherError as problem:
                self._counters.read_failures += 1
                self._blame(endpoint, problem)
                continue
            except Exception as error:
                self._blame(endpoint, unexpected(endpoint, error))
                continue
            agreed.append(state)
            needed = self._config.quorum if self._config.finality == "quorum" and not state.proven else 1
            if len({voice(one.endpoint) for one in agreed if one.values == state.values}) >= needed:
                return state
        if agreed:
            why = f"block {found.header.number}: {len(agreed)} endpoints answered, {self._config.quorum} must agree"
            differ = ChainWatcherError(code="QUORUM_VALUES_DIFFER", what="unproven values", why=why, kind="transient")
            self._blame(found.endpoint, differ)
        return None

    def _accept(self, found: FinalBlock, state: BlockState) -> None:
        """Publish the state of a final block if it is new or has changed, or if connections came back."""
        before, self.state = self.state, state
        changed = before is None or before.values != state.values or before.layout != state.layout
        found.endpoint.believed_number = max(found.endpoint.believed_number, state.header.number)
        if not changed and not self._publish_again:
            return
        self._publish_again = False
        self._heights = lowest_heights([*self._heights.items(), *state.heights.items()])
        if len(self._heights) > HEIGHTS_MAX:
            self._heights = state.heights
        program, refusal = self.judge(state)
        if refusal is not None:
            self.refused[refusal.code] = self.refused.get(refusal.code, 0) + 1
        self._counters.views += 1
        self.auditor.look_at(state)
        self.news.put(
            ChainView(
                block_number=state.header.number,
                block_hash=hash_text(state.header),
                timestamp_ms=state.timestamp_ms,
                finality=self._config.finality,
                program=program,
                refusal=refusal,
                listed=MappingProxyType(state.heights),
                endpoint=found.endpoint.url,
                unproven_reads=not state.proven,
            )
        )

    def judge(self, state: BlockState) -> tuple[VerifiedRelease | None, ChainWatcherError | None]:
        """Return the release that a state names, or why it is refused."""
        try:
            block = BlockRef(state.header.number, hash_text(state.header))
            return verify_release(state.program, state.entries, self._verify_once, block), None
        except ChainWatcherError as refusal:
            return None, refusal

    def _verify_once(self, enclave_id: str, signatures: tuple[bytes, ...]) -> None:
        """Verify signatures, unless the last ones that were good are the same: at finality the release is known."""
        if self._verified != (enclave_id, signatures):
            self._verify(enclave_id, signatures)
            self._verified = enclave_id, signatures

    # --- before finality

    def _seen_ahead(self, state: BlockState) -> bool:
        """Announce a release that a best block names, for early fetches; return whether to keep the state."""
        if self._config.finality == "quorum" and not state.proven:
            return False  # an unproven claim of one endpoint is never enough
        if self.state is not None and state.values != self.state.values:
            self._counters.speculated += 1
            program, _ = self.judge(state)
            if program is not None and self._is_newer(program, self.state):
                self._announce(program, state)
        return True

    def _is_newer(self, release: VerifiedRelease, final: BlockState) -> bool:
        """Whether a release may replace the finalized program.

        The height in a best block is one endpoint's claim. So an id that was seen in a final block keeps its lowest
        height, and an id that was not seen must have been added after the last state that was read.
        """
        current = final.program.enclave_id.decode("ascii", "replace") if final.program is not None else None
        if release.enclave_id == current:
            return False
        height = self._heights.get(release.enclave_id)
        if height is None and release.added_height <= final.header.number:
            return False
        return newer(self._heights.get(current or ""), release.added_height if height is None else height)

    def _announce(self, release: VerifiedRelease, state: BlockState) -> None:
        said = (release.enclave_id, release.origin_url, release.mirror_url, release.cids)
        if said != self._announced:
            self._announced = said
            self.news.put(Announced(release, state.endpoint))
