"""A watcher at work on fake nodes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from chain_watcher.endpoints.pool import PoolLimits
from chain_watcher.endpoints.rpc import RpcLimits
from chain_watcher.proof.release import VerifiedRelease, encode_signature
from chain_watcher.watch.config import WatcherConfig
from chain_watcher.watch.view import Announced, ChainView
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


class Watching:
    """The watcher, what it announced, and a way to wait for its views."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.announced: list[VerifiedRelease] = []
        self._views: asyncio.Queue[ChainView] = asyncio.Queue()

    async def take(self) -> None:
        """Consume the watcher's events until cancelled."""
        async for news in self.watcher.news():
            if isinstance(news, Announced):
                self.announced.append(news.release)
            else:
                self._views.put_nowait(news)

    async def view(self, timeout_s: float = 60.0) -> ChainView:
        async with asyncio.timeout(timeout_s):
            return await self._views.get()

    async def until_problem(self, code: str) -> None:
        """Wait for that problem. Others may come first, for example that no endpoint is connected yet."""
        await until(lambda: self.watcher.problem is not None and self.watcher.problem.code == code)

    @property
    def waiting(self) -> int:
        return self._views.qsize() + len(self.watcher._views.news)


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
    watcher = Watcher(config, verify, on_progress=on_progress, clock=clock, uniform=lambda: 0.5)
    found = Watching(watcher)
    tasks = [asyncio.create_task(watcher.run()), asyncio.create_task(found.take())]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        problems = [one for one in results if isinstance(one, Exception)]
        if problems:
            raise problems[0]
