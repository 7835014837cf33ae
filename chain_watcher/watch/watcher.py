"""The watcher: finalized heads in, ``ChainView`` out; what best blocks say is read ahead and acted on at finality.

The truth is the finalized block. Every new best block is read as well (one proof each), so that when a finalized
block turns out to be one that was read, or to descend from one, the view leaves without asking anybody anything.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from chain_watcher.endpoints.clock import Clock, SystemClock
from chain_watcher.endpoints.endpoint import Endpoint, Event
from chain_watcher.endpoints.pool import EndpointPool, voice
from chain_watcher.endpoints.rpc import RpcError
from chain_watcher.endpoints.turns import in_turn
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.evidence import STANDARD_LAYOUTS, claimed_evidence
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.proof.header import Header
from chain_watcher.proof.release import BlockRef, SignatureVerifier, VerifiedRelease, verify_release

from .config import WatcherConfig
from .counters import Counters
from .endpoint_audit import Auditor
from .evidence_maker import ProofBase, next_set_changes, not_ready, prove, vault_checkpoint
from .grandpa_follower import ProvenDecider
from .headers import Decider, FinalBlock, Headers, ancestry
from .look_back import look_back
from .metadata import LayoutCache
from .quorum import QuorumDecider, SingleDecider
from .read_ahead import ReadAhead
from .state_reader import BlockState, StateReader, forged, hash_text, state_facts
from .suspicion import BY_METADATA, CHAIN_WIDE, LYING
from .view import ChainView

__all__ = ["ChainView", "Watcher", "WatcherConfig"]

Progress = Callable[[Mapping[str, Any]], None]
Prefetch = Callable[[VerifiedRelease], None]


class Watcher:
    """Watches one chain through any number of endpoints.

    ``verify`` raises unless the network's signatures over an enclave id are good. ``on_progress`` is called with
    JSON-able facts after each final block (``number``, ``hash``, and in proven mode ``chain_state``: give it back as
    ``WatcherConfig.chain_state`` after a restart). ``on_speculation`` is called with releases seen at best blocks:
    reason enough to fetch an artefact early, never to act on it.
    """

    def __init__(
        self,
        config: WatcherConfig,
        verify: SignatureVerifier,
        *,
        on_progress: Progress | None = None,
        on_speculation: Prefetch | None = None,
        clock: Clock | None = None,
        uniform: Callable[[], float] | None = None,
    ) -> None:
        config.require_consistent()
        self.config = config
        self.counters = Counters()
        self.problem: ChainWatcherError | None = None
        self.history: list[dict[str, Any]] = []
        self.history_problem: ChainWatcherError | None = None
        self._verify = verify
        self._on_progress = on_progress
        self._on_speculation = on_speculation
        self._clock = clock or SystemClock()
        self.pool = EndpointPool(
            config.endpoints,
            genesis_hash=config.genesis,
            limits=config.pool,
            rpc_limits=config.rpc,
            clock=self._clock,
            random=uniform or random.SystemRandom().random,
            ca_file=config.ca_file,
            want_justifications=config.finality == "proven",
            claims_need_proof=config.finality != "single",
        )
        self._layouts = LayoutCache()
        self._reader = self._new_reader(self._layouts)
        self._headers = Headers(config.limits.known_headers_max)
        self._decider = self._make_decider()
        self._last: Header | None = None
        self._last_at = 0.0
        self._refused: dict[str, int] = {}
        self._given_up: dict[str, list[float]] = {}
        self._view: ChainView | None = None
        self._state: BlockState | None = None
        self._proof_base: ProofBase | None = None
        self._owed: FinalBlock | None = None
        self._owed_at = 0.0
        self._say_again = False
        self._ahead = ReadAhead(
            self._reader,
            self._read,
            self._headers,
            floor=lambda: self._last,
            states_max=config.limits.known_states_max,
            on_state=self._seen_ahead,
            on_problem=self._blame,
        )
        self._auditor = Auditor(
            self.pool,
            lambda: self._new_reader(self._layouts.beside()),
            self._blame,
            outvoted=config.finality == "quorum",
        )
        self._looking: asyncio.Task[None] | None = None
        self._hint_tasks: dict[str, asyncio.Task[None]] = {}
        self._views: deque[ChainView] = deque(maxlen=config.limits.views_waiting_max)
        self._view_wake = asyncio.Event()

    def _new_reader(self, layouts: LayoutCache) -> StateReader:
        pins = self.config.layout_hashes or (tuple(STANDARD_LAYOUTS) if self.config.finality == "proven" else ())
        return StateReader(
            unproven_allowed=self.config.unsafe_unproven_reads,
            layout_hashes=pins,
            others=lambda endpoint: [one for one in self.pool.usable() if one is not endpoint],
            layouts=layouts,
            blame=self._blame,
            now=self._clock.monotonic,
        )

    def _make_decider(self) -> Decider:
        if self.config.finality == "single":
            return SingleDecider(self.pool)
        if self.config.finality == "quorum":
            return QuorumDecider(self.pool, self.config.quorum, self._headers)
        start, stored, followed = Checkpoint.from_json(self.config.checkpoint), self.config.chain_state, 0
        if stored is not None:
            found = Checkpoint.from_json(stored.get("checkpoint"))
            if found.number >= start.number:  # a pin that was moved ahead by a person counts more than the journal
                scan_from, since = stored.get("scan_from"), self.config.since
                start, followed = found, scan_from if type(scan_from) is int else since.number if since else 0
        gap_max = self.config.limits.gap_blocks_max
        return ProvenDecider(start, self._reader, self._headers, gap_max, self.counters, followed)

    # --- running

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.pool.run(), name="endpoints")
                group.create_task(self._settle(), name="finality")
                group.create_task(self._auditor.run(), name="audit")
                if self.config.speculate:
                    group.create_task(self._ahead.run(), name="speculation")
        finally:
            tasks = [*self._hint_tasks.values(), *([self._looking] if self._looking else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._reader.close()

    async def views(self) -> AsyncIterator[ChainView]:
        """States at finalized blocks: the first one read, each change, and again after a reconnect."""
        while True:
            while self._views:
                yield self._views.popleft()
            self._view_wake.clear()
            await self._view_wake.wait()

    async def _settle(self) -> None:
        while True:
            event = await self.pool.event(self.config.limits.tick_s)
            before = self.pool.primary
            primary = self.pool.choose()
            if isinstance(self._decider, ProvenDecider) and self._owed is None:
                self.pool.accuse_unproven()
            if primary is None:
                self.problem = ChainWatcherError(
                    code="ENDPOINT_NONE_USABLE",
                    what="endpoints",
                    why=", ".join(f"{one.url} is {one.state}" for one in self.pool.endpoints),
                    action="Check the addresses; the watcher keeps trying",
                    kind="transient",
                )
            if event is not None:
                await self._in_turn(event.endpoint, self._handle(event))
            elif self._owed is not None and self._clock.monotonic() - self._owed_at >= self.config.limits.retry_s:
                await self._in_turn(self._owed.endpoint, self._retry(self._owed))
            if primary is not None and before is not None and primary is not before and primary.last_head is not None:
                await self._in_turn(primary, self._handle(Event(primary, "finalized", primary.last_head)))

    async def _in_turn(self, endpoint: Endpoint, work: Coroutine[Any, Any, None]) -> None:
        """What an endpoint's news ask for; given up when that is slow while others have news. Nothing is lost by it:
        what was learned is kept, and the next news lead to the same blocks. Who is slow again and again has to pause.
        """
        limits = self.config.limits
        if await in_turn(work, limits.patience_s, lambda: self.pool.has_news_besides(endpoint)):
            return
        self.pool.excuse_unproven()
        now = self._clock.monotonic()
        times = [at for at in self._given_up.get(endpoint.url, ()) if now - at < limits.given_up_window_s] + [now]
        self._given_up[endpoint.url] = times
        if len(times) >= limits.given_up_max and self.config.finality != "quorum":  # a quorum's questions go to others
            self._given_up[endpoint.url] = []
            why = f"its news took over {limits.patience_s:g} s to follow, {len(times)} times while others had some"
            slow = RpcError(code="RPC_TIMEOUT", what=endpoint.url, why=why, retry_after_s=limits.given_up_pause_s)
            self._blame(endpoint, slow)

    async def _handle(self, event: Event) -> None:
        endpoint = event.endpoint
        try:
            if event.kind in ("finalized", "justification"):
                found = await self._decider.decide(event, self._last)
                if found is not None:
                    await self._finalized(found)
            elif event.kind in ("best", "storage"):
                if self.config.speculate and endpoint is self.pool.primary:
                    self._ahead.hint(endpoint, event.value)
            elif event.kind == "up":
                self._came_up(endpoint)
            elif event.kind == "down":
                self._came_down(endpoint)
        except ChainWatcherError as problem:
            self._blame(endpoint, problem)

    async def _retry(self, owed: FinalBlock) -> None:
        try:
            await self._pay(owed)
        except ChainWatcherError as problem:
            self._blame(owed.endpoint, problem)

    def _came_up(self, endpoint: Endpoint) -> None:
        if self._view is not None and len(self.pool.usable()) == 1:
            self.counters.reconnects += 1
            self._say_again = True
        if self._reader.current is not None:
            self._watch_storage(endpoint)

    def _came_down(self, endpoint: Endpoint) -> None:
        task = self._hint_tasks.pop(endpoint.url, None)
        if task is not None:
            task.cancel()

    def _watch_storage(self, endpoint: Endpoint) -> None:
        """Storage changes of both items, as a hint only: forks included, not repeated on a reorganisation."""
        if endpoint.url in self._hint_tasks or self._reader.current is None or not self.config.speculate:
            return
        keys = self._reader.current[1].layout.keys
        wanted = ["0x" + keys[name].hex() for name in ("enclave_ids", "dc_program")]

        async def watch() -> None:
            try:
                await self.pool.watch_storage(endpoint, wanted)
            except ChainWatcherError:
                return  # the connection's own end is reported by the pool; a node without the method gives no hints

        self._hint_tasks[endpoint.url] = asyncio.create_task(watch(), name=f"storage hints {endpoint.url}")

    def _blame(self, endpoint: Endpoint, problem: ChainWatcherError) -> None:
        """An error belongs to an endpoint (it lied, or failed) or to the chain."""
        self.problem = problem
        if problem.code in LYING:
            self.pool.accuse(endpoint, problem)
        elif problem.code not in CHAIN_WIDE | {"RPC_REFUSED", "ENDPOINT_BEHIND"}:
            self.pool.distrust(endpoint, problem)

    # --- finality

    async def _finalized(self, found: FinalBlock) -> None:
        await self._anchor(found)
        header, last = found.header, self._last
        self._headers.add(header)
        self.pool.confirm(header.number)
        if last is not None and header.number <= last.number and (self._state or header.hash != last.hash):
            if header.number == last.number and header.hash != last.hash:
                why = f"block {header.number} is final as {hash_text(last)}, it says {hash_text(header)}"
                raise forged("ENDPOINT_FORKED_FINALITY", found.endpoint, why)
            if header.number < last.number:
                self.counters.went_back += 1
            elif self._say_again and self._state is not None:
                self._accept(found, self._state)
            return
        await self._pay(found)

    async def _anchor(self, found: FinalBlock) -> None:
        """Begin where the journal ended: nothing below that block, and nothing that does not descend from it."""
        since = self.config.since
        if since is None or self._last is not None:
            return
        if found.header.number < since.number:
            self.counters.went_back += 1
            why = f"it is at block {found.header.number}, block {since.number} was final before"
            raise ChainWatcherError(code="ENDPOINT_BEHIND", what=found.endpoint.url, why=why, kind="transient")
        answer = await found.endpoint.ask("chain_getHeader", since.hash)
        if answer is None:
            why = f"it does not know block {since.number} ({since.hash}), which was final before"
            raise forged("ENDPOINT_FORKED_FINALITY", found.endpoint, why)
        header = Header.from_json(answer)
        if hash_text(header) != since.hash or header.number != since.number:
            raise forged("ENDPOINT_HEADER_FORGED", found.endpoint, f"asked for {since.hash}, got {hash_text(header)}")
        self._headers.add(header)
        self._last = header

    async def _look_back(self, found: FinalBlock, now: BlockState) -> None:
        """Tell what changed since the journalled block; informational, and never in the way of anything."""
        since = self.config.since
        if since is None or now.header.number <= since.number:
            return
        reader = self._new_reader(self._layouts)
        try:
            self.history = await look_back(found.endpoint, reader, self.pool.genesis_hash or "", since.number, now)
        except ChainWatcherError as problem:
            self.history_problem = problem
        finally:
            await reader.close()

    async def _pay(self, found: FinalBlock) -> None:
        """Give the view that a final block deserves; kept and tried again where it cannot be read now."""
        self._owed, self._owed_at = found, self._clock.monotonic()
        line = await self._line_to_last(found)
        ahead = await self._ahead.newest_of(found.endpoint, line)
        if ahead is not None:
            self.counters.answered_ahead += ahead.header == found.header
            self._accept(FinalBlock(found.endpoint, ahead.header, found.justification), ahead)
        if ahead is None or ahead.header != found.header:
            state = await self._read_anywhere(found)
            if state is None:
                return
            self.counters.read_at_finality += 1
            first = self._state is None
            self._accept(found, state)
            if first and self.config.since is not None:
                self._looking = asyncio.create_task(self._look_back(found, state), name="history")
        self._owed = None
        self._count_progress(found, line)

    async def _line_to_last(self, found: FinalBlock) -> list[Header]:
        """The final blocks since the last one, linked by hash. ENDPOINT_FORKED_FINALITY where they do not link."""
        last, header = self._last, found.header
        if last is None or header.number <= last.number:
            return [header]
        gap = min(header.number - last.number, self.config.limits.gap_blocks_max + 1)
        line = await ancestry(
            self._reader, self._headers, found.endpoint, header, last.number, self.config.limits.gap_blocks_max
        )
        if line is None:
            self.counters.gaps_skipped += 1
            if await found.endpoint.ask("chain_getBlockHash", last.number) != hash_text(last):
                why = f"it has another block {last.number} than the final one ({hash_text(last)})"
                raise forged("ENDPOINT_FORKED_FINALITY", found.endpoint, why)
            return [header]
        if line[0].parent_hash != last.hash:
            why = f"block {header.number} does not descend from final block {last.number} ({hash_text(last)})"
            raise forged("ENDPOINT_FORKED_FINALITY", found.endpoint, why)
        self.counters.gap_blocks += gap - 1
        return line

    async def _read_anywhere(self, found: FinalBlock) -> BlockState | None:
        """Read at a final block: first where it was announced, then wherever else; None when nobody can now."""
        tried = [found.endpoint, *(one for one in self.pool.usable() if one is not found.endpoint)]
        suspects: list[tuple[Endpoint, ChainWatcherError]] = []
        agreed: list[BlockState] = []
        for endpoint in tried:
            if not endpoint.usable:
                continue
            try:
                state = await self._read(endpoint, found.header)
            except ChainWatcherError as problem:
                self.counters.read_failures += 1
                self._blame(endpoint, problem)
                if problem.code in BY_METADATA:
                    suspects.append((endpoint, problem))
                continue
            agreed.append(state)
            needed = self.config.quorum if self.config.finality == "quorum" and not state.proven else 1
            if len({voice(one.endpoint) for one in agreed if one.values == state.values}) < needed:
                continue
            for suspect, offence in suspects:
                self.pool.accuse(suspect, forged("ENDPOINT_METADATA_FORGED", suspect, str(offence)))
            self._watch_storage(endpoint)
            return state
        if agreed:
            why = f"block {found.header.number}: {len(agreed)} endpoints answered, {self.config.quorum} must agree"
            self.problem = ChainWatcherError(
                code="QUORUM_VALUES_DIFFER", what="unproven values", why=why, kind="transient"
            )
        return None

    async def _read(self, endpoint: Endpoint, header: Header) -> BlockState:
        return await self._reader.read(endpoint, header, self.pool.genesis_hash or "")

    def _count_progress(self, found: FinalBlock, line: list[Header]) -> None:
        header = found.header
        if self._last is None or header.number > self._last.number:
            self.counters.finalized_blocks += 1
            self.counters.runtime_upgrades += sum(1 for one in line if one.runtime_updated)
        self._last, self._last_at = header, self._clock.monotonic()
        if found.justification is not None and self._state is not None and self.pool.genesis_hash:
            genesis = bytes.fromhex(self.pool.genesis_hash[2:])
            self._proof_base = ProofBase(genesis, header, found.justification, self._state.layout)
        final = {one.hash for one in line}
        for state in self._ahead.drop(header.number):
            if state.header.hash not in final and self._state is not None and state.values != self._state.values:
                self.counters.speculations_never_finalized += 1
        if self._on_progress is not None:
            facts: dict[str, Any] = {"number": header.number, "hash": hash_text(header)}
            if isinstance(self._decider, ProvenDecider):
                facts["chain_state"] = self._decider.to_json()
            self._on_progress(facts)

    def _accept(self, found: FinalBlock, state: BlockState) -> None:
        """A state at a final block: say so when it is new, has changed, or connections came back."""
        self.problem = None
        before, self._state = self._state, state
        changed = before is None or before.values != state.values or before.layout != state.layout
        found.endpoint.believed_number = max(found.endpoint.believed_number, state.header.number)
        if not changed and not self._say_again:
            return
        self._say_again = False
        program, refusal = self._judge(state)
        self._view = ChainView(
            block_number=state.header.number,
            block_hash=hash_text(state.header),
            timestamp_ms=state.timestamp_ms,
            finality=self.config.finality,
            program=program,
            refusal=refusal,
            listed=MappingProxyType(state.heights),
            endpoint=found.endpoint.url,
            unproven_reads=not state.proven,
        )
        if refusal is not None:
            self._refused[refusal.code] = self._refused.get(refusal.code, 0) + 1
        self.counters.views += 1
        self._auditor.look_at(state)
        self._views.append(self._view)
        self._view_wake.set()

    def _judge(self, state: BlockState) -> tuple[VerifiedRelease | None, ChainWatcherError | None]:
        block = BlockRef(state.header.number, hash_text(state.header))
        try:
            return verify_release(state.program, state.entries, self._verify, block), None
        except ChainWatcherError as refusal:
            return None, refusal

    def _seen_ahead(self, state: BlockState) -> bool:
        """A best block was read; says whether to keep it. A change in it is told, for whoever can prepare."""
        if self.config.finality == "quorum" and not state.proven:
            return False  # one endpoint's unproven word is not enough, early or late
        if self._state is not None and state.values != self._state.values:
            self.counters.speculated += 1
            program, _ = self._judge(state)
            if program is not None and self._on_speculation is not None:
                self._on_speculation(program)
        return True

    # --- facts

    @property
    def state(self) -> BlockState | None:
        """The last finalized state that was read, or None."""
        return self._state

    def health(self) -> dict[str, Any]:
        """JSON-able facts: mode, heights, endpoints and what they were caught at, counters, unsafe switches."""
        now = self._clock.monotonic()
        primary = self.pool.primary
        unsafe = ["finality_single"] if self.config.finality == "single" else []
        if self.config.unsafe_unproven_reads:
            unsafe.append("unsafe_unproven_reads")
        return {
            "finality": self.config.finality,
            "unsafe": unsafe,
            "genesis_hash": self.pool.genesis_hash,
            "finalized": state_facts(self._state) if self._state else None,
            "last_number": self._last.number if self._last else None,
            "finalized_age_s": round(now - self._last_at, 3) if self._last else None,
            "endpoint": primary.url if primary else None,
            "refused": dict(self._refused),
            "endpoints": [endpoint.facts(now) for endpoint in self.pool.endpoints],
            "lying": [one.url for one in self.pool.endpoints if one.accusations],
            "layout_pinned": bool(self.config.layout_hashes) or self.config.finality == "proven",
            "problem": {"code": self.problem.code, "text": str(self.problem)} if self.problem else None,
            "history": self.history,
            "failovers": self.pool.failovers,
            "events_dropped": self.pool.events_dropped,
            "audits": {"checks": self._auditor.checks, "disagreements": self._auditor.disagreements},
            "counters": self.counters.facts(),
        }

    async def evidence(self, target_id: str, source_id: str, vault_state: Mapping[str, Any]) -> dict[str, Any]:
        """What ``POST /vault/permit`` wants: the last finalized state, with proofs in mode ``proven``.

        ``target_id`` must be the program at that state unless it is empty (evidence that only shows what is listed);
        ``vault_state`` is ``/vault/status``: its chain part says which authority set the vault knows already.
        Raises WATCHER_NO_VIEW, EVIDENCE_NOT_READY, RELEASE_*, ENDPOINT_*, RPC_*.
        """
        state, base = self._state, self._proof_base
        if state is None:
            why = "no finalized state was read yet"
            raise ChainWatcherError(code="WATCHER_NO_VIEW", what="evidence", why=why, kind="transient")
        program, refusal = self._judge(state)
        if program is None and target_id:
            raise refusal or ChainWatcherError(code="WATCHER_NO_VIEW", what="evidence", why="no program")
        if program is not None and target_id and program.enclave_id != target_id:
            why = f"the program at block {state.header.number} is {program.enclave_id}, not {target_id}"
            raise ChainWatcherError(code="EVIDENCE_NOT_READY", what="evidence", why=why)
        if isinstance(self._decider, ProvenDecider):
            if base is None:
                raise not_ready("no justified block was read yet")
            return await prove(
                self.pool, self._decider, base, vault_state, Checkpoint.from_json(self.config.checkpoint)
            )
        return claimed_evidence(
            mode=self.config.finality,
            genesis_hash=bytes.fromhex((self.pool.genesis_hash or "")[2:]),
            block=BlockRef(state.header.number, hash_text(state.header)),
            timestamp_ms=state.timestamp_ms,
            release=program,
            entries=state.entries,
        )

    async def next_set_changes(self, vault_state: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What ``POST /vault/advance`` wants: one step from the authority set that the vault knows to the running one.

        Empty where the vault is up to date, and outside mode ``proven``. Raises EVIDENCE_NOT_READY, ENDPOINT_*, RPC_*.
        """
        if not isinstance(self._decider, ProvenDecider):
            return []
        start = vault_checkpoint(vault_state, Checkpoint.from_json(self.config.checkpoint))
        changes = await next_set_changes(self.pool, self._decider, start)
        return [change.to_json() for change in changes]
