"""Write log lines without ever blocking the caller. Agent and vault use it for standard error.

The reader of a log may stop reading: journald hangs, a pipe is full, a terminal is paused. A handler that writes
directly would then block the event loop, in the middle of an upgrade. So a thread writes, from a bounded queue. Lines
that do not fit are dropped and counted; the count is written once the queue is empty again.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from typing import Final

LINES_MAX: Final = 5_000
LINE_BYTES_MAX: Final = 16_384
QUEUE_BYTES_MAX: Final = 4 * 1024 * 1024
CLOSE_TIMEOUT_S: Final = 2.0


class LogWriter(logging.Handler):
    """A logging handler over the file descriptor `fd` (2 is standard error).

    The queue holds at most 5,000 lines or 4 MiB; a line is cut at 16 KiB. If the descriptor is closed or broken, lines
    are lost and the process continues: a process that guards keys must not end because of its log.
    """

    def __init__(self, fd: int = 2, *, lines_max: int = LINES_MAX, queue_bytes_max: int = QUEUE_BYTES_MAX) -> None:
        super().__init__()
        self._fd, self._lines_max, self._bytes_max = fd, lines_max, queue_bytes_max
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0
        self._dropped = 0
        self._idle = True
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line, or count it as dropped. Never waits for the reader of the log."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace")[:LINE_BYTES_MAX] + b"\n"
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if len(self._lines) >= self._lines_max or self._queued_bytes + len(line) > self._bytes_max:
                self._dropped += 1
                return
            self._lines.append(line)
            self._queued_bytes += len(line)
            self._changed.notify_all()

    def close(self) -> None:
        """Write the queued lines, for at most 2 s, and stop."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        with self._changed:
            while (self._lines or not self._idle) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            self._closed = True
            self._changed.notify_all()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Count a record that cannot be formatted as dropped. The default would print a traceback, which may block."""
        with self._changed:
            self._dropped += 1

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._closed)
                if not self._lines:
                    return
                self._idle = False
                line = self._lines.popleft()
                self._queued_bytes -= len(line)
                dropped = 0
                if not self._lines:
                    dropped, self._dropped = self._dropped, 0
            self._write(line + (self._notice(dropped) if dropped else b""))

    def _notice(self, dropped: int) -> bytes:
        text = f"{dropped} log lines were dropped: the reader of this log was too slow"
        record = logging.makeLogRecord(
            {"name": "dcupgrade", "levelno": logging.WARNING, "levelname": "WARNING", "msg": text}
        )
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # another process that shares the descriptor made it non-blocking
                select.select([], [self._fd], [])
            except OSError:
                return
