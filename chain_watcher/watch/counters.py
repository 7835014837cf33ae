"""Counts of what the watcher did, for metrics."""

from __future__ import annotations

from dataclasses import dataclass


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
