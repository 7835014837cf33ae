"""From the start of a process to its first view of the chain: the watcher beside other clients of the same real node.

Run: python benchmarks/bench_start.py [--rounds 7]

Every client is started alone, and counts as started when it has decoded the release at the finalized head. The watcher
starts cold, and warm with the storage layouts that an earlier start has stored. Blocks take 4 s, so that hardly any
client waits for one: each asks for the head that is final already. The clients take turns, so that whatever else the
machine does strikes all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import peer_clients  # noqa: E402
from benchmarks.bench_detection import Publisher  # noqa: E402
from benchmarks.clients import Client, other_commands, watcher_commands  # noqa: E402
from benchmarks.report import Row, emit, missing_peers  # noqa: E402
from devnet.chain import DevChain  # noqa: E402
from devnet.node_process import ensure_node_binary  # noqa: E402

BLOCK_MS = 4000
START_S = 60
SECONDS_AT_MOST = {"warm": 0.5, "cold": 0.9}


async def start(command: list[str]) -> float:
    """Seconds from the start of a client to its first view. Raises TimeoutError."""
    began = time.monotonic()
    client = await Client.start(command)
    try:
        async with asyncio.timeout(START_S):
            line = await client.find(lambda line: "number" in line)
        return float(line["release_at"]) - began
    finally:
        await client.stop()


async def starts(chain: DevChain, folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The command of each start, by its name; and why peers are missing."""
    own: dict[str, list[str]] = {}
    for name, command in (await watcher_commands(chain)).items():
        layouts = folder / f"{name.rpartition(' ')[2]}.json"
        own[f"{name}, cold"] = command
        own[f"{name}, warm"] = [*command, str(layouts)]
        await start(own[f"{name}, warm"])  # stores the layouts
    others, missing = other_commands(chain.ws_url)
    return {**own, **others}, missing


async def compare(rounds: int) -> None:
    """Measure in turns, and print and report."""
    ensure_node_binary()
    peer_clients.commands()  # what has to be built is built before anything is measured
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        async with DevChain("node", block_time_ms=BLOCK_MS) as chain:
            await Publisher(chain.ws_url).publish()
            best = await chain.call("chain_getHeader")
            await chain.wait_finalized(int(best["number"], 16))
            commands, missing = await starts(chain, Path(folder))
            for _ in range(rounds):
                for name, command in commands.items():
                    try:
                        taken.setdefault(name, []).append(await start(command))
                    except TimeoutError:
                        missing[name] = f"it had no view within {START_S} s"
    for name, seconds in taken.items():
        at_most = SECONDS_AT_MOST.get(name.rpartition(" ")[2]) if name.startswith("watcher") else None
        median = statistics.median(seconds)
        print(f"{name:<28}{median:>8.2f} s   ({', '.join(f'{one:.2f}' for one in seconds)})", flush=True)
        emit(Row(f"{name}, start to first view", median, "s", at_most=at_most, peer=at_most is None))
    emit(*missing_peers({name: why for name, why in missing.items() if name not in taken}, "s"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    asyncio.run(compare(given.rounds))


if __name__ == "__main__":
    main()
