"""Reports calls that block an event loop, judged by what its thread does, so that a busy machine causes no failure.

A callback holds the loop if it used more than HELD_S_MAX seconds of processor time, or slept so long in a blocking call
on its stack. A wait for the disk counts by DISK_SHARE: on a busy machine a short one takes long. Time in which the
thread only waited for a processor, for Python's lock, or for pages of its own program does not count: that would judge
how busy the machine is.
"""

import asyncio
import json
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

HELD_S_MAX = 0.25
LOOK_S = 0.025
DISK_SHARE = 0.25
"""What a second in the disk's queue counts, in seconds: such a call is named once it takes a second."""
SHARES = {"S": 1.0, "D": DISK_SHARE}
"""By the kernel's name for what the thread does."""
IDLE_SHARE_MAX = 0.05
"""A thread that used less of a processor than this share slept."""


@dataclass(frozen=True, slots=True)
class Held:
    """What held the loop: how ("computed" or "blocked"), for how long in seconds, and its stack, innermost last."""

    how: str
    seconds: float
    stack: tuple[str, ...]

    def __str__(self) -> str:
        return f"the loop was held: {self.how} for {self.seconds:.2f} s\n" + "".join(self.stack)


class LoopWatch:
    """Watches the event loop of one thread; `report` is called in the watch's own thread."""

    def __init__(self, report: Callable[[Held], None], thread: threading.Thread | None = None) -> None:
        watched = thread or threading.main_thread()
        if watched.ident is None or watched.native_id is None:
            raise ValueError("the thread does not run")
        self._report, self._ident = report, watched.ident
        self._task = Path(f"/proc/self/task/{watched.native_id}")
        self._clock = time.pthread_getcpuclockid(watched.ident)
        self._running: object | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop watch", daemon=True)
        self._unwatched = asyncio.events.Handle._run

    def start(self) -> None:
        """Begin: every callback of that thread's loops passes by here from now on."""
        unwatched, watch, ident = self._unwatched, self, self._ident

        def run(handle: asyncio.Handle) -> None:
            if threading.get_ident() != ident:
                unwatched(handle)
                return
            watch._running = object()
            try:
                unwatched(handle)
            finally:
                watch._running = None

        asyncio.events.Handle._run = run  # type: ignore[method-assign, assignment]
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        asyncio.events.Handle._run = self._unwatched  # type: ignore[method-assign]
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        seen: object | None = None
        while not self._stop.wait(LOOK_S):
            running, cpu_s = self._running, time.clock_gettime(self._clock)
            if running is None or running is not seen:
                seen, began_cpu_s, last_cpu_s, asleep_s, told = running, cpu_s, cpu_s, 0.0, False
                last_s = time.monotonic()
                continue
            now = time.monotonic()
            # Where this thread was kept waiting itself, no more than its usual pause counts.
            passed_s, used_s = min(now - last_s, 2 * LOOK_S), cpu_s - last_cpu_s
            if used_s < IDLE_SHARE_MAX * passed_s:
                asleep_s += passed_s * self._share_asleep()
            last_s, last_cpu_s = now, cpu_s
            held_s = max(cpu_s - began_cpu_s, asleep_s)
            if held_s > HELD_S_MAX and not told:
                told = True
                frame = sys._current_frames().get(self._ident)
                if frame is not None and self._running is running:
                    how = "blocked" if asleep_s > cpu_s - began_cpu_s else "computed"
                    self._report(Held(how, held_s, _stack(frame)))

    def _share_asleep(self) -> float:
        """The weight of its sleep in a system call, 0 to 1. In a page fault there is no call: the kernel shows -1."""
        try:
            text = (self._task / "stat").read_text(encoding="ascii", errors="replace")
            call = (self._task / "syscall").read_text(encoding="ascii", errors="replace")
        except OSError:
            return 0.0
        return 0.0 if call.startswith("-1") else SHARES.get(text[text.rindex(")") + 2], 0.0)


def _stack(frame: FrameType) -> tuple[str, ...]:
    return tuple(traceback.format_stack(frame)[-12:])


@contextmanager
def watched_loop() -> Iterator[list[Held]]:
    """Watch the loops of the calling thread; what held them is in the list."""
    found: list[Held] = []
    watch = LoopWatch(found.append, threading.current_thread())
    watch.start()
    try:
        yield found
    finally:
        watch.stop()


def watch_children(folder: Path) -> tuple[dict[str, str], Path]:
    """The environment in which `dcupgrade watch` is watched as a process of its own, and the file with the reports.

    Its loop is watched, and that no file of a trial and nothing of /proc is touched on it.
    """
    report = folder / "held.jsonl"
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'watch' in sys.orig_argv or 'tests.e2e.killing_agent' in sys.orig_argv:\n"
        "    from tests.doubles.loop_watch import LoopWatch, into_file\n"
        f"    LoopWatch(into_file({str(report)!r})).start()\n"
        "if 'watch' in sys.orig_argv:\n"
        "    from tests.doubles.disk_watch import DiskWatch\n"
        f"    DiskWatch(into_file({str(report)!r}), ({tempfile.gettempdir() + '/'!r}, '/proc/')).start()\n"
    )
    return {"PYTHONPATH": str(folder)}, report


def into_file(path: str) -> Callable[[Held], None]:
    """A report that adds a line of JSON to a file."""

    def report(held: Held) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([held.how, held.seconds, held.stack]) + "\n")

    return report


def read_reports(path: Path) -> list[Held]:
    """What the file names."""
    if not path.exists():
        return []
    return [Held(how, s, tuple(stack)) for how, s, stack in map(json.loads, path.read_text("utf-8").splitlines())]
