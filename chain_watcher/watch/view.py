"""What the watcher yields: the chain's state at one final block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.release import VerifiedRelease

from .config import Finality


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
