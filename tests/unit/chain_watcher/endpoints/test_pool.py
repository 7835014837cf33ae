"""The pool: choice, back-off, wrong chains, dead subscriptions, failover, quorums."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chain_watcher.endpoints.answers import head_number
from chain_watcher.endpoints.choice import backoff_s, choose, voice
from chain_watcher.endpoints.endpoint import Endpoint
from chain_watcher.endpoints.pool import EndpointPool, PoolLimits
from chain_watcher.endpoints.rpc import RpcLimits
from chain_watcher.errors import ChainWatcherError
from tests.doubles.chain_endpoint import FakeChain, FakeNode, ManualClock, RpcFaultError, until
from tests.doubles.metadata_maker import make_metadata
from tests.doubles.watching import ID_1, ID_2, ID_3, publish, watching


class Up(Endpoint):
    usable = True  # type: ignore[assignment]


def up(number: int, latency_s: float = 0.1, behind_since: float | None = None) -> Endpoint:
    return Up("ws://x", claimed_number=number, latency_s=latency_s, behind_since=behind_since)


def height(endpoint: Endpoint) -> int:
    return endpoint.claimed_number


def test_the_present_endpoint_is_kept_while_it_keeps_up() -> None:
    present, other = up(9), up(10, latency_s=0.01)
    assert choose([present, other], present, 100.0, 2.0, height) is present
    present.behind_since = 99.0
    assert choose([present, other], present, 100.0, 2.0, height) is present
    present.behind_since = 97.0
    assert choose([present, other], present, 100.0, 2.0, height) is other


def test_the_highest_then_the_quickest_is_chosen() -> None:
    low, slow, quick = up(9, 0.0), up(10, 0.5), up(10, 0.1)
    assert choose([low, slow, quick], None, 0.0, 2.0, height) is quick
    assert choose([Endpoint("ws://down")], None, 0.0, 2.0, height) is None


def test_the_back_off_grows_is_capped_and_jitters() -> None:
    assert [backoff_s(count, 1.0, 20.0, 1.0) for count in (0, 1, 2, 3, 6, 5000)] == [1.0, 1.0, 2.0, 4.0, 20.0, 20.0]
    assert backoff_s(3, 1.0, 20.0, 0.0) == 2.0


@pytest.mark.parametrize(
    "header", [None, {}, {"number": 7}, {"number": "x"}, {"number": "-0x1"}, {"number": hex(2**32)}]
)
def test_heads_without_a_number(header: Any) -> None:
    with pytest.raises(ChainWatcherError, match="ENDPOINT_GARBAGE"):
        head_number("ws://x", header)
    assert head_number("ws://x", {"number": "0x00000010"}) == 16


@contextlib.asynccontextmanager
async def pool_of(
    *nodes: FakeNode, clock: ManualClock, genesis: str | None = None, limits: PoolLimits | None = None
) -> AsyncIterator[EndpointPool]:
    pool = EndpointPool(
        [node.url for node in nodes],
        genesis_hash=genesis,
        limits=limits or PoolLimits(),
        rpc_limits=RpcLimits(request_timeout_s=20.0),
        clock=clock,
        random=lambda: 1.0,
    )
    run = asyncio.create_task(pool.run())
    try:
        yield pool
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def test_a_flood_from_one_endpoint_drowns_nobody_elses_news() -> None:
    pool = EndpointPool(
        ["ws://liar", "ws://honest"],
        genesis_hash=None,
        limits=PoolLimits(events_of_a_kind_max=4),
        rpc_limits=RpcLimits(),
        clock=ManualClock(),
        random=lambda: 1.0,
    )
    liar, honest = pool.endpoints
    pool._emit(honest, "justification", "0x00")
    for number in range(5000):
        pool._emit(liar, "justification", number)
        pool._emit(liar, "best", number)
    heard = [await pool.events.get(1.0) for _ in range(9)]
    assert [(one.endpoint, one.kind) for one in heard if one and one.endpoint is honest] == [(honest, "justification")]
    assert [one.value for one in heard if one and one.kind == "best"] == [4996, 4997, 4998, 4999]
    assert pool.events.dropped == 2 * 4996


async def test_of_the_methods_only_those_that_matter_are_remembered() -> None:
    async with FakeNode(FakeChain(), grandpa=True) as node:
        node.overrides["rpc_methods"] = lambda: {"methods": ["state_getReadProof", 7, *(str(n) for n in range(9999))]}
        async with pool_of(node, clock=ManualClock()) as pool:
            await until(lambda: pool.usable())
            assert pool.endpoints[0].methods == {"state_getReadProof"}


async def test_a_wrong_genesis_is_refused_and_left_alone() -> None:
    clock = ManualClock()
    async with FakeNode(FakeChain()) as node, pool_of(node, clock=clock, genesis="0x" + "00" * 32) as pool:
        await until(lambda: clock.sleeping)
        facts = pool.endpoints[0].facts(clock.now)
        assert (facts["state"], facts["code"]) == ("refused", "ENDPOINT_WRONG_GENESIS")
        clock.advance(599.0)
        assert clock.sleeping == 1
        assert pool.choose() is None


@pytest.mark.parametrize("genesis", [None, "", "0x", "genesis", "0x" + "zz" * 32, ["0x"]])
async def test_a_genesis_that_is_no_hash_is_refused(genesis: Any) -> None:
    """Nothing is pinned here, so the first answer would be accepted as the chain's."""
    clock = ManualClock()
    async with FakeNode(FakeChain()) as node, pool_of(node, clock=clock) as pool:
        node.overrides["chain_getBlockHash"] = lambda _number: genesis
        await until(lambda: clock.sleeping)
        assert (pool.endpoints[0].facts(clock.now)["code"], pool.genesis_hash) == ("ENDPOINT_WRONG_GENESIS", None)


