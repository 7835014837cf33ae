"""Kill matrix: SIGKILL of agent, vault, old node and new node at every boundary of the journal, with real processes.

    python -m tests.e2e.kill_matrix [--only VICTIM]

One world goes through one upgrade for each cell. After every kill the upgrade must end well (committed or reverted, and
committed in the end), all objects must read back, one node must run, and the agent's death must not have touched it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from devnet.chain import DevChain
from devnet.release_builder import ROOT
from devnet.world import World, WorldError

BOUNDARIES = (
    *("staging", "staged", "collecting", "sealed", "stopping"),
    *("launching", "delivering", "probation", "committed", "idle"),
)  # fmt: skip
VICTIMS = ("agent", "vault", "old", "new")
CELL_S_MAX = 90.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One kill: the victim, the boundary, and whether before or after the journal stores it."""

    victim: str
    boundary: str
    when: str


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a kill: outcome, seconds, and the problem ("" for none)."""

    ending: str
    seconds: float
    problem: str = ""


def all_cells() -> Iterable[Cell]:
    """The agent dies before and after each entry; the others die when it is written."""
    for boundary in BOUNDARIES:
        for victim in VICTIMS:
            for when in ("before", "after") if victim == "agent" else ("after",):
                yield Cell(victim, boundary, when)


class Matrix:
    """A world for one kill after another."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.objects: dict[str, bytes] = {}
        self.running = ""
        self._number = 0
        self._babysitter: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Install the first version and store objects."""
        release = await asyncio.to_thread(self.world.builder.good, "1.0.0")
        await self.world.publish(release)
        await self._start_agent("--first-install")
        await self.world.wait_committed(release.enclave_id, within_s=CELL_S_MAX)
        self.running = release.enclave_id
        for number in range(10):
            await self._put(f"object-{number}", os.urandom(1 << (2 * number)))
        self._babysitter = asyncio.create_task(self._restart_dead_agents())

    async def end(self) -> None:
        """Stop restarting agents."""
        if self._babysitter is not None:
            self._babysitter.cancel()
            await asyncio.gather(self._babysitter, return_exceptions=True)

    async def _put(self, name: str, data: bytes) -> None:
        await self.world.node.put(name, data)
        self.objects[name] = data

    async def _start_agent(self, *arguments: str) -> None:
        with self.world.agent_log.open("ab") as log:
            self.world.agent = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.e2e.killing_agent", str(self.world.settings_path), *arguments),
                cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    async def _restart_dead_agents(self) -> None:
        while True:
            if self.world.agent is not None and self.world.agent.returncode is not None:
                await self._start_agent()
            await asyncio.sleep(0.05)

    async def run(self, cell: Cell) -> Result:
        """Publish a new version, kill, and see how it ends."""
        self._number += 1
        began = time.monotonic()
        release = await asyncio.to_thread(self.world.builder.good, f"1.{self._number}.0")
        order = {"boundary": cell.boundary, "when": cell.when, "victim": cell.victim}
        killed = self.world.state_dir / "killed.json"
        killed.unlink(missing_ok=True)
        (self.world.state_dir / "kill.json").write_text(json.dumps(order))
        after = self.world.last_seq()
        source, started = self.running, self._started(self.running)
        await self.world.publish(release)
        try:
            ending = await self._ending(release.enclave_id, after)
            problem = await self._judge(cell, ending, release.enclave_id, source, started)
        except (WorldError, OSError) as error:
            ending, problem = "failed", str(error)
        if not problem and not killed.exists():
            problem = "the kill never happened"
        if not problem:
            await self._put(f"after-{self._number}", os.urandom(100))
        return Result(ending, time.monotonic() - began, problem)

    def _started(self, enclave_id: str) -> str:
        """The record of a version's last start: pid and start time."""
        return (self.world.state_dir / "run" / f"node-{enclave_id[:20]}.json").read_text()

    async def _ending(self, enclave_id: str, after: int) -> str:
        """Wait until the upgrade is over and the machine rests."""
        deadline = time.monotonic() + CELL_S_MAX
        while time.monotonic() < deadline:
            rows = [row for row in self.world.history(after) if row["state_before"] != row["state_after"]]
            if rows and rows[-1]["state_after"] == "idle" and rows[-1]["running"] == enclave_id:
                return "committed"
            if rows and rows[-1]["state_after"] == "idle" and rows[-1]["state_before"] == "reverted":
                return "reverted"
            if rows and rows[-1]["state_after"] == "halted":
                return "halted"
            await asyncio.sleep(0.1)
        raise WorldError(f"it did not come to rest\n{self.world.tail()}")

    async def _judge(self, cell: Cell, ending: str, target: str, source: str, started: str) -> str:
        if ending not in ("committed", "reverted"):
            return f"it ended {ending}\n{self.world.tail()}"
        if ending == "reverted" and cell.victim != "new":
            return "it went back, though the new version was not touched"
        self.running = target if ending == "committed" else source
        await self.world.wait_serving(self.running)
        nodes = self.world.enclaves()["node"]
        if len(nodes) != 1:
            return f"{len(nodes)} nodes run"
        if cell.victim != "old" and ending == "committed" and self._started(source) != started:
            # a new agent starts a node that died with the former one, and says nothing of it in the history
            return f"the old node did not live until it was stopped: the {cell.victim}'s death took it down"
        for name, data in self.objects.items():
            if await self.world.node.get(name) != data:
                return f"{name} reads back changed"
        if sorted(self.objects) != await self.world.node.names():
            return "objects are missing"
        return ""


