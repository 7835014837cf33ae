"""Run blocking work on files in a thread."""

import asyncio
import contextvars
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like `asyncio.to_thread`, for functions that change files: a cancellation is raised only once the thread is done.

    A thread cannot be cancelled. Without this, the next user of the files (and of their lock) could find the thread
    still writing to them.
    """
    context = contextvars.copy_context()
    call = functools.partial(context.run, functools.partial(function, *args, **kwargs))
    future = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # retrieve it, or asyncio logs it as never retrieved
        raise
