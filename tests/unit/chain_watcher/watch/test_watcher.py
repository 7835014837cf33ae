"""The watcher on one honest node: first view, changes, reconnects, gaps, runtime upgrades, speculation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.release import BlockRef
from chain_watcher.watch.config import WatcherConfig
from chain_watcher.watch.view import ANNOUNCED_MAX, Announced, ChainView
from chain_watcher.watch.watcher import Watcher
from devnet.tools import free_port
from tests.doubles.chain_endpoint import Entry, FakeChain, FakeNode, until
from tests.doubles.metadata_maker import PROGRAM_FIELDS, make_metadata
from tests.doubles.watching import BAD, GOOD, ID_1, ID_2, ID_3, QUICK, entry, program, publish, verify, watching


@pytest.fixture
def chain() -> FakeChain:
    return FakeChain()


@pytest.fixture
async def node(chain: FakeChain) -> AsyncIterator[FakeNode]:
    async with FakeNode(chain) as running:
        yield running


async def test_first_view_then_each_change(chain: FakeChain, node: FakeNode) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    async with watching(node) as watch:
        first = await watch.view()
        assert first.program is not None
        assert (first.program.enclave_id, first.program.version, first.program.added_height) == (ID_1, "1.0.0", 1)
        assert (first.block_number, first.finality, first.unproven_reads) == (1, "single", False)
        assert first.timestamp_ms == 1_790_000_006_000
        await chain.advance()
        block = await chain.advance(chain.change(program(ID_2, "1.1.0"), [entry(1, ID_1), entry(3, ID_2)]))
        second = await watch.view()
        assert second.program is not None
        assert (second.program.enclave_id, second.block_hash) == (ID_2, "0x" + block.hash.hex())
        assert dict(second.listed) == {ID_1: 1, ID_2: 3}
        assert watch.waiting == 0
        health = watch.watcher.health()
        assert health["unsafe"] == ["finality_single"]
        assert health["finalized"]["proven_reads"] is True


async def test_the_genesis_hash_may_be_given_without_0x(chain: FakeChain, node: FakeNode) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    async with watching(node, genesis_hash=chain.genesis_hash[2:]) as watch:
        await watch.view()
        assert (await watch.watcher.evidence(ID_1, ID_2, {}))["genesis_hash"] == chain.genesis_hash


async def test_refusals_are_views_too(chain: FakeChain, node: FakeNode) -> None:
    async with watching(node) as watch:
        first = await watch.view()
        assert first.refusal is not None
        assert first.refusal.code == "RELEASE_PROGRAM_ABSENT"
        steps = [
            (chain.change(None, [entry(1, ID_1)]), "RELEASE_ENTRY_WITHOUT_PROGRAM"),
            (chain.change(program(ID_2)), "RELEASE_PROGRAM_WITHOUT_ENTRY"),
            (chain.change(program(ID_1), [entry(1, ID_1, BAD)]), "RELEASE_SIGNATURE_REFUSED"),
            (chain.change(program(ID_1.upper().replace("1", "A"))), "RELEASE_ID_INVALID"),
        ]
        for change, code in steps:
            await chain.advance(change)
            view = await watch.view()
            assert view.program is None
            assert view.refusal is not None
            assert view.refusal.code == code


async def test_a_change_while_every_connection_is_cut_is_found(chain: FakeChain) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    # A reserved port: while the node is down, one that the kernel chose could be given to any outgoing connection.
    async with FakeNode(chain, port=free_port()) as node, watching(node) as watch:
        await watch.view()
        await node.stop()
        await until(lambda: not watch.watcher.pool.usable())
        for _ in range(5):
            chain.grow()
        chain.grow(publish(chain, ID_2, 7, "1.1.0"))
        chain.grow()
        await chain.finalize(announce=False)
        await node.start()
        view = await watch.view()
        assert view.program is not None
        assert (view.program.enclave_id, view.block_number) == (ID_2, 8)
        assert watch.watcher.counters.reconnects == 1
        assert watch.watcher.counters.gap_blocks == 6


async def test_a_reconnect_without_change_says_the_state_again(chain: FakeChain, node: FakeNode) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    async with watching(node) as watch:
        first = await watch.view()
        await node.cut()
        assert await watch.view() == first
        await chain.advance()
        await until(lambda: watch.watcher.counters.finalized_blocks == 2)
        assert watch.waiting == 0


async def test_the_change_leaves_at_finality_without_a_request(chain: FakeChain, node: FakeNode) -> None:
    await chain.advance()
    async with watching(node) as watch:
        await watch.view()
        chain.grow(publish(chain, ID_1, 2))
        await chain.announce_best()
        await until(lambda: watch.announced)
        assert watch.announced[0].enclave_id == ID_1
        assert watch.waiting == 0
        asked = len(node.asked)
        await chain.finalize()
        view = await watch.view()
        assert view.program == watch.announced[0]
        assert len(node.asked) == asked
        assert watch.watcher.counters.answered_ahead == 1


async def test_signatures_are_verified_once_for_a_release_and_again_for_others(
    chain: FakeChain, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = []

    def noting(enclave_id: str, signatures: tuple[bytes, ...]) -> None:
        verified.append((enclave_id, signatures))
        verify(enclave_id, signatures)

    monkeypatch.setattr("tests.doubles.watching.verify", noting)
    await chain.advance()
    async with watching(node) as watch:
        await watch.view()
        chain.grow(publish(chain, ID_1, 2))
        await chain.announce_best()
        await until(lambda: watch.announced)
        await chain.finalize()
        assert (await watch.view()).program is not None
        assert verified == [(ID_1, (GOOD,))]
        for number, signatures in enumerate([(BAD,), (BAD,), (GOOD, BAD), (GOOD,)]):
            before = len(verified)
            listed = [entry(2 + at, ID_1, signature) for at, signature in enumerate(signatures)]
            await chain.advance(chain.change(program(ID_1, f"1.1.{number}"), listed))
            assert ((await watch.view()).program is None) == (GOOD not in signatures)
            assert (ID_1, signatures) in verified[before:]


async def test_a_read_that_is_on_its_way_is_not_asked_again(chain: FakeChain, node: FakeNode) -> None:
    await chain.advance()
    async with watching(node) as watch:
        await watch.view()
        go_on = asyncio.Event()

        async def slow(keys: list[str], at: str) -> object:
            await go_on.wait()
            del node.overrides["state_getReadProof"]
            return node.state_getReadProof(keys, at)

        node.overrides["state_getReadProof"] = slow
        asked = node.count("state_getReadProof")
        chain.grow(publish(chain, ID_1, 2))
        await chain.announce_best()
        await until(lambda: node.count("state_getReadProof") == asked + 1)
        await chain.finalize()
        await until(lambda: watch.watcher.pool.endpoints[0].claimed_number == 2)
        go_on.set()
        assert (await watch.view()).program is not None
        assert node.count("state_getReadProof") == asked + 1


async def test_a_descendant_makes_the_speculated_block_final(chain: FakeChain, node: FakeNode) -> None:
    await chain.advance()
    async with watching(node) as watch:
        await watch.view()
        changed = chain.grow(publish(chain, ID_1, 2))
        await chain.announce_best()
        await until(lambda: watch.announced)
        chain.grow()
        chain.grow()
        await chain.finalize()
        view = await watch.view()
        assert view.block_hash == "0x" + changed.hash.hex()
        await until(lambda: watch.watcher.health()["last_number"] == 4)
        assert watch.waiting == 0


async def test_a_speculation_that_is_never_final_leaves_only_a_counter(chain: FakeChain, node: FakeNode) -> None:
    await chain.advance()
    async with watching(node) as watch:
        await watch.view()
        fork = chain.child(chain.best, publish(chain, ID_1, 2), salt=9)
        await chain.announce_best(fork)
        await until(lambda: watch.announced)
        await chain.advance()
        await until(lambda: watch.watcher.counters.finalized_blocks == 2)
        assert watch.waiting == 0
        assert watch.watcher.counters.speculations_never_finalized == 1
        assert len(watch.watcher._views._ahead) == 0


async def test_skipped_heads_are_filled_and_linked(chain: FakeChain, node: FakeNode) -> None:
    await chain.advance()
    async with watching(node, speculate=False) as watch:
        await watch.view()
        for _ in range(4):
            chain.grow()
        await chain.advance(publish(chain, ID_1, 6))
        view = await watch.view()
        assert view.block_number == 6
        assert watch.watcher.counters.gap_blocks == 4


async def test_height_never_goes_back(chain: FakeChain, node: FakeNode) -> None:
    for _ in range(3):
        await chain.advance()
    async with watching(node) as watch:
        assert (await watch.view()).block_number == 3
        await chain.finalize(1)
        await until(lambda: watch.watcher.counters.went_back == 1)
        assert watch.watcher.health()["last_number"] == 3


async def test_a_runtime_upgrade_changes_the_layout_one_block_later(chain: FakeChain, node: FakeNode) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    async with watching(node) as watch:
        assert (await watch.view()).program is not None
        fields = (*PROGRAM_FIELDS, "MirrCids")
        chain.set_code(2, make_metadata(fields=fields, pallet_index=44))
        await chain.announce_best()
        await chain.finalize()
        await until(lambda: watch.watcher.health()["last_number"] == 2)
        assert watch.waiting == 0, "the block of set_code still has the old layout"
        await chain.advance(chain.change(program(ID_1, "1.0.0", cids=["bafy1", "bafy2"])))
        view = await watch.view()
        assert view.program is not None
        assert view.program.cids == ("bafy1", "bafy2")
        assert watch.watcher.health()["finalized"]["spec_version"] == 2
        assert watch.watcher.counters.runtime_upgrades == 1


async def test_a_chain_without_the_pallet_has_a_code_of_its_own() -> None:
    chain = FakeChain(metadata=make_metadata(with_pallet=False))
    async with FakeNode(chain) as node, watching(node) as watch:
        await watch.until_problem("CHAIN_WITHOUT_PALLET")
        assert watch.watcher.health()["problem"]["code"] == "CHAIN_WITHOUT_PALLET"


async def test_chopsticks_like_nodes_need_the_unsafe_switch() -> None:
    chain = FakeChain(zero_root=True)
    async with FakeNode(chain, proofs=False, padded=True) as node:
        async with watching(node) as watch:
            await watch.until_problem("ENDPOINT_NO_PROOFS")
        async with watching(node, unsafe_unproven_reads=True) as watch:
            assert (await watch.view()).unproven_reads
            await chain.advance(publish(chain, ID_1, 1))
            view = await watch.view()
            assert view.program is not None
            assert view.unproven_reads
            assert watch.watcher.health()["unsafe"] == ["finality_single", "unsafe_unproven_reads"]


async def test_evidence_is_the_agents_claim_outside_proven_mode(chain: FakeChain, node: FakeNode) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    async with watching(node) as watch:
        with pytest.raises(ChainWatcherError, match="WATCHER_NO_VIEW"):
            await watch.watcher.evidence(ID_1, ID_2, {})
        await watch.view()
        evidence = await watch.watcher.evidence(ID_1, ID_2, {})
        assert (evidence["mode"], evidence["genesis_hash"]) == ("single", chain.genesis_hash)
        assert evidence["enclave_ids"][0]["enclave_id"] == ID_1
        with pytest.raises(ChainWatcherError, match="EVIDENCE_NOT_READY"):
            await watch.watcher.evidence(ID_2, ID_1, {})


async def test_settings_that_contradict_each_other() -> None:
    for settings in (
        {"endpoints": ()},
        {"finality": "proven"},
        {"finality": "quorum"},
        {"finality": "proven", "checkpoint": {}, "genesis_hash": "0x", "unsafe_unproven_reads": True},
    ):
        with pytest.raises(ChainWatcherError, match="WATCHER_CONFIG_INVALID"):
            async with watching("ws://127.0.0.1:1", **settings):
                pass


# --- the journal


async def test_the_journalled_block_is_a_floor(chain: FakeChain, node: FakeNode) -> None:
    for _ in range(3):
        last = await chain.advance()
    await chain.finalize(1)
    async with watching(node, since=BlockRef(3, "0x" + last.hash.hex())) as watch:
        await until(lambda: watch.watcher.counters.went_back)
        assert watch.waiting == 0
        await chain.finalize(3)
        assert (await watch.view()).block_number == 3


async def test_another_history_than_the_journalled_one_is_a_lie(chain: FakeChain, node: FakeNode) -> None:
    fork = chain.child(chain.main[0], salt=7)
    del chain.blocks[fork.hash]
    await chain.advance()
    await chain.advance()
    async with watching(node, since=BlockRef(1, "0x" + fork.hash.hex())) as watch:
        await until(lambda: watch.watcher.health()["lying"])
        assert watch.watcher.health()["endpoints"][0]["accusations"] == ["ENDPOINT_FORKED_FINALITY"]
    known = chain.child(chain.main[0], salt=7)
    async with watching(node, since=BlockRef(1, "0x" + known.hash.hex())) as watch:
        await until(lambda: watch.watcher.health()["lying"])
        assert watch.waiting == 0


# --- announcements before finality (case B7)


@pytest.mark.parametrize(
    ("entries", "named", "announced"),
    [
        ([entry(2, ID_1), entry(9, ID_2)], ID_2, True),
        ([entry(2, ID_1), entry(2, ID_2)], ID_2, False),  # not newer than the finalized program
        ([entry(9, ID_1), entry(9, ID_2)], ID_1, False),  # the same program, its height made up
        ([entry(9, ID_3), entry(2, ID_1)], ID_3, False),  # an old id that was removed: its lowest height counts
        ([entry(5, ID_2, BAD)], ID_2, False),
    ],
)
async def test_only_a_newer_release_is_announced(
    chain: FakeChain, node: FakeNode, entries: list[Entry], named: str, announced: bool
) -> None:
    """A best block is the claim of one endpoint: it may be invented, with an old signed id."""
    await chain.advance(chain.change(program(ID_3), [entry(1, ID_3)]))
    async with watching(node) as watch:
        await watch.view()
        for _ in range(2):
            await chain.advance(chain.change(program(ID_1), [entry(2, ID_1)]))
        assert (await watch.view()).program is not None
        read, before = watch.watcher.counters.speculated, len(watch.announced)
        made_up = chain.child(chain.best, chain.change(program(named, "9.0.0"), entries), salt=4)
        await chain.announce_best(made_up)
        await until(lambda: watch.watcher.counters.speculated > read)
        await until(lambda: len(watch.announced) == before + announced)
        assert [one.enclave_id for one in watch.announced[before:]] == ([named] if announced else [])
        assert watch.waiting == 0


async def test_the_same_announcement_is_made_once_and_displaces_no_view(chain: FakeChain, node: FakeNode) -> None:
    await chain.advance()
    config = WatcherConfig((node.url,), "single", pool=QUICK)
    watcher = Watcher(config, verify)
    run = asyncio.create_task(watcher.run())
    await until(lambda: len(watcher._views.news) == 1)
    for number in range(20):
        enclave_id = f"{number:064x}"
        block = chain.child(chain.best, publish(chain, enclave_id, 5 + number), salt=number)
        await chain.announce_best(block)
        await chain.announce_best(block)
        await until(lambda number=number: watcher.counters.speculated > number)
    queue = watcher._views.news
    assert (len(queue), len(queue._announced)) == (1, ANNOUNCED_MAX)
    news = watcher.news()
    assert isinstance(await anext(news), ChainView)
    first = await anext(news)
    assert isinstance(first, Announced)
    assert first.endpoint == node.url
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)


async def test_a_restart_with_stored_layouts_asks_for_no_metadata(
    chain: FakeChain, node: FakeNode, tmp_path: Path
) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    file = tmp_path / "layouts.json"
    for asked in (1, 1):
        async with watching(node, layouts_file=file) as watch:
            assert (await watch.view()).program is not None
            await until(file.exists)
        assert node.count("state_getMetadata") == asked
