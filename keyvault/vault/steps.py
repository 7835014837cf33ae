"""Steps of the vault, one after another in one thread. A slow disk delays other steps, but not the event loop."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from keyvault.handover.key_set import KeySet

P = ParamSpec("P")
T = TypeVar("T")


class Steps:
    """The thread of the steps. Each step runs to its end before the next begins. `monotonic_s`: a clock, seconds."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vault")
        self._monotonic_s = monotonic_s
        self._began_s: float | None = None

    @property
    def running_s(self) -> float:
        """Seconds for which the current step has run; 0 if there is none."""
        began_s = self._began_s
        return 0.0 if began_s is None else self._monotonic_s() - began_s

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one step. A cancellation takes effect only after the step: the thread still uses the arguments."""
        call = functools.partial(work, *args, **kwargs)
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._do, call)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is None:
            return future.result()
        unclaimed = future.result() if future.exception() is None else None
        if isinstance(unclaimed, KeySet):
            unclaimed.wipe()
        raise cancelled

    def _do(self, call: Callable[[], T]) -> T:
        self._began_s = self._monotonic_s()
        try:
            return call()
        finally:
            self._began_s = None
