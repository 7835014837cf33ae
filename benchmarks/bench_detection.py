"""From the finalized head to a verified release: the watcher beside other clients of the same node.

Run: python benchmarks/bench_detection.py [--releases 20] [--nodelay]

Each client runs alone beside the node, so that none delays another. The clock is the machine's monotonic one. It starts
where a bare socket client in C has read the frame of the finalized head, and ends where the client has the release in
hand. The watcher and the bare aiohttp client verify each release; the peers decode both values and verify nothing.

The stock node leaves TCP_NODELAY off. With `--nodelay` it is the same binary under a library (`peers/nodelay.c`, by
LD_PRELOAD) that sets the option on each accepted connection.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nacl.signing import SigningKey  # noqa: E402

from benchmarks import peer_clients  # noqa: E402
from benchmarks.clients import Client, other_commands, watcher_commands  # noqa: E402
from benchmarks.own_clients import SIGNING  # noqa: E402
from benchmarks.report import Row, emit, missing_peers, percentile  # noqa: E402
from chain_watcher.proof.release import encode_signature  # noqa: E402
from devnet.chain import DevChain  # noqa: E402
from devnet.extrinsics import Root  # noqa: E402
from devnet.node_process import ensure_node_binary  # noqa: E402
from tests.load.measure import changed_environment  # noqa: E402

DETECTION_S = 60
BLOCK_MS = 1000
MEDIAN_MS_AT_MOST, P95_MS_AT_MOST = 1.0, 1.5


class Publisher:
    """Changes the release on the chain, each time to one that was not there before."""

    def __init__(self, url: str) -> None:
        self._root = Root(url)
        self._number = 0

    async def publish(self) -> str:
        """Put the next release on the chain; returns its enclave id once a block holds it."""
        self._number += 1
        enclave_id = f"{self._number:064x}"
        signature = encode_signature(SigningKey(SIGNING).sign(enclave_id.encode()).signature).decode()
        program = {"origin_url": "http://a/b", "mirror_url": "", "version": f"1.0.{self._number}"}
        await self._root.later(
            self._root.together,
            ("set_enclave_id", {"enclave_id": enclave_id, "signature": signature}),
            ("set_dc_program", {"enclave_id": enclave_id, "mirr_cids": [], **program}),
        )
        return enclave_id


async def detected(client: Client, enclave_id: str, origin: Client) -> float:
    """Milliseconds from the head's frame to this client's knowledge of the release."""
    names = (enclave_id, enclave_id.encode().hex())
    line = await client.find(lambda line: any(name in str(line.get("text", "")) for name in names))
    head = await origin.find(lambda one: one.get("number") == line["number"])
    return 1000 * float(line["release_at"] - head["at"])


async def measure(command: list[str], releases: int, publisher: Publisher, port: int) -> list[float]:
    """What one client takes for each release, milliseconds. Raises TimeoutError."""
    taken = []
    async with AsyncExitStack() as stack:
        origin = await Client.start_ready([*peer_clients.socket_client(), str(port)])
        stack.push_async_callback(origin.stop)
        client = await Client.start_ready(command)
        stack.push_async_callback(client.stop)
        for _ in range(releases):
            async with asyncio.timeout(DETECTION_S):
                enclave_id = await publisher.publish()
                taken.append(await detected(client, enclave_id, origin))
    return taken


async def compare(releases: int, nodelay: bool) -> None:
    """Measure one client after the other on one node, and print and report the figures."""
    ensure_node_binary()
    peer_clients.socket_client()
    peer_clients.commands()  # what has to be built is built before anything is measured
    chain = DevChain("node", block_time_ms=BLOCK_MS)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(chain.stop)
        with changed_environment(peer_clients.with_nodelay() if nodelay else {}):
            chain.start_now()
        await chain.wait_finalized(2)
        publisher = Publisher(chain.ws_url)
        await publisher.publish()
        own, (others, missing) = await watcher_commands(chain), other_commands(chain.ws_url)
        medians: dict[str, float] = {}
        for name, command in {**own, **others}.items():
            began = time.monotonic()
            try:
                taken = await measure(command, releases, publisher, chain.port)
            except TimeoutError:
                missing[name] = f"it did not report a release within {DETECTION_S} s"
                continue
            medians[name] = statistics.median(taken)
            show(name, taken, time.monotonic() - began, ours=name in own)
        for name, why in missing.items():
            print(f"{name} is left out: {why}")
        emit(*missing_peers(missing, "ms"))
    best = min((value for name, value in medians.items() if name not in own), default=0.0)
    if best:
        worst = max(medians[name] for name in own)
        emit(Row("slower mode's median, part of the fastest peer's", worst / best, "x", at_most=1.0))
        print(f"slower mode against the fastest peer: {worst / best:.2f} x")


def show(name: str, taken: list[float], seconds: float, *, ours: bool) -> None:
    """Print and report one client's figures."""
    median, slow = statistics.median(taken), percentile(taken, 95)
    print(
        f"{name:<22} median {median:8.2f} ms   p95 {slow:8.2f} ms   ({len(taken)} releases, {seconds:.0f} s)",
        flush=True,
    )
    emit(
        Row(f"{name}, median", median, "ms", at_most=MEDIAN_MS_AT_MOST if ours else None, peer=not ours),
        Row(f"{name}, p95", slow, "ms", at_most=P95_MS_AT_MOST if ours else None, peer=not ours),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", type=int, default=20)
    parser.add_argument("--nodelay", action="store_true")
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, one client at a time")
    asyncio.run(compare(given.releases, given.nodelay))


if __name__ == "__main__":
    main()
