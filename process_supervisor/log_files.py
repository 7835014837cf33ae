"""The log file of a process: found through its descriptor, rotated by copying, and limited so that it cannot fill the
disk.

The node keeps its descriptor. It was opened with O_APPEND, so after a truncation the node continues at the new end. Its
output is kept even while no agent runs. Output written between the last copied byte and the truncation is lost.
"""

import contextlib
import errno
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from .limits import MIB
from .procfs import PROC

TAIL_BYTES_MAX = 1 * MIB
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPolicy:
    """When to rotate: above `size_bytes_max`. `kept` older logs stay beside it as `<name>.1` (newest) and so on.

    While the disk has fewer than `free_bytes_min` bytes free, the oldest logs are removed.
    """

    size_bytes_max: int = 16 * MIB
    kept: int = 4
    free_bytes_min: int = 64 * MIB


def open_log(path: Path) -> int:
    """Open a log for a process to append to. Blocking."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, _APPEND, 0o640)


def log_of(pid: int, path: Path) -> int | None:
    """Open the file that the process writes its output to, even if it was moved; None if there is none. Blocking.

    A process that cannot be inspected (another user's, or not dumpable) is assumed to write to `path`.
    """
    for place in (PROC / str(pid) / "fd" / "1", path):
        with contextlib.suppress(OSError):
            fd = os.open(place, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd
            os.close(fd)
    return None


def tend_log(log: int, path: Path, policy: LogPolicy) -> bool:
    """Rotate the file behind `log` if it is due; return whether it was rotated. Blocking; raises OSError.

    If the log's name was removed, its content is copied to a new file at `path`.
    """
    _give_up_history(path, policy, needed=0)
    if os.fstat(log).st_nlink == 0 and os.fstat(log).st_size > 0:
        _put_back(log, path)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                return _rotate(fd, path, policy)
            finally:
                os.close(fd)
    return _rotate(log, path, policy)


def _rotate(log: int, path: Path, policy: LogPolicy) -> bool:
    size = os.fstat(log).st_size
    if size <= policy.size_bytes_max:
        return False
    _give_up_history(path, policy, needed=size)
    if policy.kept > 0:
        aside = path.with_name(f"{path.name}.new")
        try:
            _copy(log, aside)
        except OSError as error:
            aside.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # There is no room for a copy, and no older log is left to remove. A full disk is worse than a lost log.
        else:
            for number in range(policy.kept, 1, -1):
                older = path.with_name(f"{path.name}.{number - 1}")
                if older.exists():
                    os.replace(older, path.with_name(f"{path.name}.{number}"))
            os.replace(aside, path.with_name(f"{path.name}.1"))
    os.ftruncate(log, 0)
    return True


def _give_up_history(path: Path, policy: LogPolicy, needed: int) -> None:
    """Remove older logs, oldest first, until `needed` bytes are free in addition to the reserve."""
    for older in reversed(older_logs(path)):
        if shutil.disk_usage(path.parent).free >= needed + policy.free_bytes_min:
            return
        older.unlink(missing_ok=True)


def older_logs(path: Path) -> list[Path]:
    """Return the older logs beside `path`, newest first."""
    found = [item for item in path.parent.glob(f"{path.name}.*") if item.suffix[1:].isdecimal()]
    return sorted(found, key=lambda item: int(item.suffix[1:]))


def remove_logs(path: Path) -> None:
    """Remove a log and its older logs. Blocking."""
    for item in (*older_logs(path), path):
        item.unlink(missing_ok=True)


def _put_back(log: int, path: Path) -> None:
    out = open_log(path)
    try:
        _copy_to(log, out)
    finally:
        os.close(out)
    os.ftruncate(log, 0)


def _copy(log: int, target: Path) -> None:
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        _copy_to(log, out)
    finally:
        os.close(out)


def _copy_to(log: int, out: int) -> None:
    offset = 0
    while data := os.pread(log, MIB, offset):
        offset += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(out, view) :]


def tail_log(path: Path, lines: int) -> list[str]:
    """Return the last `lines` lines of a file, at most TAIL_BYTES_MAX bytes; [] if there is no file. Blocking."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - TAIL_BYTES_MAX))
            text = log.read(TAIL_BYTES_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:] if lines > 0 else []
