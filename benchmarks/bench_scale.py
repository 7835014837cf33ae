"""The watcher at scale: 10,000 entries in `EnclaveIds`, and 200 notifications of endpoints a second.

Run: python benchmarks/bench_scale.py [--blocks 50] [--entries 10000] [--seconds 15]

A chain in another process (true hashes, tries, proofs and votes; metadata of Polkadot's size) makes the blocks; this
process is the watcher in mode proven. Measured are the processor time for a block that changes nothing, beside a chain
with four entries; how many network signatures a new entry costs; and the longest pause of the event loop meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.report import Row, emit  # noqa: E402
from chain_watcher.watch.config import WatcherConfig  # noqa: E402
from chain_watcher.watch.watcher import Watcher  # noqa: E402

FEW = 4
BLOCKS_A_SECOND = 10
ENDPOINTS = 10
NOTIFICATIONS_A_SECOND = 200
PAUSE_MS_AT_MOST = 50.0
TICK_S = 0.002
SAME_COST_AT_MOST = 1.2


# --- the chain's process


async def serve(entries: int, endpoints: int) -> None:
    """Make blocks as lines of JSON on standard input ask for; say when they are all final."""
    from chain_watcher.proof.grandpa import Checkpoint
    from tests.doubles.chain_endpoint import FakeChain, FakeNode
    from tests.doubles.metadata_maker import make_metadata
    from tests.doubles.watching import entry, program

    chain = FakeChain(metadata=make_metadata(filler=900))
    listed = [entry(height, f"{height:064x}") for height in range(1, entries + 1)]
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(FakeNode(chain, grandpa=True)) for _ in range(endpoints)]
        checkpoint = Checkpoint(0, 0, tuple(chain.authorities())).to_json()
        facts = {"genesis_hash": chain.genesis_hash, "checkpoint": checkpoint, "urls": [node.url for node in nodes]}
        await chain.advance(chain.change(program(listed[-1].enclave_id), listed))
        print(json.dumps(facts), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            if asked["change"]:
                listed.append(entry(len(listed) + 1, f"{len(listed) + 1:064x}"))
                chain.grow(chain.change(program(listed[-1].enclave_id, f"2.{len(listed)}"), listed))
            for number in range(asked["blocks"]):
                if number or not asked["change"]:
                    chain.grow()
                await chain.announce_best()
                await asyncio.sleep(asked["pause_s"] / 2)
                await chain.finalize()
                await asyncio.sleep(asked["pause_s"] / 2)
            print(json.dumps({"number": chain.finalized}), flush=True)


class Chain:
    """The chain's process, as the watcher's process sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> dict[str, Any]:
        """What it says next."""
        assert self._process.stdout is not None
        return dict(json.loads(await self._process.stdout.readline()))

    async def make(self, blocks: int, pause_s: float, *, change: bool = False) -> int:
        """Make blocks, the first with a new entry if `change`; returns the last one's number once it is final."""
        assert self._process.stdin is not None
        asked = {"blocks": blocks, "pause_s": pause_s, "change": change}
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        return int((await self.line())["number"])


@asynccontextmanager
async def serving(entries: int, endpoints: int) -> AsyncIterator[tuple[Chain, dict[str, Any]]]:
    """A chain in another process, and its facts."""
    command = [sys.executable, __file__, "--serve", str(entries), str(endpoints)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=2**20)
    chain = Chain(process)
    try:
        yield chain, await chain.line()
    finally:
        process.kill()
        await process.wait()


# --- the watcher's process


