"""The watcher on Chopsticks: two runtimes, changes, a cut connection."""

from __future__ import annotations

import asyncio

import pytest

from devnet.chain import DevChain
from devnet.chain_process import RuntimeName
from devnet.extrinsics import Root
from devnet.tcp_proxy import TcpProxy

from .watcher_at_work import at_work, publish

pytestmark = pytest.mark.e2e
ID_1, ID_2 = "1a" * 32, "2b" * 32
SLOT_MS = 500


@pytest.mark.parametrize("runtime", ["base", "moved"])
async def test_a_release_is_seen_whatever_the_pallets_place(runtime: RuntimeName) -> None:
    async with (
        DevChain("chopsticks", runtime=runtime, block_time_ms=SLOT_MS) as chain,
        at_work(chain.ws_url, unsafe_unproven_reads=True) as work,
    ):
        async with asyncio.timeout(90):
            first = await anext(work.views)
        assert first.refusal is not None
        await publish(Root(chain.ws_url), ID_1, "1.0.0", ("bafy",))
        view = await work.until_program(ID_1)
        assert view.program is not None
        assert view.program.cids == (("bafy",) if runtime == "moved" else ())
        assert view.unproven_reads
        assert view.timestamp_ms > 0
        assert (await chain.call("chain_getBlockHash", view.block_number)) == view.block_hash
        assert work.watcher.health()["genesis_hash"] == chain.genesis_hash
        assert work.watcher.counters.read_failures == 0, work.watcher.health()


async def test_a_release_published_while_cut_off_is_found() -> None:
    async with DevChain("chopsticks", block_time_ms=SLOT_MS) as chain:
        proxy = TcpProxy(chain.port)
        await proxy.start()
        async with at_work(f"ws://127.0.0.1:{proxy.port}", unsafe_unproven_reads=True) as work:
            root = Root(chain.ws_url)
            await publish(root, ID_1, "1.0.0")
            await work.until_program(ID_1)
            await proxy.cut()
            await publish(root, ID_2, "1.1.0")
            await chain.wait_finalized((await chain.finalized())[0] + 2)
            await proxy.start()
            view = await work.until_program(ID_2)
            assert view.listed[ID_2] > view.listed[ID_1]
            assert work.watcher.counters.reconnects >= 1
        await proxy.cut()
