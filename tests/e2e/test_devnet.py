"""A dev chain in Chopsticks: it starts from the runtime's own genesis, takes root calls, and leaves nothing behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from substrateinterface import SubstrateInterface

from devnet.chain import DevChain
from devnet.chain_process import WASM_FILES, RpcError, rpc_call
from devnet.extrinsics import Root
from devnet.lying_proxy import ForgedHeader, ForgedValue, LyingProxy
from devnet.tools import DevnetError

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parent.parent.parent
ENCLAVE_ID = "ab" * 32


@pytest.fixture(scope="module")
def chain() -> Iterator[DevChain]:
    with DevChain(block_time_ms=500) as chain:
        yield chain


def stored(chain: DevChain, item: str) -> object:
    with SubstrateInterface(url=chain.ws_url) as node:
        return node.query("DcNode", item).value


async def test_calls_of_the_pallet_change_storage_at_finalized_blocks(chain: DevChain) -> None:
    root = Root(chain.ws_url)
    await root.later(root.set_enclave_id, ENCLAVE_ID, "bsignature")
    await root.later(root.set_dc_program, "https://origin", "https://mirror", ENCLAVE_ID, "1.1.0")
    entries: Any = await asyncio.to_thread(stored, chain, "EnclaveIds")
    [(height, enclave_id, signature)] = entries
    assert (enclave_id, signature) == (ENCLAVE_ID, "bsignature")
    assert 1 <= height <= (await chain.finalized())[0]
    assert await asyncio.to_thread(stored, chain, "DcProgram") == {
        "origin_url": "https://origin",
        "mirror_url": "https://mirror",
        "enclave_id": ENCLAVE_ID,
        "version": "1.1.0",
    }
    await root.later(root.remove_enclave_id, ENCLAVE_ID)
    assert await asyncio.to_thread(stored, chain, "EnclaveIds") == []


async def test_only_root_may_call(chain: DevChain) -> None:
    bob = Root(chain.ws_url, "//Bob")
    with pytest.raises(DevnetError):
        await bob.later(bob.set_enclave_id, ENCLAVE_ID, "bsignature")


async def test_a_root_call_that_fails_in_its_block_is_an_error(chain: DevChain) -> None:
    root = Root(chain.ws_url)
    with pytest.raises(DevnetError, match="set_code failed"):
        await root.later(root.sudo, "System", "set_code", {"code": "0x00"})


@pytest.mark.slow
async def test_a_live_runtime_upgrade_moves_the_pallet_and_migrates_the_program() -> None:
    async with DevChain(block_time_ms=500) as chain:
        await upgrade_runtime(chain)


async def upgrade_runtime(chain: DevChain) -> None:
    root = Root(chain.ws_url)
    await root.later(root.set_dc_program, "o", "m", ENCLAVE_ID, "1.0.0")
    await root.later(root.set_code, WASM_FILES["moved"])
    await chain.wait_finalized((await chain.finalized())[0] + 2)
    assert (await chain.call("state_getRuntimeVersion"))["specVersion"] == 101
    before = {"origin_url": "o", "mirror_url": "m", "enclave_id": ENCLAVE_ID, "version": "1.0.0", "mirr_cids": []}
    assert await asyncio.to_thread(stored, chain, "DcProgram") == before
    await root.later(root.set_dc_program, "o", "m", ENCLAVE_ID, "1.1.0", ("bafy",))
    after = {**before, "version": "1.1.0", "mirr_cids": ["bafy"]}
    assert await asyncio.to_thread(stored, chain, "DcProgram") == after


async def test_blocks_are_made_on_request_alone_where_asked_for() -> None:
    async with DevChain(authoring=False) as chain:
        number, _ = await chain.finalized()
        await chain.new_block(3)
        assert (await chain.finalized())[0] == number + 3
        with pytest.raises(RpcError, match="not found"):
            await chain.call("no_such_method")


def test_a_port_in_use_is_refused_and_nothing_is_left() -> None:
    with pytest.raises(DevnetError, match="even and positive"):
        DevChain(block_time_ms=501)
    with DevChain() as chain:
        second = DevChain(port=chain.port)
        with pytest.raises(DevnetError, match="in use"):
            second.start_now()
        assert not second.is_running()
        folder = chain.folder
        assert folder.exists()
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_ends_with_its_chain(number: signal.Signals, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "devnet", "up", "--port", "0"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        http_url = url.replace("ws://", "http://")
        assert rpc_call(http_url, "chain_getFinalizedHead").startswith("0x")
        process.send_signal(number)
        code = process.wait(60)
    assert code == (0 if number != signal.SIGKILL else -signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            rpc_call(http_url, "chain_getFinalizedHead")
        except DevnetError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the chain outlived the command that started it")
    if number != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


async def test_a_proxy_lies_about_the_chain_and_can_be_cut(chain: DevChain) -> None:
    key = "0x3a636f6465"
    async with LyingProxy(chain.ws_url) as proxy, aiohttp.ClientSession() as session:
        async with session.ws_connect(proxy.ws_url) as socket:

            async def ask(method: str, *params: object) -> object:
                await socket.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
                return (await socket.receive_json(timeout=20))["result"]

            genesis = await ask("chain_getBlockHash", 0)
            assert genesis == chain.genesis_hash
            proxy.tell(ForgedValue(key, "0x0666"), ForgedHeader({"stateRoot": "0x66"}))
            assert await ask("state_getStorage", key) == "0x0666"
            header = await ask("chain_getHeader")
            assert isinstance(header, dict)
            assert header["stateRoot"] == "0x66"
            proxy.truth()
            code = await ask("state_getStorage", key)
            assert code == "0x" + WASM_FILES["base"].read_bytes().hex()
            await proxy.cut()
            assert (await socket.receive(timeout=20)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect(proxy.ws_url)
        proxy.join()
        async with session.ws_connect(proxy.ws_url) as socket:
            await socket.send_json({"jsonrpc": "2.0", "id": 1, "method": "system_chain", "params": []})
            assert (await socket.receive_json(timeout=20))["result"] == "DCNode devnet"
