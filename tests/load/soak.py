"""Soak: many upgrades in a row on fast blocks, with restarts of everything; nothing may grow with their number.

    python -m tests.load.soak [--upgrades 500] [--out build/soak]

After every upgrade all objects are read back. Every few upgrades agent, vault or node is killed, or the connection to
the chain is cut, in turn. The table has a row for each tenth of the run: memory, descriptors, tasks, journal, disk,
time and downtime. What is larger at the end than the first fifth of the run explains is named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcupgrade.errors import DcupgradeError
from devnet.chain import DevChain
from devnet.release_builder import BuiltRelease, NodeTraits
from devnet.world import World

from .measure import ProcessSize, changed_environment, count_tasks, disk_bytes, downtime_of, read_tasks, sizes_of, write

OBJECTS = 10
KILL_EVERY = 3
PUBLISH_TRIES = 5
BLOCK_TIME_MS = 500
"""The development chain stopped making blocks at number 5,614, after 26 minutes of 200 ms: a long soak needs fewer."""
VICTIMS = ("agent", "vault", "node", "connection")
#: Columns that may not grow with the number of upgrades, and by how much they may still differ: a part and a constant.
FLAT = {
    "agent KiB": (0.15, 2048),
    "vault KiB": (0.15, 2048),
    "node KiB": (0.15, 2048),
    "agent descriptors": (0.1, 3),
    "agent tasks": (0.1, 3),
    "agent files KiB": (0.15, 1024),
    "node files KiB": (0.15, 64),
    "slots": (0, 1),
    "logs": (0.1, 2),
}
#: The same for seconds, which say something only where the machine was not busier at the end.
FLAT_S = {"upgrade s": (0.3, 0.5), "downtime s": (0.3, 0.2)}
OVERRIDES = {
    "node": {"probation_s": 0.2, "probe_interval_s": 0.1},
    "upgrade": {"retention_s": 5.0, "remove_previous": True, "backoff_s": 0.2, "backoff_max_s": 1.0, "attempts": 5},
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One upgrade: seconds from publishing to commit, seconds without service, and what there is afterwards."""

    number: int
    upgrade_s: float
    downtime_s: float
    sizes: dict[str, ProcessSize]
    tasks: int
    journal_bytes: int
    agent_bytes: int
    node_bytes: int
    slots: int
    logs: int
    killed: str
    load: float


