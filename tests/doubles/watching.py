"""A watcher at work on fake nodes, for the tests of this folder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest import mock

from chain_watcher.endpoints.pool import PoolLimits
from chain_watcher.endpoints.rpc import RpcLimits
from chain_watcher.proof.release import VerifiedRelease, encode_signature
from chain_watcher.watch.config import WatcherConfig
from chain_watcher.watch.metadata import ChainLayout, answer, from_json, read_metadata
from chain_watcher.watch.view import ChainView
from chain_watcher.watch.watcher import Watcher

from .chain_endpoint import Entry, FakeChain, FakeNode, octets, until
from .metadata_maker import vec

GOOD, BAD = bytes(range(64)), bytes(64)
ID_1, ID_2, ID_3 = "11" * 32, "22" * 32, "33" * 32
QUICK = PoolLimits(backoff_first_s=0.01, backoff_max_s=0.05)


def entry(height: int, enclave_id: str, signature: bytes = GOOD) -> Entry:
    return Entry(height, enclave_id, encode_signature(signature).decode())


def program(enclave_id: str, version: str = "1.0.0", *, cids: list[str] | None = None) -> bytes:
    texts = ["http://one/a.tar.gz", "http://two/a.tar.gz", enclave_id, version]
    value = b"".join(octets(one.encode()) for one in texts)
    return value if cids is None else value + vec([octets(one.encode()) for one in cids])


def verify(enclave_id: str, signatures: tuple[bytes, ...]) -> None:
    if GOOD not in signatures:
        raise ValueError(f"no good signature for {enclave_id}")


def publish(chain: FakeChain, enclave_id: str, height: int, version: str = "1.0.0") -> dict[bytes, bytes]:
    return chain.change(program(enclave_id, version), [entry(height, enclave_id)])


async def read_here(metadata: str) -> ChainLayout:
    """What the child process would answer, without the child (test_metadata.py starts real ones)."""
    if not isinstance(metadata, str):
        return await read_metadata(metadata)
    return from_json(answer(metadata))


class Watching:
    """The watcher, what it said, and a way to wait for more."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self._views = watcher.views()
        self.speculations: list[VerifiedRelease] = []

    async def view(self, timeout_s: float = 60.0) -> ChainView:
        async with asyncio.timeout(timeout_s):
            return await anext(self._views)

    async def until_problem(self, code: str) -> None:
        """Wait for that problem; before it there can be others, such as that no endpoint is connected yet."""
        await until(lambda: self.watcher.problem is not None and self.watcher.problem.code == code)

    @property
    def waiting(self) -> int:
        return len(self.watcher._views)


@contextlib.asynccontextmanager
async def watching(
    *nodes: FakeNode | str, on_progress: Callable[[Any], None] | None = None, clock: Any = None, **settings: Any
) -> AsyncIterator[Watching]:
    urls = tuple(node if isinstance(node, str) else node.url for node in nodes)
    config = WatcherConfig(
        **{
            "endpoints": urls,
            "finality": "single",
            "pool": QUICK,
            "rpc": RpcLimits(request_timeout_s=20.0),
            **settings,
        }
    )
    seen: list[VerifiedRelease] = []
    watcher = Watcher(
        config, verify, on_progress=on_progress, on_speculation=seen.append, clock=clock, uniform=lambda: 0.5
    )
    patch = mock.patch("chain_watcher.watch.state_reader.read_metadata", read_here)
    patch.start()
    run = asyncio.create_task(watcher.run())
    found = Watching(watcher)
    found.speculations = seen
    try:
        yield found
    finally:
        run.cancel()
        results = await asyncio.gather(run, return_exceptions=True)
        patch.stop()
        problem = results[0]
        if isinstance(problem, Exception):
            raise problem
