"""What is being done, on a terminal: one line on standard error that is gone when the work is over."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SHOWN_AFTER_S = 1.0
TICK_S = 0.5


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Show `text` with the seconds passed while the block runs, once it has run for a second. Silent in a pipe."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    writer = threading.Thread(target=_write, args=(text, over), daemon=True)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def _write(text: str, over: threading.Event) -> None:
    began = time.monotonic()
    if over.wait(SHOWN_AFTER_S):
        return
    while True:
        sys.stderr.write(f"\r{text} … {time.monotonic() - began:.0f} s")
        sys.stderr.flush()
        if over.wait(TICK_S):
            break
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()
