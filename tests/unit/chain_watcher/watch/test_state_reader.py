"""The reader of states alone, with a node without a socket."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from chain_watcher.endpoints.endpoint import OPTIONAL_METHODS, Endpoint
from chain_watcher.endpoints.messages import RpcError
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.header import Header
from chain_watcher.proof.layout import standard_layout
from chain_watcher.watch.layout_cache import LayoutCache
from chain_watcher.watch.layout_finder import ASK_AGAIN_S, LayoutFinder
from chain_watcher.watch.state_reader import StateReader
from tests.doubles.chain_endpoint import Block, FakeChain, FakeNode, until
from tests.doubles.metadata_maker import PROGRAM_FIELDS, make_metadata
from tests.doubles.watching import ID_1, entry, program, publish


class Direct(Endpoint):
    """Answers by the fake node's own methods."""

    node: FakeNode

    async def ask(self, method: str, *params: Any, timeout_s: float | None = None) -> Any:
        self.node.asked.append((method, list(params)))
        answer = (self.node.overrides.get(method) or getattr(self.node, method))(*params)
        return await answer if inspect.isawaitable(answer) else answer


def direct(chain: FakeChain) -> Direct:
    endpoint = Direct("ws://x", methods=OPTIONAL_METHODS)
    endpoint.node = FakeNode(chain)
    return endpoint


def reader_of(
    *others: Endpoint, now: Callable[[], float] = lambda: 0.0, cache: LayoutCache | None = None
) -> StateReader:
    finder = LayoutFinder(cache or LayoutCache(), pins=frozenset(), others=lambda _one: list(others), now=now)
    return StateReader(finder, unproven_allowed=False)


def header_of(block: Block) -> Header:
    return Header.from_json(block.json)


async def test_reading_metadata_continues_when_somebody_gives_up_waiting() -> None:
    """Otherwise a long download and parse would start again with each turn and never end."""
    chain = FakeChain()
    chain.grow(publish(chain, ID_1, 1))
    endpoint = direct(chain)
    node, ready = endpoint.node, asyncio.Event()

    async def slow(at: str | None = None) -> str:
        await ready.wait()
        return node.state_getMetadata(at)

    node.overrides["state_getMetadata"] = slow
    reader = reader_of()
    for _ in range(3):
        reading = asyncio.create_task(reader.read(endpoint, header_of(chain.best), chain.genesis_hash))
        versions = node.count("state_getRuntimeVersion")
        await until(lambda versions=versions: node.count("state_getRuntimeVersion") > versions)
        await until(lambda: node.count("state_getMetadata"))
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    ready.set()
    state = await reader.read(endpoint, header_of(chain.best), chain.genesis_hash)
    assert state.program is not None
    assert node.count("state_getMetadata") == 1


async def test_what_is_read_for_nobody_is_cancelled() -> None:
    chain = FakeChain()
    endpoint = direct(chain)
    endpoint.node.overrides["state_getMetadata"] = lambda at=None: asyncio.Event().wait()
    reader = reader_of()
    before = asyncio.all_tasks()
    reading = asyncio.create_task(reader.read(endpoint, header_of(chain.best), chain.genesis_hash))
    await until(lambda: endpoint.node.count("state_getMetadata"))
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert len(asyncio.all_tasks()) == len(before) + 1
    await reader.close()
    assert asyncio.all_tasks() == before


