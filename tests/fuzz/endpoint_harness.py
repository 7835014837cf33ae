"""Endpoints that answer and announce what a generator draws; shared by the tests of this folder and `make fuzz`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

from hypothesis import strategies as st

from chain_watcher.endpoints import answers
from chain_watcher.endpoints.endpoint import Event
from chain_watcher.endpoints.messages import RpcError
from chain_watcher.errors import CODES, ChainWatcherError
from chain_watcher.watch.config import WatcherConfig, WatchLimits
from chain_watcher.watch.suspicion import LYING
from chain_watcher.watch.view import Announced
from tests.doubles.chain_endpoint import FakeNode
from tests.doubles.proving import ProvenChain, voters
from tests.doubles.scripted_client import connect, scripted
from tests.doubles.watching import ID_1, ID_2, publish, verify

#: Every mode, with and without proofs of what is read; `proven` excludes the latter.
FINALITIES = [("proven", False), *((mode, unproven) for mode in ("quorum", "single") for unproven in (False, True))]

#: Values that an allocation, a conversion or a loop bound must not be given unchecked.
HUGE = st.sampled_from(
    [
        *(10**30, -(10**30), 2**33, 2**64, 1e308, -1, "0x" + "00" * 100_000, "0x" + "zz" * 50_000, "x" * 200_000),
        *([0] * 100_000, [[]] * 20_000, {str(n): n for n in range(5_000)}, [10**30], [[10**30, 10**30]]),
        "0x" + "f" * 65,
    ]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.just("0x00")
    | HUGE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
KINDS = ("finalized", "unproven", "best", "justification", "up", "down")


def documented(problem: ChainWatcherError) -> None:
    """Raise unless the error has a documented code."""
    assert problem.code in CODES


def chain_with_everything() -> ProvenChain:
    chain = ProvenChain()
    for number in range(1, 4):
        chain.grow(publish(chain, ID_1, number))
    chain.change_set(voters("fuzz"))
    for number in range(5, 8):
        chain.grow(publish(chain, ID_2, number))
    chain.finalized = chain.best.number
    chain.justifications[chain.best.number] = chain.justify(chain.best)
    return chain


CHAIN = chain_with_everything()
FORK = CHAIN.child(CHAIN.main[2], publish(CHAIN, "33" * 32, 3), salt=5)


def changed(draw: Any, value: Any) -> Any:
    """Return a true value with one part replaced."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: changed(draw, value[name])}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], changed(draw, value[at]), *value[at + 1 :]]
    if isinstance(value, str) and len(value) > 4 and draw(st.booleans()):
        at = draw(st.integers(2, len(value) - 1))
        return value[:at] + draw(st.sampled_from("0f:x ")) + value[at + draw(st.integers(0, 3)) :]
    return draw(JSON)


async def one_run(finality: str, unproven: bool, draw: Any) -> None:
    """Two endpoints that send arbitrary answers and announcements, and sometimes true ones."""
    truth = draw(st.sampled_from([0.0, 0.5, 0.9]))
    nodes = [FakeNode(CHAIN, grandpa=True, proofs=not unproven) for _ in range(2)]

    def twist(_method: str, _params: list[Any], answer: Any) -> Any:
        kind = draw(st.floats(0, 1))
        if kind < truth:
            return answer
        if kind > 0.97:
            raise RpcError(code="RPC_REFUSED", what="fuzz", why="no", rpc_code=draw(st.sampled_from([-32008, 4003])))
        return changed(draw, json.loads(json.dumps(answer)))

    config = WatcherConfig(
        endpoints=("ws://one", "ws://two"),
        finality=cast(Any, finality),
        genesis_hash=CHAIN.genesis_hash,
        checkpoint=CHAIN.start.to_json(),
        unsafe_unproven_reads=unproven,
        limits=WatchLimits(gap_blocks_max=draw(st.sampled_from([1, 512]))),
    )
    async with scripted(config, verify) as watcher:
        watcher.pool.genesis_hash = CHAIN.genesis_hash
        for _ in range(draw(st.integers(1, 6))):
            endpoint = draw(st.sampled_from(watcher.pool.endpoints))
            for one, node in zip(watcher.pool.endpoints, nodes, strict=True):
                connect(one, node, twist)
            watcher.pool.choose()
            block = draw(st.sampled_from([*CHAIN.main, FORK]))
            value: Any = block.json
            kind = draw(st.sampled_from(KINDS))
            if kind == "justification":
                value = "0x" + CHAIN.justifications.get(block.number, CHAIN.justify(block)).hex()
            if draw(st.floats(0, 1)) > truth:
                value = changed(draw, value)
            try:
                await watcher._handle(Event(endpoint, cast(Any, kind), value))
                await watcher._views.read_again()
            except ChainWatcherError as problem:
                documented(problem)
                watcher._blame(endpoint, problem)
            await asyncio.sleep(0)
        json.dumps(watcher.health())
        queue = watcher._views.news
        final = {block.hash.hex() for block in CHAIN.main}
        for view in queue._views:
            if finality == "proven":
                assert view.block_hash[2:] in final, "nothing else is ever proven"
        assert all(isinstance(one, Announced) for one in queue._announced.values())
        accused = {code for one in watcher.pool.endpoints for code in one.accusations}
        assert accused <= LYING.keys()


READERS: dict[str, Callable[[Any], object]] = {
    "hash": lambda value: answers.block_hash("ws://x", value),
    "number": lambda value: answers.head_number("ws://x", value),
    "methods": lambda value: answers.method_names("ws://x", value),
    "version": lambda value: answers.spec_version("ws://x", value),
    "proof": lambda value: answers.proof_nodes("ws://x", value, 100, 1000),
    "value": lambda value: answers.storage_value("ws://x", value, 1000),
    "changes": lambda value: answers.storage_changes("ws://x", value, "0x00", 1000),
    "justification": lambda value: answers.stored_justification("ws://x", value, 1000),
    "hex": lambda value: answers.hex_bytes("ws://x", value, 1000, "it"),
}
