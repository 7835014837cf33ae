"""The state of one block: headers checked by hash, values checked by proof, decoded by the right runtime's layout.

Storage at block N has the layout of the runtime that executed N. That runtime is in the state of N's parent; after
`set_code` in N, N still has the old layout. frame-system writes the runtime's version to `System.LastRuntimeUpgrade` in
the first block that the runtime executes. So the same proof covers the version and the values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from chain_watcher.endpoints import answers
from chain_watcher.endpoints.endpoint import QUERY_STORAGE, READ_PROOF, Endpoint
from chain_watcher.endpoints.messages import RpcError
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.header import Header
from chain_watcher.proof.layout import VALUE_BYTES_MAX, Layout, RawProgram, storage_key
from chain_watcher.proof.release import ChainEntry, EntryList, lowest_heights, read_entries
from chain_watcher.proof.scale import Reader
from chain_watcher.proof.trie import PROOF_BYTES_MAX, PROOF_NODES_MAX, ReadProof

from .layout_finder import LayoutFinder
from .suspicion import forged

#: `Option<LastRuntimeUpgradeInfo>`: Compact<u32> spec version, then the spec's name (frame-system).
LAST_UPGRADE_KEY: Final = storage_key("System", "LastRuntimeUpgrade")
ZERO_ROOT: Final = bytes(32)
#: `EnclaveIds` over this size is decoded in a thread: some 370 entries, a few milliseconds.
LARGE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class BlockState:
    """The relevant values of one block's state. `timestamp_ms` is 0 if the block has none (genesis)."""

    header: Header
    timestamp_ms: int
    program: RawProgram | None
    entries: tuple[ChainEntry, ...]
    refused_entries: tuple[ChainWatcherError, ...]
    values: tuple[bytes | None, bytes | None]
    layout: Layout
    spec_version: int
    proven: bool
    endpoint: str

    @property
    def heights(self) -> dict[str, int]:
        """Enclave id -> lowest height at which it was added."""
        return lowest_heights((entry.enclave_id, entry.height) for entry in self.entries)


def hash_text(header: Header) -> str:
    """Return the block hash as JSON-RPC writes it."""
    return "0x" + header.hash.hex()


def read_proof_nodes(endpoint: Endpoint, answer: Any) -> list[bytes]:
    """Return the trie nodes of a `state_getReadProof` answer. Raises ENDPOINT_GARBAGE for another shape."""
    return answers.proof_nodes(endpoint.url, answer, PROOF_NODES_MAX, PROOF_BYTES_MAX)


async def ask_header(endpoint: Endpoint, block_hash: str) -> Header | None:
    """Return the header of that hash; None if the endpoint does not have it.

    Raises ENDPOINT_HEADER_FORGED for a different header, ENDPOINT_GARBAGE for an invalid one, and RPC_*.
    """
    answer = await endpoint.ask("chain_getHeader", block_hash)
    if answer is None:
        return None
    try:
        header = Header.from_json(answer)
    except ChainWatcherError as problem:
        raise answers.garbage(endpoint.url, f"header {block_hash}: {problem}") from problem
    if hash_text(header) != block_hash:
        raise forged("ENDPOINT_HEADER_FORGED", endpoint, f"asked for {block_hash}, got {hash_text(header)}")
    return header


def behind(endpoint: Endpoint, what: str) -> ChainWatcherError:
    """The error for a block that an endpoint does not have: the endpoint, or one of its backends, lags or is pruned."""
    return ChainWatcherError(
        code="ENDPOINT_BEHIND", what=endpoint.url, why=f"it does not have {what}", kind="transient"
    )


