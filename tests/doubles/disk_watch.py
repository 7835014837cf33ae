"""Reports file access on the thread of a running event loop, because a slow disk would block the loop.

Judged by the interpreter's audit events and not by time, so a fast disk hides nothing and a busy machine fails nothing.
What an import reads is left out: it reads where it stands, and looks into every folder of the path.
"""

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.doubles.loop_watch import Held

EVENTS = frozenset(
    {
        *("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"),
        *("os.chmod", "os.link", "os.symlink", "os.utime", "fcntl.flock", "sqlite3.connect"),
    }
)
_watches: list["DiskWatch"] = []
_reporting = threading.local()


class DiskWatch:
    """Watches the files below some folders; `report` is called on the thread that touches one."""

    def __init__(self, report: Callable[[Held], None], folders: tuple[str, ...]) -> None:
        self._report, self._folders = report, folders

    def start(self) -> None:
        """Begin. Audit hooks cannot be removed, so one permanent hook calls the current watches."""
        if not _hooked:
            _hooked.append(True)
            sys.addaudithook(_hook)
        _watches.append(self)

    def stop(self) -> None:
        """End it."""
        _watches.remove(self)

    def look(self, event: str, path: str) -> None:
        """Report an event on one of the files that are watched."""
        if path.startswith(self._folders):
            stack = traceback.format_stack(sys._getframe(2))
            if not any("<frozen importlib" in line for line in stack):
                self._report(Held(f"{event} {path}", 0.0, tuple(stack[-12:])))


_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event not in EVENTS or not _watches or asyncio._get_running_loop() is None:
        return
    if getattr(_reporting, "now", False):
        return
    _reporting.now = True
    try:
        path = arguments[0] if arguments else ""
        for watch in list(_watches):
            watch.look(event, path.decode("utf-8", "replace") if isinstance(path, bytes) else str(path))
    finally:
        _reporting.now = False


@contextmanager
def watched_files(*folders: str) -> Iterator[list[Held]]:
    """Watch files below `folders` and of /proc; what touched one on a running loop's thread is in the list."""
    found: list[Held] = []
    watch = DiskWatch(found.append, (*folders, "/proc/"))
    watch.start()
    try:
        yield found
    finally:
        watch.stop()
