"""Proven finality: authority sets followed, evidence that verifies, and liars who are never believed but named."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import pytest
from nacl.signing import SigningKey

from chain_watcher.config import WatchLimits
from chain_watcher.errors import ChainWatcherError
from chain_watcher.evidence import TrustRoot, verify_evidence
from chain_watcher.grandpa import Checkpoint
from chain_watcher.layout import standard_layout
from chain_watcher.release import BlockRef

from .fake_chain import FakeChain, FakeNode, RpcFaultError, hash256, octets, until
from .metadata_maker import PROGRAM_FIELDS, make_metadata, vec
from .watching import ID_1, ID_2, ID_3, Watching, program, publish, watching

PINNED = standard_layout(fields=4).hash


def voters(name: str) -> list[SigningKey]:
    return [SigningKey(hash256(f"{name} {number}".encode())) for number in range(4)]


class ProvenChain(FakeChain):
    """A chain that votes, with the checkpoint at its genesis."""

    def __init__(self) -> None:
        super().__init__()
        genesis = self.main[0]
        genesis.state[b"genesis"] = b"x"
        self.start = Checkpoint(0, 0, tuple(self.authorities()))

    def settings(self) -> dict[str, Any]:
        return {"finality": "proven", "checkpoint": self.start.to_json(), "genesis_hash": self.genesis_hash}


@pytest.fixture
def chain() -> ProvenChain:
    return ProvenChain()


@pytest.fixture
async def node(chain: ProvenChain) -> AsyncIterator[FakeNode]:
    async with FakeNode(chain, grandpa=True) as running:
        yield running


@contextlib.asynccontextmanager
async def proven(chain: ProvenChain, *nodes: FakeNode, **settings: Any) -> AsyncIterator[Watching]:
    async with watching(*nodes, **{**chain.settings(), **settings}) as watch:
        yield watch


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
        await until(lambda: watch.speculations)
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
            chain.hand_over(voters(f"set {number}"))
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
        chain.hand_over(voters(f"away {number}"))
    for _ in range(70):
        chain.grow()
    await chain.advance(publish(chain, ID_1, 50))
    chain.justifications[chain.best.number] = chain.justify(chain.best)
    async with proven(chain, node, limits=WatchLimits(gap_blocks_max=gap_max)) as watch:
        view = await watch.view()
        assert view.block_number == chain.best.number
        assert watch.watcher.counters.set_changes == 3


async def test_evidence_for_a_vault_that_knows_the_beginning_of_a_long_set(chain: ProvenChain, node: FakeNode) -> None:
    """The proof of how the set ended is asked for nearer to its end, until it is small enough."""
    await chain.advance({standard_layout(fields=4).proof_keys[-1]: bytes.fromhex(chain.genesis_hash[2:])})
    for _ in range(60):
        chain.grow()
    chain.hand_over(voters("later"))
    await chain.advance(publish(chain, ID_1, 63))
    truth = node.grandpa_proveFinality

    def bounded(number: int) -> str | None:
        if 62 - number > 25:
            raise RpcFaultError(-32008, "Response is too big")
        return truth(number)

    async with proven(chain, node) as watch:
        await watch.view()
        watch.watcher._decider.hand_overs.clear()  # type: ignore[attr-defined] # as after a restart
        node.overrides["grandpa_proveFinality"] = bounded
        state = {"chain": {"authorities": chain.start.to_json()}}
        with mock.patch("chain_watcher.finality.SET_STEP_BLOCKS", 20):
            evidence = await watch.watcher.evidence(ID_1, ID_2, state)
        assert len(evidence["set_changes"]) == 1


@pytest.mark.parametrize("headers_max", [20, 0])
async def test_a_long_set_is_left_by_a_question_near_its_end(
    chain: ProvenChain, node: FakeNode, headers_max: int
) -> None:
    """Nodes refuse an answer that is too large; where none fits, the endpoint cannot help, and has not lied."""
    truth = node.grandpa_proveFinality

    def bounded(number: int) -> str | None:
        last = min((at for at in chain.handovers if at >= number), default=chain.finalized)
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
        chain.hand_over(voters("after a long set"))
        for _ in range(60):
            chain.grow()
        await node.start()
        await until(lambda: len(node.sockets) == 3 and watch.watcher.pool.usable())
        blamed: list[str] = []
        distrust = watch.watcher.pool.distrust
        watch.watcher.pool.distrust = lambda one, why: (blamed.append(why.code), distrust(one, why))  # type: ignore
        await chain.advance(publish(chain, ID_1, 50))
        if headers_max:
            while (await watch.view()).program is None:
                pass
        else:
            await until(lambda: "ENDPOINT_NO_JUSTIFICATIONS" in blamed)
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
    chain.handovers[5] = 0
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
    chain.hand_over(voters("unseen"))
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
            chain.hand_over(voters(f"set {number}"))
            await chain.announce_best()
            await chain.finalize()
            await until(lambda: watch.watcher.health()["last_number"] == chain.finalized)
            middle = middle or Checkpoint(chain.best.number, 1, tuple(chain.authorities()))
        await chain.advance(publish(chain, ID_1, 4))
        await watch.view()
        await until(lambda: watch.watcher.health()["last_number"] == chain.finalized)
        watch.watcher._decider.hand_overs.clear()  # type: ignore[attr-defined] # as after a restart
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


async def test_evidence_that_cannot_be_completed_accuses_nobody(chain: ProvenChain, node: FakeNode) -> None:
    """A node that keeps no old justifications has not lied, nor has one whose chain left the vault far behind."""
    state = {"chain": {"authorities": chain.start.to_json()}}
    await chain.advance()
    async with proven(chain, node) as watch:
        await watch.view()
        for number in range(2):
            chain.hand_over(voters(f"set {number}"))
            await chain.finalize()
        await chain.advance(publish(chain, ID_1, 4))
        await until(lambda: watch.watcher.health()["last_number"] == chain.finalized)
        watch.watcher._decider.hand_overs.clear()  # type: ignore[attr-defined] # as after a restart
        node.overrides["grandpa_proveFinality"] = lambda _number: None
        with pytest.raises(ChainWatcherError, match="ENDPOINT_NO_JUSTIFICATIONS"):
            await watch.watcher.evidence(ID_1, ID_2, state)
        node.overrides.clear()
        with (
            mock.patch("chain_watcher.prover.SET_CHANGES_MAX", 1),
            pytest.raises(ChainWatcherError, match="EVIDENCE_TOO_LARGE"),
        ):
            await watch.watcher.evidence(ID_1, ID_2, state)
        assert watch.watcher.health()["lying"] == []


# --- liars: the first of two endpoints lies, the second is honest


async def believed(chain: ProvenChain, liar: FakeNode, honest: FakeNode, code: str, **settings: Any) -> None:
    """Only the truth comes out, and the liar is named."""
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

    node.announce_finalized = announce  # type: ignore[method-assign]
    await believed(chain, node, honest, "ENDPOINT_JUSTIFICATION_FORGED ENDPOINT_FORKED_FINALITY")


async def test_a_justification_by_another_set(chain: ProvenChain, node: FakeNode, honest: FakeNode) -> None:
    async def announce(block: Any) -> None:
        proof = chain.justify(block, voters=voters("others"))
        await node.notify("grandpa_subscribeJustifications", "0x" + proof.hex())

    node.announce_finalized = announce  # type: ignore[method-assign]
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
    """A runtime upgrade that forgets to migrate: nobody is cut off, and the next proper value is read."""
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
    """It makes up a long line of blocks and answers each question just within the deadline."""
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
        endpoint.unproven_since = -1000.0
        await until(lambda: endpoint.connections == 2)
        assert watch.watcher.health()["lying"] == [], "its subscription may have died"
        endpoint.unproven_since = -1000.0
        await until(lambda: watch.watcher.health()["lying"])
        assert watch.watcher.health()["endpoints"][0]["accusations"] == ["ENDPOINT_UNPROVEN_HEIGHT"]


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
