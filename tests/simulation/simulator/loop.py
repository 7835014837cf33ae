"""An asyncio event loop without a clock or sockets: time jumps to the next timer, so hours pass in milliseconds.

Nothing in it depends on the machine: the same coroutines with the same random numbers run in the same order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlockError(Exception):
    """Nothing is left to do, and nothing will ever be."""


class BusyLoopError(Exception):
    """Something repeats itself without a pause: in reality it would take the whole processor."""


STEPS_WITHOUT_TIME_MAX = 20_000


class PowerCut(KeyboardInterrupt):
    """The power goes, in the middle of whatever runs. Not an Exception, so that no handler stops it."""


class _Selector:
    """Stands where the loop waits for sockets: waiting is passing time."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._steps = 0

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise DeadlockError
        if timeout > 0:
            self._loop.now_s += timeout
            self._steps = 0
        self._steps += 1
        if self._steps > STEPS_WITHOUT_TIME_MAX:
            self._steps = 0
            raise BusyLoopError(f"{STEPS_WITHOUT_TIME_MAX} steps of the loop without a pause")
        return []


class SimulatedLoop(asyncio.BaseEventLoop):
    """The loop. `now_s` is monotonic time, which a power cut does not reset."""

    def __init__(self, now_s: float = 0.0) -> None:
        super().__init__()
        self.now_s = now_s
        self._selector = _Selector(self)

    def time(self) -> float:
        return self.now_s

    def create_task(self, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """Start a task; when the power goes inside it, the loop has been told already and nobody asks the task."""
        task = super().create_task(*args, **kwargs)
        task.add_done_callback(_died_of_power_cut)
        return task

    def _process_events(self, event_list: list[Any]) -> None:
        return None

    def _write_to_self(self) -> None:
        return None


def _died_of_power_cut(task: asyncio.Task[Any]) -> None:
    """Take note of a power cut, which asyncio would else report at whatever later moment the task is collected."""
    if not task.cancelled() and isinstance(task._exception, PowerCut):
        task.exception()


async def detached(work: Coroutine[Any, Any, T]) -> T:
    """Wait for work that another process does: it continues when the agent dies while it waits."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)
