"""From the finalized head to a verified release: the watcher beside a bare client that asks at finality.

Run: python benchmarks/bench_detection.py [--chain node|chopsticks] [--releases 10]

Both run in processes of their own on the same chain and write down, by the machine's monotonic clock, when the frame
that tells of finality arrived on their own socket and when the verified release was in hand. The bare client is an
aiohttp websocket (questions on a socket of their own) that on each finalized head asks for the two values (with a read
proof where the chain gives one), verifies and decodes them by the same code. The watcher runs in mode proven on a
real node, in mode single on Chopsticks (where best is finalized at once, so that reading ahead gains nothing).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import ed25519_zebra

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from chain_watcher.endpoints.rpc import RpcClient, RpcLimits  # noqa: E402
from chain_watcher.proof.evidence import STANDARD_LAYOUTS  # noqa: E402
from chain_watcher.proof.header import Header  # noqa: E402
from chain_watcher.proof.layout import standard_layout  # noqa: E402
from chain_watcher.proof.release import BlockRef, encode_signature, read_entries, verify_release  # noqa: E402
from chain_watcher.proof.trie import read_proof  # noqa: E402
from chain_watcher.watch.config import WatcherConfig  # noqa: E402
from chain_watcher.watch.watcher import Watcher  # noqa: E402

SIGNING = b"\x07" * 32


def verify(enclave_id: str, signatures: tuple[bytes, ...]) -> None:
    from nacl.signing import SigningKey

    key = bytes(SigningKey(SIGNING).verify_key)
    if not any(ed25519_zebra.ed_verify(one, enclave_id.encode(), key) for one in signatures):
        raise ValueError("no good signature")


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


# --- the bare client


async def bare(url: str) -> None:
    layout = standard_layout(fields=4)
    keys = [layout.keys["enclave_ids"], layout.keys["dc_program"]]
    texts = ["0x" + key.hex() for key in keys]
    seen = ""
    async with aiohttp.ClientSession() as session:
        heads = await RpcClient.connect(session, url, RpcLimits())
        questions = await RpcClient.connect(session, url, RpcLimits())
        subscription = await heads.subscribe("chain_subscribeFinalizedHeads", [], "chain_unsubscribeFinalizedHeads")
        say(ready=True)
        async for value in subscription:
            head_at = time.monotonic()
            header = Header.from_json(value)
            block_hash = "0x" + header.hash.hex()
            if header.state_root == bytes(32):
                (answer,) = await questions.call("state_queryStorageAt", [texts, block_hash])
                values = {bytes.fromhex(k[2:]): v and bytes.fromhex(v[2:]) for k, v in answer["changes"]}
            elif header.number == 0:
                continue
            else:
                answer = await questions.call("state_getReadProof", [texts, block_hash])
                values = read_proof(header.state_root, [bytes.fromhex(node[2:]) for node in answer["proof"]], keys)
            program = layout.decode_dc_program(values[keys[1]])
            if program is None:
                continue
            entries = read_entries(layout.decode_enclave_ids(values[keys[0]])).entries
            with contextlib.suppress(Exception):
                release = verify_release(program, entries, verify, BlockRef(header.number, block_hash))
                if release.enclave_id != seen:
                    seen = release.enclave_id
                    say(enclave_id=seen, head_at=head_at, release_at=time.monotonic(), number=header.number)


# --- the watcher


async def watched(url: str, genesis_hash: str, checkpoint: str) -> None:
    known = json.loads(checkpoint)
    config = WatcherConfig(
        endpoints=(url,),
        finality="proven" if known else "single",
        genesis_hash=genesis_hash,
        checkpoint=known,
        unsafe_unproven_reads=not known,
        layout_hashes=tuple(STANDARD_LAYOUTS),
    )
    watcher = Watcher(config, verify)
    told: dict[int, float] = {}
    emit = watcher.pool._emit

    def noting(endpoint: Any, kind: Any, value: Any = None) -> None:
        if kind == "finalized":
            told.setdefault(int(value["number"], 16), time.monotonic())
        elif kind == "justification":
            told.setdefault(int.from_bytes(bytes.fromhex(value[82:90]), "little"), time.monotonic())
        emit(endpoint, kind, value)

    watcher.pool._emit = noting  # type: ignore[method-assign]
    run = asyncio.create_task(watcher.run())
    async for view in watcher.views():
        now = time.monotonic()
        if view.program is None:
            say(ready=True)
            continue
        head_at = next((told[at] for at in sorted(told) if at >= view.block_number), now)
        facts = watcher.health()["counters"]
        say(
            enclave_id=view.program.enclave_id,
            head_at=head_at,
            release_at=now,
            number=view.block_number,
            ahead=facts["answered_ahead"],
        )
    await run


# --- both


async def child(*arguments: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    line = json.loads(await process.stdout.readline())
    assert "ready" in line or "enclave_id" in line, line
    return process


async def next_release(process: asyncio.subprocess.Process, enclave_id: str) -> dict[str, Any]:
    assert process.stdout is not None
    while True:
        line: dict[str, Any] = json.loads(await process.stdout.readline())
        if line.get("enclave_id") == enclave_id:
            return line


async def compare(kind: str, releases: int) -> None:
    from nacl.signing import SigningKey

    from chain_watcher.watch.operator_queries import find_checkpoint
    from devnet.chain import DevChain
    from devnet.extrinsics import Root

    async with DevChain(kind, block_time_ms=1000) as chain:  # type: ignore[arg-type]
        await chain.wait_finalized(2)
        known = None
        if kind == "node":
            known = (await find_checkpoint([chain.ws_url])).checkpoint.to_json()
        children = [
            await child("--role", "watcher", chain.ws_url, chain.genesis_hash, json.dumps(known)),
        ]
        children.append(await child("--role", "bare", chain.ws_url))
        root = Root(chain.ws_url)
        rows: list[tuple[float, float, float]] = []
        try:
            for number in range(releases):
                enclave_id = f"{number + 1:064x}"
                signature = encode_signature(SigningKey(SIGNING).sign(enclave_id.encode()).signature).decode()
                await root.later(root.set_enclave_id, enclave_id, signature)
                await root.later(root.set_dc_program, "http://a/b", "", enclave_id, f"1.0.{number}")
                ours, theirs = await asyncio.gather(*(next_release(one, enclave_id) for one in children))
                row = tuple(1000 * (one["release_at"] - one["head_at"]) for one in (ours, theirs))
                rows.append((*row, 1000 * (theirs["release_at"] - ours["release_at"])))  # type: ignore[arg-type]
                early = rows[-1][2]
                print(f"{number + 1:>3}  watcher {row[0]:7.2f} ms  bare {row[1]:7.2f} ms  earlier by {early:7.2f} ms")
        finally:
            for one in children:
                with contextlib.suppress(ProcessLookupError):
                    one.terminate()
                await one.wait()
    medians = [statistics.median(row[column] for row in rows) for column in range(3)]
    print(
        f"median, {kind}, {releases} releases: finality frame to verified release: watcher {medians[0]:.2f} ms, ",
        end="",
    )
    print(f"bare client {medians[1]:.2f} ms; the watcher has it {medians[2]:.2f} ms earlier")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--chain", choices=("node", "chopsticks"), default="node")
    parser.add_argument("--releases", type=int, default=10)
    parser.add_argument("--role", choices=("bare", "watcher"), help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role == "bare":
        asyncio.run(bare(*given.arguments))
    elif given.role == "watcher":
        asyncio.run(watched(*given.arguments))
    else:
        asyncio.run(compare(given.chain, given.releases))


if __name__ == "__main__":
    main()
