"""What people ask of the chain: a checkpoint to pin, the list of releases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from chain_watcher.endpoints.pool import head_number
from chain_watcher.endpoints.rpc import RpcClient, RpcLimits, open_session
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

#: pallet_grandpa counts its set id up when a change is scheduled, before the new set is in force.
PENDING_CHANGE_KEY: Final = storage_key("Grandpa", "PendingChange")


@dataclass(frozen=True, slots=True)
class CheckpointAnswer:
    """A checkpoint that every endpoint asked gave alike, and the block hash it belongs to."""

    genesis_hash: str
    block_hash: str
    checkpoint: Checkpoint
    endpoints: tuple[str, ...]


async def find_genesis(urls: Iterable[str], *, ca_file: str | None = None) -> str:
    """The genesis hash (0x-hex) on which all endpoints agree. Raises RPC_*, ENDPOINT_DISAGREES."""
    hashes: dict[str, str] = {}
    async with open_session() as session:
        for url in dict.fromkeys(urls):
            client = await RpcClient.connect(session, url, RpcLimits(), ca_file=ca_file)
            try:
                hashes[url] = str(await client.call("chain_getBlockHash", [0]))
            finally:
                await client.close()
    first, *others = hashes
    for url in others:
        if hashes[url] != hashes[first]:
            why = f"its genesis hash is {hashes[url]}, that of {first} is {hashes[first]}"
            raise ChainWatcherError(code="ENDPOINT_DISAGREES", what=url, why=why)
    return hashes[first]


async def find_checkpoint(
    urls: Iterable[str], *, ca_file: str | None = None, limits: RpcLimits | None = None
) -> CheckpointAnswer:
    """Ask every endpoint for the GRANDPA set at one finalized block; all have to agree.

    What comes back is the endpoints' word: it is for a person to compare and to pin. Raises RPC_*, SCALE_*,
    ENDPOINT_DISAGREES, ENDPOINT_GARBAGE.
    """
    limits = limits or RpcLimits()
    async with open_session() as session, contextlib.AsyncExitStack() as stack:
        clients: list[RpcClient] = []
        for url in dict.fromkeys(urls):
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
    return head_number(await client.call("chain_getHeader", [await client.call("chain_getFinalizedHead")]))


async def _authorities(client: RpcClient, number: int) -> tuple[str, str, Checkpoint]:
    genesis = await client.call("chain_getBlockHash", [0])
    block_hash = await client.call("chain_getBlockHash", [number])
    try:
        listed = bytes.fromhex(
            (await client.call("state_call", ["GrandpaApi_grandpa_authorities", "0x", block_hash]))[2:]
        )
        set_id = bytes.fromhex((await client.call("state_call", ["GrandpaApi_current_set_id", "0x", block_hash]))[2:])
    except (TypeError, KeyError, ValueError) as problem:  # KeyError: a slice of an object, from Python 3.12 on
        raise ChainWatcherError(
            code="ENDPOINT_GARBAGE", what=client.url, why="a runtime answer that is not hex"
        ) from problem
    if await client.call("state_getStorage", ["0x" + PENDING_CHANGE_KEY.hex(), block_hash]) is not None:
        why = f"an authority set change is pending at block {number}"
        raise ChainWatcherError(
            code="CHECKPOINT_NOT_NOW", what=client.url, why=why, action="Try again in a few blocks", kind="transient"
        )
    reader = Reader(set_id, "GRANDPA set id")
    checkpoint = Checkpoint(number, reader.u64(), decode_authorities(listed))
    reader.finish()
    return str(genesis), str(block_hash), checkpoint


@contextlib.asynccontextmanager
async def first_view(
    config: WatcherConfig, verify: SignatureVerifier, timeout_s: float, connect_s: float | None = None
) -> AsyncIterator[tuple[Watcher, ChainView]]:
    """A running watcher and its first view, believed as the settings say.

    Raises WATCHER_NO_VIEW: with the endpoints' own errors when none of them is connected after `connect_s`, with the
    watcher's problem when there is no view within `timeout_s`.
    """
    watcher = Watcher(config, verify)
    run = asyncio.create_task(watcher.run())
    first = asyncio.ensure_future(anext(watcher.views()))
    try:
        try:
            async with asyncio.timeout(timeout_s):
                if not (await asyncio.wait({first}, timeout=connect_s))[0]:
                    _require_a_connection(watcher)
                view = await first
        except TimeoutError as problem:
            why = str(watcher.problem) if watcher.problem else f"nothing was final within {timeout_s:g} s"
            raise ChainWatcherError(code="WATCHER_NO_VIEW", what="chain", why=why, kind="transient") from problem
        yield watcher, view
    finally:
        run.cancel()
        first.cancel()
        await asyncio.gather(run, first, return_exceptions=True)


def _require_a_connection(watcher: Watcher) -> None:
    endpoints = watcher.health()["endpoints"]
    if not any(one["state"] == "connected" for one in endpoints):
        why = "; ".join(f"{one['code']}: {one['why']}" if one["code"] else f"{one['url']}: silent" for one in endpoints)
        raise ChainWatcherError(code="WATCHER_NO_VIEW", what="no endpoint can be reached", why=why, kind="transient")


def list_releases(state: BlockState, verify: SignatureVerifier) -> list[dict[str, Any]]:
    """Every enclave id on chain, newest first: height, number of signatures, whether they are good, what it is."""
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
    """What ``chain releases`` prints: where it was read, how it is believed, the releases, what was refused."""
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
