"""What Linux says of processes: identity beyond the pid, and who belongs to a session. proc(5)."""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """Of /proc/<pid>/stat: pid, state letter, process group, session, start time in clock ticks since boot.

    `terminal` is the device number of the controlling terminal; services have none (0).
    """

    pid: int
    state: str
    group: int
    session: int
    start_time_ticks: int
    terminal: int = 0

    @property
    def alive(self) -> bool:
        """Whether it still executes: zombies and dead ones hold nothing but their exit status."""
        return self.state not in ("Z", "X", "x")


def process_facts(pid: int) -> ProcessFacts | None:
    """Facts about `pid`, or None if there is no such process, or only another user's where /proc hides those."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes().decode("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command's name, in brackets, may itself hold brackets and spaces: the last one ends it.
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessFacts(pid, fields[0], int(fields[2]), int(fields[3]), int(fields[19]), int(fields[4]))


def session_members(session: int) -> list[ProcessFacts]:
    """Every living process of a session, whatever process group it moved to."""
    found = []
    for name in os.listdir(PROC):
        if name.isdigit():
            facts = process_facts(int(name))
            if facts is not None and facts.session == session and facts.alive:
                found.append(facts)
    return found


def open_pidfd(pid: int) -> int | None:
    """A pidfd of the process `pid`, or None if there is none. The caller closes it.

    A number that went on to a thread of another process is no process either: EINVAL, or ENOENT since Linux 6.9.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            return None
        raise


def boot_id() -> str:
    """This boot's random id: pids and start times say nothing across boots."""
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def listener_of(port: int) -> int | None:
    """A process that listens on a TCP port, or None where there is none, or only one of a user we may not look at."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in (PROC / "net" / table).read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A: LISTEN
                sockets.add(f"socket:[{fields[9]}]")
    for name in os.listdir(PROC):
        if name.isdigit() and any(link in sockets for link in _open_files(name)):
            return int(name)
    return None


def _open_files(pid: str) -> Iterator[str]:
    with contextlib.suppress(OSError):  # gone meanwhile, or another user's
        for fd in os.listdir(PROC / pid / "fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                yield os.readlink(PROC / pid / "fd" / fd)


def unit_of(pid: int) -> str:
    """The systemd unit (`name.service`) that a process belongs to; "" if none, or if it is gone."""
    try:
        groups = (PROC / str(pid) / "cgroup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    parts = [part for line in groups.splitlines() for part in line.split("/") if part.endswith(".service")]
    return parts[-1] if parts else ""