async def test_refused_metadata_is_asked_for_again_after_a_while() -> None:
    """An endpoint that gave another chain's metadata once, and is the only one, is of use again without a restart."""
    chain, clock = FakeChain(), mock.Mock(return_value=1000.0)
    chain.grow(publish(chain, ID_1, 1))
    endpoint = direct(chain)
    node = endpoint.node
    anothers = "0x" + make_metadata(with_pallet=False).hex()
    node.overrides["state_getMetadata"] = lambda at=None: anothers
    reader = reader_of(now=clock)
    for asked, passed_s in ((1, 0.0), (1, ASK_AGAIN_S - 1), (2, ASK_AGAIN_S), (2, 2 * ASK_AGAIN_S - 1)):
        clock.return_value = 1000.0 + passed_s
        with pytest.raises(ChainWatcherError, match="CHAIN_WITHOUT_PALLET"):
            await reader.read(endpoint, header_of(chain.best), chain.genesis_hash)
        assert node.count("state_getMetadata") == asked
    del node.overrides["state_getMetadata"]
    clock.return_value = 1000.0 + 2 * ASK_AGAIN_S
    assert (await reader.read(endpoint, header_of(chain.best), chain.genesis_hash)).program is not None
    assert (await reader.read(endpoint, header_of(chain.best), chain.genesis_hash)).program is not None
    assert node.count("state_getMetadata") == 3


@pytest.mark.parametrize("digest", [(), (b"\x08",)])
async def test_a_layout_that_changes_under_the_same_version_is_asked_for_again(digest: tuple[bytes, ...]) -> None:
    """Case D6: with and without the digest item that marks a new runtime."""
    chain = FakeChain()
    chain.grow(publish(chain, ID_1, 1))
    endpoint, reader = direct(chain), reader_of()
    assert (await reader.read(endpoint, header_of(chain.best), chain.genesis_hash)).program is not None
    changed = chain.grow(digest=digest)
    assert (await reader.read(endpoint, header_of(changed), chain.genesis_hash)).layout == standard_layout(fields=4)
    chain.metadata[1] = make_metadata(fields=(*PROGRAM_FIELDS, "mirr_cids"))
    after = chain.grow(chain.change(program(ID_1, cids=["bafy"])))
    state = await reader.read(endpoint, header_of(after), chain.genesis_hash)
    assert state.program is not None
    assert (state.program.mirr_cids, state.layout) == ((b"bafy",), standard_layout(fields=5))
    asked = endpoint.node.count("state_getMetadata")
    assert (await reader.read(endpoint, header_of(chain.grow()), chain.genesis_hash)).program == state.program
    assert endpoint.node.count("state_getMetadata") == asked


async def test_a_cached_layout_is_used_without_a_question() -> None:
    chain = FakeChain()
    chain.grow(publish(chain, ID_1, 1))
    endpoint, cache = direct(chain), LayoutCache()
    cache.put(chain.genesis_hash, 1, standard_layout(fields=4))
    state = await reader_of(cache=cache).read(endpoint, header_of(chain.best), chain.genesis_hash)
    assert state.program is not None
    assert [method for method, _ in endpoint.node.asked] == ["state_getReadProof"]


async def test_a_cached_layout_of_an_earlier_runtime_is_not_used() -> None:
    chain = FakeChain()
    chain.set_code(2, make_metadata(fields=(*PROGRAM_FIELDS, "mirr_cids")))
    chain.grow(chain.change(program(ID_1, cids=["bafy"])))
    endpoint, cache = direct(chain), LayoutCache()
    cache.put(chain.genesis_hash, 1, standard_layout(fields=4))
    state = await reader_of(cache=cache).read(endpoint, header_of(chain.best), chain.genesis_hash)
    assert (state.spec_version, state.layout) == (2, standard_layout(fields=5))


async def test_trie_nodes_that_no_key_needs_are_no_lie() -> None:
    """What a node records beyond the keys depends on its version."""
    chain = FakeChain()
    chain.grow(publish(chain, ID_1, 1))
    endpoint = direct(chain)
    truth = endpoint.node.state_getReadProof

    def more(keys: list[str], at: str) -> dict[str, Any]:
        answer = truth(keys, at)
        everything = [*answer["proof"], *answer["proof"], "0x" + b"another".hex()]
        return {**answer, "proof": everything}

    endpoint.node.overrides["state_getReadProof"] = more
    state = await reader_of().read(endpoint, header_of(chain.best), chain.genesis_hash)
    assert state.program is not None
    assert state.proven


