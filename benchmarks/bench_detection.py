"""From the finalized head to a verified release: the watcher beside other clients of the same node.

Run: python benchmarks/bench_detection.py [--chain node|chopsticks] [--releases 10]

Every client is a process of its own. The clock is the machine's monotonic one. It starts where a bare socket client in
C has read the frame of the finalized head, and ends where a client has the release in hand. The bare aiohttp client
(questions on a socket of their own) asks on each finalized head for the two values (with a read proof where the chain
gives one), verifies and decodes them by the watcher's own code. The peers of `detection_peers.py` decode both values
and verify nothing. The watcher runs in mode proven on a real node, in mode single on Chopsticks (where best is final
at once, so that reading ahead gains nothing).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import ed25519_zebra

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import detection_peers  # noqa: E402
from benchmarks.report import Row, emit  # noqa: E402
from chain_watcher.endpoints.rpc import RpcClient, RpcLimits  # noqa: E402
from chain_watcher.proof.evidence import STANDARD_LAYOUTS  # noqa: E402
from chain_watcher.proof.header import Header  # noqa: E402
from chain_watcher.proof.layout import standard_layout  # noqa: E402
from chain_watcher.proof.release import BlockRef, encode_signature, read_entries, verify_release  # noqa: E402
from chain_watcher.proof.trie import read_proof  # noqa: E402
from chain_watcher.watch.config import WatcherConfig  # noqa: E402
from chain_watcher.watch.watcher import Watcher  # noqa: E402
from devnet.tools import DevnetError  # noqa: E402

READY_S, DETECTION_S = 120, 300
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


# --- all of them


class Client:
    """A child that prints what it sees; `lines` keeps all of it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name, self.process = name, process
        self.lines: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, name: str, *command: str) -> Client:
        """Start it and wait until it says that it is ready."""
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        client = cls(name, await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=null))
        async with asyncio.timeout(READY_S):
            await client.find(lambda _: True)
        return client

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._news:
                with contextlib.suppress(ValueError):
                    self.lines.append(json.loads(line))
                self._news.notify_all()

    async def find(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line of that kind, once it is there."""
        async with self._news:
            while True:
                for line in self.lines:
                    if wanted(line):
                        return line
                await self._news.wait()

    async def stop(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        self._reading.cancel()


async def start_all(url: str, genesis_hash: str, checkpoint: object) -> tuple[Client | None, list[Client]]:
    """The socket client (None where it cannot be built), then the watcher, the bare client, and the peers."""
    own = [sys.executable, __file__, "--role"]
    clients = [
        await Client.start("watcher", *own, "watcher", url, genesis_hash, json.dumps(checkpoint)),
        await Client.start("bare aiohttp", *own, "bare", url),
    ]
    found, missing = detection_peers.commands()
    for name, command in found.items():
        try:
            clients.append(await Client.start(name, *command, url))
        except TimeoutError:
            missing[name] = f"it was not ready within {READY_S} s"
    for name, why in missing.items():
        print(f"{name} is left out: {why}")
    try:
        origin = await Client.start("socket", *detection_peers.socket_client(), url.rpartition(":")[2].rstrip("/"))
    except DevnetError as error:
        print(f"each client's own frame is the beginning: {error}")
        return None, clients
    return origin, clients


async def detected(client: Client, enclave_id: str, origin: Client | None) -> float:
    """Milliseconds from the head's frame to this client's knowledge of the release."""
    names = (enclave_id, enclave_id.encode().hex())
    line = await client.find(lambda line: any(n in str(line.get("enclave_id") or line.get("text", "")) for n in names))
    if origin is None:
        return 1000 * float(line["release_at"] - line.get("head_at", line["release_at"]))
    head = await origin.find(lambda one: one.get("number") == line["number"])
    return 1000 * float(line["release_at"] - head["at"])


async def compare(kind: str, releases: int) -> None:
    """Publish releases, and print and report how long each client took."""
    from nacl.signing import SigningKey

    from chain_watcher.watch.operator_queries import find_checkpoint
    from devnet.chain import DevChain
    from devnet.extrinsics import Root

    async with DevChain(kind, block_time_ms=1000) as chain:  # type: ignore[arg-type]
        await chain.wait_finalized(2)
        known = (await find_checkpoint([chain.ws_url])).checkpoint.to_json() if kind == "node" else None
        origin, clients = await start_all(chain.ws_url, chain.genesis_hash, known)
        taken: dict[str, list[float]] = {client.name: [] for client in clients}
        root = Root(chain.ws_url)
        try:
            for number in range(releases):
                enclave_id = f"{number + 1:064x}"
                signature = encode_signature(SigningKey(SIGNING).sign(enclave_id.encode()).signature).decode()
                await root.later(root.set_enclave_id, enclave_id, signature)
                await root.later(root.set_dc_program, "http://a/b", "", enclave_id, f"1.0.{number}")
                async with asyncio.timeout(DETECTION_S):
                    times = await asyncio.gather(*(detected(client, enclave_id, origin) for client in clients))
                for client, time_ms in zip(clients, times, strict=True):
                    taken[client.name].append(time_ms)
                print(
                    f"{number + 1:>3}  " + "  ".join(f"{c.name} {t:.2f}" for c, t in zip(clients, times, strict=True))
                )
        finally:
            for client in [*clients, *([origin] if origin else [])]:
                await client.stop()
    for name, times_ms in taken.items():
        ours = name == "watcher"
        median, slow = statistics.median(times_ms), sorted(times_ms)[int(0.95 * (len(times_ms) - 1) + 0.5)]
        print(f"{name:<22} median {median:8.2f} ms   p95 {slow:8.2f} ms")
        mode = f"{name}, mode {'proven' if known else 'single'}" if ours else name
        emit(Row(f"{mode}, median", median, "ms", at_most=1.0 if ours else None, peer=not ours))
        emit(Row(f"{mode}, p95", slow, "ms", at_most=1.5 if ours else None, peer=not ours))


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
