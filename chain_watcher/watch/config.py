"""What to watch and what to believe, what comes out, and the counts: plain values of the watcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from chain_watcher.endpoints.pool import PoolLimits, voice
from chain_watcher.endpoints.rpc import RpcLimits
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.grandpa import checkpoint_genesis
from chain_watcher.proof.release import BlockRef, VerifiedRelease

Finality = Literal["proven", "quorum", "single"]


#: Codes that mean: this endpoint said what cannot be true.
LYING: Final = frozenset(
    {
        "ENDPOINT_FORKED_FINALITY",
        "ENDPOINT_HEADER_FORGED",
        "ENDPOINT_PROOF_FORGED",
        "ENDPOINT_JUSTIFICATION_FORGED",
        "ENDPOINT_UNPROVEN_HEIGHT",
        "ENDPOINT_DISAGREES",
        "ENDPOINT_METADATA_FORGED",
    }
)
#: Codes that no other endpoint can help with: the chain itself is not what this program can read.
CHAIN_WIDE: Final = frozenset(
    {
        "CHAIN_WITHOUT_PALLET",
        "ENDPOINT_NO_PROOFS",
        "LAYOUT_INVALID",
        "LAYOUT_MISMATCH",
        "LAYOUT_NOT_PINNED",
        "METADATA_UNREADABLE",
    }
)
#: What metadata can be at fault for: it is forged where another endpoint's metadata is good.
BY_METADATA: Final = CHAIN_WIDE - {"ENDPOINT_NO_PROOFS"}


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """Limits of the watcher; the names carry the units."""

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

    ``since`` is the last finalized block that the caller journalled. ``layout_hashes`` are the storage layouts that
    are accepted; when empty, mode ``proven`` accepts the public pallet's two, and the other modes what most
    endpoints' metadata say.
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
    speculate: bool = True
    since: BlockRef | None = None
    limits: WatchLimits = field(default_factory=WatchLimits)
    pool: PoolLimits = field(default_factory=PoolLimits)
    rpc: RpcLimits = field(default_factory=lambda: RpcLimits(request_timeout_s=4.0))

    @property
    def genesis(self) -> str | None:
        """The genesis hash as endpoints write it; settings may leave out the 0x."""
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


@dataclass(frozen=True, slots=True)
class ChainView:
    """The finalized state that matters. Either ``program`` or ``refusal`` is set.

    ``listed`` maps enclave ids to the lowest height at which they were added; ``unproven_reads`` says that values
    were believed without a storage proof (``unsafe_unproven_reads``).
    """

    block_number: int
    block_hash: str
    timestamp_ms: int
    finality: Finality
    program: VerifiedRelease | None
    refusal: ChainWatcherError | None
    listed: Mapping[str, int]
    endpoint: str
    unproven_reads: bool = False


@dataclass(slots=True)
class Counters:
    """Counts since the start, for metrics."""

    finalized_blocks: int = 0
    gap_blocks: int = 0
    gaps_skipped: int = 0
    views: int = 0
    went_back: int = 0
    speculated: int = 0
    speculations_never_finalized: int = 0
    answered_ahead: int = 0
    read_at_finality: int = 0
    read_failures: int = 0
    justifications: int = 0
    set_changes: int = 0
    reconnects: int = 0
    runtime_upgrades: int = 0

    def facts(self) -> dict[str, int]:
        """The counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class SystemClock:
    """The machine's time."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def time(self) -> float:
        """Unix seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)