async def test_without_a_genesis_hash_all_must_serve_the_first_ones_chain() -> None:
    clock = ManualClock()
    other = FakeChain(metadata=make_metadata())
    other.main[0].salt = bytes([1]) * 32
    other.blocks = {other.main[0].hash: other.main[0]}
    async with FakeNode(FakeChain()) as one, FakeNode(other) as two, pool_of(one, two, clock=clock) as pool:
        await until(lambda: {endpoint.state for endpoint in pool.endpoints} == {"connected", "refused"})


async def test_back_off_and_rate_limits_are_waited_for() -> None:
    clock = ManualClock()
    async with FakeNode(FakeChain()) as node:

        def limited(_number: int) -> None:
            raise RpcFaultError(-32005, "slow down")

        node.overrides["chain_getBlockHash"] = limited
        async with pool_of(node, clock=clock) as pool:
            await until(lambda: clock.sleeping)
            clock.advance(29.0)
            assert clock.sleeping == 1, "a rate limit is answered by thirty seconds of silence"
            node.overrides.clear()
            clock.advance(1.0)
            await until(lambda: pool.usable())
            await until(lambda: pool.endpoints[0].claimed_number == 0)
            assert pool.endpoints[0].failures == 0, "a head ends a series of failures"


async def test_a_liar_that_hangs_up_at_once_is_left_alone_all_the_same() -> None:
    clock = ManualClock()
    async with FakeNode(FakeChain()) as node, pool_of(node, clock=clock) as pool:
        await until(lambda: pool.usable())
        endpoint = pool.endpoints[0]
        await node.cut()
        await until(lambda: endpoint.state == "waiting" and clock.sleeping)
        pool.accuse(endpoint, ChainWatcherError(code="ENDPOINT_JUSTIFICATION_FORGED", what="x", why="y"))
        clock.advance(PoolLimits().backoff_max_s)
        await until(lambda: clock.sleeping or endpoint.connections > 1)
        clock.advance(PoolLimits().liar_retry_s - 1.0)
        assert (endpoint.connections, endpoint.facts(clock.now)["state"]) == (1, "lying")
        clock.advance(1.0)
        await until(lambda: endpoint.connections == 2)
        assert endpoint.usable


async def test_a_dead_subscription_on_a_live_socket_is_noticed() -> None:
    clock = ManualClock()
    chain = FakeChain()
    async with FakeNode(chain) as node, pool_of(node, clock=clock) as pool:
        await until(lambda: pool.endpoints[0].claimed_number == 0 and clock.sleeping)
        clock.advance(50.0)
        await until(lambda: node.count("chain_getFinalizedHead") == 1 and clock.sleeping)
        assert pool.endpoints[0].state == "connected", "a quiet chain is no fault"
        node.muted.add("chain_subscribeFinalizedHeads")
        await chain.advance()
        clock.advance(50.0)
        await until(lambda: pool.endpoints[0].failures == 1)
        assert pool.endpoints[0].facts(clock.now)["code"] == "ENDPOINT_SILENT"


