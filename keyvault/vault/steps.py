"""Steps of the vault, one after another in one thread: a slow disk holds up other steps, and not the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from keyvault.handover.key_set import KeySet

P = ParamSpec("P")
T = TypeVar("T")


class Steps:
    """The thread. Each step runs to its end before another begins."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vault")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do one step. A cancellation passes on only once it is done: the thread still uses what it was given."""
        call = functools.partial(work, *args, **kwargs)
        future = asyncio.get_running_loop().run_in_executor(self._thread, call)
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
