"""The watcher's clock: a protocol, and the system's clock."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


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


class Clock(Protocol):
    """The clock that code with I/O uses; tests pass their own."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def time(self) -> float:
        """Unix seconds."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""
