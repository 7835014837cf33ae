"""The watcher: takes what endpoints announce, and yields views of the finalized chain."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from chain_watcher.endpoints.clock import Clock, SystemClock
from chain_watcher.endpoints.endpoint import Endpoint, Event, unexpected
from chain_watcher.endpoints.messages import RpcError
from chain_watcher.endpoints.pool import EndpointPool
from chain_watcher.endpoints.turns import in_turn
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.evidence import claimed_evidence
from chain_watcher.proof.follower import Follower
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.proof.header import Header
from chain_watcher.proof.release import BlockRef, SignatureVerifier

from .config import WatcherConfig
from .counters import Counters
from .evidence_maker import next_set_changes, not_ready, prove, vault_checkpoint
from .grandpa_follower import ProvenDecider
from .headers import Decider, FinalHeight, Headers
from .quorum import QuorumDecider, SingleDecider
from .state_reader import BlockState, hash_text, state_facts
from .suspicion import HARMLESS, LYING
from .view import Announced, ChainView
from .view_maker import ViewMaker

Progress = Callable[[Mapping[str, Any]], None]


class Watcher:
    """Watches one chain through any number of endpoints.

    `verify` raises unless the network's signatures over an enclave id are good. `on_progress` is called with JSON-able
    facts after each final block: `number`, `hash`, and in mode proven `chain_state`. Give them back as
    `WatcherConfig.since` and `WatcherConfig.chain_state` after a restart. Making one reads `layouts_file`: blocking.

        watcher = Watcher(config, verify)
        task = asyncio.create_task(watcher.run())
        async for news in watcher.news():
            ...
    """

    def __init__(
        self,
        config: WatcherConfig,
        verify: SignatureVerifier,
        *,
        on_progress: Progress | None = None,
        clock: Clock | None = None,
        uniform: Callable[[], float] | None = None,
    ) -> None:
        config.require_consistent()
        self.config = config
        self.counters = Counters()
        self.problem: ChainWatcherError | None = None
        self._on_progress = on_progress
        self._clock = clock or SystemClock()
        self.pool = EndpointPool(
            config.endpoints,
            genesis_hash=config.genesis,
            limits=config.pool,
            rpc_limits=config.rpc,
            clock=self._clock,
            random=uniform or random.SystemRandom().random,
            ca_file=config.ca_file,
            proxy_for=config.proxy_for,
            want_justifications=config.finality == "proven",
            claims_need_proof=config.finality != "single",
        )
        headers = Headers(config.limits.known_headers_max)
        self._decider = self._make_decider(headers)
        self._given_up: dict[str, list[float]] = {}
        self._views = ViewMaker(
            config,
            self.pool,
            headers,
            verify,
            clock=self._clock,
            counters=self.counters,
            since=self._since(),
            blame=self._blame,
            on_final=self._final,
        )

    def _since(self) -> FinalHeight | None:
        """Return the journalled block. Mode proven uses it only if it was proven, as other modes may be deceived."""
        since = self.config.since
        if since is None or (self.config.finality == "proven" and self.config.chain_state is None):
            return None
        return FinalHeight(since.number, bytes.fromhex(since.hash[2:]))

    def _make_decider(self, headers: Headers) -> Decider:
        config = self.config
        if config.finality == "single":
            return SingleDecider(self.pool)
        if config.finality == "quorum":
            return QuorumDecider(self.pool, config.quorum, headers)
        pinned, gap_max = Checkpoint.from_json(config.checkpoint), config.limits.gap_blocks_max
        if config.chain_state is not None:
            stored = Checkpoint.from_json(config.chain_state.get("checkpoint"))
            if stored.number >= pinned.number:  # else a person has moved the pin ahead of the journal
                since, scan_from = self._since(), config.chain_state.get("scan_from")
                known = (since.number, since.hash) if since is not None else None
                searched = scan_from if type(scan_from) is int else since.number if since is not None else 0
                return ProvenDecider(Follower(stored, gap_max=gap_max, known=known, scan_from=searched), headers)
        return ProvenDecider(Follower(pinned, gap_max=gap_max), headers)

    # --- running

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.pool.run(), name="endpoints")
            group.create_task(self._settle(), name="finality")
            group.create_task(self._views.run(), name="states")

    def news(self) -> AsyncIterator[Announced | ChainView]:
        """Yield views, and before them what best blocks announce: releases to fetch early, never to act on."""
        return self._views.news.news()

    def views(self) -> AsyncIterator[ChainView]:
        """Yield states at finalized blocks: the first one read, each change, and again after a reconnect."""
        return self._views.news.views()

    async def _settle(self) -> None:
        """Process the endpoints' events one after the other."""
        while True:
            event = await self.pool.events.get(self.config.limits.tick_s)
            before = self.pool.primary
            primary = self.pool.choose()
            if isinstance(self._decider, ProvenDecider) and self._views.unread is None:
                self.pool.ask_for_proofs()
            if primary is None:
                self._note_none_usable()
            unread = self._views.unread
            if event is not None:
                await self._in_turn(event.endpoint, self._handle(event))
            elif unread is not None:
                await self._in_turn(unread.endpoint, self._views.read_again())
            if primary is not None and before is not None and primary is not before and primary.last_head is not None:
                await self._in_turn(primary, self._handle(Event(primary, "finalized", primary.last_head)))

    def _note_none_usable(self) -> None:
        self.problem = ChainWatcherError(
            code="ENDPOINT_NONE_USABLE",
            what="endpoints",
            why=", ".join(f"{one.url} is {one.state}" for one in self.pool.endpoints),
            action="Check the addresses; the watcher keeps trying",
            kind="transient",
        )

    async def _in_turn(self, endpoint: Endpoint, work: Coroutine[Any, Any, None]) -> None:
        """Process one endpoint's event. Cancel it after `patience_s` if another endpoint has an event waiting.

        Cancelling loses nothing: results so far are kept, and the next event leads to the same blocks. An endpoint that
        is slow repeatedly is paused, unless it proved something in that time.
        """
        limits, learned = self.config.limits, self._decider.learned
        try:
            done = await in_turn(work, limits.patience_s, lambda: self.pool.events.has_finality_besides(endpoint))
        except ChainWatcherError as problem:
            self._blame(endpoint, problem)
            return
        except Exception as error:
            self._blame(endpoint, unexpected(endpoint, error))
            return
        if done:
            return
        self.pool.excuse_unproven()
        if self._decider.learned > learned:
            return
        now = self._clock.monotonic()
        times = [at for at in self._given_up.get(endpoint.url, ()) if now - at < limits.given_up_window_s] + [now]
        self._given_up[endpoint.url] = times
        if len(times) >= limits.given_up_max and self.config.finality != "quorum":  # a quorum's questions go to others
            self._given_up[endpoint.url] = []
            why = f"its events took over {limits.patience_s:g} s to follow, {len(times)} times while others had some"
            slow = RpcError(code="RPC_TIMEOUT", what=endpoint.url, why=why, retry_after_s=limits.given_up_pause_s)
            self._blame(endpoint, slow)

    async def _handle(self, event: Event) -> None:
        """Process one event. Raises the endpoint's fault as an error."""
        if event.kind in ("finalized", "justification", "unproven"):
            found = await self._decider.decide(event, self._views.last)
            if found is not None:
                await self._views.finalized(found)
        elif event.kind == "best" and event.endpoint is self.pool.primary:
            self._views.hint(event.endpoint, event.value)
        elif event.kind == "up" and self._views.state is not None and len(self.pool.usable()) == 1:
            self.counters.reconnects += 1
            self._views.publish_again()

    def _blame(self, endpoint: Endpoint, problem: ChainWatcherError) -> None:
        """Handle an error: the endpoint lied or failed, or this program cannot follow the chain."""
        self.problem = problem
        if problem.code in LYING:
            self.pool.accuse(endpoint, problem)
        elif problem.code in HARMLESS:
            endpoint.problem = problem
        else:
            self.pool.distrust(endpoint, problem)

    def _final(self, header: Header) -> None:
        """Report a final block whose state was read."""
        self.problem = None
        if isinstance(self._decider, ProvenDecider):
            self.counters.justifications = self._decider.justifications
            self.counters.set_changes = self._decider.follower.set_changes
        if self._on_progress is not None:
            self._on_progress({"number": header.number, "hash": hash_text(header), **self._decider.facts()})

    # --- facts

    @property
    def state(self) -> BlockState | None:
        """The last finalized state that was read, or None."""
        return self._views.state

    def health(self) -> dict[str, Any]:
        """Return JSON-able facts: mode, heights, endpoints and their accusations, counters, unsafe switches.

        `last_number` is the last finalized block. `finalized` is the block of the last state that was read; it is older
        if nothing has changed since.
        """
        now, views = self._clock.monotonic(), self._views
        primary = self.pool.primary
        unsafe = ["finality_single"] if self.config.finality == "single" else []
        if self.config.unsafe_unproven_reads:
            unsafe.append("unsafe_unproven_reads")
        return {
            "finality": self.config.finality,
            "unsafe": unsafe,
            "genesis_hash": self.pool.genesis_hash,
            "finalized": state_facts(views.state) if views.state else None,
            "last_number": views.last.number if views.last else None,
            "finalized_age_s": round(now - views.last_at, 3) if views.last else None,
            "endpoint": primary.url if primary else None,
            "refused": dict(views.refused),
            "endpoints": [endpoint.facts(now) for endpoint in self.pool.endpoints],
            "lying": [one.url for one in self.pool.endpoints if one.accusations],
            "layout_pinned": bool(self.config.layout_hashes) or self.config.finality == "proven",
            "problem": {"code": self.problem.code, "text": str(self.problem)} if self.problem else None,
            "failovers": self.pool.failovers,
            "events_dropped": self.pool.events.dropped,
            "audits": {"checks": views.auditor.checks, "disagreements": views.auditor.disagreements},
            "counters": self.counters.facts(),
        }

    # --- evidence

    async def evidence(self, target_id: str, source_id: str, vault_state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the evidence for `POST /vault/permit`: the last finalized state, with proofs in mode `proven`.

        `target_id` must be the program at that state. It may be empty, for evidence that only shows what is listed.
        `vault_state` is the answer of `/vault/status`; its chain part names the authority set that the vault knows.
        Raises WATCHER_NO_VIEW, EVIDENCE_NOT_READY, RELEASE_*, ENDPOINT_*, RPC_*.
        """
        state = self._views.state
        if state is None:
            raise ChainWatcherError(
                code="WATCHER_NO_VIEW", what="evidence", why="no finalized state was read yet", kind="transient"
            )
        program, refusal = self._views.judge(state)
        if program is None and target_id:
            raise refusal or ChainWatcherError(code="WATCHER_NO_VIEW", what="evidence", why="no program")
        if program is not None and target_id and program.enclave_id != target_id:
            why = f"the program at block {state.header.number} is {program.enclave_id}, not {target_id}"
            raise ChainWatcherError(code="EVIDENCE_NOT_READY", what="evidence", why=why)
        if isinstance(self._decider, ProvenDecider):
            if self._views.proof_base is None:
                raise not_ready("no justified block was read yet")
            pinned = Checkpoint.from_json(self.config.checkpoint)
            return await prove(self.pool, self._decider, self._views.proof_base, vault_state, pinned)
        return claimed_evidence(
            mode=self.config.finality,
            genesis_hash=bytes.fromhex((self.pool.genesis_hash or "")[2:]),
            block=BlockRef(state.header.number, hash_text(state.header)),
            timestamp_ms=state.timestamp_ms,
            release=program,
            entries=state.entries,
        )

    async def next_set_changes(self, vault_state: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the body for `POST /vault/advance`: one step from the vault's authority set towards the current one.

        Empty if the vault is up to date, and outside mode `proven`. Raises EVIDENCE_NOT_READY, ENDPOINT_*, RPC_*.
        """
        if not isinstance(self._decider, ProvenDecider):
            return []
        start = vault_checkpoint(vault_state, Checkpoint.from_json(self.config.checkpoint))
        changes = await next_set_changes(self.pool, self._decider, start)
        return [change.to_json() for change in changes]
