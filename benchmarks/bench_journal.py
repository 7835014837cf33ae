"""A journal of a million rows: what `dcupgrade status` and `/metrics` take: `python benchmarks/bench_journal.py`.

An agent keeps the newest 100,000 transitions, so a million is ten times what it meets. `status` is the whole command,
interpreter included, with the agent stopped. `/metrics` is asked over HTTP from the agent's own application with the
counts of this journal. The first count reads all rows; the service makes it before it serves anybody, and so does this.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.report import Row, emit, percentile  # noqa: E402
from dcupgrade.adapters.journal import Journal  # noqa: E402
from dcupgrade.adapters.journal_file import EVENTS  # noqa: E402
from dcupgrade.adapters.journal_thread import open_journal  # noqa: E402
from dcupgrade.machine.gates import GateRules  # noqa: E402
from dcupgrade.machine.plan import Plan, plan  # noqa: E402
from dcupgrade.machine.state import Name, State  # noqa: E402
from dcupgrade.surfaces.http_api import Site, make_app  # noqa: E402
from keyvault.handover.guarded_server import GuardedServer  # noqa: E402

STATUS_S_AT_MOST, METRICS_MS_AT_MOST = 0.5, 10.0
STEPS = ("idle", "staged", "collecting", "sealed", "stopping", "launching", "delivering", "probation", "committed")
COLUMNS = (*EVENTS.columns, "sha256")
SETTINGS = """[agent]
state_dir = "{folder}"
http_listen = "127.0.0.1:9"
[chain]
endpoints = ["ws://127.0.0.1:9"]
network_keys = ["bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"]
finality = "single"
[node]
id = "n1"
data_dir = "{folder}/data"
[vault]
start = false
"""


def rows(count: int) -> Iterator[tuple[Any, ...]]:
    """Transitions of upgrade after upgrade, each with its checksum."""
    for seq in range(1, count + 1):
        before, after = STEPS[(seq - 1) % len(STEPS)], STEPS[seq % len(STEPS)]
        text = json.dumps({"kind": "step", "version": f"1.{seq}"})
        row = (seq, 1e9 + seq, before, after, "step", "", "", "a" * 64, "b" * 64, text)
        yield (*row, EVENTS._checksum(row))


def fill(path: Path, count: int) -> None:
    """Make a journal of so many rows."""
    Journal(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA synchronous=OFF")
        marks = ", ".join("?" * len(COLUMNS))
        statement = f"INSERT INTO events ({', '.join(COLUMNS)}) VALUES ({marks})"  # noqa: S608 - names of our own
        database.executemany(statement, rows(count))
    database.close()


def status_seconds(folder: Path, rounds: int) -> list[float]:
    """What `dcupgrade status` takes from start to end, seconds."""
    settings = folder / "dcupgrade.toml"
    settings.write_text(SETTINGS.format(folder=folder))
    taken = []
    for _ in range(rounds):
        began = time.monotonic()
        command = [sys.executable, "-m", "dcupgrade", "--config", str(settings), "status"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        taken.append(time.monotonic() - began)
    return taken


def site_of(counts: Callable[[], Awaitable[Mapping[str, float]]]) -> Site:
    """The agent's application over this journal's counts and a state that stays the same."""
    state = State(Name.IDLE)

    async def status() -> dict[str, Any]:
        return {"node_id": "n1", "tee": "simulated", "state": state.to_json(), "since_unix_s": 1.0, "now_unix_s": 2.0}

    async def plan_now() -> Plan:
        return plan(state, GateRules(), 2.0, 1.0)

    async def unused(*_: object) -> Any:
        raise LookupError("not asked for here")

    return Site(
        status=status,
        plan=plan_now,
        events=unused,  # type: ignore[arg-type]
        history=unused,
        counts=counts,
        enqueue=unused,
        outcome=unused,
        explain=lambda _code: ("", ""),
        token="",
    )


async def metrics_ms(path: Path, rounds: int) -> list[float]:
    """What a request to `/metrics` takes, milliseconds."""
    taken = []
    async with open_journal(path) as journal:
        await journal.run(Journal.counts)
        server = GuardedServer(make_app(site_of(lambda: journal.run(Journal.counts))))
        port = await server.start("127.0.0.1", 0)
        try:
            async with aiohttp.ClientSession() as session:
                for _ in range(rounds):
                    began = time.perf_counter()
                    async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                        answer.raise_for_status()
                        assert b"dcupgrade_state" in await answer.read()
                    taken.append(1000 * (time.perf_counter() - began))
        finally:
            await server.stop()
    return taken


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    print(f"{given.rows:,} rows, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="bench-journal-") as name:
        folder = Path(name)
        fill(folder / "journal.sqlite3", given.rows)
        status = statistics.median(status_seconds(folder, given.rounds))
        taken = asyncio.run(metrics_ms(folder / "journal.sqlite3", 10 * given.rounds))
    median, slow = statistics.median(taken), percentile(taken, 95)
    print(f"status: {status:.3f} s; /metrics: median {median:.2f} ms, p95 {slow:.2f} ms")
    emit(
        Row(f"`status` of a stopped agent, {given.rows:,} rows", status, "s", at_most=STATUS_S_AT_MOST),
        Row(f"`/metrics`, {given.rows:,} rows, median", median, "ms", at_most=METRICS_MS_AT_MOST),
        Row(f"`/metrics`, {given.rows:,} rows, p95", slow, "ms", at_most=METRICS_MS_AT_MOST),
    )


if __name__ == "__main__":
    main()
