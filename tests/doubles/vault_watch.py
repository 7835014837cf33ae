"""Reports what blocks the event loop of vaults in separate processes, seen from outside.

A vault runs inside its TEE with nothing but its image, so no watch fits into it. The kernel tells what its loop's
thread does: a loop with nothing to do waits in epoll, and any other system call that it sleeps in for more than
HELD_S_MAX seconds holds it; the disk counts by DISK_SHARE. Waiting for Python's lock, for a processor, or for pages of
its own program does not count.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .loop_watch import HELD_S_MAX, LOOK_S, SHARES

FIND_S = 0.5
EPOLL, LOCKS = ("232", "281"), ("202",)
"""Numbers of x86-64: epoll_wait and epoll_pwait, futex."""


@dataclass(slots=True)
class _Loop:
    """Facts about one process's main thread."""

    place: str = ""
    held_s: float = 0.0
    told: bool = False


class VaultWatch:
    """Watches every vault whose command line names `below`; `report` is called in the watch's own thread.

    Processes that this user may not inspect are left out.
    """

    def __init__(self, below: Path, report: Callable[[str], None]) -> None:
        self._below, self._report = os.fsencode(below), report
        self._loops: dict[int, _Loop] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vault watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        found_s = last_s = 0.0
        while not self._stop.wait(LOOK_S):
            now_s = time.monotonic()
            if now_s - found_s >= FIND_S:
                found_s = now_s
                self._loops = {pid: self._loops.get(pid, _Loop()) for pid in self._vaults()}
            # Where this thread was kept waiting itself, no more than its usual pause counts.
            passed_s, last_s = min(now_s - last_s, 2 * LOOK_S), now_s
            for pid, loop in self._loops.items():
                self._look(pid, loop, passed_s)

    def _vaults(self) -> list[int]:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal() and self._is_vault(name)]

    def _is_vault(self, pid: str) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        # the enclave itself: the simulated CPU that starts it has its own arguments before these
        return b"serve" in words and b"keyvault" not in words and any(self._below in word for word in words)

    def _look(self, pid: int, loop: _Loop, passed_s: float) -> None:
        try:
            call = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii")
            stat = Path(f"/proc/{pid}/task/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return
        number = call.split()[0]
        fields = stat[stat.rindex(")") + 2 :].split()
        place = f"{call} {fields[11:13]}"  # the call with its stack, and the processor time so far
        if fields[0] not in SHARES or number in (*EPOLL, *LOCKS, "-1", "running") or place != loop.place:
            loop.place, loop.held_s, loop.told = place, 0.0, False
            return
        loop.held_s += passed_s * SHARES[fields[0]]
        if loop.held_s > HELD_S_MAX and not loop.told and _has_loop(pid):
            loop.told = True
            self._report(f"the loop of vault {pid} was blocked in system call {number} for {loop.held_s:.2f} s")


def _has_loop(pid: int) -> bool:
    """Tell whether it serves. Before that a vault opens its store, and no client waits."""
    try:
        files = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return "anon_inode:[eventpoll]" in files
