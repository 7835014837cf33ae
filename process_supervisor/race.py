"""Ask several sources for the same artefact: start the next one when those before it are slow or have failed."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class AllFailedError(Exception):
    """No runner gave a result; `failures` has each one's error, in the order in which they came."""

    def __init__(self, failures: list[Exception]) -> None:
        super().__init__(failures)
        self.failures = failures


class Pace:
    """How fast one source delivers. A source that does not report bytes, such as an engine's pull, is never slow."""

    def __init__(self, slow_bytes_per_s: int, slow_s: float) -> None:
        self.slow_s = slow_s
        self._least = slow_bytes_per_s * slow_s
        self._seen: int | None = 0
        self._before = 0

    def report(self, received_bytes: int) -> None:
        """Report how many bytes have arrived so far."""
        self._seen = received_bytes

    def steady(self) -> None:
        """Never treat this source as slow from now on: all bytes have arrived, or they cannot be counted."""
        self._seen = None

    def was_slow(self) -> bool:
        """Return whether fewer bytes arrived since the last call than a source should deliver in `slow_s` seconds."""
        if self._seen is None:
            return False
        gained, self._before = self._seen - self._before, self._seen
        return gained < self._least


Runner = Callable[[Pace], Awaitable[T]]


async def first_good(
    runners: Sequence[Runner[T]], new_pace: Callable[[], Pace], fatal: Callable[[Exception], bool]
) -> T:
    """Return the first result; cancel the others. The next runner starts when one fails or all running ones are slow.

    After a `fatal` failure no other runner starts. Raises AllFailedError when no runner is left.
    """
    waiting = list(runners)
    running: dict[asyncio.Future[T], Pace] = {}
    failures: list[Exception] = []

    def start_next() -> None:
        if waiting:
            pace = new_pace()
            running[asyncio.ensure_future(waiting.pop(0)(pace))] = pace

    start_next()
    try:
        while running:
            pause_s = min(pace.slow_s for pace in running.values()) if waiting else None
            done, _ = await asyncio.wait(running, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            if not done and all([pace.was_slow() for pace in running.values()]):
                start_next()
            for task in done:
                del running[task]
                error = task.exception()
                if error is None:
                    return task.result()
                if not isinstance(error, Exception):
                    raise error
                failures.append(error)
                if fatal(error):
                    waiting.clear()
                start_next()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    raise AllFailedError(failures)
