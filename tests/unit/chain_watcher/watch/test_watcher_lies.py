"""Lying endpoints are never believed, are accused if the lie is provable, and delay no honest endpoint."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chain_watcher.watch.config import WatchLimits
from tests.doubles.chain_endpoint import FakeNode, until
from tests.doubles.metadata_maker import PROGRAM_FIELDS, make_metadata
from tests.doubles.proving import PINNED, ProvenChain, proven, voters
from tests.doubles.watching import ID_1, ID_2, ID_3, program, publish

# --- liars: the first of two endpoints lies, the second is honest


async def believed(chain: ProvenChain, liar: FakeNode, honest: FakeNode, code: str, **settings: Any) -> None:
    """Only true views are published, and the liar is accused."""
    async with proven(chain, liar, honest, speculate=False, layout_hashes=(PINNED,), **settings) as watch:
        await until(lambda: len(watch.watcher.pool.usable()) == 2)
        await chain.advance(publish(chain, ID_1, 1))
        await until(lambda: watch.watcher.health()["last_number"] == chain.finalized)
        await chain.advance(publish(chain, ID_2, 2))
        await until(lambda: watch.watcher.health()["last_number"] == chain.finalized)
        while watch.waiting:
            view = await watch.view()
            assert view.program is None or view.program.enclave_id in (ID_1, ID_2)
        assert view.program is not None
        assert view.program.enclave_id == ID_2
        await until(lambda: watch.watcher.health()["lying"])
        health = watch.watcher.health()
        assert health["lying"] == [liar.url]
        assert health["endpoints"][0]["accusations"][0] in code.split()


@pytest.fixture
async def honest(chain: ProvenChain) -> AsyncIterator[FakeNode]:
    async with FakeNode(chain, grandpa=True) as running:
        yield running


async def test_a_forged_value(chain: ProvenChain, node: FakeNode, honest: FakeNode) -> None:
    forged = ProvenChain()
    forged.grow(publish(forged, ID_3, 1))
    node.overrides["state_getReadProof"] = lambda keys, at: {
        "at": at,
        "proof": ["0x" + one.hex() for one in forged.best.trie.proof(bytes.fromhex(key[2:]) for key in keys)],
    }
    await believed(chain, node, honest, "ENDPOINT_PROOF_FORGED")


async def test_a_forged_header(chain: ProvenChain, node: FakeNode, honest: FakeNode) -> None:
    forged = ProvenChain()
    forged.grow(publish(forged, ID_3, 1))
    node.overrides["chain_getHeader"] = lambda at=None: forged.best.json
    node.muted.add("chain_subscribeFinalizedHeads")  # so that headers have to be asked for
    honest.muted.add("chain_subscribeFinalizedHeads")
    await believed(chain, node, honest, "ENDPOINT_HEADER_FORGED")


async def test_a_justification_by_too_few(chain: ProvenChain, node: FakeNode, honest: FakeNode) -> None:
    fork = chain.main[0]
    for _ in range(3):
        fork = chain.child(fork, publish(chain, ID_3, 1), salt=5)

    async def announce(_block: object) -> None:
        proof = chain.justify(fork, voters=chain.voters[:2])
        await node.notify("grandpa_subscribeJustifications", "0x" + proof.hex())

    node.announce_finalized = announce  # type: ignore[method-assign, assignment]
    await believed(chain, node, honest, "ENDPOINT_JUSTIFICATION_FORGED ENDPOINT_FORKED_FINALITY")


async def test_a_justification_by_another_set(chain: ProvenChain, node: FakeNode, honest: FakeNode) -> None:
    async def announce(block: Any) -> None:
        proof = chain.justify(block, voters=voters("others"))
        await node.notify("grandpa_subscribeJustifications", "0x" + proof.hex())

    node.announce_finalized = announce  # type: ignore[method-assign, assignment]
    await believed(chain, node, honest, "ENDPOINT_JUSTIFICATION_FORGED")


async def test_forged_metadata(chain: ProvenChain, node: FakeNode, honest: FakeNode) -> None:
    fields = ("mirror_url", "origin_url", "enclave_id", "version")
    node.overrides["state_getMetadata"] = lambda at=None: "0x" + make_metadata(fields=fields).hex()
    await believed(chain, node, honest, "ENDPOINT_METADATA_FORGED")


async def test_metadata_with_the_other_standard_layout_is_found_out(
    chain: ProvenChain, node: FakeNode, honest: FakeNode
) -> None:
    """Both standard layouts pass the pin; the proven values show which one is the chain's."""
    fields = (*PROGRAM_FIELDS, "mirr_cids")
    node.overrides["state_getMetadata"] = lambda at=None: "0x" + make_metadata(fields=fields).hex()
    await chain.advance()
    await honest.stop()
    async with proven(chain, node, honest, speculate=False) as watch:
        await watch.view()  # without a program either layout fits
        await honest.start()
        await until(lambda: len(watch.watcher.pool.usable()) == 2)
        await chain.advance(publish(chain, ID_1, 2))
        view = await watch.view()
        assert view.program is not None
        assert view.program.enclave_id == ID_1
        await until(lambda: watch.watcher.health()["lying"])
        health = watch.watcher.health()
        assert health["lying"] == [node.url]
        assert set(health["endpoints"][0]["accusations"]) == {"ENDPOINT_METADATA_FORGED"}