class StateReader:
    """Reads states through any endpoint, using the layouts of the runtimes seen so far."""

    def __init__(self, layouts: LayoutFinder, *, unproven_allowed: bool) -> None:
        self.layouts = layouts
        self._unproven_allowed = unproven_allowed
        #: The runtime of the last state that was read: version and layout.
        self._current: tuple[int, Layout] | None = None
        #: The last `EnclaveIds`: layout hash and bytes, and the entries. Most blocks change nothing.
        self._entries: tuple[tuple[str, bytes | None], EntryList] = (("", None), EntryList((), ()))

    async def close(self) -> None:
        """Cancel metadata reads that nobody awaits any more."""
        await self.layouts.close()

    async def read(self, endpoint: Endpoint, header: Header, genesis_hash: str) -> BlockState:
        """Return both items and the timestamp at `header`.

        A layout is stored for a runtime only after it has decoded values whose proof names that runtime. Unproven
        claims of an endpoint about its version or metadata are never stored. Raises ENDPOINT_*, RPC_*,
        CHAIN_WITHOUT_PALLET, LAYOUT_*, METADATA_UNREADABLE, SCALE_*, PROOF_NODE_INVALID, PROOF_TOO_LARGE.
        """
        at = _parent_or_self(header)
        self._current = self._current or self.layouts.cache.newest(genesis_hash)
        if self._current is None:
            assumed = await self._asked_version(endpoint, at)
            layout = await self.layouts.layout(endpoint, at, assumed, genesis_hash)
        else:
            assumed, layout = self._current
        values = await self._values(endpoint, header, layout)
        version = _spec_version(values[LAST_UPGRADE_KEY])
        if version is None:
            version = await self._asked_version(endpoint, at)
        if version != assumed:
            if self._current is None:
                self.layouts.forget(endpoint, genesis_hash, assumed)
            layout = await self.layouts.layout(endpoint, at, version, genesis_hash)
            values = await self._values(endpoint, header, layout)
        proven = not self._unproven(endpoint, header)
        try:
            state = await self._decode(header, values, layout, version, endpoint.url, proven=proven)
        except ChainWatcherError as problem:
            if not proven:
                raise
            state = await self._read_anew(endpoint, header, version, problem)
        if self.layouts.cache.put(genesis_hash, version, state.layout):
            await self.layouts.save()
        self._current = version, state.layout
        if header.runtime_updated:  # the layout may change even if the version does not
            self._current = None
            self.layouts.forget(endpoint, genesis_hash, version)
        return state

    async def _read_anew(
        self, endpoint: Endpoint, header: Header, version: int, problem: ChainWatcherError
    ) -> BlockState:
        """Decode proven values that do not match the known layout, using this endpoint's freshly fetched metadata.

        Raises LAYOUT_MISMATCH if they do not match that either.
        """
        try:
            layout = await self.layouts.given_anew_by(endpoint, _parent_or_self(header), version)
            values = await self._values(endpoint, header, layout)
            return await self._decode(header, values, layout, version, endpoint.url, proven=True)
        except ChainWatcherError as still:
            if isinstance(still, RpcError) or still.code.startswith("ENDPOINT_"):
                raise
            raise ChainWatcherError(
                code="LAYOUT_MISMATCH",
                what=f"{endpoint.url}, runtime {version}, block {header.number}",
                why=f"proven values do not follow the layout of its metadata ({still})",
                action="Where no other endpoint's metadata fits either, the chain's items need to be set anew",
            ) from problem

    # --- values

    def _unproven(self, endpoint: Endpoint, header: Header) -> bool:
        return header.state_root == ZERO_ROOT or not endpoint.offers(READ_PROOF)

    async def _values(self, endpoint: Endpoint, header: Header, layout: Layout) -> dict[bytes, bytes | None]:
        keys = [*layout.keys.values(), LAST_UPGRADE_KEY]
        if not self._unproven(endpoint, header):
            try:
                return await self._proven(endpoint, header, keys)
            except RpcError as problem:
                if problem.rpc_code is None or (problem.code != "RPC_METHOD_MISSING" and not self._unproven_allowed):
                    raise
                endpoint.methods -= {READ_PROOF}  # Chopsticks lists it in rpc_methods but refuses it
        if not self._unproven_allowed:
            raise ChainWatcherError(
                code="ENDPOINT_NO_PROOFS",
                what=endpoint.url,
                why="it offers no storage proofs, so its values are mere claims",
                action="Use another endpoint, or set unsafe_unproven_reads for a development chain",
            )
        together = await self._unproven_together(endpoint, header, keys)
        return together or {key: await self._unproven_value(endpoint, header, key) for key in keys}

    async def _proven(self, endpoint: Endpoint, header: Header, keys: list[bytes]) -> dict[bytes, bytes | None]:
        """Return the values proven under the state root. Unneeded nodes are ignored."""
        answer = await endpoint.ask(READ_PROOF, ["0x" + key.hex() for key in keys], hash_text(header))
        nodes = dict.fromkeys(read_proof_nodes(endpoint, answer))
        try:
            proof = ReadProof(nodes)
            return {key: proof.read(header.state_root, key) for key in keys}
        except ChainWatcherError as problem:
            if problem.code != "PROOF_INCOMPLETE":
                raise
            raise forged("ENDPOINT_PROOF_FORGED", endpoint, f"block {header.number}: {problem}") from problem

    async def _unproven_together(
        self, endpoint: Endpoint, header: Header, keys: list[bytes]
    ) -> dict[bytes, bytes | None] | None:
        """Read all values in one request; None if the answer does not contain them."""
        if not endpoint.offers(QUERY_STORAGE):
            return None
        try:
            answer = await endpoint.ask(QUERY_STORAGE, ["0x" + key.hex() for key in keys], hash_text(header))
        except RpcError as problem:
            if problem.code != "RPC_METHOD_MISSING":
                raise
            return None
        found = answers.storage_changes(endpoint.url, answer, hash_text(header), VALUE_BYTES_MAX)
        return found if found is not None and found.keys() == set(keys) else None

    async def _unproven_value(self, endpoint: Endpoint, header: Header, key: bytes) -> bytes | None:
        answer = await endpoint.ask("state_getStorage", "0x" + key.hex(), hash_text(header))
        return answers.storage_value(endpoint.url, answer, VALUE_BYTES_MAX)

    async def _decode(
        self,
        header: Header,
        values: Mapping[bytes, bytes | None],
        layout: Layout,
        version: int,
        url: str,
        *,
        proven: bool,
    ) -> BlockState:
        ids, program, now = (values[layout.keys[name]] for name in ("enclave_ids", "dc_program", "now"))
        listed = await self._listed(layout, ids)
        return BlockState(
            header=header,
            timestamp_ms=layout.decode_now(now) if now is not None else 0,
            program=layout.decode_dc_program(program),
            entries=listed.entries,
            refused_entries=listed.refused,
            values=(ids, program),
            layout=layout,
            spec_version=version,
            proven=proven,
            endpoint=url,
        )

    async def _listed(self, layout: Layout, ids: bytes | None) -> EntryList:
        """Decode `EnclaveIds`. Thousands of entries take a tenth of a second; large lists are decoded in a thread."""
        key, (known, listed) = (layout.hash, ids), self._entries
        if known != key:
            large = ids is not None and len(ids) > LARGE_BYTES
            listed = await asyncio.to_thread(_entries, layout, ids) if large else _entries(layout, ids)
            self._entries = key, listed
        return listed

    async def _asked_version(self, endpoint: Endpoint, block_hash: str) -> int:
        return answers.spec_version(endpoint.url, await endpoint.ask("state_getRuntimeVersion", block_hash))


def _parent_or_self(header: Header) -> str:
    return "0x" + header.parent_hash.hex() if header.number else hash_text(header)


def _spec_version(value: bytes | None) -> int | None:
    return None if value is None else Reader(value, "LastRuntimeUpgrade").compact()


def _entries(layout: Layout, value: bytes | None) -> EntryList:
    return read_entries(layout.decode_enclave_ids(value))


def state_facts(state: BlockState) -> dict[str, Any]:
    """Return JSON-able facts of a state for the status."""
    return {
        "number": state.header.number,
        "hash": hash_text(state.header),
        "timestamp_ms": state.timestamp_ms,
        "spec_version": state.spec_version,
        "layout_hash": state.layout.hash,
        "proven_reads": state.proven,
        "refused_entries": [error.code for error in state.refused_entries],
    }