async def test_a_frozen_primary_is_left_within_the_grace() -> None:
    clock, chain = ManualClock(), FakeChain()
    await chain.advance(publish(chain, ID_1, 1))
    async with FakeNode(chain) as one, FakeNode(chain) as two, watching(one, two, clock=clock) as watch:
        view = await watch.view()
        await until(lambda: len(watch.watcher.pool.usable()) == 2)
        frozen = one if view.endpoint == one.url else two
        frozen.frozen = True
        await chain.advance(publish(chain, ID_2, 2, "1.1.0"))
        await until(lambda: any(endpoint.behind for endpoint in watch.watcher.pool.endpoints))
        assert watch.waiting == 0
        clock.advance(2.5)
        second = await watch.view()
        assert second.program is not None
        assert (second.program.enclave_id, second.endpoint != frozen.url) == (ID_2, True)
        assert watch.watcher.pool.failovers == 1


async def test_a_killed_primary_costs_nothing() -> None:
    chain = FakeChain()
    await chain.advance(publish(chain, ID_1, 1))
    async with FakeNode(chain) as one, FakeNode(chain) as two, watching(one, two) as watch:
        view = await watch.view()
        await until(lambda: len(watch.watcher.pool.usable()) == 2)
        killed = one if view.endpoint == one.url else two
        await killed.stop()
        await chain.advance(publish(chain, ID_2, 2, "1.1.0"))
        second = await watch.view()
        assert second.program is not None
        assert (second.program.enclave_id, second.endpoint != killed.url) == (ID_2, True)


async def test_a_primary_that_dies_while_it_is_asked_is_replaced_for_the_question() -> None:
    chain = FakeChain()
    await chain.advance()
    async with FakeNode(chain) as one, FakeNode(chain) as two, watching(one, two, speculate=False) as watch:
        view = await watch.view()
        await until(lambda: len(watch.watcher.pool.usable()) == 2)
        primary = one if view.endpoint == one.url else two

        async def die(_keys: object, _at: object) -> None:
            await primary.cut()

        primary.overrides["state_getReadProof"] = die
        await chain.advance(publish(chain, ID_1, 1))
        assert (await watch.view()).program is not None
        assert watch.watcher.counters.read_failures == 1


@pytest.mark.parametrize("turns", range(16))
async def test_a_pool_that_is_stopped_while_it_tidies_up_leaves_no_socket_open(turns: int) -> None:
    async with FakeNode(FakeChain()) as node:
        async with pool_of(node, clock=ManualClock()) as pool:
            endpoint = pool.endpoints[0]
            await until(lambda: endpoint.usable)
            sockets = [client._ws._response for client in (endpoint.questions,) if client is not None]
            endpoint.cut.set()
            for _ in range(turns):
                await asyncio.sleep(0)
        assert [socket.connection for socket in sockets] == [None]


# --- quorum


async def test_a_quorum_must_agree_and_a_dissenter_is_named() -> None:
    chain, other = FakeChain(), FakeChain()
    other.grow(publish(other, ID_3, 1))
    await other.finalize()
    await chain.advance(publish(chain, ID_1, 1))
    async with FakeNode(chain) as one, FakeNode(other) as liar:
        async with watching(liar, one, finality="quorum") as watch:
            await until(lambda: len(watch.watcher.pool.usable()) == 2)
            await until(lambda: one.count("chain_getBlockHash") + liar.count("chain_getBlockHash") >= 3)
            assert watch.waiting == 0
            assert watch.watcher.health()["last_number"] is None
        async with FakeNode(chain) as two, watching(liar, one, two, finality="quorum") as watch:
            view = await watch.view()
            assert view.program is not None
            assert (view.program.enclave_id, view.finality) == (ID_1, "quorum")
            await until(lambda: watch.watcher.health()["lying"] == [liar.url])


def test_ways_of_writing_one_address_are_one_voice() -> None:
    same = [
        "wss://one.example",
        "WSS://One.Example/",
        "wss://one.example:443",
        "ws://one.example./",
        "ws://one.example:80",
    ]
    assert len({voice(url) for url in same}) == 1
    others = [
        "wss://two.example",
        "wss://one.example:9944",
        "wss://one.example/a",
        "wss://one.example/?key=1",
        "ws://[::1]",
    ]
    assert len({voice(url) for url in [same[0], *others, "wss://one.example:none"]}) == 7


