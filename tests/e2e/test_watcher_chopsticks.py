"""The watcher on Chopsticks: two runtimes, changes, a cut connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from chain_watcher.config import ChainView, WatcherConfig
from chain_watcher.endpoints import PoolLimits
from chain_watcher.release import encode_signature
from chain_watcher.watcher import Watcher
from devnet.chain import DevChain, RuntimeName
from devnet.extrinsics import Root
from devnet.tcp_proxy import TcpProxy

pytestmark = pytest.mark.e2e
SIGNATURE = bytes(range(64))
ID_1, ID_2 = "1a" * 32, "2b" * 32


def verify(enclave_id: str, signatures: tuple[bytes, ...]) -> None:
    if signatures != (SIGNATURE,):
        raise ValueError(f"no good signature for {enclave_id}")


@contextlib.asynccontextmanager
async def watching(url: str) -> AsyncIterator[tuple[Watcher, AsyncIterator[ChainView]]]:
    config = WatcherConfig(
        endpoints=(url,),
        finality="single",
        unsafe_unproven_reads=True,
        pool=PoolLimits(backoff_first_s=0.1, backoff_max_s=0.5),
    )
    watcher = Watcher(config, verify)
    run = asyncio.create_task(watcher.run())
    try:
        yield watcher, watcher.views()
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def until_program(views: AsyncIterator[ChainView], enclave_id: str) -> ChainView:
    async with asyncio.timeout(30):
        async for view in views:
            if view.program is not None and view.program.enclave_id == enclave_id:
                return view
    raise AssertionError


@pytest.mark.parametrize("runtime", ["base", "moved"])
async def test_a_release_is_seen_whatever_the_pallets_place(runtime: RuntimeName) -> None:
    async with DevChain("chopsticks", runtime=runtime) as chain, watching(chain.ws_url) as (watcher, views):
        first = await anext(views)
        assert first.refusal is not None
        root = Root(chain.ws_url)
        text = encode_signature(SIGNATURE).decode()
        await root.later(root.set_enclave_id, ID_1, text)
        await root.later(root.set_dc_program, "http://a/x", "http://b/x", ID_1, "1.0.0", ("bafy",))
        view = await until_program(views, ID_1)
        assert view.program is not None
        assert view.program.cids == (("bafy",) if runtime == "moved" else ())
        assert view.unproven_reads
        assert view.timestamp_ms > 0
        assert (await chain.call("chain_getBlockHash", view.block_number)) == view.block_hash
        assert watcher.health()["genesis_hash"] == chain.genesis_hash
        assert watcher.counters.read_failures == 0, watcher.health()


async def test_a_release_published_while_cut_off_is_found() -> None:
    async with DevChain("chopsticks") as chain:
        proxy = TcpProxy(chain.port)
        await proxy.start()
        async with watching(f"ws://127.0.0.1:{proxy.port}") as (watcher, views):
            root = Root(chain.ws_url)
            text = encode_signature(SIGNATURE).decode()
            await root.later(root.set_enclave_id, ID_1, text)
            await root.later(root.set_dc_program, "http://a/x", "", ID_1, "1.0.0")
            await until_program(views, ID_1)
            await proxy.cut()
            await root.later(root.set_enclave_id, ID_2, text)
            await root.later(root.set_dc_program, "http://a/y", "", ID_2, "1.1.0")
            await chain.wait_finalized((await chain.finalized())[0] + 2)
            await proxy.start()
            view = await until_program(views, ID_2)
            assert view.listed[ID_2] > view.listed[ID_1]
            assert watcher.counters.reconnects >= 1
        await proxy.cut()