class Soak:
    """One world with many upgrades in a row. Raises AssertionError if an object is lost or changed."""

    def __init__(self, world: World, tasks_folder: Path) -> None:
        self._world, self._tasks_folder = world, tasks_folder
        self._objects: dict[str, bytes] = {}

    async def run(self, upgrades: int, tell: Callable[[Sample], None]) -> list[Sample]:
        """Install a first version, then upgrade so many times."""
        world = self._world
        await world.install(await asyncio.to_thread(world.builder.good, "1.0.0"))
        for number in range(OBJECTS):
            self._objects[f"object-{number}"] = os.urandom(1 << (2 * number))
            await world.node.put(f"object-{number}", self._objects[f"object-{number}"])
        samples = []
        async with downtime_of(f"{world.node.url}/objects/object-3") as probe:
            for number in range(1, upgrades + 1):
                began = time.monotonic()
                upgrade_s, killed = await self._upgrade(number)
                sample = self._sample(number, upgrade_s, probe.longest_since(began), killed)
                samples.append(sample)
                tell(sample)
        return samples

    async def _upgrade(self, number: int) -> tuple[float, str]:
        world = self._world
        traits = NodeTraits(features=("stats", f"soak-{number}"))
        release = await asyncio.to_thread(world.builder.build, f"1.{number}.0", traits, name=f"soak-{number}")
        seq = world.last_seq()
        began = time.monotonic()
        await self._publish(release)
        await world.wait_committed(release.enclave_id, after=seq)
        upgrade_s = time.monotonic() - began
        release.archive.unlink()
        killed = VICTIMS[number // KILL_EVERY % len(VICTIMS)] if number % KILL_EVERY == 0 else ""
        if killed == "agent":
            await world.stop_agent(kill=True)
            await world.start_agent()
        elif killed == "connection":
            assert world.proxy is not None
            await world.proxy.cut()
            await world.proxy.start()
        elif killed:
            for pid in world.enclaves()[killed]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await world.wait_serving(release.enclave_id)
        for name, data in self._objects.items():
            assert await world.node.get(name) == data, f"{name} reads back changed after upgrade {number}"
        assert len(world.enclaves()["node"]) == 1
        return upgrade_s, killed

    async def _publish(self, release: BuiltRelease) -> None:
        """Publish; repeat after a lost connection to the chain, without publishing anything twice."""
        for tries_left in reversed(range(PUBLISH_TRIES)):
            try:
                await self._world.publish(release)
                return
            except DcupgradeError as error:
                if error.code == "RELEASE_ALREADY_PUBLISHED":
                    return
                if error.code != "PUBLISH_CHAIN_UNREACHABLE" or not tries_left:
                    raise

    def _sample(self, number: int, upgrade_s: float, downtime_s: float, killed: str) -> Sample:
        state = self._world.state_dir
        journal = sum(path.stat().st_size for path in state.glob("journal.sqlite3*"))
        slots = [path for path in (state / "slots").iterdir() if len(path.name) == 64]
        return Sample(
            number=number,
            upgrade_s=upgrade_s,
            downtime_s=downtime_s,
            sizes=sizes_of(self._world),
            tasks=read_tasks(self._tasks_folder),
            journal_bytes=journal,
            agent_bytes=disk_bytes(state) - journal,
            node_bytes=disk_bytes(self._world.data_dir),
            slots=len(slots),
            logs=len(list((state / "logs").iterdir())),
            killed=killed,
            load=os.getloadavg()[0],
        )


def rows(samples: Sequence[Sample]) -> list[dict[str, object]]:
    """A row for each tenth of the run (each upgrade of a short one)."""
    size = max(1, len(samples) // 10)
    return [_row(samples[start : start + size]) for start in range(0, len(samples), size)]


def _row(part: Sequence[Sample]) -> dict[str, object]:
    last, calm = part[-1], [item for item in part if not item.killed] or list(part)

    def median(values: list[float]) -> str:
        return f"{statistics.median(values):.2f}"

    def size(name: str, facts: Callable[[ProcessSize], int]) -> object:
        # the largest of the part: one that was just started again is small
        return max((facts(item.sizes[name]) for item in part if name in item.sizes), default="-")

    return {
        "upgrades": f"{part[0].number}-{last.number}",
        "upgrade s": median([item.upgrade_s for item in calm]),
        "downtime s": median([item.downtime_s for item in calm]),
        "agent KiB": size("agent", lambda item: item.rss_kib),
        "vault KiB": size("vault", lambda item: item.rss_kib),
        "node KiB": size("node", lambda item: item.rss_kib),
        "agent descriptors": size("agent", lambda item: item.descriptors),
        "agent tasks": last.tasks,
        "journal KiB": last.journal_bytes // 1024,
        # removals come in intervals: the least of the part is what they leave
        "agent files KiB": min(item.agent_bytes for item in part) // 1024,
        "node files KiB": last.node_bytes // 1024,
        "slots": min(item.slots for item in part),
        "logs": min(item.logs for item in part),
        "kills": sum(bool(item.killed) for item in part),
        "load": f"{statistics.mean(item.load for item in part):.1f}",
    }


def grown(table: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the values that grew from the second row to the last, without the journal, which stores history."""
    if len(table) < 3:
        return []
    early_row, late_row = table[1], table[-1]
    busier = float(str(late_row["load"])) > 1.2 * float(str(early_row["load"])) + 0.5
    found = []
    for name, (part, constant) in (FLAT if busier else FLAT | FLAT_S).items():
        early, late = (float(str(row[name]).replace("-", "nan")) for row in (early_row, late_row))
        if late > early * (1 + part) + constant:
            found.append(f"{name}: {early:g} → {late:g}")
    return found


async def soak(folder: Path, upgrades: int, tell: Callable[[Sample], None], block_time_ms: int = 200) -> list[Sample]:
    """Run a soak in a world of its own."""
    tasks_folder = folder / "tasks"
    tasks_folder.mkdir(parents=True)
    with changed_environment(count_tasks(tasks_folder)):
        async with DevChain(block_time_ms=block_time_ms) as chain:
            opening = World.open(folder / "world", chain.ws_url, overrides=OVERRIDES, through_proxy=True)
            async with opening as world:
                return await Soak(world, tasks_folder).run(upgrades, tell)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrades", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    arguments = parser.parse_args()
    samples: list[Sample] = []

    def tell(sample: Sample) -> None:
        samples.append(sample)
        sys.stdout.write(
            f"{sample.number:>4}  {sample.upgrade_s:5.2f} s  downtime {sample.downtime_s:5.2f} s  {sample.killed}\n"
        )
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        try:
            asyncio.run(soak(Path(folder), arguments.upgrades, tell, BLOCK_TIME_MS))
        finally:
            if samples:
                table = rows(samples)
                sys.stdout.write("\n" + write(arguments.out, f"Soak: {len(samples)} upgrades", table))
                sys.stdout.write(f"grown: {', '.join(grown(table)) or 'nothing'}\n")
    return 1 if grown(rows(samples)) else 0


if __name__ == "__main__":
    sys.exit(main())
