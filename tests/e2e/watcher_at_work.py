"""A watcher on real chains, for the trials of this folder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from chain_watcher.endpoints.pool import PoolLimits
from chain_watcher.proof.release import VerifiedRelease, encode_signature
from chain_watcher.watch.config import WatcherConfig
from chain_watcher.watch.operator_queries import find_checkpoint
from chain_watcher.watch.view import Announced, ChainView
from chain_watcher.watch.watcher import Watcher
from devnet.extrinsics import Root

SIGNATURE = bytes(range(64))
SIGNATURE_TEXT = encode_signature(SIGNATURE).decode()


def verify(enclave_id: str, signatures: tuple[bytes, ...]) -> None:
    if signatures != (SIGNATURE,):
        raise ValueError(f"no good signature for {enclave_id}")


@dataclass
class AtWork:
    """The watcher, its views, what it saw early and what it would journal."""

    watcher: Watcher
    announced: list[VerifiedRelease]
    progress: list[dict[str, Any]]
    views: AsyncIterator[ChainView]
    seen: list[ChainView] = field(default_factory=list)

    async def until_program(self, enclave_id: str, timeout_s: float = 60.0) -> ChainView:
        async with asyncio.timeout(timeout_s):
            async for view in self.views:
                self.seen.append(view)
                if view.program is not None and view.program.enclave_id == enclave_id:
                    return view
        raise AssertionError

    async def until(self, holds: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until the watcher's health meets the condition; returns it."""
        async with asyncio.timeout(timeout_s):
            while not holds(health := self.watcher.health()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return health

    async def until_block(self, number: int) -> None:
        await self.until(lambda health: (health["last_number"] or 0) >= number)


async def _views(watcher: Watcher, announced: list[VerifiedRelease]) -> AsyncIterator[ChainView]:
    """Yield views; early announcements are stored separately."""
    async for news in watcher.news():
        if isinstance(news, Announced):
            announced.append(news.release)
        else:
            yield news


@contextlib.asynccontextmanager
async def at_work(*urls: str, **settings: Any) -> AsyncIterator[AtWork]:
    config = WatcherConfig(
        endpoints=urls,
        **{"finality": "single", "pool": PoolLimits(backoff_first_s=0.1, backoff_max_s=0.5), **settings},
    )
    announced: list[VerifiedRelease] = []
    progress: list[Any] = []
    watcher = Watcher(config, verify, on_progress=progress.append)
    run = asyncio.create_task(watcher.run())
    try:
        yield AtWork(watcher, announced, progress, _views(watcher, announced))
    finally:
        run.cancel()
        (problem,) = await asyncio.gather(run, return_exceptions=True)
        if isinstance(problem, Exception):
            raise problem


async def proven(url: str) -> dict[str, Any]:
    """Settings of mode proven, from the chain as it is now."""
    answer = await find_checkpoint([url])
    return {"finality": "proven", "genesis_hash": answer.genesis_hash, "checkpoint": answer.checkpoint.to_json()}


async def publish(root: Root, enclave_id: str, version: str, cids: tuple[str, ...] = ()) -> str:
    """Id and program in one go; returns the hash of the block that holds the program."""
    entry = {"enclave_id": enclave_id, "signature": SIGNATURE_TEXT}
    program = {"origin_url": "http://a/x", "mirror_url": "http://b/x", "enclave_id": enclave_id, "version": version}
    calls = (("set_enclave_id", entry), ("set_dc_program", {**program, "mirr_cids": list(cids)}))
    return await root.later(root.together, *calls)
