"""An asyncio event loop without a clock or sockets: time jumps to the next timer, so hours pass in milliseconds.

Nothing in it depends on the machine: the same coroutines with the same random numbers run in the same order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")
Work = Callable[..., object]


class DeadlockError(Exception):
    """Nothing is left to do, and nothing will ever be."""


class BusyLoopError(Exception):
    """Something repeats itself without a pause: in reality it would take the whole processor."""


STEPS_WITHOUT_TIME_MAX = 20_000


class PowerCut(KeyboardInterrupt):
    """The power goes, in the middle of whatever runs. Not an Exception, so that no handler stops it."""


class _Timer(float):
    """A callback that waits for its time, which the timer is itself: a heap compares timers as fast as numbers."""

    work: tuple[Work, tuple[Any, ...]] | None
    context: Context

    def run(self) -> None:
        if self.work is not None:  # else cancelled after its time had come
            callback, args = self.work
            callback(*args)

    def cancel(self) -> None:
        self.work = None

    def cancelled(self) -> bool:
        return self.work is None

    def when(self) -> float:
        return self


class SimulatedLoop(asyncio.BaseEventLoop):
    """The loop. `now_s` is monotonic time, which a power cut does not reset.

    Simulations spend most of their time in the loop, so it does no more than callbacks need: no sockets, no other
    threads, no debug mode. The order of callbacks is that of asyncio's own loops.
    """

    if TYPE_CHECKING:  # typeshed leaves these out
        _clock_resolution: float
        _stopping: bool

        def _check_closed(self) -> None: ...

    def __init__(self, now_s: float = 0.0) -> None:
        super().__init__()
        self.now_s = now_s
        self._waiting: deque[tuple[Work, tuple[Any, ...], Context]] = deque()
        self._timers: list[_Timer] = []
        self._steps = 0

    def time(self) -> float:
        return self.now_s

    def call_soon(self, callback: Work, *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        """Run a callback in the next step. There is no handle to cancel it by."""
        self._check_closed()
        self._waiting.append((callback, args, copy_context() if context is None else context))

    def call_at(  # type: ignore[override]
        self, when: float, callback: Work, *args: Any, context: Context | None = None
    ) -> Any:
        self._check_closed()
        timer = _Timer(when)
        timer.work, timer.context = (callback, args), copy_context() if context is None else context
        heappush(self._timers, timer)
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Work, *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        self._check_closed()
        return asyncio.Task(coro, loop=self, **options)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an error that nobody takes. A power cut is none: `run_until_complete` has raised it already."""
        if not isinstance(context.get("exception"), PowerCut):
            super().call_exception_handler(context)

    def _run_once(self) -> None:
        """Run what waits now, after passing time to the next timer if nothing does."""
        waiting, timers = self._waiting, self._timers
        while timers and timers[0].work is None:
            heappop(timers)
        if not waiting and not self._stopping:
            self._pass_time()
        self._steps += 1
        if self._steps > STEPS_WITHOUT_TIME_MAX:
            self._steps = 0
            raise BusyLoopError(f"{STEPS_WITHOUT_TIME_MAX} steps of the loop without a pause")
        due_s = self.now_s + self._clock_resolution
        while timers and timers[0] < due_s:
            timer = heappop(timers)
            waiting.append((timer.run, (), timer.context))
        for _ in range(len(waiting)):
            callback, args, context = waiting.popleft()
            try:
                context.run(callback, *args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"exception in {callback!r}", "exception": error})

    def _pass_time(self) -> None:
        """Pass time to the next timer. Raises DeadlockError if there is none."""
        if not self._timers:
            raise DeadlockError
        wait_s = self._timers[0] - self.now_s
        if wait_s > 0:
            self.now_s += wait_s
            self._steps = 0


async def detached(work: Coroutine[Any, Any, T]) -> T:
    """Wait for work that another process does: it continues when the agent dies while it waits."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)
