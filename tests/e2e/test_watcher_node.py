"""Mode proven on a real node: set changes, evidence, liars, a live runtime upgrade, stalls and dropped forks."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from chain_watcher.proof.evidence import TrustRoot, verify_evidence
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.proof.layout import standard_layout
from chain_watcher.proof.release import BlockRef
from chain_watcher.watch.operator_queries import find_checkpoint, list_releases
from devnet.chain import DevChain
from devnet.chain_process import WASM_FILES
from devnet.extrinsics import ALICE_ED25519, Root
from devnet.lying_proxy import (
    Behind,
    ForgedHeader,
    ForgedMetadata,
    ForgedValue,
    FutureHeight,
    Lie,
    LyingProxy,
    NoMethods,
    OldState,
    WithheldChange,
)
from devnet.network import Network
from devnet.tcp_proxy import TcpProxy

from .watcher_at_work import at_work, proven, publish, verify

pytestmark = [pytest.mark.e2e, pytest.mark.node]

SLOT_MS = 600
FAILOVER_SLOT_MS = 1500  # a block is what failing over may cost: more than a busy machine stalls for
LAYOUT = standard_layout(fields=4)
PROGRAM_KEY = "0x" + LAYOUT.keys["dc_program"].hex()
ORIGIN_URL, OTHER_URL = ("0x" + url.hex() for url in (b"http://a/x", b"http://c/x"))
FRESH = (f"{number:064x}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def chain() -> Iterator[DevChain]:
    with DevChain("node", block_time_ms=SLOT_MS) as chain:
        yield chain


async def change_set(chain: DevChain, root: Root, in_blocks: int) -> None:
    """Schedules a set and waits until it is the one that finalizes."""
    arguments = {"authorities": [(ALICE_ED25519, 1)], "in_blocks": in_blocks, "median_finalized": None}
    block = await root.later(root.sudo, "Devnet", "schedule_authorities", arguments)
    await chain.wait_finalized(int((await chain.call("chain_getHeader", block))["number"], 16) + in_blocks + 1)


async def test_set_changes_are_followed_and_the_evidence_verifies(chain: DevChain) -> None:
    await chain.wait_finalized(1)
    settings = await proven(chain.ws_url)
    start = Checkpoint.from_json(settings["checkpoint"])
    root = Root(chain.ws_url)
    async with at_work(chain.ws_url, **settings) as work:
        first = next(FRESH)
        await publish(root, first, "1.0.0")
        view = await work.until_program(first)
        assert (view.finality, view.unproven_reads) == ("proven", False)
        for delay in (0, 3):
            await change_set(chain, root, delay)
            await work.until_block((await chain.finalized())[0])
        assert work.watcher.counters.set_changes == 2
        second = next(FRESH)
        await publish(root, second, "1.1.0")
        await work.until_program(second)
        assert work.watcher.counters.answered_ahead > 0
        assert work.announced[-1].enclave_id == second
        evidence = await work.watcher.evidence(second, first, {"chain": {"checkpoint": start.to_json()}})
        found = verify_evidence(evidence, TrustRoot(bytes.fromhex(chain.genesis_hash[2:]), start))
        assert found.program is not None
        assert found.program.enclave_id == second.encode()
        assert len(evidence["set_changes"]) == 2
        progress = work.progress[-1]
        assert work.watcher.health()["lying"] == []
    third = next(FRESH)
    await publish(root, third, "1.2.0")
    await change_set(chain, root, 0)
    since = BlockRef(progress["number"], progress["hash"])
    async with at_work(chain.ws_url, **settings, since=since, chain_state=progress["chain_state"]) as work:
        view = await work.until_program(third)
        assert work.watcher.counters.set_changes >= 1
        state = work.watcher.state
        assert state is not None
        listed = {one["enclave_id"]: one for one in list_releases(state, verify)}
        assert listed[third]["program"]
        assert listed[third]["newest"]
    async with at_work(chain.ws_url, **settings) as work:
        await work.until_program(third)
        assert work.watcher.counters.set_changes == 3, "from the old checkpoint the sets are followed anew"


async def test_a_checkpoint_is_what_the_node_votes_by(chain: DevChain) -> None:
    await chain.wait_finalized(1)
    answer = await find_checkpoint([chain.ws_url])
    assert answer.checkpoint.set_id == (await chain.call("grandpa_roundState"))["setId"]
    assert answer.genesis_hash == chain.genesis_hash


LIES = ["value", "header", "old state", "withheld change", "metadata", "future height", "behind", "no proofs"]


@pytest.mark.parametrize("name", LIES)
async def test_a_liar_is_never_believed_and_named(chain: DevChain, name: str) -> None:
    settings = await proven(chain.ws_url)
    root = Root(chain.ws_url)
    after = next(FRESH)
    if await chain.call("state_getStorage", PROGRAM_KEY) is None:
        await publish(root, next(FRESH), "0.9.0")
    _, old_hash = await chain.finalized()
    old = await chain.call("state_getStorage", PROGRAM_KEY)
    before = bytes.fromhex(old[2:])[24:88].decode()
    assert len(before.strip("0123456789abcdef")) == 0
    lies: dict[str, tuple[Lie, str]] = {
        # Every program published here has this URL, so each proof that the endpoint sends is forged.
        "value": (ForgedValue(PROGRAM_KEY, OTHER_URL, ORIGIN_URL), "ENDPOINT_PROOF_FORGED"),
        "header": (ForgedHeader({"stateRoot": "0x" + "11" * 32}), "ENDPOINT_HEADER_FORGED"),
        "old state": (OldState(old_hash), "ENDPOINT_PROOF_FORGED"),
        "withheld change": (WithheldChange({PROGRAM_KEY: old}), ""),
        "metadata": (ForgedMetadata(b"DcNode", b"DcNodf"), "ENDPOINT_METADATA_FORGED"),
        "future height": (FutureHeight(1000), "ENDPOINT_HEADER_FORGED"),
        "behind": (Behind(old_hash), ""),
        "no proofs": (NoMethods(("state_getReadProof",)), ""),
    }
    lie, code = lies[name]
    async with LyingProxy(chain.ws_url) as liar:
        liar.tell(lie)
        async with at_work(liar.ws_url, chain.ws_url, **settings) as work:
            if code:  # an audit follows each change, of the endpoints that are connected then
                await work.until(lambda health: len(work.watcher.pool.usable()) == 2 or bool(health["lying"]))
            await publish(root, after, "1.1.0")
            view = await work.until_program(after)
            assert view.program is not None
            assert all(one.program is None or one.program.enclave_id in (before, after) for one in work.seen)
            if code:
                health = await work.until(lambda health: bool(health["lying"]))
                assert health["lying"] == [liar.ws_url]
                assert health["endpoints"][0]["accusations"] == [code]


async def test_a_primary_that_is_cut_off_costs_no_more_than_a_block() -> None:
    async with DevChain("node", block_time_ms=FAILOVER_SLOT_MS) as chain:
        await chain.wait_finalized(1)
        settings = await proven(chain.ws_url)
        root = Root(chain.ws_url)
        proxy = TcpProxy(chain.port)
        await proxy.start()
        primary = f"ws://127.0.0.1:{proxy.port}"
        try:
            async with at_work(primary, **settings) as alone:
                first = next(FRESH)
                await publish(root, first, "1.0.0")
                await alone.until_program(first)
            async with at_work(primary, chain.ws_url, **settings) as work:
                await work.until_program(first)
                await proxy.cut()
                second = next(FRESH)
                await publish(root, second, "1.1.0")
                view = await work.until_program(second)
                number, _ = await chain.finalized()
                assert number - view.block_number <= 2
        finally:
            await proxy.cut()


async def test_a_primary_that_freezes_or_is_killed_costs_no_more_than_a_block() -> None:
    async with Network(block_time_ms=FAILOVER_SLOT_MS) as network:
        await network.full.wait_finalized(1)
        settings = await proven(network.alice.ws_url)
        root = Root(network.alice.ws_url)
        network.alice.pause()  # the first to answer is the primary
        async with at_work(network.full.ws_url, network.alice.ws_url, **settings) as work:
            await work.until(lambda health: health["endpoint"] is not None)
            network.alice.resume()
            early, frozen, killed = next(FRESH), next(FRESH), next(FRESH)
            await publish(root, early, "1.0.0")
            await work.until_program(early)
            assert work.watcher.health()["endpoint"] == network.full.ws_url
            network.full.pause()  # its sockets stay open and fall silent
            await publish(root, frozen, "1.1.0")
            view = await work.until_program(frozen)
            assert (await network.alice.finalized())[0] - view.block_number <= 1
            network.full.resume()
            network.full.kill()
            await publish(root, killed, "1.2.0")
            view = await work.until_program(killed)
            assert (await network.alice.finalized())[0] - view.block_number <= 1


async def test_a_live_runtime_upgrade() -> None:
    async with DevChain("node", block_time_ms=SLOT_MS) as chain:
        await chain.wait_finalized(1)
        settings = await proven(chain.ws_url)
        root = Root(chain.ws_url)
        async with at_work(chain.ws_url, **settings) as work:
            first, second = next(FRESH), next(FRESH)
            await publish(root, first, "1.0.0")
            await work.until_program(first)
            await root.later(root.set_code, WASM_FILES["moved"])
            await publish(root, second, "1.1.0", ("bafy1",))
            view = await work.until_program(second)
            assert view.program is not None
            assert view.program.cids == ("bafy1",)
            health = work.watcher.health()
            assert health["finalized"]["spec_version"] == 101
            assert health["counters"]["runtime_upgrades"] == 1
            assert health["lying"] == []


async def test_best_blocks_are_hints_and_only_finality_counts() -> None:
    async with Network(block_time_ms=SLOT_MS) as network:
        await network.full.wait_finalized(1)
        settings = await proven(network.full.ws_url)
        async with at_work(network.full.ws_url, **settings) as work:
            async with asyncio.timeout(90):
                await anext(work.views)
            network.bob.pause()
            early = next(FRESH)
            await publish(Root(network.full.ws_url), early, "1.0.0")
            final = asyncio.create_task(work.until_program(early, timeout_s=180))
            async with asyncio.timeout(90):
                while not work.announced:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert work.announced[-1].enclave_id == early
            assert all(view.program is None for view in work.seen)
            network.bob.resume()
            assert (await final).finality == "proven"