async def test_values_that_no_metadata_fits_are_the_chains_own_fault(
    chain: ProvenChain, node: FakeNode, honest: FakeNode
) -> None:
    """A runtime upgrade without migration: no endpoint is disconnected, and the next valid value is read."""
    await chain.advance(publish(chain, ID_1, 1))
    async with proven(chain, node, honest, speculate=False) as watch:
        await watch.view()
        await until(lambda: len(watch.watcher.pool.usable()) == 2)
        await chain.advance(chain.change(program(ID_1, "1.1.0") + b"\0"))
        await until(lambda: watch.watcher.counters.read_failures >= 2)
        health = watch.watcher.health()
        assert health["problem"]["code"] == "LAYOUT_MISMATCH"
        assert (health["lying"], [one["connections"] for one in health["endpoints"]]) == ([], [1, 1])
        await chain.advance(chain.change(program(ID_1, "1.2.0")))
        view = await watch.view()
        assert view.program is not None
        assert view.program.version == "1.2.0"
        asked = node.count("state_getMetadata") + honest.count("state_getMetadata")
        assert asked <= 4, "each is asked once by the reader, and once by the auditor"


async def test_metadata_under_a_version_that_is_not_yet_is_forgotten(chain: ProvenChain, node: FakeNode) -> None:
    """An endpoint that names a later version cannot leave today's layout behind for it."""
    node.overrides["state_getRuntimeVersion"] = lambda at=None: {"specVersion": 2}
    await chain.advance(publish(chain, ID_1, 1))
    async with proven(chain, node, speculate=False) as watch:
        await watch.view()
        fields = (*PROGRAM_FIELDS, "mirr_cids")
        chain.set_code(2, make_metadata(fields=fields))
        await chain.finalize()
        await chain.advance(chain.change(program(ID_1, "1.0.0", cids=["bafy1"])))
        view = await watch.view()
        assert view.program is not None
        assert view.program.cids == ("bafy1",)


async def test_a_slow_liar_does_not_keep_the_others_waiting(
    chain: ProvenChain, node: FakeNode, honest: FakeNode
) -> None:
    """It invents a long chain of blocks and answers each question just within the deadline."""
    await chain.advance()
    line = [chain.main[1]]
    for _ in range(400):
        line.append(chain.child(line[-1], salt=7))
    made_up = {block.hash for block in line[1:]}

    async def slow(at: str | None = None) -> Any:
        if at is not None and bytes.fromhex(at[2:]) in made_up:
            await asyncio.sleep(0.1)  # what makes it slow
        return truth(at)

    truth = node.chain_getHeader
    node.overrides["chain_getHeader"] = slow
    limits = WatchLimits(patience_s=0.5, given_up_max=2)
    async with proven(chain, node, honest, limits=limits) as watch:
        await watch.view()
        await until(lambda: len(watch.watcher.pool.usable()) == 2)
        forgery = chain.justify(line[-1], voters=voters("others"))
        liar, seen = watch.watcher.pool.endpoints[0], 0
        while liar.problem is None:
            await node.notify("grandpa_subscribeJustifications", "0x" + forgery.hex())
            await chain.advance(publish(chain, ID_1, 2, f"1.{seen}.0"))
            assert (await watch.view()).program is not None
            seen += 1
            await until(lambda: liar.problem or watch.watcher.health()["last_number"] == chain.finalized)
        assert (liar.problem.code, liar.retry_after_s) == ("RPC_TIMEOUT", 60.0)
        assert node.count("chain_getHeader") < 100


async def test_old_state_and_withheld_changes_cost_nothing(
    chain: ProvenChain, node: FakeNode, honest: FakeNode
) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    async with proven(chain, node, honest) as watch:
        await watch.view()
        node.muted |= {"grandpa_subscribeJustifications", "chain_subscribeFinalizedHeads", "chain_subscribeNewHeads"}
        await chain.advance(publish(chain, ID_2, 2))
        view = await watch.view()
        assert view.program is not None
        assert (view.program.enclave_id, view.endpoint) == (ID_2, honest.url)
        assert watch.watcher.health()["endpoints"][0]["behind"] == 1


