"""Accusations: only an endpoint that sent something impossible is accused, never an honest one with a fault."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from chain_watcher.errors import CODES
from chain_watcher.proof.release import BlockRef
from chain_watcher.watch.config import WatchLimits
from chain_watcher.watch.suspicion import BY_METADATA, CHAIN_WIDE, HARMLESS, LYING
from tests.doubles.chain_endpoint import FakeNode, RpcFaultError, octets, until
from tests.doubles.metadata_maker import make_metadata, vec
from tests.doubles.proving import ProvenChain, proven, voters
from tests.doubles.watching import ID_1, ID_2, publish


def test_every_accusation_says_why_no_honest_node_earns_it() -> None:
    assert all(code in CODES and len(why) > 100 and why.endswith(".") for code, why in LYING.items())
    assert not LYING.keys() & (CHAIN_WIDE | BY_METADATA | HARMLESS)
    assert CODES.keys() >= CHAIN_WIDE | BY_METADATA | HARMLESS


# --- honest nodes in every condition, beside one that has everything


def refuse(code: int, text: str) -> Callable[..., Any]:
    def refused(*_: object) -> Any:
        raise RpcFaultError(code, text)

    return refused


def pruned(node: FakeNode) -> None:
    """It keeps no old states, blocks or justifications."""
    node.overrides["state_getReadProof"] = refuse(4003, "State already discarded")
    node.overrides["chain_getBlock"] = lambda _at: None
    node.overrides["grandpa_proveFinality"] = refuse(1, "no justification")


def warp_synced(node: FakeNode) -> None:
    """It has no header below the block that it jumped to."""
    truth, begins = node.chain_getHeader, node.chain.finalized

    def header(at: str | None = None) -> Any:
        found = truth(at)
        return found if found is not None and int(found["number"], 16) >= begins else None

    node.overrides["chain_getHeader"] = header
    node.overrides["chain_getBlockHash"] = lambda number: node.chain_getBlockHash(number) if not number else None
    node.overrides["chain_getBlock"] = lambda _at: None
    node.overrides["grandpa_proveFinality"] = refuse(1, "backfilled after a warp sync")


def lagging(node: FakeNode) -> None:
    """Finality stands still there, and its best chain is a fork that will be dropped."""
    fork = node.chain.child(node.chain.main[1], salt=3)
    node.overrides["chain_getBlockHash"] = lambda number: (
        node.chain_getBlockHash(number) if number < 2 else "0x" + fork.hash.hex()
    )
    node.muted |= {"chain_subscribeFinalizedHeads", "grandpa_subscribeJustifications"}


def balanced(node: FakeNode) -> None:
    """Every other question goes to a backend that has nothing above block 1."""
    turn = itertools.count()

    def twist(name: str) -> Callable[..., Any]:
        truth = getattr(node, name)

        def answer(*params: Any) -> Any:
            found = truth(*params)
            at = params[-1] if params else None
            known = {"0x" + block.hash.hex() for block in node.chain.main[:2]}
            if next(turn) % 2 and at not in (*known, 0, 1):
                if name == "state_getReadProof":
                    raise RpcFaultError(4003, "UnknownBlock")
                return None
            return found

        return answer

    for name in (
        "chain_getHeader",
        "chain_getBlock",
        "chain_getBlockHash",
        "grandpa_proveFinality",
        "state_getReadProof",
    ):
        node.overrides[name] = twist(name)


def bounded(node: FakeNode) -> None:
    """Large answers are refused."""
    for name in ("state_getReadProof", "grandpa_proveFinality", "state_getMetadata", "chain_getBlock"):
        node.overrides[name] = refuse(-32008, "Response is too big")


def rebuilt(node: FakeNode) -> None:
    """Another build on another database: other words in its metadata, more nodes in its proofs."""
    truth = node.state_getReadProof
    other = "0x" + make_metadata(sudo=False, pallet_index=31).hex()
    node.overrides["state_getMetadata"] = lambda at=None: other
    node.overrides["state_getReadProof"] = lambda keys, at: {
        "at": at,
        "proof": [*truth(keys, at)["proof"], *truth(keys[:1], at)["proof"], "0x00"],
    }


def forgetful(node: FakeNode) -> None:
    """`rpc_methods` fails, and what it would name is refused."""
    node.overrides["rpc_methods"] = refuse(-32000, "busy")
    for name in ("grandpa_proveFinality", "state_queryStorageAt"):
        node.overrides[name] = refuse(-32601, "Method not found")


CONDITIONS = [pruned, warp_synced, lagging, balanced, bounded, rebuilt, forgetful]


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("finality", ["proven", "quorum", "single"])
async def test_an_honest_node_is_never_accused(
    chain: ProvenChain, node: FakeNode, condition: Callable[[FakeNode], None], finality: str
) -> None:
    """It is asked first; the others have everything. Connections drop meanwhile, and the authority set changes."""
    for _ in range(3):
        last = await chain.advance()
    since = BlockRef(last.number, "0x" + last.hash.hex())
    async with FakeNode(chain, grandpa=True) as one, FakeNode(chain, grandpa=True) as two:
        await chain.advance(publish(chain, ID_1, 4))
        condition(node)
        limits = WatchLimits(gap_blocks_max=3, retry_s=0.01)
        settings = {"finality": finality, "since": since, "limits": limits}
        async with proven(chain, node, one, two, **settings) as watch:
            await until(lambda: len(watch.watcher.pool.usable()) == 3)
            chain.change_set(voters("next"))
            await chain.announce_best()
            await chain.finalize()
            await node.cut()
            for number in range(6, 12):
                await chain.advance(publish(chain, ID_2, number, f"1.{number}.0"))
            view = await watch.view()
            while view.program is None or view.program.version != "1.11.0":
                assert view.program is None or view.program.enclave_id in (ID_1, ID_2)
                view = await watch.view()
            await until(lambda: watch.watcher.pool.endpoints[0].connections > 1)
            assert watch.watcher.health()["lying"] == []


# --- the cases


@pytest.mark.parametrize(
    "stored",
    [
        [[10**30, []]],
        [[[70, 82, 78, 75], 10**30]],
        [[[70, 82, 78, 75], 2**33]],
        [[[70, 82, 78, 75], [10**30]]],
        [[[70, 82, 78, 75], ["x"]]],
        [[[70, 82, 78, 75], {"a": 1}]],
        [["FRNK", 5]],
        [[[70, 82, 78, 75], [1.5]], 7],
        7,
        "0x00",
        {"0": 1},
        [1],
        [[]],
        [None],
    ],
)
async def test_stored_justifications_of_any_shape_end_nothing(chain: ProvenChain, stored: Any) -> None:
    """Case D1: `bytes(10**30)` ended the agent, `bytes(2**33)` would take all memory."""
    chain.justifications[1] = chain.justify(await chain.advance(publish(chain, ID_1, 1)))
    async with FakeNode(chain) as liar, FakeNode(chain, grandpa=True) as honest:
        liar.overrides["chain_getBlock"] = lambda _at: {"block": {}, "justifications": stored}
        async with proven(chain, liar, honest) as watch:
            assert (await watch.view()).program is not None
            await until(lambda: liar.count("chain_getBlock"))
            await chain.advance(publish(chain, ID_2, 2))
            assert (await watch.view()).program is not None
            assert watch.watcher.health()["lying"] == []


@pytest.mark.parametrize("source", ["grandpa_proveFinality", "chain_getBlock"])
async def test_a_block_that_became_final_while_connections_were_down_is_asked_for(
    chain: ProvenChain, node: FakeNode, source: str
) -> None:
    """Case D2: finality pauses afterwards, so that no justification comes by itself."""
    for name in {"grandpa_proveFinality", "chain_getBlock"} - {source}:
        node.overrides[name] = lambda *_: None
    await chain.advance(publish(chain, ID_1, 1))
    chain.justifications[1] = chain.justify(chain.best)
    async with proven(chain, node) as watch:
        await watch.view()
        await node.stop()
        block = chain.grow(publish(chain, ID_2, 2))
        chain.justifications[2] = chain.justify(block)
        await chain.finalize(announce=False)
        await node.start()
        view = await watch.view()
        assert (view.block_number, view.program and view.program.enclave_id) == (2, ID_2)
        assert watch.watcher.health()["lying"] == []


async def test_a_head_whose_justification_was_lost_on_the_way_is_asked_for(chain: ProvenChain, node: FakeNode) -> None:
    """Case D2 on a live connection: nobody is blamed before it was asked."""
    await chain.advance(publish(chain, ID_1, 1))
    async with proven(chain, node) as watch:
        await watch.view()
        node.muted.add("grandpa_subscribeJustifications")
        await chain.advance(publish(chain, ID_2, 2))
        endpoint = watch.watcher.pool.endpoints[0]
        await until(lambda: endpoint.claimed_number == 2 and endpoint.unproven_since is not None)
        endpoint.unproven_asked_at = -1000.0
        assert (await watch.view()).block_number == 2
        assert (endpoint.problem, endpoint.connections) == (None, 1)


@pytest.mark.parametrize("finality", ["proven", "quorum", "single"])
@pytest.mark.parametrize("gap_max", [512, 2])
async def test_null_for_the_journalled_block_is_no_fork(
    chain: ProvenChain, node: FakeNode, finality: str, gap_max: int
) -> None:
    """Case D3: a warp-synced node, or a backend that is one second behind."""
    seen: list[dict[str, Any]] = []
    for _ in range(3):
        last = await chain.advance(publish(chain, ID_1, 1))
    async with proven(chain, node, on_progress=seen.append) as watch:
        await watch.view()
    for _ in range(4):
        await chain.advance()
    await chain.advance(publish(chain, ID_2, 8))
    warp_synced(node)
    since = BlockRef(last.number, "0x" + last.hash.hex())
    settings = {"finality": finality, "since": since, "limits": WatchLimits(gap_blocks_max=gap_max)}
    if finality == "proven":
        settings["chain_state"] = seen[-1]["chain_state"]
    async with FakeNode(chain, grandpa=True) as other:
        warp_synced(other)
        async with proven(chain, node, other, **settings) as watch:
            await until(lambda: len(watch.watcher.pool.usable()) == 2)
            await chain.advance(publish(chain, ID_2, 9))
            view = await watch.view()
            assert view.block_number >= 8
            assert view.program is not None
            assert (view.program.enclave_id, watch.watcher.health()["lying"]) == (ID_2, [])


@pytest.mark.parametrize("finality", ["quorum", "single"])
async def test_another_hash_by_number_is_no_proof_of_a_fork(chain: ProvenChain, node: FakeNode, finality: str) -> None:
    """Far from the journalled block, headers cannot show it: the endpoint is not followed, and not accused."""
    await chain.advance()
    fork = chain.child(chain.main[0], salt=7)
    for _ in range(8):
        await chain.advance()
    since = BlockRef(1, "0x" + fork.hash.hex())
    async with FakeNode(chain, grandpa=True) as other:
        settings = {"finality": finality, "since": since, "limits": WatchLimits(gap_blocks_max=3)}
        async with proven(chain, node, other, **settings) as watch:
            await watch.until_problem("ENDPOINT_OTHER_HISTORY")
            assert (watch.waiting, watch.watcher.health()["lying"]) == (0, [])


async def test_what_another_mode_believed_does_not_stand_against_a_proof(chain: ProvenChain, node: FakeNode) -> None:
    """Mode `single` was deceived about block 1; in mode `proven` the journal is no word against the authorities."""
    fork = chain.child(chain.main[0], salt=7)
    await chain.advance()
    await chain.advance(publish(chain, ID_1, 2))
    async with proven(chain, node, since=BlockRef(900, "0x" + fork.hash.hex())) as watch:
        assert (await watch.view()).block_number == 2
        assert watch.watcher.health()["lying"] == []


async def test_a_change_of_the_authorities_by_force_accuses_nobody(chain: ProvenChain, node: FakeNode) -> None:
    """Case D4: a code of its own says that a new checkpoint has to be pinned."""
    await chain.advance(publish(chain, ID_1, 1))
    async with FakeNode(chain, grandpa=True) as other, proven(chain, node, other) as watch:
        await watch.view()
        following = voters("by force")
        listed = vec([bytes(one.verify_key) + (1).to_bytes(8, "little") for one in following])
        forced = b"\x02" + (1).to_bytes(4, "little") + listed + (0).to_bytes(4, "little")
        chain.grow(digest=(b"\x04FRNK" + octets(forced),))
        chain.voters, chain.set_id = following, 1
        await chain.advance(publish(chain, ID_2, 3))
        await watch.until_problem("AUTHORITY_SET_UNKNOWN")
        assert (watch.waiting, watch.watcher.health()["lying"]) == (0, [])
        assert all(one.usable for one in watch.watcher.pool.endpoints)
        pinned = {"block_number": 2, "set_id": 1, "authorities": [["0x" + k.hex(), w] for k, w in chain.authorities()]}
    async with proven(chain, node, checkpoint=pinned) as watch:
        assert (await watch.view()).block_number == 3


async def test_a_wrong_checkpoint_accuses_nobody(chain: ProvenChain, node: FakeNode) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    wrong = {**chain.start.to_json(), "set_id": 5}
    async with proven(chain, node, checkpoint=wrong) as watch:
        await watch.until_problem("AUTHORITY_SET_UNKNOWN")
        assert (watch.waiting, watch.watcher.health()["lying"]) == (0, [])


@pytest.mark.parametrize("answer", [refuse(-32000, "busy"), lambda: {"methods": 7}, lambda: None])
async def test_a_node_that_does_not_say_what_it_offers_is_asked_all_the_same(
    chain: ProvenChain, node: FakeNode, answer: Callable[..., Any]
) -> None:
    """Case D5, first half."""
    node.overrides["rpc_methods"] = answer
    await chain.advance(publish(chain, ID_1, 1))
    async with proven(chain, node) as watch:
        assert not (await watch.view()).unproven_reads


@pytest.mark.parametrize("method", ["grandpa_subscribeJustifications", "grandpa_proveFinality", "state_queryStorageAt"])
async def test_a_listed_method_that_is_refused_is_dropped_and_the_other_way_taken(
    chain: ProvenChain, node: FakeNode, method: str
) -> None:
    """Case D5, second half: no endless reconnects."""
    node.overrides[method] = refuse(-32601, "Method not found")
    block = await chain.advance(publish(chain, ID_1, 1))
    chain.justifications[1] = chain.justify(block)
    async with proven(chain, node) as watch:
        await watch.view()
        block = chain.grow(publish(chain, ID_2, 2))
        chain.justifications[2] = chain.justify(block)
        await chain.announce_best()
        await chain.finalize()
        assert (await watch.view()).block_number == 2
        assert watch.watcher.pool.endpoints[0].connections == 1
