"""Strangers on the vault's port, without token or TEE: they use processor time, but displace no honest client.

Each trial has its control: the same honest upgrade goes through while the flood lasts.
"""

import asyncio
import contextlib
import os
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from attestation.sgx import INIT, MODE64BIT, XFRM_LEGACY, Attributes, Report, TargetInfo
from devnet.tools import free_port
from keyvault.client import VaultClient
from keyvault.handover import messages, v1
from keyvault.handover.guarded_server import CONNECTIONS_MAX
from keyvault.handover.holder import Limits
from tests.e2e.vault_parts.kit import GENESIS, TOKEN, Artefact, Bench, Process, ready

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("bench"))
    yield made
    made.stop()


@pytest.fixture(scope="module", autouse=True)
def descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Upgrade:
    """A vault that holds the old node's keys and may give them to the new one."""

    def __init__(self, bench: Bench, store: str) -> None:
        self.bench, self.port = bench, free_port()
        self.vault = bench.vault(allow_v1=True)
        self.old, self.new = bench.node("1.0.0"), bench.node("1.1.0")
        self.process = bench.start_vault(self.vault, self.port, store=store)
        self.client = VaultClient(f"http://127.0.0.1:{self.port}", TOKEN)
        self.nodes: list[Process] = []

    def start(self, artefact: Artefact, mode: str, folder: str) -> Process:
        node = self.bench.start_node(artefact, self.port, mode, upgraders=self.vault.enclave_id, folder=folder)
        self.nodes.append(node)
        return node

    async def whole(self, folder: str) -> None:
        """Collect, permit and deliver; asserts that the new node has the old one's keys."""
        source = await asyncio.to_thread(self.start, self.old, "make", f"{folder}-old")
        listening = await asyncio.to_thread(source.event, 120)
        keys = await asyncio.to_thread(source.event, 120)
        sealed = await self.client.collect(f"http://127.0.0.1:{listening['port']}", self.old.enclave_id)
        evidence = self.bench.evidence(self.new, [(5, self.old.enclave_id), (9, self.new.enclave_id)])
        await self.client.permit(self.old.enclave_id, self.new.enclave_id, sealed["key_set_id"], evidence)
        target = await asyncio.to_thread(self.start, self.new, "ask", f"{folder}-new")
        await asyncio.to_thread(target.event, 120)
        assert (await asyncio.to_thread(target.event, 120)).get("digest") == keys["digest"]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.enclave_pid()}/fd"))

    def stop(self) -> None:
        for process in (self.process, *self.nodes):
            process.stop()


@asynccontextmanager
async def upgrade(bench: Bench, store: str) -> AsyncIterator[Upgrade]:
    made = Upgrade(bench, store)
    try:
        await ready(made.client)
        yield made
    finally:
        await made.client.close()
        made.stop()


@asynccontextmanager
async def flood(strangers: int, one: Callable[[], Awaitable[None]]) -> AsyncIterator[list[int]]:
    """Let strangers repeat something until the end; returns how often each did it."""
    counts = [0] * strangers

    async def repeat(index: int) -> None:
        while True:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await one()
                counts[index] += 1
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(repeat(index)) for index in range(strangers)]
    try:
        yield counts
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(port: int, request: bytes, times: int) -> None:
    """Send the same request some times over one connection, and read the answers' heads."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for _ in range(times):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
    finally:
        writer.close()


def hello(enclave_id: str) -> bytes:
    claimed = TargetInfo(bytes.fromhex(enclave_id), Attributes(INIT | MODE64BIT, XFRM_LEGACY))
    body = messages.HELLO.encode(
        versions=(2,), genesis=bytes.fromhex(GENESIS), nonce=bytes(32), target_info=claimed.encode()
    )
    return b"POST /v2/hello HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def teerandom(enclave_id: str) -> bytes:
    claimed = Report(
        bytes(16), Attributes(INIT | MODE64BIT, XFRM_LEGACY), bytes.fromhex(enclave_id), bytes(32), bytes(64)
    )
    query = v1.encode_multibase(v1.encode_report(claimed))  # type: ignore[attr-defined]
    return b"GET /teerandom?verifyreport=%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % query.encode()


@pytest.mark.parametrize("protocol", ["v2", "v1"])
async def test_a_flood_in_the_targets_name_pushes_nobody_out(bench: Bench, protocol: str) -> None:
    """At the rate at which the port accepts hellos, filling the session table takes much longer than an exchange."""
    async with upgrade(bench, f"store-{protocol}") as made:
        request = (hello if protocol == "v2" else teerandom)(made.new.enclave_id)
        async with flood(3, lambda: ask(made.port, request, 50)) as counts:
            began = time.monotonic()
            await made.whole(f"flood-{protocol}")
            rate = 50 * sum(counts) / (time.monotonic() - began)
        assert rate > 10  # the control: there was a flood
        lasts_s = (Limits().sessions_max if protocol == "v2" else v1.ENCLAVES_MAX) / rate
        print(f"{protocol}: {rate:.0f} hellos a second taken; a session lasts {lasts_s:.1f} s under them")  # noqa: T201
        assert lasts_s > 1.0  # an exchange takes milliseconds


async def test_idle_and_half_sent_connections_keep_nobody_out(bench: Bench) -> None:
    async with upgrade(bench, "store-idle") as made:
        before = made.descriptors()
        kept: list[asyncio.StreamWriter] = []
        for number in range(1100):
            _, writer = await asyncio.open_connection("127.0.0.1", made.port)
            writer.write(
                b"" if number % 2 else b"POST /v2/hello HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
            )
            kept.append(writer)
        for _ in range(20):
            assert (await made.client.status())["condition"] is None
        await made.whole("idle")
        assert made.descriptors() < before + CONNECTIONS_MAX + 150
        for writer in kept:
            writer.close()


async def test_newcomers_without_end_keep_nobody_out(bench: Bench) -> None:
    async with upgrade(bench, "store-new") as made:
        kept: list[asyncio.StreamWriter] = []

        async def connect() -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", made.port)
            kept.append(writer)
            if len(kept) > 2000:
                kept.pop(0).close()

        async with flood(8, connect) as counts:
            while sum(counts) <= CONNECTIONS_MAX:  # noqa: ASYNC110 - until the table is full: now each takes a place
                await asyncio.sleep(0.01)
            for _ in range(20):
                assert (await made.client.status())["condition"] is None
            await made.whole("newcomers")
        for writer in kept:
            writer.close()


def log_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("process-*.log"))


async def test_a_flood_of_bad_requests_fills_no_log(bench: Bench) -> None:
    async with upgrade(bench, "store-log") as made:
        before = log_size(bench.folder)
        bad = b"POST /v2/hello HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
        async with flood(4, lambda: ask(made.port, bad, 50)) as counts:
            await made.whole("bad")
        assert sum(counts) > 0
        assert log_size(bench.folder) - before < 64 * 1024
