"""A watched process: how it ends is learned by its pidfd, and its log is held by a descriptor."""

import asyncio
import contextlib
import os
import signal
import threading
from pathlib import Path

from .driver import ExitStatus, NodeRecord
from .log_files import LogPolicy, log_of, tend_log
from .procfs import exit_of_stranger
from .threads import in_thread

REAPED_POLL_S = 0.01
REAPED_TRIES_MAX = 3


def reap(pidfd: int) -> tuple[int | None, int | None] | None:
    """Reap an ended child and return its exit code and signal; None if it is another process's child."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return (None, None)
    return (result.si_status, None) if result.si_code == os.CLD_EXITED else (None, result.si_status)


class ProcessHandle:
    """A watched process. The event loop waits on its pidfd; a child of this process is reaped when it ends."""

    def __init__(self, record: NodeRecord, pidfd: int | None) -> None:
        self._record = record
        self._pidfd = pidfd
        self._log = _Log(record)
        self._status: ExitStatus | None = None
        self._ended = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None
        self.kill_sent = False
        if pidfd is None:
            self._end(ExitStatus())
        else:
            asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    @property
    def record(self) -> NodeRecord:
        """The record by which the process is found again."""
        return self._record

    def exit_status(self) -> ExitStatus | None:
        """Return how the main process ended; None while it runs."""
        return self._status

    async def wait(self) -> ExitStatus:
        """Wait until the main process has ended."""
        await self._ended.wait()
        if self._status is None:
            raise RuntimeError("the process ended without a status")
        return self._status

    async def find_log(self) -> None:
        """Open the file that the process writes to, unless it is open."""
        await in_thread(self._log.find)

    async def tend_log(self, policy: LogPolicy) -> None:
        """Rotate the file that the process writes to, if it is due. Raises OSError."""
        await in_thread(self._log.tend, policy)

    def signal_leader(self, number: int) -> None:
        """Signal the main process by its pidfd, so that a process that reuses its pid is never signalled."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Stop watching; the process continues."""
        if self._asking is not None:
            self._asking.cancel()
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._log.close()

    def _on_exit(self) -> None:
        if self._pidfd is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        found = reap(self._pidfd)
        if found is None:
            self._asking = asyncio.create_task(self._ask_about_stranger(os.dup(self._pidfd)))
        else:
            self._learned(*found)

    async def _ask_about_stranger(self, pidfd: int) -> None:
        """Find out how a process ended that an earlier agent had started; closes `pidfd`.

        While its parent reaps it, its status cannot be read, so it is asked for a few times.
        """
        try:
            status = await in_thread(exit_of_stranger, pidfd, self._record.pid)
            for _ in range(REAPED_TRIES_MAX):
                if status is not None:
                    break
                await asyncio.sleep(REAPED_POLL_S)
                status = await in_thread(exit_of_stranger, pidfd, self._record.pid)
        finally:
            os.close(pidfd)
        code = os.waitstatus_to_exitcode(status) if status is not None else None
        self._learned(*((None, None) if code is None else (code, None) if code >= 0 else (None, -code)))

    def _learned(self, code: int | None, number: int | None) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self._end(ExitStatus(code=code, signal=number, killed=self.kill_sent))

    def _end(self, status: ExitStatus) -> None:
        self._status = status
        self._ended.set()


class _Log:
    """The file that a process writes to, held by a descriptor: so it is found again if somebody moves or removes it.

    `find` and `tend` are blocking and run in threads; `close` may come from the loop at any time.
    """

    def __init__(self, record: NodeRecord) -> None:
        self._pid, self._path = record.pid, record.log_path
        self._guard = threading.Lock()
        self._fd: int | None = None
        self._closed = False

    def find(self) -> None:
        """Open the file, unless it is open or another program chose where the process logs."""
        if self._fd is not None or not self._path:
            return
        found = log_of(self._pid, Path(self._path))
        with self._guard:
            if self._fd is None and not self._closed:
                self._fd, found = found, None
        if found is not None:
            os.close(found)

    def tend(self, policy: LogPolicy) -> None:
        """Rotate the file if it is due. Raises OSError."""
        self.find()
        with self._guard:  # a duplicate: the descriptor may be closed meanwhile
            log = os.dup(self._fd) if self._fd is not None else None
        if log is None:
            return
        try:
            tend_log(log, Path(self._path), policy)
        finally:
            os.close(log)

    def close(self) -> None:
        """Let the file go."""
        with self._guard:
            self._closed = True
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
