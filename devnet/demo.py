"""`python -m devnet demo`: show a complete node upgrade. Every step is real and runs between separate processes.

Only the TEE is simulated, and the demonstration says so. At its end it stops everything that it started; the journal
and the logs stay in its folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import click
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from .chain import DevChain
from .release_builder import ROOT, BuiltRelease
from .signals import cancel_by_signal, interruptible
from .tools import DevnetError
from .world import NodeClient, World, WorldError

OBJECTS = 200
OBJECT_BYTES_MAX = 8 * 1024 * 1024
BLOCK_MS = 1000
PIECE_DELAY_S = 0.02
PROBE_S = 0.01
UPGRADE_WITHIN_S = 120.0
PARALLEL = 4
MEANING = {
    "idle": "the node is supervised",
    "staging": "downloading; image measured, SIGSTRUCT verified",
    "staged": "in its slot; gates and host are checked",
    "collecting": "vault and old node attest each other, keys move",
    "sealed": "sealed copy read back; the vault issues its permit",
    "stopping": "the old node ends its work",
    "launching": "the new version is started in its TEE",
    "delivering": "it attests itself, gets the keys, seals them",
    "probation": "healthy? does the old data's canary decrypt?",
    "committed": "the new version learns that it stays",
    "abandoned": "given up before anything was touched",
    "reverting": "going back to the old version",
    "reverted": "the old version serves again",
    "halted": "a person is needed",
}


class DemoError(Exception):
    """A step of the demonstration gave a wrong result; the text says which."""


@dataclass(slots=True)
class Facts:
    """The facts that the summary prints."""

    began: float = field(default_factory=time.monotonic)
    old: BuiltRelease | None = None
    new: BuiltRelease | None = None
    detection_s: float | None = None
    upgrade_s: float = 0.0
    downtime_s: float = 0.0
    stored: int = 0
    stored_bytes: int = 0
    verified: int = 0


def object_sizes(count: int, seed: int) -> list[int]:
    """Return sizes from 1 B to 8 MiB (both included), evenly spread over the powers of two."""
    draw = random.Random(seed)  # noqa: S311 - test data
    sizes = [1, OBJECT_BYTES_MAX][:count]
    return sizes + [int(2 ** draw.uniform(0, 23)) for _ in range(count - len(sizes))]


def object_bytes(index: int, size: int, seed: int) -> bytes:
    """Return the content of one object, the same at each call."""
    return random.Random(f"{seed}/{index}").randbytes(size)  # noqa: S311 - test data


@click.command()
@click.option("--handover", type=click.Choice(["v2", "v1"]), default="v2", show_default=True, help="Handover protocol.")
@click.option("--objects", type=click.IntRange(1), default=OBJECTS, show_default=True, help="How many objects.")
@click.option("--seed", type=int, default=1, show_default=True, help="Draws the objects' sizes and contents.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Work folder. [default: run/demo-…]")
@click.option("--stay", is_flag=True, help="Leave everything running at the end, until Ctrl-C, to look around.")
def demo(handover: str, objects: int, seed: int, folder: Path | None, stay: bool) -> None:
    """Run a whole upgrade on a development chain and verify every object; exit code 0 only if all was verified."""
    console = Console(highlight=False)
    folder = (folder or ROOT / "run" / f"demo-{datetime.now().astimezone():%Y%m%d-%H%M%S}").resolve()
    facts = Facts()
    try:
        with interruptible():
            console.print(
                Panel(
                    "A signed release upgrades a running storage node, and the new version reads the old one's data.\n"
                    "[bold yellow]The TEE is SIMULATED here: it protects nothing from this machine.[/]"
                    " Everything else is real:"
                    " chain, signatures, downloads, attestation messages, sealing, separate processes.",
                    title="DCUpgrade",
                )
            )
            chain = DevChain(block_time_ms=BLOCK_MS)
            try:
                with step(console, "development chain (Chopsticks; the first time installs it)"):
                    chain.start_now()
                asyncio.run(Demo(console, folder, objects, seed, facts, handover, stay=stay).run(chain.ws_url))
            finally:
                chain.stop_now()
    except (DemoError, WorldError, DevnetError, aiohttp.ClientError, OSError) as error:
        console.print(f"[bold red]failed[/]: {escape(str(error))}")
        console.print(f"logs and journal: {folder}")
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        remove_bulk(folder)
        console.print("interrupted; everything was stopped")
        sys.exit(130)
    remove_bulk(folder)
    summary(console, folder, facts, objects)


def remove_bulk(folder: Path) -> None:
    """Remove the trial's data, which is large and useless without its simulated CPU; journal and logs stay."""
    for name in ("data", "keys", "archives"):
        shutil.rmtree(folder / name, ignore_errors=True)


@contextlib.contextmanager
def step(console: Console, text: str) -> Iterator[None]:
    """Show a step while it runs, and its duration at its end."""
    began = time.monotonic()
    with console.status(text):
        yield
    console.print(f"[green]✓[/] {text} [dim]({time.monotonic() - began:.1f} s)[/]")


