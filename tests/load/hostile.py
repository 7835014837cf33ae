"""Load: hostile requests in mixes on the ports of vault, node and agent, with honest work beside them.

    python -m tests.load.hostile [--requests 10000] [--slow 200] [--idle 1000] [--out build/load]

Each row is one mix against one port. Beside it the vault collects the node's keys again and again, a whole handover
each time, and the agent is asked whether it is well. A row is good if all of these were served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from attestation.sgx import TARGETINFO_SIZE
from devnet.chain import DevChain
from devnet.world import World
from keyvault.client import VaultClient
from keyvault.errors import KeyvaultError
from keyvault.handover import messages

from .measure import ProcessSize, sizes_of, write

AT_ONCE = 50
PORTS = ("vault", "node", "agent")


@dataclass(frozen=True, slots=True)
class Stranger:
    """What a process without token or TEE can send: it knows the chain and claims to be `claimed_id`."""

    genesis_hash: bytes
    claimed_id: bytes

    def hello(self) -> bytes:
        """A hello that opens a session; nothing in it is verified."""
        target_info = self.claimed_id.ljust(TARGETINFO_SIZE, b"\0")
        body = messages.HELLO.encode(
            versions=(messages.VERSION,), genesis=self.genesis_hash, nonce=os.urandom(32), target_info=target_info
        )
        return _request(b"POST /v2/hello", body)

    def request(self, number: int) -> bytes:
        """One of a mix of hostile requests."""
        kinds = (
            self.hello(),
            _request(b"POST /v2/request", b"{}"),
            b"POST /v2/hello HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n{",
            b"GET /teerandom HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
            _request(b"POST /vault/collect", b"{}", b"Authorization: Bearer guess\r\n"),
            _request(b"POST /api/v1/commands", b"[" * 1000),
            os.urandom(200),
            b"\r\n" * 100,
            b"POST /v2/hello HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
            b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        )
        return kinds[number % len(kinds)]


def _request(line: bytes, body: bytes, headers: bytes = b"") -> bytes:
    return b"%s HTTP/1.1\r\nHost: 127.0.0.1\r\n%sContent-Length: %d\r\n\r\n%s" % (line, headers, len(body), body)


async def _send(port: int, data: bytes) -> None:
    """Send, read for a moment, and disconnect."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(data)
                await writer.drain()
                await reader.read(4096)
            finally:
                writer.close()


