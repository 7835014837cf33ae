"""What to watch and what to believe, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chain_watcher.endpoints.choice import voice
from chain_watcher.endpoints.pool import PoolLimits
from chain_watcher.endpoints.rpc import RpcLimits
from chain_watcher.endpoints.tunnel import ProxyFor, no_proxy
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.grandpa import checkpoint_genesis
from chain_watcher.proof.release import BlockRef

Finality = Literal["proven", "quorum", "single"]


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """Limits of the watcher; the names carry the units.

    An event is cancelled after `patience_s` if another endpoint has one waiting. An endpoint whose events were
    cancelled `given_up_max` times within `given_up_window_s`, without proving anything, is paused for
    `given_up_pause_s`.
    """

    tick_s: float = 0.25
    retry_s: float = 1.0
    patience_s: float = 6.0
    given_up_max: int = 5
    given_up_window_s: float = 600.0
    given_up_pause_s: float = 60.0
    gap_blocks_max: int = 512
    known_headers_max: int = 1024
    known_states_max: int = 64
    views_waiting_max: int = 64


@dataclass(frozen=True, slots=True)
class WatcherConfig:
    """What to watch and what to believe.

    `since` is the last finalized block that the caller journalled; `chain_state` is what the watcher reported with it.
    `layout_hashes` are the accepted storage layouts. If it is empty, mode `proven` accepts the public pallet's two
    layouts, and the other modes accept the layout in the metadata of most endpoints. `layouts_file` keeps layouts
    across starts. `proxy_for` returns the HTTP proxy for an endpoint's URL, or None; it gets the URL with http:// for
    ws:// and https:// for wss://.
    """

    endpoints: tuple[str, ...]
    finality: Finality
    genesis_hash: str | None = None
    quorum: int = 2
    checkpoint: Mapping[str, Any] | None = None
    chain_state: Mapping[str, Any] | None = None
    unsafe_unproven_reads: bool = False
    layout_hashes: tuple[str, ...] = ()
    ca_file: str | None = None
    proxy_for: ProxyFor = no_proxy
    layouts_file: Path | None = None
    speculate: bool = True
    since: BlockRef | None = None
    limits: WatchLimits = field(default_factory=WatchLimits)
    pool: PoolLimits = field(default_factory=PoolLimits)
    rpc: RpcLimits = field(default_factory=lambda: RpcLimits(request_timeout_s=4.0))

    @property
    def genesis(self) -> str | None:
        """The genesis hash as endpoints write it; the settings may leave out the 0x."""
        return None if self.genesis_hash is None else "0x" + self.genesis_hash.removeprefix("0x")

    def require_consistent(self) -> None:
        """Raise WATCHER_CONFIG_INVALID for settings that contradict each other."""
        wrong = None
        if not self.endpoints:
            wrong = "no endpoint is named"
        elif self.finality == "proven" and (self.checkpoint is None or self.genesis_hash is None):
            wrong = "mode proven needs a checkpoint and the genesis hash"
        elif self.finality == "proven" and self.unsafe_unproven_reads:
            wrong = "mode proven and unsafe_unproven_reads exclude each other"
        elif self.finality == "quorum" and not 2 <= self.quorum <= len({voice(url) for url in self.endpoints}):
            wrong = f"a quorum of {self.quorum} needs at least 2 and at most as many different endpoints as are named"
        elif self.genesis is not None and self._checkpoint_genesis() not in (None, self.genesis):
            wrong = f"the checkpoint is of the chain {self._checkpoint_genesis()}, genesis_hash is {self.genesis}"
        if wrong is not None:
            raise ChainWatcherError(code="WATCHER_CONFIG_INVALID", what="chain settings", why=wrong)

    def _checkpoint_genesis(self) -> str | None:
        return None if self.checkpoint is None else checkpoint_genesis(self.checkpoint)
