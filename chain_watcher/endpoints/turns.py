"""Fair turns: an endpoint that answers slowly must not delay the events of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

#: Seconds between checks, once `patience_s` has passed, whether another endpoint waits.
_LOOK_AGAIN_S: Final = 0.25


async def in_turn(work: Coroutine[Any, Any, None], patience_s: float, others_wait: Callable[[], bool]) -> bool:
    """Await `work` and return True. After `patience_s`, cancel it and return False if others wait.

    Errors of `work` are raised.
    """
    task = asyncio.ensure_future(work)
    wait_s = patience_s
    try:
        while not (await asyncio.wait({task}, timeout=wait_s))[0]:
            if others_wait():
                return False
            wait_s = min(patience_s, _LOOK_AGAIN_S)
        await task
        return True
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