class Demo:
    """The steps of the demonstration. The container trial reuses them and adds its own."""

    def __init__(
        self,
        console: Console,
        folder: Path,
        objects: int,
        seed: int,
        facts: Facts,
        handover: str = "v2",
        *,
        stay: bool = False,
    ) -> None:
        self.console, self.folder, self.seed, self.facts = console, folder, seed, facts
        self.sizes = object_sizes(objects, seed)
        self.handover, self.stay = handover, stay
        self.digests: dict[str, str] = {}

    async def run(self, chain_url: str) -> None:
        """Run it all on a chain and stop everything, whatever happens. Raises DemoError, WorldError, DevnetError."""
        deaf = cancel_by_signal()
        with self._step("keys drawn, vault built and measured, its id signed and listed on chain"):
            opened = World.open(self.folder, chain_url, handover=self.handover, by_command_line=True)
            world = await opened.__aenter__()
        try:
            await self._trial(world)
        finally:
            deaf()
            await opened.__aexit__(None, None, None)

    async def _trial(self, world: World) -> None:
        facts = self.facts
        with self._step("releases 1.0.0 and 1.1.0 built, signed by vendor and network"):
            facts.old = await asyncio.to_thread(world.builder.good, "1.0.0")
            facts.new = await asyncio.to_thread(world.builder.good, "1.1.0")
        with self._step("1.0.0 published; `dcupgrade watch --first-install` launched it, it made its keys"):
            await world.install(facts.old)
        self.console.print(f"  look on: http://127.0.0.1:{world.ports['agent']}/ shows the upgrade machine at work")
        await self._store(world)
        await self._upgrade(world)
        await self._read_back(world)
        if self.stay:
            self.console.print("everything continues to run; Ctrl-C ends it. Meanwhile, in another terminal:")
            print_commands(
                self.console, self.folder, ("status", "plan", "check", "node restart", "revert --reason try")
            )
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        with self._step("agent, nodes and vault stopped"):
            await world.close()

    def _step(self, text: str) -> contextlib.AbstractContextManager[None]:
        return step(self.console, text)

    async def _store(self, world: World) -> None:
        total = sum(self.sizes)
        with self._bar(f"storing {len(self.sizes)} objects in 1.0.0", total) as (progress, task):

            async def put(index: int) -> None:
                data = object_bytes(index, self.sizes[index], self.seed)
                await world.node.put(_name(index), data)
                self.digests[_name(index)] = hashlib.sha256(data).hexdigest()
                progress.advance(task, len(data))

            await _in_parallel(put, len(self.sizes))
        self.facts.stored, self.facts.stored_bytes = len(self.digests), total
        self.console.print(f"[green]✓[/] {len(self.digests)} objects of 1 B to 8 MiB stored, {total / 2**20:.0f} MiB")

    async def _read_back(self, world: World) -> None:
        new = self.facts.new
        async with world.session.get(f"{world.node.url}/version") as answer:
            version = await answer.text()
        if new is None or version != f"{new.enclave_id}@1.1.0":
            raise DemoError(f"what serves now is {version}")
        names = await world.node.names()
        if names != sorted(self.digests):
            raise DemoError(f"1.1.0 lists {len(names)} objects, {len(self.digests)} were stored")
        with self._bar("reading every object back from 1.1.0", self.facts.stored_bytes) as (progress, task):

            async def get(index: int) -> None:
                data = await world.node.get(_name(index))
                if hashlib.sha256(data).hexdigest() != self.digests[_name(index)]:
                    raise DemoError(f"object {_name(index)} is not what was stored")
                self.facts.verified += 1
                progress.advance(task, len(data))

            await _in_parallel(get, len(self.sizes))
        self.console.print(f"[green]✓[/] {self.facts.verified} objects read back from 1.1.0, every byte as stored")

    @contextlib.contextmanager
    def _bar(self, text: str, total: int) -> Iterator[tuple[Progress, TaskID]]:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield progress, progress.add_task(text, total=total)

    async def _upgrade(self, world: World) -> None:
        facts = self.facts
        if facts.new is None:
            raise DemoError("there is no new release")
        seq = world.last_seq()
        world.server.chunk_delay_s = PIECE_DELAY_S  # so that the download can be watched
        heads = _Heads()
        tasks = [asyncio.create_task(heads.follow(world.session, world.chain_url))]
        probe = _Probe(world.node, _name(0))
        tasks.append(asyncio.create_task(probe.run()))
        show = asyncio.create_task(self._show_states(world, facts.new.enclave_id))
        tasks.append(show)
        try:
            with self._step("1.1.0 published"):
                published = await world.publish(facts.new)
            rows = await world.wait_committed(facts.new.enclave_id, within_s=UPGRADE_WITHIN_S, after=seq)
            await world.wait_serving(facts.new.enclave_id)
            await asyncio.wait_for(show, 30)
            await asyncio.sleep(10 * PROBE_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        final_at = await heads.seen_at(world, list(published.values())[-1])
        facts.detection_s = None if final_at is None else max(0.0, rows[0]["at_unix_s"] - final_at)
        facts.upgrade_s = rows[-1]["at_unix_s"] - rows[0]["at_unix_s"]
        facts.downtime_s = probe.longest_gap_s

    async def _show_states(self, world: World, enclave_id: str) -> None:
        """Print each state as it is entered, and the download as a bar, until the machine is idle again."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
        with Progress(*columns, console=self.console, transient=True) as progress:
            task: TaskID | None = None
            began = 0.0
            async for fact in world.events():
                if fact["type"] == "progress" and fact["facts"].get("total_bytes"):
                    task = task if task is not None else progress.add_task("downloading 1.1.0", total=None)
                    done = fact["facts"]
                    progress.update(task, total=done["total_bytes"], completed=done["done_bytes"])
                if fact["type"] != "state" or fact["from"] == fact["to"]:
                    continue
                began = began or fact["at_unix_s"]
                since = f"{fact['at_unix_s'] - began:6.2f} s"
                code = f" [red]{fact['code']}[/]" if fact["code"] else ""
                progress.print(f"  [dim]{since}[/] [bold]{fact['to']:<11}[/]{code} {MEANING.get(fact['to'], '')}")
                if fact["to"] == "idle":
                    return


def _name(index: int) -> str:
    return f"object-{index:04d}"


async def _in_parallel(work: Callable[[int], Any], count: int) -> None:
    waiting = iter(range(count))

    async def worker() -> None:
        for index in waiting:
            await work(index)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(PARALLEL):
                group.create_task(worker())
    except ExceptionGroup as failed:  # show only the first error of the group
        raise failed.exceptions[0] from None


class _Heads:
    """The times at which this process saw finalized blocks. Detection is measured from these times."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}

    async def follow(self, session: aiohttp.ClientSession, url: str) -> None:
        async with session.ws_connect(url) as socket:
            await socket.send_json({"jsonrpc": "2.0", "id": 1, "method": "chain_subscribeFinalizedHeads", "params": []})
            async for message in socket:
                params = json.loads(message.data).get("params")
                if params:
                    self._seen.setdefault(int(params["result"]["number"], 16), time.time())

    async def seen_at(self, world: World, block_hash: str) -> float | None:
        async with world.session.ws_connect(world.chain_url) as socket:
            await socket.send_json({"jsonrpc": "2.0", "id": 1, "method": "chain_getHeader", "params": [block_hash]})
            header = (await socket.receive_json(timeout=30))["result"]
        number = int(header["number"], 16)
        return min((at for seen, at in self._seen.items() if seen >= number), default=None)


class _Probe:
    """Reads one object repeatedly. The longest time between two successful reads is the downtime."""

    def __init__(self, node: NodeClient, name: str) -> None:
        self._node, self._name = node, name
        self.longest_gap_s = 0.0

    async def run(self) -> None:
        last = time.monotonic()
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                await self._node.get(self._name)
                now = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now - last)
                last = now
            await asyncio.sleep(PROBE_S)


