"""Downtime of an upgrade against a script that stops and starts the same node: `python benchmarks/bench_downtime.py`.

Both are counted alike: from the last answer with data before to the first answer with data after, asked every 10 ms.
The upgrade stops the old version, starts the new one, and hands the keys over; the script sends TERM, waits for the
process to end, starts the same command again, and hands nothing over: the node unseals its own keys.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.report import Row, emit
from devnet.chain import DevChain
from devnet.release_builder import NodeTraits
from devnet.world import World
from tests.load.measure import Downtime, downtime_of, machine

OVERRIDES = {"node": {"probation_s": 0.2}}


async def upgrade(world: World, probe: Downtime, number: int) -> float:
    """One upgrade; returns its downtime, seconds."""
    traits = NodeTraits(features=("stats", f"bench-{number}"))
    release = await asyncio.to_thread(world.builder.build, f"1.{number}.0", traits, name=f"bench-{number}")
    began, seq = time.monotonic(), world.last_seq()
    await world.publish(release)
    await world.wait_committed(release.enclave_id, after=seq)
    await asyncio.sleep(0.5)
    return probe.longest_since(began)


async def bare_restart(world: World, probe: Downtime) -> float:
    """Stop and start the running node as a script would; returns the downtime, seconds. The agent is down meanwhile."""
    await world.stop_agent()
    node, command = _launcher(world)
    began = time.monotonic()
    # Waiting costs the script nothing: it sees the process end at once.
    pidfd = os.pidfd_open(node)
    os.killpg(node, signal.SIGTERM)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    await ended.wait()
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)
    null = asyncio.subprocess.DEVNULL
    child = await asyncio.create_subprocess_exec(
        *command, cwd="/", stdin=null, stdout=null, stderr=null, start_new_session=True
    )
    while probe.longest_since(began) == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    downtime_s = probe.longest_since(began)
    os.killpg(child.pid, signal.SIGTERM)
    await child.wait()
    await world.start_agent()
    while await world.node.health() is None:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    return downtime_s


def _launcher(world: World) -> tuple[int, list[str]]:
    """The process that leads the node's session, the simulated CPU that runs it, and its command."""
    for pid, arguments in world.processes().items():
        if "attestation.simulated" in arguments and "--upgrader" in arguments:
            return pid, arguments[:-1]
    raise RuntimeError("no node runs")


async def measure(rounds: int) -> None:
    """Measure in turns, so that what else the machine does strikes both alike."""
    upgrades: list[float] = []
    restarts: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-downtime-") as folder:
        async with DevChain(block_time_ms=500) as chain:
            opening = World.open(Path(folder) / "world", chain.ws_url, overrides=OVERRIDES)
            async with opening as world:
                await world.install(await asyncio.to_thread(world.builder.good, "1.0.0"))
                await world.node.put("a", os.urandom(4096))
                async with downtime_of(f"{world.node.url}/objects/a") as probe:
                    for number in range(1, rounds + 1):
                        upgrades.append(await upgrade(world, probe, number))
                        restarts.append(await bare_restart(world, probe))
    tell(upgrades, restarts, "a bare restart", "TERM and start of the same node")


def tell(upgrades: list[float], restarts: list[float], restart: str, how: str) -> None:
    """Print the seconds of both, and emit medians and ratio. `restart` names the other way, `how` what it does."""
    ratio = statistics.median(upgrades) / statistics.median(restarts)
    emit(
        Row(f"downtime of an upgrade, part of {restart}'s", ratio, "x", at_most=0.9),
        Row("downtime of an upgrade", statistics.median(upgrades), "s"),
        Row(how, statistics.median(restarts), "s", peer=True),
    )
    print(machine())
    for name, seconds in (("upgrade", upgrades), (restart, restarts)):
        print(f"{name}: {', '.join(f'{item:.2f}' for item in seconds)} s")
    print(f"ratio of the medians: {ratio:.2f} (target: at most 0.9)")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
