"""The lock on a node's data folder, and who holds it."""

import asyncio
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import ProcessSupervisorError
from .limits import KIB
from .procfs import PROC, command_of

NOTE_BYTES_MAX = 1 * KIB


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The holder of a data lock: pid and command if the kernel reports them, and the note that it left in the file."""

    pid: int | None
    command: str
    note: str

    def __str__(self) -> str:
        return f"pid {self.pid or '?'} ({self.command or 'unknown'}{'; ' + self.note if self.note else ''})"


class DataLock:
    """An exclusive flock on `<data folder>/.lock`. It ensures that no two nodes ever work on the same data.

    The kernel releases the lock when its holder dies for any reason, so there are no stale locks.
    """

    def __init__(self, data_dir: Path, note: str) -> None:
        self.path = data_dir / ".lock"
        self._note = note
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock without waiting. Raises DATA_LOCK_HELD, which names the holder, and DATA_LOCK_INVALID."""
        if self._fd is not None:
            return
        fd = _open(self.path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps({"pid": os.getpid(), "note": self._note}).encode(), 0)
        except BlockingIOError as error:
            os.close(fd)
            raise ProcessSupervisorError(
                code="DATA_LOCK_HELD",
                what=f"data folder {self.path.parent}",
                why=f"{data_lock_holder(self.path.parent) or 'another process'} works on it",
                action="Let that process end; never delete the lock file",
            ) from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Release the lock; safe to call twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> "DataLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def data_lock_holder(data_dir: Path) -> LockHolder | None:
    """Return who holds the lock on a data folder; None if it is free. Blocking; raises DATA_LOCK_INVALID.

    The kernel's list names the holder. But it hides holders in other pid namespaces (containers), and some file systems
    show other device numbers there. So a shared lock is also tried and released at once. Call this only while no node
    is starting.
    """
    path = data_dir / ".lock"
    try:
        fd = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        note = os.pread(fd, NOTE_BYTES_MAX, 0).decode("utf-8", "replace")
        wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in (PROC / "locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            # "1: FLOCK  ADVISORY  WRITE 1234 fe:00:12345 0 EOF"; waiting ones have "->" as their second field.
            if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == wanted:
                pid = int(fields[4])
                return LockHolder(pid if pid > 0 else None, command_of(pid), _note(note))
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return LockHolder(None, "", _note(note))
    finally:
        os.close(fd)
    return None


def _open(path: Path, flags: int) -> int:
    """Open a lock file. Any other kind of file is refused without blocking. Raises DATA_LOCK_INVALID."""
    try:
        # O_NONBLOCK: opening a FIFO must not hang; a check of the type follows.
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o640)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise _invalid(path, str(error.strerror)) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _invalid(path, "it is not a plain file")
    return fd


def _invalid(path: Path, why: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="DATA_LOCK_INVALID",
        what=f"lock file {path}",
        why=why,
        action="Find out who put it there; then remove it while no node runs",
    )


def _note(text: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    return str(value.get("note", ""))[:200] if isinstance(value, dict) else ""


async def wait_data_unlocked(
    data_dir: Path,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Wait until the data folder's lock is free. Raises DATA_LOCK_INVALID, and DATA_LOCK_HELD after `timeout_s`."""
    deadline = clock() + timeout_s
    while (holder := await asyncio.to_thread(data_lock_holder, data_dir)) is not None:
        if clock() >= deadline:
            raise ProcessSupervisorError(
                code="DATA_LOCK_HELD",
                what=f"data folder {data_dir}",
                why=f"{holder} still works on it after {timeout_s:g} s",
                action="Let that process end; never delete the lock file",
            )
        await sleep(0.05)