async def test_a_trie_node_in_a_format_of_the_future_is_the_chains_own_fault() -> None:
    """The state root names it, so the endpoint did not make it up."""
    chain = FakeChain()
    block = chain.grow(publish(chain, ID_1, 1))
    endpoint = direct(chain)
    newer = b"\x05 a node of a later version"
    from tests.doubles.chain_endpoint import hash256

    block.trie.root = hash256(newer)
    endpoint.node.overrides["state_getReadProof"] = lambda keys, at: {"proof": ["0x" + newer.hex()]}
    reader = reader_of(cache=LayoutCache())
    reader.layouts.cache.put(chain.genesis_hash, 1, standard_layout(fields=4))
    with pytest.raises(ChainWatcherError, match="PROOF_NODE_INVALID"):
        await reader.read(endpoint, header_of(block), chain.genesis_hash)


@pytest.mark.parametrize("code", [-32601, -32008, 4003])
async def test_a_read_proof_that_is_refused_is_no_lie(code: int) -> None:
    """Not offered after all, too large, or pruned."""
    chain = FakeChain()
    chain.grow(publish(chain, ID_1, 1))
    endpoint = direct(chain)
    found = "RPC_METHOD_MISSING" if code == -32601 else "RPC_REFUSED"

    def refuse(_keys: object, _at: object) -> None:
        raise RpcError(code=found, what="ws://x", why="no", rpc_code=code)

    endpoint.node.overrides["state_getReadProof"] = refuse
    with pytest.raises(ChainWatcherError) as caught:
        await reader_of().read(endpoint, header_of(chain.best), chain.genesis_hash)
    assert caught.value.code == ("ENDPOINT_NO_PROOFS" if code == -32601 else "RPC_REFUSED")


async def test_metadata_is_compared_by_its_layout_and_not_by_its_bytes() -> None:
    """Builds differ in their documentation; a difference between two endpoints proves no lie."""
    chain = FakeChain()
    chain.grow(publish(chain, ID_1, 1))
    endpoint, same, other = direct(chain), direct(chain), direct(chain)
    same.url, other.url = "ws://same", "ws://other"
    same.node.overrides["state_getMetadata"] = lambda at=None: "0x" + make_metadata(sudo=False).hex()
    fields = ("mirror_url", "origin_url", "enclave_id", "version")
    other.node.overrides["state_getMetadata"] = lambda at=None: "0x" + make_metadata(fields=fields).hex()
    for witnesses, confirmed in (((same,), 1), ((other,), 0), ((same, other, other), None)):
        reader = reader_of(*witnesses)
        if confirmed is None:
            with pytest.raises(ChainWatcherError, match="ENDPOINT_METADATA_FORGED"):
                await reader_of(other, other).read(endpoint, header_of(chain.best), chain.genesis_hash)
        else:
            await reader.read(endpoint, header_of(chain.best), chain.genesis_hash)
            assert reader.layouts.confirmed == confirmed


async def test_ten_thousand_entries_are_decoded_once_for_all_blocks_that_change_nothing() -> None:
    chain = FakeChain()
    entries = [entry(number + 1, f"{number:064x}") for number in range(10_000)]
    chain.grow(chain.change(program(ID_1), [*entries, entry(1, ID_1)]))
    endpoint, reader = direct(chain), reader_of()
    first = await reader.read(endpoint, header_of(chain.best), chain.genesis_hash)
    assert (len(first.entries), first.heights[ID_1]) == (10_001, 1)
    second = await reader.read(endpoint, header_of(chain.grow()), chain.genesis_hash)
    assert second.entries is first.entries
    third = await reader.read(endpoint, header_of(chain.grow(chain.change(None, entries))), chain.genesis_hash)
    assert len(third.entries) == 10_000
