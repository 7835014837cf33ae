"""What Linux says of processes: identity beyond the pid, and who belongs to a session. proc(5)."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# struct pidfd_info of linux/pidfd.h, version 0: u64 mask, u64 cgroup, eleven u32 ids, s32 exit code
_PIDFD_INFO_BYTES = 64
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO_BYTES << 16) | (0xFF << 8) | 11


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
    fields = _stat_fields(pid)
    if fields is None:
        return None
    return ProcessFacts(pid, fields[0], int(fields[2]), int(fields[3]), int(fields[19]), int(fields[4]))


def session_members(session: int) -> list[ProcessFacts]:
    """Every living process of a session, whatever process group it moved to. Blocking, as `living_sessions`."""
    return living_sessions().members.get(session, [])


def _stat_fields(pid: int) -> list[str] | None:
    """/proc/<pid>/stat from its third field (the state) on."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes().decode("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command's name, in brackets, may itself hold brackets and spaces: the last one ends it.
    return text[text.rindex(")") + 2 :].split()


@dataclass(frozen=True, slots=True)
class Sessions:
    """Every living process by its session, as one look at /proc found them at `ticks` (clock ticks since boot)."""

    ticks: int
    members: dict[int, list[ProcessFacts]]

    def is_over(self, session: int, start_time_ticks: int) -> bool:
        """Whether a session that began at that time is over for good: only its living members can add to it."""
        return start_time_ticks < self.ticks and session not in self.members


def living_sessions() -> Sessions:
    """Look at every process once. Blocking: milliseconds, more on a host with thousands of processes."""
    ticks = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
    members: dict[int, list[ProcessFacts]] = {}
    for name in os.listdir(PROC):
        if name.isdigit():
            facts = process_facts(int(name))
            if facts is not None and facts.alive:
                members.setdefault(facts.session, []).append(facts)
    return Sessions(ticks, members)


def exit_of_stranger(pidfd: int, pid: int) -> int | None:
    """The wait status of an ended process that is not our child; None where the kernel does not tell it (yet).

    /proc tells it until the parent has reaped it, the pidfd from then on, since Linux 6.15.
    """
    try:
        fields = _stat_fields(pid)
        info = bytearray(_PIDFD_INFO_BYTES)
        info[0] = _PIDFD_INFO_EXIT
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
        if info[0] & _PIDFD_INFO_EXIT:
            return int.from_bytes(info[60:64], "little", signed=True)
    except OSError:
        fields = _stat_fields(pid)
    # Not reaped yet, so the pid is still its own.
    return int(fields[49]) if fields is not None and fields[0] == "Z" else None


def open_pidfd(pid: int) -> int | None:
    """A pidfd of the process `pid`, or None if there is none. The caller closes it.

    A number that now belongs to a thread of another process is no process either: EINVAL, or ENOENT since Linux 6.9.
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


def command_of(pid: int) -> str:
    """A process's command line, as far as it can be read; "" if not."""
    try:
        data = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return data.replace(b"\0", b" ").decode("utf-8", "replace").strip()[:200]
