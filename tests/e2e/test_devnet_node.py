"""The Substrate node: finality by GRANDPA, proofs, stalled finality, dropped forks, a live runtime upgrade."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from substrateinterface import Keypair

from devnet.chain import DevChain
from devnet.chain_process import WASM_FILES
from devnet.extrinsics import ALICE_ED25519, Root
from devnet.network import Network, NetworkNode

pytestmark = [pytest.mark.e2e, pytest.mark.node]

SLOT_MS = 1000
ENCLAVE_ID = "cd" * 32


@pytest.fixture(scope="module")
def chain() -> Iterator[DevChain]:
    with DevChain("node", block_time_ms=SLOT_MS) as chain:
        yield chain


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    async with Network(block_time_ms=SLOT_MS) as network:
        yield network


async def eventually(what: str, condition: object, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)


async def test_it_finalizes_and_proves(chain: DevChain) -> None:
    finalized = await chain.wait_finalized(2)
    methods = set((await chain.call("rpc_methods"))["methods"])
    assert {
        "chainHead_v1_follow",
        "grandpa_subscribeJustifications",
        "grandpa_proveFinality",
        "state_getReadProof",
        "state_subscribeStorage",
        "chain_subscribeFinalizedHeads",
        "author_submitAndWatchExtrinsic",
        "system_accountNextIndex",
    } <= methods
    proof = await chain.call("state_getReadProof", ["0x3a636f6465"], finalized)
    assert proof["at"] == finalized
    assert len(proof["proof"]) >= 2
    header = await chain.call("chain_getHeader", finalized)
    assert header["stateRoot"] != "0x" + "00" * 32


async def test_both_kinds_of_chain_begin_with_the_same_block(chain: DevChain) -> None:
    async with DevChain("chopsticks", block_time_ms=SLOT_MS, authoring=False) as other:
        assert other.genesis_hash == chain.genesis_hash


async def test_another_set_of_authorities_takes_over_finality(chain: DevChain) -> None:
    before = (await chain.call("grandpa_roundState"))["setId"]
    root = Root(chain.ws_url)
    arguments = {"authorities": [(ALICE_ED25519, 7)], "in_blocks": 0, "median_finalized": None}
    await root.later(root.sudo, "Devnet", "schedule_authorities", arguments)

    async def changed() -> bool:
        state = await chain.call("grandpa_roundState")
        return bool(state["setId"] == before + 1 and state["best"]["totalWeight"] == 7)

    await eventually("the authority set did not change", changed)
    number, _ = await chain.finalized()
    await chain.wait_finalized(number + 2)
    # In the first set of a chain the node says "not covered by authority set changes" to this.
    for block in (1, number + 1):
        assert (await chain.call("grandpa_proveFinality", block)).startswith("0x")


async def test_a_live_runtime_upgrade(chain: DevChain) -> None:
    root = Root(chain.ws_url)
    await root.later(root.set_dc_program, "o", "m", ENCLAVE_ID, "1.0.0")
    await root.later(root.set_code, WASM_FILES["moved"])
    # The very block after set_code's runs on the new runtime, and takes the call in its new form.
    await root.later(root.set_dc_program, "o", "m", ENCLAVE_ID, "1.1.0", ("bafy",))
    assert (await chain.call("state_getRuntimeVersion"))["specVersion"] == 101
    number, _ = await chain.finalized()
    await chain.wait_finalized(number + 2)


async def test_finality_stalls_without_one_of_two_authorities(network: Network) -> None:
    await network.full.wait_finalized(1)
    network.bob.pause()
    await network.full.wait_grown(2)  # votes that were under way have come
    stalled, _ = await network.full.finalized()
    root = Root(network.full.ws_url)
    await root.later(root.set_enclave_id, ENCLAVE_ID, "bsignature")
    await network.full.wait_grown(2)
    assert (await network.full.finalized())[0] == stalled
    network.bob.resume()
    await network.full.wait_finalized(stalled + 1)


async def nonce(node: NetworkNode) -> int:
    alice = Keypair.create_from_uri("//Alice").ss58_address
    return int(await node.call("system_accountNextIndex", alice))


async def test_the_best_block_of_a_fork_is_dropped(network: Network) -> None:
    await network.full.wait_finalized(1)
    await network.part("bob", "full")
    doomed = Root(network.full.ws_url)
    dropped = await doomed.later(doomed.set_enclave_id, ENCLAVE_ID, "bdropped")
    network.bob.pause()
    # The same nonce on the other side: the doomed call can never come back.
    kept = Root(network.alice.ws_url)
    await kept.later(kept.set_enclave_id, ENCLAVE_ID, "bkept")
    fork_height = (await network.full.best())[0]

    async def ahead() -> bool:
        return (await network.alice.best())[0] > fork_height + 3

    await eventually("alice did not get ahead", ahead)
    network.bob.resume()
    await network.heal()
    number = (await network.alice.best())[0]
    await network.full.wait_finalized(number)
    height = int((await network.full.call("chain_getHeader", dropped))["number"], 16)
    assert await network.full.call("chain_getBlockHash", height) != dropped
    assert await nonce(network.full) == 1


async def test_a_killed_authority_comes_back(network: Network) -> None:
    await network.full.wait_finalized(1)
    network.bob.kill()
    await network.restart("bob")
    number, _ = await network.full.finalized()
    await network.full.wait_finalized(number + 2)
