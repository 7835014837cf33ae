"""End devnet's commands on SIGINT, SIGTERM or SIGHUP, after stopping everything that they started.

A second signal must not interrupt the clean-up, so only the first one counts. A signal that was already ignored when
this process started (`nohup`, a shell's background job) stays ignored.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _heeded() -> list[signal.Signals]:
    return [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the context, the first signal raises KeyboardInterrupt. Use it only in the main thread."""
    before = {number: signal.getsignal(number) for number in _heeded()}

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def cancel_by_signal() -> Callable[[], None]:
    """Let the first signal cancel the running task. Return a function that makes the loop ignore signals (clean-up)."""
    loop, task, numbers = asyncio.get_running_loop(), asyncio.current_task(), _heeded()

    def deaf() -> None:
        for number in numbers:
            loop.add_signal_handler(number, lambda: None)

    def cancel() -> None:
        deaf()
        if task is not None:
            task.cancel()

    for number in numbers:
        loop.add_signal_handler(number, cancel)
    return deaf
