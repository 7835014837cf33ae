"""Proven finality: authority sets followed, and evidence that verifies."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.evidence import TrustRoot, decode_set_changes, follow_set_changes, verify_evidence
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.proof.layout import standard_layout
from chain_watcher.proof.release import BlockRef
from chain_watcher.watch.config import WatchLimits
from chain_watcher.watch.evidence_maker import Bounds
from tests.doubles.chain_endpoint import FakeNode, RpcFaultError, octets, until
from tests.doubles.metadata_maker import vec
from tests.doubles.proving import ProvenChain, proven, voters
from tests.doubles.watching import ID_1, ID_2, publish


async def test_justified_blocks_give_views(chain: ProvenChain, node: FakeNode) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    async with proven(chain, node) as watch:
        first = await watch.view()
        assert first.program is not None
        assert first.finality == "proven"
        await chain.advance(publish(chain, ID_2, 2, "1.1.0"))
        second = await watch.view()
        assert second.program is not None
        assert second.program.enclave_id == ID_2
        assert watch.watcher.health()["unsafe"] == []


async def test_nothing_is_asked_at_finality_in_proven_mode_either(chain: ProvenChain, node: FakeNode) -> None:
    await chain.advance()
    async with proven(chain, node) as watch:
        await watch.view()
        chain.grow(publish(chain, ID_1, 2))
        await chain.announce_best()
        await until(lambda: watch.announced)
        asked = len(node.asked)
        await chain.finalize()
        assert (await watch.view()).program is not None
        assert len(node.asked) == asked


async def test_authority_sets_are_followed_live(chain: ProvenChain, node: FakeNode) -> None:
    seen: list[dict[str, Any]] = []
    await chain.advance()
    async with proven(chain, node, on_progress=seen.append) as watch:
        await watch.view()
        for number in range(3):
            chain.change_set(voters(f"set {number}"))
            await chain.announce_best()
            await chain.finalize()
            await chain.advance()
            await until(lambda: watch.watcher.health()["last_number"] == chain.finalized)
        await chain.advance(publish(chain, ID_1, chain.best.number + 1))
        assert (await watch.view()).program is not None
        assert watch.watcher.counters.set_changes == 3
        assert seen[-1]["chain_state"]["checkpoint"]["set_id"] == 3
    async with proven(chain, node, chain_state=seen[-1]["chain_state"]) as again:
        assert (await again.view()).program is not None
        assert again.watcher.counters.set_changes == 0


@pytest.mark.parametrize("gap_max", [512, 3])
async def test_authority_sets_are_followed_while_away(chain: ProvenChain, node: FakeNode, gap_max: int) -> None:
    for number in range(3):
        for _ in range(6):
            chain.grow()
        chain.change_set(voters(f"away {number}"))
    for _ in range(70):
        chain.grow()
    await chain.advance(publish(chain, ID_1, 50))
    chain.justifications[chain.best.number] = chain.justify(chain.best)
    async with proven(chain, node, limits=WatchLimits(gap_blocks_max=gap_max)) as watch:
        view = await watch.view()
        assert view.block_number == chain.best.number
        assert watch.watcher.counters.set_changes == 3


async def test_catching_up_over_many_set_changes_is_not_taken_for_slowness(chain: ProvenChain, node: FakeNode) -> None:
    """Turns end while another endpoint has news; each set that was proven in one is kept."""
    for number in range(100):
        chain.grow()
        chain.change_set(voters(f"set {number % 5}"))
    block = chain.grow(publish(chain, ID_1, 201))
    chain.justifications[block.number] = chain.justify(block)
    await chain.finalize(announce=False)
    limits = WatchLimits(gap_blocks_max=3, patience_s=0.2, given_up_max=2)
    async with FakeNode(chain, grandpa=True) as other, proven(chain, node, other, limits=limits) as watch:
        assert (await watch.view()).block_number == block.number
        await until(lambda: watch.watcher.counters.set_changes == 100)
        assert [one.connections for one in watch.watcher.pool.endpoints if one.problem] == []


async def test_evidence_for_a_vault_that_knows_the_beginning_of_a_long_set(chain: ProvenChain, node: FakeNode) -> None:
    """The proof of how the set ended is asked for nearer to its end, until it is small enough."""
    await chain.advance({standard_layout(fields=4).proof_keys[-1]: bytes.fromhex(chain.genesis_hash[2:])})
    for _ in range(60):
        chain.grow()
    chain.change_set(voters("later"))
    await chain.advance(publish(chain, ID_1, 63))
    truth = node.grandpa_proveFinality

    def bounded(number: int) -> str | None:
        if 62 - number > 25:
            raise RpcFaultError(-32008, "Response is too big")
        return truth(number)

    async with proven(chain, node) as watch:
        await watch.view()
        watch.watcher._decider.follower.changes.clear()  # type: ignore[attr-defined] # as after a restart
        node.overrides["grandpa_proveFinality"] = bounded
        state = {"chain": {"authorities": chain.start.to_json()}}
        with mock.patch("chain_watcher.proof.follower.SET_STEP_BLOCKS", 20):
            evidence = await watch.watcher.evidence(ID_1, ID_2, state)
        assert len(evidence["set_changes"]) == 1


@pytest.mark.parametrize("headers_max", [20, 0])
async def test_a_long_set_is_left_by_a_question_near_its_end(
    chain: ProvenChain, node: FakeNode, headers_max: int
) -> None:
    """Nodes refuse an answer that is too large; where none fits, the endpoint cannot help, and has not lied."""
    truth = node.grandpa_proveFinality

    def bounded(number: int) -> str | None:
        last = min((at for at in chain.set_ends if at >= number), default=chain.finalized)
        if last - number > headers_max:
            raise RpcFaultError(-32008, "Response is too big")
        return truth(number)

    node.overrides["grandpa_proveFinality"] = bounded
    for _ in range(29):
        chain.grow()
    await chain.advance()
    async with proven(chain, node, limits=WatchLimits(gap_blocks_max=3)) as watch:
        assert (await watch.view()).block_number == 30
        await node.stop()
        for _ in range(10):
            chain.grow()
        chain.change_set(voters("after a long set"))
        for _ in range(60):
            chain.grow()
        await node.start()
        await until(lambda: len(node.sockets) == 3 and watch.watcher.pool.usable())
        await chain.advance(publish(chain, ID_1, 50))
        if headers_max:
            while (await watch.view()).program is None:
                pass
        else:
            await watch.until_problem("ENDPOINT_NO_JUSTIFICATIONS")
            assert watch.watcher.pool.usable(), "it has not failed either"
        assert watch.watcher.health()["lying"] == []


async def test_a_justification_of_an_older_block_is_no_lie(chain: ProvenChain, node: FakeNode) -> None:
    """A node that has nothing newer answers with the best one it has."""
    for _ in range(2):
        await chain.advance()
    old = chain.main[1]
    await chain.advance(publish(chain, ID_1, 3))
    answer = "0x" + (old.hash + octets(chain.justify(old)) + vec([])).hex()
    node.overrides["grandpa_proveFinality"] = lambda _number: answer
    start = Checkpoint(2, 0, chain.start.authorities)
    async with proven(chain, node, checkpoint=start.to_json()) as watch:
        await until(lambda: node.count("grandpa_proveFinality"))
        await chain.advance()
        assert (await watch.view()).program is not None
        assert watch.watcher.health()["lying"] == []


async def test_a_change_that_takes_effect_after_a_restart(chain: ProvenChain, node: FakeNode) -> None:
    seen: list[dict[str, Any]] = []
    following = voters("later")
    listed = vec([bytes(one.verify_key) + (1).to_bytes(8, "little") for one in following])
    await chain.advance()
    async with proven(chain, node, on_progress=seen.append) as watch:
        await watch.view()
        chain.grow(digest=(b"\x04FRNK" + octets(b"\x01" + listed + (3).to_bytes(4, "little")),))
        await chain.announce_best()
        await chain.finalize()
        await chain.advance()
        await until(lambda: watch.watcher.health()["last_number"] == 3)
        assert watch.watcher.counters.set_changes == 0
    last = seen[-1]
    assert last["chain_state"]["scan_from"] == 1
    since = BlockRef(last["number"], last["hash"])
    chain.grow()
    await chain.advance(publish(chain, ID_1, 5))
    chain.set_ends[5] = 0
    chain.voters, chain.set_id = following, 1
    await chain.advance()
    async with proven(chain, node, since=since, chain_state=last["chain_state"]) as watch:
        assert (await watch.view()).block_number == 6
        assert watch.watcher.counters.set_changes == 1
        assert watch.watcher.health()["lying"] == []


@pytest.mark.parametrize("gap_max", [512, 3])
async def test_sets_that_changed_while_another_mode_was_in_use_are_followed(
    chain: ProvenChain, node: FakeNode, gap_max: int
) -> None:
    """The journal names a block, but not the set that was in force there."""
    await chain.advance()
    chain.change_set(voters("unseen"))
    for _ in range(8):
        last = await chain.advance()
    since = BlockRef(last.number, "0x" + last.hash.hex())
    await chain.advance(publish(chain, ID_1, 11))
    async with proven(chain, node, since=since, limits=WatchLimits(gap_blocks_max=gap_max)) as watch:
        assert (await watch.view()).program is not None
        health = watch.watcher.health()
        assert (health["counters"]["set_changes"], health["lying"]) == (1, [])


async def test_a_restart_does_not_go_through_a_long_set_again(chain: ProvenChain, node: FakeNode) -> None:
    """The journal says how far the set was followed: the way from its beginning may be a hundred thousand headers."""
    seen: list[dict[str, Any]] = []
    for _ in range(29):
        chain.grow()
    await chain.advance(publish(chain, ID_1, 30))
    async with proven(chain, node, on_progress=seen.append) as watch:
        await watch.view()
    since = BlockRef(seen[-1]["number"], seen[-1]["hash"])
    for _ in range(2):
        await chain.advance()
    settings = {"since": since, "chain_state": seen[-1]["chain_state"], "limits": WatchLimits(gap_blocks_max=3)}
    node.asked.clear()
    async with proven(chain, node, **settings) as watch:
        assert (await watch.view()).block_number == 32
        asked = [params[0] for method, params in node.asked if method == "grandpa_proveFinality"]
        assert all(number >= 30 for number in asked), asked


async def test_without_the_grandpa_methods_stored_justifications_serve(chain: ProvenChain) -> None:
    await chain.advance(publish(chain, ID_1, 1))
    async with FakeNode(chain, grandpa=False) as node, proven(chain, node) as watch:
        await until(lambda: node.count("chain_getBlock"))
        assert watch.waiting == 0
        block = chain.grow()
        chain.justifications[block.number] = chain.justify(block)
        await chain.finalize()
        assert (await watch.view()).block_number == block.number


async def test_evidence_verifies_from_the_vaults_own_checkpoint(chain: ProvenChain, node: FakeNode) -> None:
    genesis = bytes.fromhex(chain.genesis_hash[2:])
    key = standard_layout(fields=4).proof_keys[-1]
    await chain.advance({key: genesis})
    async with proven(chain, node) as watch:
        await watch.view()
        middle = None
        for number in range(2):
            chain.change_set(voters(f"set {number}"))
            await chain.announce_best()
            await chain.finalize()
            await until(lambda: watch.watcher.health()["last_number"] == chain.finalized)
            middle = middle or Checkpoint(chain.best.number, 1, tuple(chain.authorities()))
        await chain.advance(publish(chain, ID_1, 4))
        await watch.view()
        await until(lambda: watch.watcher.health()["last_number"] == chain.finalized)
        watch.watcher._decider.follower.changes.clear()  # type: ignore[attr-defined] # as after a restart
        state = {"chain": {"authorities": None, "checkpoint": chain.start.to_json()}}
        evidence = await watch.watcher.evidence(ID_1, ID_2, state)
        found = verify_evidence(evidence, TrustRoot(genesis, chain.start))
        assert found.program is not None
        assert found.program.enclave_id == ID_1.encode()
        assert len(evidence["set_changes"]) == 2
        assert middle is not None
        state = {"chain": {"authorities": middle.to_json()}}
        evidence = await watch.watcher.evidence(ID_1, ID_2, state)
        assert len(evidence["set_changes"]) == 1
        assert verify_evidence(evidence, TrustRoot(genesis, middle)).number == chain.finalized
        future = Checkpoint(99, 7, middle.authorities).to_json()
        with pytest.raises(ChainWatcherError, match="EVIDENCE_NOT_READY"):
            await watch.watcher.evidence(ID_1, ID_2, {"chain": {"authorities": future}})


@pytest.mark.parametrize("bounds", [Bounds(count=1, size=1 << 20), Bounds(count=9, size=1)], ids=["count", "size"])
async def test_a_vault_that_is_far_behind_is_led_to_the_running_set_in_steps(
    chain: ProvenChain, node: FakeNode, bounds: Bounds
) -> None:
    known = chain.start
    await chain.advance()
    async with proven(chain, node) as watch:
        await watch.view()
        for number in range(3):
            chain.change_set(voters(f"set {number}"))
            await chain.finalize()
        await chain.advance()
        await until(lambda: watch.watcher.health()["last_number"] == chain.finalized)
        steps = 0
        with mock.patch("chain_watcher.watch.evidence_maker.STEP", bounds):
            while step := await watch.watcher.next_set_changes({"chain": {"authorities": known.to_json()}}):
                assert len(step) == 1
                known = follow_set_changes(known, decode_set_changes(step))
                steps += 1
        assert (steps, known.set_id) == (3, 3)
        assert known.authorities == tuple(chain.authorities())


async def test_evidence_that_cannot_be_completed_accuses_nobody(chain: ProvenChain, node: FakeNode) -> None:
    """A node without old justifications has not lied, nor has one whose chain is far ahead of the vault."""
    state = {"chain": {"authorities": chain.start.to_json()}}
    await chain.advance()
    async with proven(chain, node) as watch:
        await watch.view()
        for number in range(2):
            chain.change_set(voters(f"set {number}"))
            await chain.finalize()
        await chain.advance(publish(chain, ID_1, 4))
        await until(lambda: watch.watcher.health()["last_number"] == chain.finalized)
        watch.watcher._decider.follower.changes.clear()  # type: ignore[attr-defined] # as after a restart
        node.overrides["grandpa_proveFinality"] = lambda _number: None
        with pytest.raises(ChainWatcherError, match="ENDPOINT_NO_JUSTIFICATIONS"):
            await watch.watcher.evidence(ID_1, ID_2, state)
        node.overrides.clear()
        with (
            mock.patch("chain_watcher.watch.evidence_maker.EVIDENCE_CHANGES", Bounds(count=1, size=1 << 20)),
            pytest.raises(ChainWatcherError, match=r"EVIDENCE_NOT_READY: .* step by step") as caught,
        ):
            await watch.watcher.evidence(ID_1, ID_2, state)
        assert caught.value.kind == "transient"
        assert watch.watcher.health()["lying"] == []