@asynccontextmanager
async def matrix(folder: Path, chain_url: str) -> AsyncIterator[Matrix]:
    """Give a world that is ready for kills."""
    overrides = {"upgrade": {"attempts": 5, "backoff_s": 0.2, "backoff_max_s": 1.0, "failure_budget": 1}}
    async with World.open(folder, chain_url, overrides=overrides) as world:
        made = Matrix(world)
        try:
            await made.begin()
            yield made
        finally:
            await made.end()


async def run_cells(cells: Sequence[Cell], chain_url: str, folder: Path) -> dict[Cell, Result]:
    """Run cells in one world; a line for each goes to standard output."""
    results: dict[Cell, Result] = {}
    async with matrix(folder, chain_url) as made:
        for cell in cells:
            result = results[cell] = await made.run(cell)
            sys.stdout.write(
                f"{cell.victim:<6} {cell.when:<6} {cell.boundary:<11} {result.ending:<10} {result.seconds:5.1f} s"
                f" {result.problem}\n"
            )
            sys.stdout.flush()
            if result.ending == "failed":
                break
    return results


def table(results: dict[Cell, Result]) -> str:
    """Return the table: a row for each boundary, a column for each victim."""
    columns = [("agent", "before"), ("agent", "after"), ("vault", "after"), ("old", "after"), ("new", "after")]
    lines = ["boundary    " + "".join(f"{victim + ' ' + when:<16}" for victim, when in columns)]
    for boundary in BOUNDARIES:
        row = f"{boundary:<12}"
        for victim, when in columns:
            result = results.get(Cell(victim, boundary, when))
            text = "-" if result is None else ("FAILED" if result.problem else f"{result.ending} {result.seconds:.0f}s")
            row += f"{text:<16}"
        lines.append(row.rstrip())
    bad = sum(bool(result.problem) for result in results.values())
    lines.append(f"{len(results)} kills, {bad} failed; every object read back after each")
    return "\n".join(lines)


async def _main(arguments: argparse.Namespace) -> int:
    cells = [cell for cell in all_cells() if arguments.only in (None, cell.victim)]
    with tempfile.TemporaryDirectory(prefix="kill-matrix-") as folder:
        async with DevChain(block_time_ms=500) as chain:
            results = await run_cells(cells, chain.ws_url, Path(folder) / "world")
    sys.stdout.write(table(results) + "\n")
    return 1 if any(result.problem for result in results.values()) or len(results) != len(cells) else 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=VICTIMS, help="one victim only")
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_main(parser.parse_args()))
    return 130


if __name__ == "__main__":
    sys.exit(main())
