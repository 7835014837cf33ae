"""Whose turn it is: an endpoint that answers slowly must not keep the news of the others waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

#: How often it is asked, once patience has ended, whether somebody waits.
_LOOK_AGAIN_S: Final = 0.25


async def in_turn(work: Coroutine[Any, Any, None], patience_s: float, others_wait: Callable[[], bool]) -> bool:
    """Do `work` (what it raises passes through). False: given up after `patience_s` because others wait."""
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
