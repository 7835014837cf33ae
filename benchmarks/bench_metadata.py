"""From the start of the process to the first view on a chain with metadata of Polkadot's size.

Run: python benchmarks/bench_metadata.py [--rounds 5] [--types 900]

The chain is in another process (true hashes, tries, proofs and votes); its metadata has as many types as Polkadot's.
Printed are the wall time and the processor time of a process that starts, connects, and ends with the first view: the
watcher in the modes `single` and `proven`, warm (layouts of an earlier start are stored) and cold; and of a bare
aiohttp client that asks for the finalized head and one proof. All run from bytecode, as installed programs do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.report import Row, emit  # noqa: E402

TARGET_S = {"warm": 0.5, "cold": 0.9}


async def serve(types: int) -> None:
    from chain_watcher.proof.grandpa import Checkpoint
    from tests.doubles.chain_endpoint import FakeChain, FakeNode
    from tests.doubles.metadata_maker import make_metadata
    from tests.doubles.watching import ID_1, publish

    chain = FakeChain(metadata=make_metadata(filler=types))
    checkpoint = Checkpoint(0, 0, tuple(chain.authorities())).to_json()
    block = await chain.advance(publish(chain, ID_1, 1))
    chain.justifications[block.number] = chain.justify(block)
    async with FakeNode(chain, grandpa=True) as node:
        facts = {"url": node.url, "genesis_hash": chain.genesis_hash, "checkpoint": checkpoint}
        print(json.dumps({**facts, "metadata_bytes": len(chain.metadata[1])}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)


async def watch(facts: dict[str, Any], finality: str, layouts_file: Path) -> None:
    from chain_watcher.watch.config import WatcherConfig
    from chain_watcher.watch.watcher import Watcher

    config = WatcherConfig(
        endpoints=(facts["url"],),
        finality=finality,  # type: ignore[arg-type]
        genesis_hash=facts["genesis_hash"],
        checkpoint=facts["checkpoint"],
        layouts_file=layouts_file,
    )
    watcher = Watcher(config, lambda _id, _signatures: None)
    run = asyncio.create_task(watcher.run())
    view = await anext(watcher.views())
    assert view.program is not None
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)


async def bare(facts: dict[str, Any]) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.ws_connect(facts["url"]) as socket:

        async def ask(method: str, *params: object) -> Any:
            await socket.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
            return (await socket.receive_json())["result"]

        await ask("state_getReadProof", ["0x" + "00" * 32], await ask("chain_getFinalizedHead"))


def measure(facts: dict[str, Any], role: str, folder: Path) -> tuple[float, float]:
    """Return wall and processor seconds of one start."""
    command = [sys.executable, __file__, "--role", role, json.dumps(facts), str(folder / f"{role.split()[0]}.json")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    before, begun = os.times(), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - begun, used


def compare(rounds: int, types: int) -> None:
    command = [sys.executable, __file__, "--role", "serve", "--types", str(types)]
    chain = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert chain.stdin is not None
    assert chain.stdout is not None
    try:
        facts = json.loads(chain.stdout.readline())
        print(f"metadata of {facts['metadata_bytes']:,} bytes, {rounds} starts each; load {os.getloadavg()[0]:.1f}")
        print(f"{'':<28}{'wall s':>8}{'processor s':>13}")
        with tempfile.TemporaryDirectory(prefix="bench-metadata-") as name:
            for role in ("single cold", "single warm", "proven cold", "proven warm", "bare"):
                measure(facts, role, Path(name))  # makes the bytecode
                rows = []
                for _ in range(rounds):
                    if role.endswith("cold"):
                        for file in Path(name).glob("*.json"):
                            file.unlink()
                    rows.append(measure(facts, role, Path(name)))
                wall, used = (statistics.median(row[at] for row in rows) for at in (0, 1))
                target = TARGET_S.get(role.rpartition(" ")[2])
                emit(Row(f"{role}, start to first view", wall, "s", at_most=target, peer=role == "bare"))
                note = "" if target is None else f"   target {target} s: {'met' if wall < target else 'MISSED'}"
                print(f"{role:<28}{wall:>8.2f}{used:>13.2f}{note}", flush=True)
    finally:
        chain.stdin.write("\n")
        chain.stdin.close()
        chain.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--types", type=int, default=900)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role is None:
        compare(given.rounds, given.types)
    elif given.role == "serve":
        asyncio.run(serve(given.types))
    elif given.role == "bare":
        asyncio.run(bare(json.loads(given.arguments[0])))
    else:
        asyncio.run(watch(json.loads(given.arguments[0]), given.role.split()[0], Path(given.arguments[1])))


if __name__ == "__main__":
    main()
