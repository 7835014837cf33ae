"""Queries of operators: a checkpoint to pin, the list of releases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from chain_watcher.endpoints import answers
from chain_watcher.endpoints.rpc import RpcClient, RpcLimits, open_session
from chain_watcher.endpoints.tunnel import ProxyFor, no_proxy, proxy_of
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.proof.header import decode_authorities
from chain_watcher.proof.layout import storage_key
from chain_watcher.proof.release import SignatureVerifier
from chain_watcher.proof.scale import Reader

from .config import WatcherConfig
from .state_reader import BlockState
from .view import ChainView
from .watcher import Watcher

#: pallet_grandpa increments its set id when a change is scheduled, before the new set is in force.
PENDING_CHANGE_KEY: Final = storage_key("Grandpa", "PendingChange")
#: Seconds between two checks of the endpoints while none is connected.
LOOK_S: Final = 0.1
#: An authority takes 40 bytes.
RUNTIME_ANSWER_BYTES_MAX: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class CheckpointAnswer:
    """A checkpoint on which all endpoints agree, and the hash of its block."""

    genesis_hash: str
    block_hash: str
    checkpoint: Checkpoint
    endpoints: tuple[str, ...]


async def find_genesis(urls: Iterable[str], *, ca_file: str | None = None, proxy_for: ProxyFor = no_proxy) -> str:
    """Return the genesis hash (0x-hex) on which all endpoints agree.

    Raises RPC_*, ENDPOINT_DISAGREES, ENDPOINT_GARBAGE.
    """
    hashes: dict[str, str] = {}
    for url in dict.fromkeys(urls):
        async with open_session(proxy_of(url, proxy_for)) as session:
            client = await RpcClient.connect(session, url, RpcLimits(), ca_file=ca_file)
            try:
                found = answers.block_hash(url, await client.call("chain_getBlockHash", [0]))
            finally:
                await client.close()
        if found is None:
            raise answers.garbage(url, "its block 0 has no hash")
        hashes[url] = found
    first, *others = hashes
    for url in others:
        if hashes[url] != hashes[first]:
            why = f"its genesis hash is {hashes[url]}, that of {first} is {hashes[first]}"
            raise ChainWatcherError(code="ENDPOINT_DISAGREES", what=url, why=why)
    return hashes[first]


async def find_checkpoint(
    urls: Iterable[str],
    *,
    ca_file: str | None = None,
    proxy_for: ProxyFor = no_proxy,
    limits: RpcLimits | None = None,
) -> CheckpointAnswer:
    """Ask every endpoint for the GRANDPA set at one finalized block; all have to agree.

    The answer is the endpoints' claim: it is for a person to compare and to pin. Raises RPC_*, SCALE_*,
    ENDPOINT_DISAGREES, ENDPOINT_GARBAGE, CHECKPOINT_NOT_NOW.
    """
    limits = limits or RpcLimits()
    async with contextlib.AsyncExitStack() as stack:
        clients: list[RpcClient] = []
        for url in dict.fromkeys(urls):
            session = await stack.enter_async_context(open_session(proxy_of(url, proxy_for)))
            client = await RpcClient.connect(session, url, limits, ca_file=ca_file)
            stack.push_async_callback(client.close)
            clients.append(client)
        heights = [await _finalized_number(client) for client in clients]
        answers = [await _authorities(client, min(heights)) for client in clients]
    for client, answer in zip(clients, answers, strict=True):
        if answer != answers[0]:
            why = f"block {min(heights)}: it gives another hash, authority set or genesis than {clients[0].url}"
            raise ChainWatcherError(code="ENDPOINT_DISAGREES", what=client.url, why=why)
    genesis_hash, block_hash, checkpoint = answers[0]
    return CheckpointAnswer(genesis_hash, block_hash, checkpoint, tuple(client.url for client in clients))


async def _finalized_number(client: RpcClient) -> int:
    head = answers.block_hash(client.url, await client.call("chain_getFinalizedHead"))
    return answers.head_number(client.url, await client.call("chain_getHeader", [head]))


async def _authorities(client: RpcClient, number: int) -> tuple[str, str, Checkpoint]:
    """Genesis hash, hash of block `number`, and the set in force there."""
    genesis = answers.block_hash(client.url, await client.call("chain_getBlockHash", [0]))
    block_hash = answers.block_hash(client.url, await client.call("chain_getBlockHash", [number]))
    if genesis is None or block_hash is None:
        raise answers.garbage(client.url, f"it does not have block {number}")
    listed = await _runtime_answer(client, "GrandpaApi_grandpa_authorities", block_hash)
    set_id = await _runtime_answer(client, "GrandpaApi_current_set_id", block_hash)
    if await client.call("state_getStorage", ["0x" + PENDING_CHANGE_KEY.hex(), block_hash]) is not None:
        why = f"an authority set change is pending at block {number}"
        raise ChainWatcherError(
            code="CHECKPOINT_NOT_NOW", what=client.url, why=why, action="Try again in a few blocks", kind="transient"
        )
    reader = Reader(set_id, "GRANDPA set id")
    checkpoint = Checkpoint(number, reader.u64(), decode_authorities(listed))
    reader.finish()
    return genesis, block_hash, checkpoint


async def _runtime_answer(client: RpcClient, name: str, block_hash: str) -> bytes:
    answer = await client.call("state_call", [name, "0x", block_hash])
    return answers.hex_bytes(client.url, answer, RUNTIME_ANSWER_BYTES_MAX, "a runtime answer")


@contextlib.asynccontextmanager
async def first_view(
    config: WatcherConfig, verify: SignatureVerifier, timeout_s: float, connect_s: float | None = None
) -> AsyncIterator[tuple[Watcher, ChainView]]:
    """Run a watcher until its first view, believed as the settings say, and as long as the context lasts.

    Raises WATCHER_NO_VIEW: with the endpoints' own errors as soon as each of them has failed, at the latest when none
    is connected after `connect_s`; with the watcher's problem when there is no view within `timeout_s`.
    """
    watcher = Watcher(config, verify)
    run = asyncio.create_task(watcher.run())
    first = asyncio.ensure_future(anext(watcher.views()))
    try:
        try:
            async with asyncio.timeout(timeout_s):
                if connect_s is not None:
                    await _require_a_connection(watcher, first, connect_s)
                view = await first
        except TimeoutError as problem:
            why = str(watcher.problem) if watcher.problem else f"nothing was final within {timeout_s:g} s"
            raise ChainWatcherError(code="WATCHER_NO_VIEW", what="chain", why=why, kind="transient") from problem
        yield watcher, view
    finally:
        run.cancel()
        first.cancel()
        await asyncio.gather(run, first, return_exceptions=True)


async def _require_a_connection(watcher: Watcher, first: asyncio.Future[ChainView], connect_s: float) -> None:
    """Wait for the first view or a connection. Raises WATCHER_NO_VIEW where there will be neither."""
    deadline_s = asyncio.get_running_loop().time() + connect_s
    while not (await asyncio.wait({first}, timeout=LOOK_S))[0]:
        endpoints = watcher.health()["endpoints"]
        if any(one["state"] == "connected" for one in endpoints):
            return
        over = asyncio.get_running_loop().time() >= deadline_s
        if over or all(one["code"] for one in endpoints):
            said = (f"{one['code']}: {one['why']}" if one["code"] else f"{one['url']}: silent" for one in endpoints)
            raise ChainWatcherError(
                code="WATCHER_NO_VIEW", what="no endpoint can be reached", why="; ".join(said), kind="transient"
            )


def list_releases(state: BlockState, verify: SignatureVerifier) -> list[dict[str, Any]]:
    """Return every enclave id on chain, newest first: its height, its signatures, whether they are good, what it is."""
    heights = state.heights
    newest = max(heights.values(), default=None)
    found = []
    for enclave_id, height in sorted(heights.items(), key=lambda item: -item[1]):
        signatures = tuple(one.signature for one in state.entries if one.enclave_id == enclave_id and one.signature)
        found.append(
            {
                "enclave_id": enclave_id,
                "added_height": height,
                "signatures": len(signatures),
                "refused": _refusal(enclave_id, signatures, verify),
                "program": state.program is not None and state.program.enclave_id == enclave_id.encode(),
                "newest": height == newest,
            }
        )
    return found


def _refusal(enclave_id: str, signatures: tuple[bytes, ...], verify: SignatureVerifier) -> str | None:
    try:
        verify(enclave_id, signatures)
    except Exception as problem:  # whatever the verifier raises means: not verified
        return str(problem)
    return None


def release_facts(view: ChainView, state: BlockState | None, verify: SignatureVerifier) -> Mapping[str, Any]:
    """Return what `chain releases` prints: where it was read, how it is believed, the releases, what was refused."""
    if state is None:
        raise ChainWatcherError(code="WATCHER_NO_VIEW", what="releases", why="no state was read", kind="transient")
    return {
        "block_number": view.block_number,
        "block_hash": view.block_hash,
        "timestamp_ms": view.timestamp_ms,
        "finality": view.finality,
        "unproven_reads": view.unproven_reads,
        "refusal": view.refusal.code if view.refusal else None,
        "refused_entries": [error.code for error in state.refused_entries],
        "releases": list_releases(state, verify),
    }