async def _many(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


@dataclass(slots=True)
class Honest:
    """Honest work during the load: whole handovers to the vault, and requests to the agent."""

    handovers_s: list[float] = field(default_factory=list)
    asked_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def hand_over(self, client: VaultClient, node_url: str, source_id: str) -> None:
        """Collect again and again until cancelled."""
        while True:
            began = time.monotonic()
            try:
                await client.collect(node_url, source_id)
                self.handovers_s.append(time.monotonic() - began)
            except (KeyvaultError, aiohttp.ClientError, TimeoutError) as error:
                self.failures.append(f"handover: {error}")
            await asyncio.sleep(0.1)

    async def ask(self, url: str) -> None:
        """Ask the agent again and again until cancelled."""
        timeout = aiohttp.ClientTimeout(total=10)
        while True:
            began = time.monotonic()
            try:
                # a connection of its own each time: one that is open already says nothing of newcomers
                async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
                    if answer.status != 200:
                        self.failures.append(f"agent: HTTP {answer.status}")
                self.asked_s.append(time.monotonic() - began)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.failures.append(f"agent: {type(error).__name__} {error}")
            await asyncio.sleep(0.1)


class Load:
    """One world under load."""

    def __init__(self, world: World, source_id: str, *, requests: int, slow: int, idle: int) -> None:
        self._world, self._source_id = world, source_id
        self._stranger = Stranger(bytes.fromhex(world.genesis_hash.removeprefix("0x")), bytes.fromhex(world.vault_id))
        self._mixes: dict[str, Callable[[int], Awaitable[None]]] = {
            f"{requests} requests": lambda port: _many(requests, lambda n: _send(port, self._stranger.request(n))),
            f"{requests} hellos": lambda port: _many(requests, lambda _: _send(port, self._stranger.hello())),
            f"{slow} slow": lambda port: self._slow(port, slow),
            f"{idle} idle": lambda port: self._idle(port, idle),
        }

    async def run(self) -> list[dict[str, object]]:
        """Every mix against every port."""
        rows = []
        for name in PORTS:
            for mix, work in self._mixes.items():
                rows.append(await self._row(name, mix, work))
                sys.stdout.write(f"{rows[-1]}\n")
                sys.stdout.flush()
        return rows

    async def _row(self, name: str, mix: str, work: Callable[[int], Awaitable[None]]) -> dict[str, object]:
        world, honest = self._world, Honest()
        before, began = sizes_of(world), time.monotonic()
        token = (world.state_dir / "vault.token").read_text()
        async with VaultClient(f"http://127.0.0.1:{world.ports['vault']}", token) as client:
            beside = [
                asyncio.create_task(honest.hand_over(client, world.node.url, self._source_id)),
                asyncio.create_task(honest.ask(f"http://127.0.0.1:{world.ports['agent']}/healthz")),
            ]
            await work(world.ports[name])
            # One more of each after the load.
            served = len(honest.handovers_s), len(honest.asked_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(30):
                    while len(honest.handovers_s) == served[0] or len(honest.asked_s) == served[1]:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        after = sizes_of(world)

        def change(facts: Callable[[ProcessSize], int]) -> str:
            found = [f"{facts(before[name])}→{facts(after[name])}" for name in ("vault", "node", "agent")]
            return " ".join(found)

        return {
            "port": name,
            "load": mix,
            "seconds": f"{time.monotonic() - began:.1f}",
            "handovers": len(honest.handovers_s),
            "slowest s": f"{max(honest.handovers_s, default=0):.2f}",
            "agent asked": len(honest.asked_s),
            "slowest answer s": f"{max(honest.asked_s, default=0):.2f}",
            "failed": len(honest.failures),
            "first failure": honest.failures[0][:120].replace("|", "/") if honest.failures else "",
            "MiB of vault node agent": change(lambda item: item.rss_kib // 1024),
            "descriptors": change(lambda item: item.descriptors),
        }

    async def _slow(self, port: int, count: int) -> None:
        """Requests that come a byte at a time."""
        data = self._stranger.hello()

        async def one(number: int) -> None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(20):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    try:
                        for place in range(40):
                            writer.write(data[place : place + 1])
                            await writer.drain()
                            await asyncio.sleep(0.25)
                    finally:
                        writer.close()

        await asyncio.gather(*(one(number) for number in range(count)))

    async def _idle(self, port: int, count: int) -> None:
        """Open connections that send one request and stay open during honest work."""
        held: list[asyncio.StreamWriter] = []
        for _ in range(count):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                    held.append(writer)
        await asyncio.sleep(10)
        for writer in held:
            writer.close()


async def load(folder: Path, chain_url: str, *, requests: int, slow: int, idle: int) -> list[dict[str, object]]:
    """Install a node in a world of its own and put it under load."""
    policy = {"require_listed_vault": False}  # so that collecting needs no evidence from the chain
    async with World.open(folder, chain_url, vault_policy=policy) as world:
        release = await asyncio.to_thread(world.builder.good, "1.0.0")
        await world.install(release)
        return await Load(world, release.enclave_id, requests=requests, slow=slow, idle=idle).run()


def allow_descriptors() -> None:
    """Raise the limit of descriptors to the maximum: each held connection needs one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Command line; 1 where honest work failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--idle", type=int, default=1_000)
    parser.add_argument("--out", type=Path, default=Path("build/load"))
    arguments = parser.parse_args()

    async def run(folder: Path) -> list[dict[str, object]]:
        async with DevChain(block_time_ms=500) as chain:
            counts = {"requests": arguments.requests, "slow": arguments.slow, "idle": arguments.idle}
            return await load(folder / "world", chain.ws_url, **counts)

    allow_descriptors()
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        rows = asyncio.run(run(Path(folder)))
    sys.stdout.write("\n" + write(arguments.out, "Hostile load", rows))
    return 1 if any(row["failed"] or not row["handovers"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
