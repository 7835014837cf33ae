"""The reader of states by itself, on a node that is asked without a socket."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any
from unittest import mock

import pytest

from chain_watcher.endpoints.endpoint import READ_PROOF, Endpoint
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.header import Header
from chain_watcher.watch.state_reader import REFUSED_S, StateReader
from tests.doubles.chain_endpoint import FakeChain, FakeNode, until
from tests.doubles.metadata_maker import make_metadata
from tests.doubles.watching import ID_1, publish, read_here


class Direct(Endpoint):
    """Answers by the fake node's own methods."""

    node: FakeNode

    async def ask(self, method: str, *params: Any, timeout_s: float | None = None) -> Any:
        self.node.asked.append((method, list(params)))
        answer = (self.node.overrides.get(method) or getattr(self.node, method))(*params)
        return await answer if inspect.isawaitable(answer) else answer


async def test_metadata_goes_on_being_read_when_somebody_gives_up_waiting() -> None:
    """A long download and parse would else begin anew with each turn, and never end."""
    chain = FakeChain()
    chain.grow(publish(chain, ID_1, 1))
    endpoint = Direct("ws://x", methods=frozenset({READ_PROOF}))
    endpoint.node = node = FakeNode(chain)
    ready = asyncio.Event()

    async def slow(at: str | None = None) -> str:
        await ready.wait()
        return node.state_getMetadata(at)

    node.overrides["state_getMetadata"] = slow
    reader = StateReader(unproven_allowed=False, layout_hashes=(), others=lambda _endpoint: [])
    header = Header.from_json(chain.best.json)
    with mock.patch("chain_watcher.watch.state_reader.read_metadata", read_here):
        for _ in range(3):
            reading = asyncio.create_task(reader.read(endpoint, header, chain.genesis_hash))
            versions = node.count("state_getRuntimeVersion")
            await until(lambda versions=versions: node.count("state_getRuntimeVersion") > versions)
            await until(lambda: node.count("state_getMetadata"))
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        ready.set()
        state = await reader.read(endpoint, header, chain.genesis_hash)
    assert state.program is not None
    assert node.count("state_getMetadata") == 1


async def test_what_is_read_for_nobody_is_ended() -> None:
    chain = FakeChain()
    endpoint = Direct("ws://x", methods=frozenset({READ_PROOF}))
    endpoint.node = node = FakeNode(chain)
    node.overrides["state_getMetadata"] = lambda at=None: asyncio.Event().wait()
    reader = StateReader(unproven_allowed=False, layout_hashes=(), others=lambda _endpoint: [])
    before = asyncio.all_tasks()
    reading = asyncio.create_task(reader.read(endpoint, Header.from_json(chain.best.json), chain.genesis_hash))
    await until(lambda: node.count("state_getMetadata"))
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert len(asyncio.all_tasks()) == len(before) + 1
    await reader.close()
    assert asyncio.all_tasks() == before


async def test_refused_metadata_is_asked_for_again_after_a_while() -> None:
    """An endpoint that gave another chain's metadata once, and is the only one, is of use again without a restart."""
    chain, clock = FakeChain(), mock.Mock(return_value=1000.0)
    chain.grow(publish(chain, ID_1, 1))
    endpoint = Direct("ws://x", methods=frozenset({READ_PROOF}))
    endpoint.node = node = FakeNode(chain)
    anothers = "0x" + make_metadata(with_pallet=False).hex()
    node.overrides["state_getMetadata"] = lambda at=None: anothers
    reader = StateReader(unproven_allowed=False, layout_hashes=(), others=lambda _endpoint: [], now=clock)
    header = Header.from_json(chain.best.json)
    with mock.patch("chain_watcher.watch.state_reader.read_metadata", read_here):
        for asked, passed_s in ((1, 0.0), (1, REFUSED_S - 1), (2, REFUSED_S), (2, 2 * REFUSED_S - 1)):
            clock.return_value = 1000.0 + passed_s
            with pytest.raises(ChainWatcherError, match="CHAIN_WITHOUT_PALLET"):
                await reader.read(endpoint, header, chain.genesis_hash)
            assert node.count("state_getMetadata") == asked
        del node.overrides["state_getMetadata"]
        clock.return_value = 1000.0 + 2 * REFUSED_S
        assert (await reader.read(endpoint, header, chain.genesis_hash)).program is not None
        assert (await reader.read(endpoint, header, chain.genesis_hash)).program is not None
    assert node.count("state_getMetadata") == 3