def summary(console: Console, folder: Path, facts: Facts, objects: int) -> None:
    """Print the summary. Exit with 1 unless every object was verified."""
    old, new = facts.old, facts.new
    if old is None or new is None or facts.verified != objects or facts.stored != objects:
        console.print(f"[bold red]only {facts.verified} of {objects} objects were verified[/]")
        sys.exit(1)
    table = Table(show_header=False, box=None, padding=(0, 2))
    detection = "not measured" if facts.detection_s is None else f"{facts.detection_s * 1000:.0f} ms after finality"
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in (
        ("from 1.0.0", old.enclave_id),
        ("to 1.1.0", new.enclave_id),
        ("TEE", "simulated: not SGX"),
        ("detected", detection),
        ("upgrade", f"{facts.upgrade_s:.1f} s from detection to idle again"),
        ("downtime", f"{facts.downtime_s:.2f} s without an answer from either version"),
        ("verified", f"{facts.verified} of {objects} objects, {facts.stored_bytes / 2**20:.0f} MiB"),
        ("journal", str(folder / "agent" / "journal.sqlite3")),
        ("agent's log", str(folder / "agent.log")),
        ("nodes' and vault's", str(folder / "agent" / "logs")),
        ("whole run", f"{time.monotonic() - facts.began:.0f} s"),
    ):
        table.add_row(f"[bold]{name}[/]", value)
    console.print(Panel(table, title="[green]the upgrade succeeded[/]", expand=False))
    console.print("to see what happened:")
    print_commands(console, folder, ("history", "history --steps", "status"))
    console.print("`make demo STAY=1` leaves everything running, for `plan`, `check`, `node restart` and `revert`")


def print_commands(console: Console, folder: Path, commands: tuple[str, ...]) -> None:
    """Print commands for the agent in this folder, each on one line that can be copied."""
    python = os.path.relpath(sys.executable)
    for command in commands:
        console.print(f"  {python} -m dcupgrade -c {folder / 'dcupgrade.toml'} {command}", soft_wrap=True, markup=False)
