"""The lock on a node's data folder, and who holds it."""

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .errors import ProcessSupervisorError
from .limits import KIB
from .procfs import PROC


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds a data lock: pid and command where the kernel tells, and the note that it left in the file."""

    pid: int | None
    command: str
    note: str

    def __str__(self) -> str:
        return f"pid {self.pid or '?'} ({self.command or 'unknown'}{'; ' + self.note if self.note else ''})"


class DataLock:
    """An exclusive flock on `<data folder>/.lock`: the guard of "never two nodes at work on the same data".

    The kernel lets it go when its holder dies, however it dies; so there are no stale locks to break.
    """

    def __init__(self, data_dir: Path, note: str) -> None:
        self.path = data_dir / ".lock"
        self._note = note
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock at once or raise DATA_LOCK_HELD, which says who has it."""
        if self._fd is not None:
            return
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
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
        """Let the lock go; safe to do twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> "DataLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def data_lock_holder(data_dir: Path) -> LockHolder | None:
    """Who holds the lock on a data folder, or None if it is free.

    The kernel's list names the holder, but hides those in other pid namespaces (containers), and some file systems show
    other device numbers there. So a shared lock is tried after it and let go at once; ask while no node is starting.
    """
    path = data_dir / ".lock"
    try:
        status = path.stat()
        note = path.read_bytes()[:KIB].decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in (PROC / "locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        # "1: FLOCK  ADVISORY  WRITE 1234 fe:00:12345 0 EOF"; waiting ones have "->" as their second field.
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == wanted:
            pid = int(fields[4])
            return LockHolder(pid if pid > 0 else None, _command(pid), _note(note))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return LockHolder(None, "", _note(note))
    finally:
        os.close(fd)
    return None


def _note(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return ""
    return str(value.get("note", ""))[:200] if isinstance(value, dict) else ""


def _command(pid: int) -> str:
    try:
        data = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return data.replace(b"\0", b" ").decode("utf-8", "replace").strip()[:200]


async def wait_data_unlocked(
    data_dir: Path,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Return once nobody holds the data folder's lock; raises DATA_LOCK_HELD after `timeout_s` seconds."""
    deadline = clock() + timeout_s
    while (holder := data_lock_holder(data_dir)) is not None:
        if clock() >= deadline:
            raise ProcessSupervisorError(
                code="DATA_LOCK_HELD",
                what=f"data folder {data_dir}",
                why=f"{holder} still works on it after {timeout_s:g} s",
                action="Let that process end; never delete the lock file",
            )
        await sleep(0.05)
