"""The chain port over the chain watcher."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from chain_watcher.endpoints.pool import PoolLimits
from chain_watcher.endpoints.rpc import RpcLimits
from chain_watcher.proof.release import BlockRef, VerifiedRelease
from chain_watcher.watch.config import WatcherConfig
from chain_watcher.watch.view import Announced, ChainView
from chain_watcher.watch.watcher import Watcher
from dcupgrade.errors import DcupgradeError, why_of
from dcupgrade.machine.state import ChainFacts, Release
from dcupgrade.settings.derive import proxies
from dcupgrade.settings.schema import Settings
from dcupgrade.upgrade.ports import Announcement
from process_supervisor.plain_file import read_plain

from .journal_thread import JournalThread


class Chain:
    """The chain port over a Watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher

    async def news(self) -> AsyncIterator[Announcement | ChainFacts]:
        """Yield announcements of best blocks, and the facts of each final view.

        A view that could not be read for a temporary reason is skipped.
        """
        async for news in self.watcher.news():
            if isinstance(news, Announced):
                yield Announcement(release_of(news.release))
            elif news.program is not None or news.refusal is None or news.refusal.kind != "transient":
                yield chain_facts(news)

    async def evidence(self, target_id: str, source_id: str, vault_state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the watcher's evidence for the vault."""
        return await self.watcher.evidence(target_id, source_id, dict(vault_state))

    async def next_set_changes(self, vault_state: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Return one step of the set changes that the vault does not know; empty if it is up to date or pins no set."""
        if vault_state["chain"].get("checkpoint") is None:
            return ()
        return await self.watcher.next_set_changes(vault_state)


def chain_facts(view: ChainView) -> ChainFacts:
    """Convert a view of the finalized chain to the machine's facts."""
    release = release_of(view.program) if view.program is not None else None
    return ChainFacts(program=release, listed=tuple(sorted(view.listed.items())), block_number=view.block_number)


def release_of(program: VerifiedRelease) -> Release:
    """Convert a release that the watcher verified to the machine's form."""
    return Release(
        enclave_id=program.enclave_id,
        version=program.version,
        origin_url=program.origin_url,
        mirror_url=program.mirror_url,
        cids=tuple(program.cids),
        signatures=tuple(program.signatures),
        added_height=program.added_height,
    )


RPC_TIMEOUT_S = 4.0
CHECKPOINT_BYTES_MAX = 64 * 1024 * 1024
PROGRESS_EVERY_BLOCKS = 10


def watcher_config(settings: Settings, progress: Mapping[str, Any] | None = None) -> WatcherConfig:
    """Make the watcher's configuration; `progress` is what it had seen when the agent last ran. Blocking."""
    chain = settings.chain
    checkpoint, since, chain_state = None, None, None
    if chain.checkpoint_file is not None:
        checkpoint = read_checkpoint(chain.checkpoint_file)
    if progress and progress.get("genesis") == chain.genesis_hash:
        with suppress(KeyError, TypeError, ValueError):
            since = BlockRef(int(progress["number"]), str(progress["hash"]))
        chain_state = progress.get("chain_state")
    return WatcherConfig(
        endpoints=chain.endpoints,
        finality=chain.finality,
        genesis_hash=chain.genesis_hash,
        quorum=chain.quorum,
        checkpoint=checkpoint,
        chain_state=chain_state,
        unsafe_unproven_reads=chain.unsafe_unproven_reads,
        layout_hashes=chain.layout_hashes,
        ca_file=str(chain.ca_file) if chain.ca_file else None,
        proxy_for=proxies(settings).proxy_for,
        layouts_file=settings.agent.state_dir / "layouts.json",
        since=since,
        pool=PoolLimits(block_silence_s=chain.block_watchdog_s),
        rpc=RpcLimits(heartbeat_s=chain.heartbeat_s, request_timeout_s=RPC_TIMEOUT_S),
    )


def read_checkpoint(path: Path) -> Any:
    """Return the JSON of a checkpoint file. Blocking; raises CHECKPOINT_UNREADABLE."""
    try:
        return json.loads(read_plain(path, CHECKPOINT_BYTES_MAX))
    except (OSError, ValueError, RecursionError) as error:
        raise DcupgradeError(
            code="CHECKPOINT_UNREADABLE",
            what=f"chain.checkpoint_file {path}",
            why=why_of(error),
            action="Make one with `dcupgrade chain checkpoint`, compare it, and name it in the settings.",
        ) from error


def remember_progress(settings: Settings, journal: JournalThread) -> Callable[[Mapping[str, Any]], None]:
    """Return a function that stores the watcher's progress, less often while only the height changes."""
    last: dict[str, Any] = {}

    def remember(facts: Mapping[str, Any]) -> None:
        moved = facts["number"] - last.get("number", -PROGRESS_EVERY_BLOCKS)
        if moved >= PROGRESS_EVERY_BLOCKS or facts.get("chain_state") != last.get("chain_state"):
            last.update(facts)
            journal.set_chain_progress({**facts, "genesis": settings.chain.genesis_hash})

    return remember
