"""Measurements of long runs and load: processes, disk, and downtime, as Markdown and JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from devnet.world import World

TASKS_FILE = "tasks"
PROBE_S = 0.01


@dataclass(frozen=True, slots=True)
class ProcessSize:
    """Resident memory in KiB, open descriptors and threads of one process."""

    rss_kib: int
    descriptors: int
    threads: int


def process_size(pid: int) -> ProcessSize:
    """Measure a process; descriptors are -1 where this user may not look."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    try:
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        descriptors = -1
    return ProcessSize(int(fields["VmRSS"].split()[0]), descriptors, int(fields["Threads"]))


def sizes_of(world: World) -> dict[str, ProcessSize]:
    """Agent, vault and node of a world; those that are being restarted are left out."""
    found = {}
    for name, pids in world.enclaves().items():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, KeyError):
            if name != "cpu" and pids:
                found[name] = process_size(pids[0])
    return found


def disk_bytes(folder: Path) -> int:
    """Bytes of every file below a folder, as the disk counts them."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total


def count_tasks(folder: Path) -> dict[str, str]:
    """Environment in which every agent writes the number of its asyncio tasks to a file in `folder`, once a second."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'watch' in sys.orig_argv:\n"
        "    import asyncio, threading, time\n"
        "    def count():\n"
        "        while True:\n"
        "            time.sleep(1)\n"
        "            tasks = list(asyncio.tasks._all_tasks) if hasattr(asyncio.tasks, '_all_tasks')"
        " else list(asyncio.tasks._scheduled_tasks)\n"
        f"            open({str(folder / TASKS_FILE)!r}, 'w').write(str(sum(not task.done() for task in tasks)))\n"
        "    threading.Thread(target=count, daemon=True).start()\n"
    )
    return {"PYTHONPATH": str(folder)}


@contextmanager
def changed_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the children that are started in the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def read_tasks(folder: Path) -> int:
    """The number of tasks of the agent, -1 while it is not known."""
    try:
        return int((folder / TASKS_FILE).read_text() or -1)
    except (FileNotFoundError, ValueError):
        return -1


@dataclass(slots=True)
class Downtime:
    """Asks for one object again and again; `gaps` are the times in which nobody gave it, as (began, ended)."""

    url: str
    gaps: list[tuple[float, float]] = field(default_factory=list)
    slowest_s: float = 0.0

    def longest_since(self, since: float) -> float:
        """The longest gap that began after `since`, seconds; 0 without one."""
        return max((ended - began for began, ended in self.gaps if ended >= since), default=0.0)

    async def run(self) -> None:
        """Ask until cancelled. A gap is from the last good answer before it to the first good one after it."""
        last, down = time.monotonic(), False
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                began = time.monotonic()
                try:
                    async with session.get(self.url) as answer:
                        good = answer.status == 200 and bool(await answer.read())
                except (aiohttp.ClientError, TimeoutError, OSError):
                    good = False
                now = time.monotonic()
                if good:
                    if down:
                        self.gaps.append((last, now))
                    last, down = now, False
                    self.slowest_s = max(self.slowest_s, now - began)
                else:
                    down = True
                await asyncio.sleep(PROBE_S)


@asynccontextmanager
async def downtime_of(url: str) -> AsyncIterator[Downtime]:
    """Measure while the block runs."""
    probe = Downtime(url)
    task = asyncio.create_task(probe.run())
    try:
        yield probe
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def machine() -> str:
    """Describe this machine in one line."""
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, load {load:.1f}"


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys as a table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows)])


def write(path: Path | None, title: str, rows: Sequence[Mapping[str, object]]) -> str:
    """The table as Markdown; with a path also as `<path>.md` and `<path>.json`."""
    text = f"{title}\n\n{machine()}\n\n{markdown(rows)}\n"
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        document = {"title": title, "machine": machine(), "rows": list(rows)}
        path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return text