@dataclass(slots=True)
class Measured:
    """A watcher at work: how often it verified signatures, and the longest pause of its loop."""

    watcher: Watcher
    verified: list[int]
    pause_s: float = 0.0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def until(self, number: int) -> None:
        """Wait until that block was taken."""
        while (self.watcher.health()["last_number"] or 0) < number:  # noqa: ASYNC110
            await asyncio.sleep(TICK_S)

    async def note_pauses(self) -> None:
        """Note by how much the loop is late, indefinitely."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK_S)
            self.pause_s = max(self.pause_s, time.monotonic() - began - TICK_S)

    async def take(self) -> None:
        """Take the views, indefinitely."""
        async for _ in self.watcher.views():
            pass


@asynccontextmanager
async def watching(facts: dict[str, Any]) -> AsyncIterator[Measured]:
    """A watcher in mode proven on all of the chain's endpoints."""
    from tests.doubles.watching import verify

    verified = [0]

    def counting(enclave_id: str, signatures: tuple[bytes, ...]) -> None:
        verified[0] += 1
        verify(enclave_id, signatures)

    config = WatcherConfig(
        endpoints=tuple(facts["urls"]),
        finality="proven",
        genesis_hash=facts["genesis_hash"],
        checkpoint=facts["checkpoint"],
    )
    measured = Measured(Watcher(config, counting), verified)
    parts = (measured.watcher.run(), measured.take(), measured.note_pauses())
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        yield measured
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def cost_of_blocks(entries: int, blocks: int) -> tuple[float, int, float]:
    """Milliseconds of processor time per unchanged block, signatures verified for a new entry, longest pause in s."""
    async with serving(entries, 1) as (chain, facts), watching(facts) as measured:
        pause_s = 1 / BLOCKS_A_SECOND
        await measured.until(await chain.make(5, pause_s))
        gc.collect()
        measured.pause_s, used = 0.0, time.process_time()
        await measured.until(await chain.make(blocks, pause_s))
        used = time.process_time() - used
        before = measured.verified[0]
        await measured.until(await chain.make(3, pause_s, change=True))
        return 1000 * used / blocks, measured.verified[0] - before, measured.pause_s


async def entries_at_scale(entries: int, blocks: int) -> None:
    """Compare a chain with few entries and one with many."""
    few, few_verified, _ = await cost_of_blocks(FEW, blocks)
    many, verified, pause_s = await cost_of_blocks(entries, blocks)
    print(f"a block that changes nothing: {few:.2f} ms with {FEW} entries, {many:.2f} ms with {entries:,}")
    print(f"a new entry: {verified} signatures verified; longest pause {1000 * pause_s:.1f} ms")
    emit(
        Row(
            f"block without change, {entries:,} entries, part of that with {FEW}",
            many / few,
            "x",
            at_most=SAME_COST_AT_MOST,
        ),
        Row(f"block without change, {entries:,} entries", many, "ms"),
        Row(
            f"network signatures verified for a new entry among {entries:,}",
            float(verified),
            "",
            at_most=float(few_verified),
        ),
        Row(f"longest pause of the loop, {entries:,} entries", 1000 * pause_s, "ms", at_most=PAUSE_MS_AT_MOST),
    )


async def notifications_at_scale(seconds: float) -> None:
    """Follow endpoints that together send 200 notifications a second: each block's best head, and its justification."""
    blocks_a_second = NOTIFICATIONS_A_SECOND / ENDPOINTS / 2
    async with serving(FEW, ENDPOINTS) as (chain, facts), watching(facts) as measured:
        await measured.until(await chain.make(5, 1 / blocks_a_second))
        gc.collect()
        measured.pause_s, used, began = 0.0, time.process_time(), time.monotonic()
        blocks = int(seconds * blocks_a_second)
        await measured.until(await chain.make(blocks, 1 / blocks_a_second))
        taken_s = time.monotonic() - began
        used, rate = time.process_time() - used, blocks * 2 * ENDPOINTS / taken_s
    pause_ms, part = 1000 * measured.pause_s, 100 * used / taken_s
    print(f"{rate:.0f} notifications a second: longest pause {pause_ms:.1f} ms, {part:.0f} % of a core")
    what = f"{NOTIFICATIONS_A_SECOND} notifications a second of {ENDPOINTS} endpoints"
    emit(
        Row(f"longest pause of the loop, {what}", pause_ms, "ms", at_most=PAUSE_MS_AT_MOST),
        Row(f"processor time, {what}", part, "% of a core", note=f"{rate:.0f} a second were sent"),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=50)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--serve", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(*given.serve))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    asyncio.run(entries_at_scale(given.entries, given.blocks))
    asyncio.run(notifications_at_scale(given.seconds))


if __name__ == "__main__":
    main()
