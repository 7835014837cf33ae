"""Memory of the watching process over many blocks: 10,000 by default, three runtime upgrades, authority-set changes.

Run: python benchmarks/bench_watch_memory.py [--blocks 10000] [--agent]

A chain in another process (true hashes, tries, proofs and votes) makes blocks as fast as the watcher takes them; the
watcher runs in mode proven with speculation. Printed is the RSS of the watching process, metadata children excluded
(they end). --agent loads the whole agent's modules first, as `dcupgrade watch` does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.report import Row, emit  # noqa: E402

LIMIT_MIB, AGENT_LIMIT_MIB = 40.0, 48.0


def rss_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


# --- the chain's process


async def serve(blocks: int) -> None:
    from chain_watcher.proof.grandpa import Checkpoint
    from tests.doubles.chain_endpoint import FakeChain, FakeNode
    from tests.doubles.metadata_maker import PROGRAM_FIELDS, make_metadata
    from tests.doubles.watching import entry, program

    chain = FakeChain()
    checkpoint = Checkpoint(0, 0, tuple(chain.authorities())).to_json()
    async with FakeNode(chain, grandpa=True) as node:
        facts = {"url": node.url, "genesis_hash": chain.genesis_hash, "checkpoint": checkpoint}
        print(json.dumps(facts), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        spec = 1
        for number in range(1, blocks + 1):
            cids = ["cid"] if spec > 1 else None
            if number in (blocks // 4, blocks // 2, 3 * blocks // 4):
                spec += 1
                chain.set_code(spec, make_metadata(fields=(*PROGRAM_FIELDS, "mirr_cids"), pallet_index=30 + spec))
            elif number % 1000 == 7:
                chain.change_set(chain.voters)
            elif number % 50 == 0 or number % (blocks // 4) == 1:
                enclave_id = f"{number:064x}"
                change = chain.change(program(enclave_id, f"1.0.{number}", cids=cids), [entry(number, enclave_id)])
                chain.grow(change)
            else:
                chain.grow()
            await chain.announce_best()
            # The watcher sets the pace: it reads every best block, from the first one that it saw become final.
            while number > 1 and not any(name == "state_getReadProof" for name, _ in node.asked):  # noqa: ASYNC110
                await asyncio.sleep(0.0005)
            node.asked.clear()
            await chain.finalize()
            forget(chain, number - 300)
        await asyncio.to_thread(sys.stdin.readline)


def forget(chain: Any, number: int) -> None:
    """Old blocks keep their headers' data, not their tries."""
    if number > 0:
        old = chain.main[number]
        old.trie.wanted.clear()
        old.trie.values.clear()
        chain.justifications.pop(number, None)


# --- the watcher's process


async def watch(blocks: int, *, agent: bool) -> None:
    if agent:
        import dcupgrade.service  # noqa: F401
    from chain_watcher.watch.config import WatcherConfig
    from chain_watcher.watch.watcher import Watcher

    chain = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--serve",
        f"--blocks={blocks}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert chain.stdin is not None
    assert chain.stdout is not None
    facts = json.loads(await chain.stdout.readline())
    config = WatcherConfig(
        endpoints=(facts["url"],),
        finality="proven",
        genesis_hash=facts["genesis_hash"],
        checkpoint=facts["checkpoint"],
    )
    watcher = Watcher(config, lambda enclave_id, signatures: None)
    run = asyncio.create_task(watcher.run())
    taken = asyncio.create_task(drain(watcher))
    try:
        await report(watcher, chain.stdin, blocks, agent=agent)
    finally:
        for task in (run, taken):
            task.cancel()
        await asyncio.gather(run, taken, return_exceptions=True)
        with contextlib.suppress(ProcessLookupError):
            chain.terminate()
        await chain.wait()


async def drain(watcher: Any) -> None:
    async for _ in watcher.views():
        pass


async def report(watcher: Any, stdin: asyncio.StreamWriter, blocks: int, *, agent: bool) -> None:
    while not watcher.pool.usable():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    print(f"{'block':>8} {'RSS MiB':>9}")
    print(f"{0:>8} {rss_mib():>9.1f}", flush=True)
    stdin.write(b"go\n")
    begun, shown = time.monotonic(), 0
    while (number := watcher.health()["last_number"] or 0) < blocks:
        await asyncio.sleep(0.05)
        if number - shown >= blocks // 10:
            shown = number
            print(f"{number:>8} {rss_mib():>9.1f}", flush=True)
    gc.collect()
    final = rss_mib()
    limit = AGENT_LIMIT_MIB if agent else LIMIT_MIB
    who = "agent's modules loaded" if agent else "watcher alone"
    emit(Row(f"memory after {blocks} blocks, {who}", final, "MiB", at_most=limit))
    counters = watcher.health()["counters"]
    taken_s = time.monotonic() - begun
    print(f"{blocks:>8} {final:>9.1f}   {taken_s:.0f} s, {blocks / taken_s:.0f} blocks/s")
    names = ("views", "answered_ahead", "read_at_finality", "runtime_upgrades", "set_changes", "justifications")
    print(", ".join(f"{name} {counters[name]}" for name in names))
    print(f"limit {limit:.0f} MiB: {'kept' if final < limit else 'EXCEEDED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, default=10_000)
    parser.add_argument("--agent", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.blocks))
    else:
        asyncio.run(watch(arguments.blocks, agent=arguments.agent))


if __name__ == "__main__":
    main()
