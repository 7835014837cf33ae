"""Facts about processes from Linux: an identity that survives pid reuse, and the members of a session. See proc(5)."""

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
    """Facts of /proc/<pid>/stat: pid, state letter, process group, session, start time in clock ticks since boot.

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
        """Whether the process still executes. A zombie or dead process has only its exit status left."""
        return self.state not in ("Z", "X", "x")


def process_facts(pid: int) -> ProcessFacts | None:
    """Return facts about `pid`; None if there is no such process, or if /proc hides it (another user's process)."""
    fields = _stat_fields(pid)
    if fields is None:
        return None
    return ProcessFacts(pid, fields[0], int(fields[2]), int(fields[3]), int(fields[19]), int(fields[4]))


def session_members(session: int) -> list[ProcessFacts]:
    """Return every living process of a session, in any process group. Blocking, like `living_sessions`."""
    return living_sessions().members.get(session, [])


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat from the third one (the state) on; None if it cannot be read."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes().decode("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command's name is in brackets and may itself contain brackets and spaces. The last bracket ends it.
    return text[text.rindex(")") + 2 :].split()


@dataclass(frozen=True, slots=True)
class Sessions:
    """Every living process by session, from one scan of /proc that began at `ticks` (clock ticks since boot)."""

    ticks: int
    members: dict[int, list[ProcessFacts]]

    def is_over(self, session: int, start_time_ticks: int) -> bool:
        """Whether a session that began at that time is over. It cannot return: only a living member can add to it."""
        return start_time_ticks < self.ticks and session not in self.members


def living_sessions() -> Sessions:
    """Scan all processes once. Blocking: takes milliseconds, more on a host with thousands of processes."""
    ticks = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
    members: dict[int, list[ProcessFacts]] = {}
    for name in os.listdir(PROC):
        if name.isdigit():
            facts = process_facts(int(name))
            if facts is not None and facts.alive:
                members.setdefault(facts.session, []).append(facts)
    return Sessions(ticks, members)


def exit_of_stranger(pidfd: int, pid: int) -> int | None:
    """Return the wait status of an ended process that is not our child; None if the kernel does not report it (yet).

    /proc reports it until the parent has reaped the process. After that the pidfd reports it, since Linux 6.15.
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
    # A zombie has not been reaped, so the pid still belongs to this process.
    return int(fields[49]) if fields is not None and fields[0] == "Z" else None


def open_pidfd(pid: int) -> int | None:
    """Open a pidfd of the process `pid`; None if there is no such process. The caller closes it.

    If the number now belongs to a thread of another process, the kernel answers EINVAL, or ENOENT since Linux 6.9.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            return None
        raise


def boot_id() -> str:
    """Return this boot's random id. Pids and start times are only comparable within one boot."""
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def listener_of(port: int) -> int | None:
    """Return a process that listens on a TCP port; None if there is none that this user may inspect."""
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
    with contextlib.suppress(OSError):  # the process has ended, or belongs to another user
        for fd in os.listdir(PROC / pid / "fd"):
            with contextlib.suppress(FileNotFoundError):  # the file was closed in between
                yield os.readlink(PROC / pid / "fd" / fd)


def unit_of(pid: int) -> str:
    """Return the systemd unit (`name.service`) of a process; "" if it has none or has ended."""
    try:
        groups = (PROC / str(pid) / "cgroup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    parts = [part for line in groups.splitlines() for part in line.split("/") if part.endswith(".service")]
    return parts[-1] if parts else ""


def command_of(pid: int) -> str:
    """Return a process's command line, at most 200 characters; "" if it cannot be read."""
    try:
        data = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return data.replace(b"\0", b" ").decode("utf-8", "replace").strip()[:200]