async def test_one_endpoint_under_two_urls_is_one_voice() -> None:
    chain, other = FakeChain(), FakeChain()
    other.grow(publish(other, ID_3, 1))
    await other.finalize()
    await chain.advance(publish(chain, ID_1, 1))
    async with FakeNode(chain) as one, FakeNode(chain) as two, FakeNode(other) as liar:
        with pytest.raises(ChainWatcherError, match="WATCHER_CONFIG_INVALID"):
            async with watching(liar, liar.url + "/", finality="quorum"):
                pass
        async with watching(liar, liar.url + "/", one, finality="quorum") as watch:
            await until(lambda: len(watch.watcher.pool.usable()) == 3)
            await until(lambda: all(endpoint.heads for endpoint in watch.watcher.pool.endpoints))
            await until(lambda: not watch.watcher.pool.events)
            assert (watch.waiting, watch.watcher.health()["last_number"]) == (0, None)
        async with watching(liar, liar.url + "/", one, two, finality="quorum") as watch:
            view = await watch.view()
            assert view.program is not None
            assert view.program.enclave_id == ID_1


async def test_a_quorum_waits_for_the_slower_one() -> None:
    chain = FakeChain()
    await chain.advance()
    async with FakeNode(chain) as one, FakeNode(chain) as two, watching(one, two, finality="quorum") as watch:
        await watch.view()
        two.muted.add("chain_subscribeFinalizedHeads")
        await chain.advance(publish(chain, ID_1, 1))
        await until(lambda: max(endpoint.claimed_number for endpoint in watch.watcher.pool.endpoints) == 2)
        assert watch.watcher.health()["last_number"] == 1
        two.muted.clear()
        await chain.finalize()
        assert (await watch.view()).program is not None


async def test_a_quorum_that_is_reached_waits_for_nobody_else() -> None:
    chain = FakeChain()
    await chain.advance()
    async with (
        FakeNode(chain) as one,
        FakeNode(chain) as two,
        FakeNode(chain) as slow,
        watching(slow, one, two, finality="quorum", speculate=False) as watch,
    ):
        await watch.view()
        endpoints = watch.watcher.pool.endpoints
        await until(lambda: len(watch.watcher.pool.usable()) == 3)
        slow.overrides["chain_getBlockHash"] = lambda _number: asyncio.Event().wait()
        for node, endpoint in ((slow, endpoints[0]), (two, endpoints[2])):
            node.muted.add("chain_subscribeFinalizedHeads")
            endpoint.claimed_number = 99  # both passed the block, and are asked for its hash
        endpoints[0].latency_s = 0.0
        await chain.advance(publish(chain, ID_1, 2))
        assert (await watch.view()).program is not None
        assert (endpoints[0].problem, endpoints[0].connections) == (None, 1), "it was not waited for until it failed"


async def test_unproven_values_need_the_quorum_too() -> None:
    chain = FakeChain(zero_root=True)
    await chain.advance(publish(chain, ID_1, 1))
    settings: dict[str, Any] = {"finality": "quorum", "unsafe_unproven_reads": True}
    async with FakeNode(chain, proofs=False) as one, FakeNode(chain, proofs=False) as two:
        async with watching(one, two, **settings) as watch:
            assert (await watch.view()).program is not None
        forged = FakeChain()
        value = publish(forged, ID_3, 1)
        two.overrides["state_queryStorageAt"] = lambda keys, at: {}
        two.overrides["state_getStorage"] = lambda key, at: (
            "0x" + value[bytes.fromhex(key[2:])].hex()
            if bytes.fromhex(key[2:]) in value
            else one.state_getStorage(key, at)
        )
        async with watching(one, two, **settings) as watch:
            await watch.until_problem("QUORUM_VALUES_DIFFER")
            assert watch.waiting == 0


async def test_forged_metadata_is_outvoted() -> None:
    chain = FakeChain()
    await chain.advance(publish(chain, ID_1, 1))
    async with FakeNode(chain) as liar, FakeNode(chain) as one, FakeNode(chain) as two:
        fields = ("mirror_url", "origin_url", "enclave_id", "version")
        liar.overrides["state_getMetadata"] = lambda at=None: "0x" + make_metadata(fields=fields).hex()
        async with watching(liar, one, two, finality="quorum") as watch:
            view = await watch.view()
            assert view.program is not None
            assert view.program.origin_url == "http://one/a.tar.gz"