async def test_a_future_height_is_never_believed(chain: ProvenChain, node: FakeNode, honest: FakeNode) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    async with proven(chain, node, honest) as watch:
        await watch.view()
        future = ProvenChain()
        for _ in range(40):
            future.grow(publish(future, ID_3, 1))
        await node.notify("chain_subscribeFinalizedHeads", future.best.json)
        await chain.advance()
        await until(lambda: watch.watcher.health()["last_number"] == 2)
        assert watch.waiting == 0
        endpoint = watch.watcher.pool.endpoints[0]
        assert watch.watcher.pool.height(endpoint) == 2
        endpoint.unproven_since = -1000.0
        await until(lambda: endpoint.connections == 2)
        endpoint.unproven_since = -1000.0
        await until(lambda: endpoint.facts(0.0)["code"] == "ENDPOINT_UNPROVEN_HEIGHT")
        assert (watch.watcher.health()["lying"], endpoint.connections) == ([], 2), "it is reconnected once, for all"
        await chain.advance(publish(chain, ID_2, 3))
        assert (await watch.view()).block_number == 3


async def test_a_layout_that_nobody_pinned_stops_the_view_and_is_asked_for_once(
    chain: ProvenChain, node: FakeNode
) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    async with proven(chain, node, speculate=False) as watch:
        await watch.view()
        chain.set_code(2, make_metadata(fields=("version", "mirror_url", "origin_url", "enclave_id")))
        await chain.finalize()
        for _ in range(3):
            await chain.advance()
        await until(lambda: watch.watcher.counters.read_failures >= 3)
        assert watch.watcher.health()["problem"]["code"] == "LAYOUT_NOT_PINNED"
        assert watch.watcher.health()["lying"] == [], "the chain may well have been upgraded"
        assert node.count("state_getMetadata") == 2


JUNK: list[Any] = [None, 7, -1, "", "0x", "0xzz", "0x00", [], [None], [[1, 2]], {}, {"a": 1}, {"digest": {}}, True, 1e9]
METHODS = [
    "chain_getBlock",
    "chain_getBlockHash",
    "chain_getHeader",
    "grandpa_proveFinality",
    "rpc_methods",
    "state_getMetadata",
    "state_getReadProof",
    "state_getRuntimeVersion",
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("finality", ["proven", "quorum"])
async def test_junk_from_one_endpoint_stops_nothing(chain: ProvenChain, method: str, finality: str) -> None:
    block = await chain.advance(publish(chain, ID_1, 1))
    chain.justifications[block.number] = chain.justify(block)
    turn = iter(JUNK * 100)
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(FakeNode(chain, grandpa=True)) for _ in range(3)]
        nodes[0].overrides[method] = lambda *_: next(turn)
        async with proven(chain, *nodes, finality=finality) as watch:
            await watch.view()
            for number in range(5):
                await nodes[0].notify("chain_subscribeFinalizedHeads", JUNK[number])
                await nodes[0].notify("chain_subscribeNewHeads", JUNK[number + 5])
                await nodes[0].notify("grandpa_subscribeJustifications", JUNK[number + 3])
                await nodes[0].notify("state_subscribeStorage", JUNK[number + 7])
                await chain.advance(publish(chain, ID_2, 2 + number, f"1.{number}.0"))
            await until(lambda: watch.watcher.health()["last_number"] == chain.finalized)


@pytest.mark.parametrize("place", ["decide", "read", "pump"])
async def test_an_error_that_nobody_foresaw_is_the_endpoints_and_not_the_end(
    chain: ProvenChain, node: FakeNode, honest: FakeNode, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PlantedError(RuntimeError):
        """Stands for a bug in this program that one endpoint can trigger."""

    from chain_watcher.endpoints import answers
    from chain_watcher.watch.grandpa_follower import ProvenDecider
    from chain_watcher.watch.state_reader import StateReader

    where: tuple[Any, str] = {
        "decide": (ProvenDecider, "decide"),
        "read": (StateReader, "read"),
        "pump": (answers, "head_number"),
    }[place]
    truth = getattr(*where)

    def planted(*given: Any) -> Any:
        if any(
            node.url in (one, getattr(one, "url", None), getattr(getattr(one, "endpoint", 0), "url", None))
            for one in given
        ):
            raise PlantedError
        return truth(*given)

    monkeypatch.setattr(*where, planted)
    async with proven(chain, node, honest) as watch:
        for number in range(3):
            await until(lambda: honest.sockets)
            await chain.advance(publish(chain, ID_1, 1, f"1.{number}.0"))
        await until(lambda: watch.watcher.health()["last_number"] == 3)
        assert watch.watcher.health()["lying"] == []
