"""Downtime of an upgrade in containers against `docker restart` of the same node.

Run: python benchmarks/bench_downtime_containers.py [--rounds 3]

The services of devnet/compose.yaml on a Docker engine of our own (root, Debian's packages). Both are counted alike:
from the last answer with data before to the first answer with data after, asked every 10 ms. The upgrade stops the old
container, starts the new one, and hands the keys over; `docker restart` stops and starts the container that serves, and
hands nothing over: the node unseals its own keys. The agent is stopped meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bench_downtime import tell  # noqa: E402
from benchmarks.report import Row, emit  # noqa: E402
from devnet.docker.engine import PACKAGES, missing_tools  # noqa: E402
from devnet.docker.setup import WORLD_FILE, make_world  # noqa: E402
from devnet.docker.trial import INSTALL_WITHIN_S, UPGRADE_WITHIN_S, Compose, services  # noqa: E402
from devnet.release_builder import BuiltRelease, NodeTraits, ReleaseKeys  # noqa: E402
from devnet.tools import apt_install_missing  # noqa: E402
from devnet.world import World  # noqa: E402
from tests.load.measure import Downtime, downtime_of  # noqa: E402

SETTLE_S = 1.0


async def adopted(world: World, first: BuiltRelease) -> None:
    """Wait until the agent has taken over the node that Compose started."""

    def is_adopted(rows: list[dict[str, Any]]) -> bool:
        return any((row["kind"], row["running"]) == ("adopted", first.enclave_id) for row in rows)

    await world.wait_for("1.0.0 taken over", is_adopted, within_s=INSTALL_WITHIN_S)
    await world.wait_serving(first.enclave_id)


async def upgrade(world: World, probe: Downtime, number: int) -> float:
    """One upgrade; returns its downtime, seconds."""
    traits = NodeTraits(features=("stats", f"bench-{number}"))
    release = await asyncio.to_thread(world.builder.build, f"1.{number}.0", traits, name=f"bench-{number}")
    began, seq = time.monotonic(), world.last_seq()
    await world.publish(release)
    await world.wait_committed(release.enclave_id, within_s=UPGRADE_WITHIN_S, after=seq)
    await asyncio.sleep(SETTLE_S)
    return probe.longest_since(began)


async def restart(world: World, compose: Compose, probe: Downtime) -> float:
    """`docker restart` of the container that serves; returns the downtime, seconds."""
    await asyncio.to_thread(compose.run, "stop", "upgrader")
    nodes = await asyncio.to_thread(compose.nodes)
    (serving,) = (node["Id"] for node in nodes.values() if node["State"]["Running"])
    began = time.monotonic()
    await asyncio.to_thread(compose.docker, "restart", serving)
    while probe.longest_since(began) == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    downtime_s = probe.longest_since(began)
    await asyncio.to_thread(compose.run, "start", "upgrader")
    while await world.status() is None:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLE_S)
    return downtime_s


async def measure(compose: Compose, rounds: int) -> None:
    """Measure in turns, so that what else the machine does strikes both alike."""
    folder = Path(compose.environment["DC_HOME"])
    facts = json.loads((folder / WORLD_FILE).read_text())
    first = BuiltRelease(**{**facts["first"], "archive": Path(facts["first"]["archive"])})
    upgrades: list[float] = []
    restarts: list[float] = []
    async with aiohttp.ClientSession() as session:
        keys = ReleaseKeys.load(folder / "keys")
        world = make_world(folder, facts["ports"], keys, facts["genesis_hash"], facts["vault_id"], session)
        await adopted(world, first)
        await world.node.put("a", os.urandom(4096))
        async with downtime_of(f"{world.node.url}/objects/a") as probe:
            for number in range(1, rounds + 1):
                upgrades.append(await upgrade(world, probe, number))
                restarts.append(await restart(world, compose, probe))
    tell(upgrades, restarts, "`docker restart`", "`docker restart` of the same node")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    apt_install_missing(PACKAGES, "the container engine")
    if lacks := missing_tools():
        why = f"it needs {'; '.join(lacks)}"
        print(f"left out: {why}")
        emit(Row("downtime of an upgrade in containers", None, "s", note=why))
        return
    with (
        tempfile.TemporaryDirectory(prefix="bench-containers-") as folder,
        services(Console(highlight=False), Path(folder) / "world", attach=False) as compose,
    ):
        asyncio.run(measure(compose, given.rounds))


if __name__ == "__main__":
    main()
