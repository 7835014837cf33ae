"""The state of one block: headers checked by hash, values checked by proof, decoded by the right runtime's layout.

Which runtime? Storage at block N has the layout of the runtime that executed N, which is the one in the state of its
parent (after ``set_code`` in N the layout is still the old one). frame-system writes that runtime's version to
``System.LastRuntimeUpgrade`` in the first block it executes, so the version comes under the same proof as the values.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from chain_watcher.endpoints.endpoint import QUERY_STORAGE, READ_PROOF, Endpoint
from chain_watcher.endpoints.rpc import RpcError
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.header import Header
from chain_watcher.proof.layout import Layout, RawProgram, storage_key
from chain_watcher.proof.release import ChainEntry, lowest_heights, read_entries
from chain_watcher.proof.scale import Reader
from chain_watcher.proof.trie import read_proof

from .metadata import ChainLayout, LayoutCache, read_metadata

#: ``Option<LastRuntimeUpgradeInfo>``: Compact<u32> spec version, then the spec's name (frame-system).
LAST_UPGRADE_KEY: Final = storage_key("System", "LastRuntimeUpgrade")
#: Metadata is some hundred kilobytes and comes once for each runtime.
METADATA_TIMEOUT_S: Final = 30.0
SAID_MAX: Final = 64
#: For so long an endpoint's refused metadata is not asked for again. It may be mended after that, or was another's.
REFUSED_S: Final = 300.0
ZERO_ROOT: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class BlockState:
    """What one block's state says. ``timestamp_ms`` is 0 where the block has none (genesis)."""

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
    """The block hash as JSON-RPC writes it."""
    return "0x" + header.hash.hex()


def forged(code: str, endpoint: Endpoint, why: str) -> ChainWatcherError:
    """The error that names an endpoint which said what cannot be true (codes ``ENDPOINT_*``)."""
    return ChainWatcherError(
        code=code, what=endpoint.url, why=why, action="The endpoint is cut off and named in the status", kind="rejected"
    )


def proof_nodes(endpoint: Endpoint, answer: Any) -> list[bytes]:
    """The trie nodes of a ``state_getReadProof`` answer. ENDPOINT_PROOF_FORGED for another shape."""
    try:
        return [bytes.fromhex(node[2:]) for node in answer["proof"]]
    except (TypeError, KeyError, ValueError) as problem:
        raise forged("ENDPOINT_PROOF_FORGED", endpoint, "its proof is not a list of hex texts") from problem


class StateReader:
    """Reads headers and states through any endpoint; keeps the layouts of the runtimes it met."""

    def __init__(
        self,
        *,
        unproven_allowed: bool,
        layout_hashes: tuple[str, ...],
        others: Callable[[Endpoint], list[Endpoint]],
        layouts: LayoutCache | None = None,
        blame: Callable[[Endpoint, ChainWatcherError], None] = lambda _endpoint, _problem: None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.unproven_allowed = unproven_allowed
        self.current: tuple[int, ChainLayout] | None = None
        self.layouts_read = 0
        self.layouts_confirmed = 0
        self._layout_hashes = frozenset(layout_hashes)
        self._others = others
        self._layouts = layouts or LayoutCache()
        self._blame = blame
        self._now = now
        #: Metadata is large: what an endpoint (URL) gave for a runtime is kept, and what was refused is for a while.
        self._said: OrderedDict[tuple[str, int], ChainLayout | ChainWatcherError] = OrderedDict()
        self._refused_at: dict[tuple[str, int], float] = {}
        self._reading: dict[tuple[str, int], asyncio.Task[ChainLayout]] = {}
        self._genesis = ""

    async def close(self) -> None:
        """End what is still being read for nobody."""
        reading = list(self._reading.values())
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)

    async def header(self, endpoint: Endpoint, block_hash: str) -> Header:
        """The header of that hash. ENDPOINT_HEADER_FORGED when it is another's, ENDPOINT_GARBAGE when unknown."""
        answer = await endpoint.ask("chain_getHeader", block_hash)
        if answer is None:
            raise ChainWatcherError(
                code="ENDPOINT_GARBAGE", what=endpoint.url, why=f"does not know block {block_hash}", kind="transient"
            )
        header = Header.from_json(answer)
        if hash_text(header) != block_hash:
            raise forged("ENDPOINT_HEADER_FORGED", endpoint, f"asked for {block_hash}, got {hash_text(header)}")
        return header

    async def read(self, endpoint: Endpoint, header: Header, genesis_hash: str) -> BlockState:
        """Both items and the timestamp at ``header``; ENDPOINT_*, RPC_*, CHAIN_WITHOUT_PALLET, LAYOUT_*, SCALE_*.

        A layout is kept for a runtime once values were decoded by it whose proof names that runtime: what an endpoint
        merely says of its version or its metadata leaves nothing behind.
        """
        self._genesis = genesis_hash
        spec, found = self.current or await self._first_layout(endpoint, header)
        values = await self._values(endpoint, header, found.layout)
        executed_by = _spec_version(values[LAST_UPGRADE_KEY])
        if executed_by is None:
            executed_by = await self._asked_version(endpoint, _parent_or_self(header))
        if executed_by != spec:
            if self.current is None:
                self._said.pop((endpoint.url, spec), None)
            found = await self._layout(endpoint, header, executed_by)
            values = await self._values(endpoint, header, found.layout)
        proven = not self._unproven(endpoint, header)
        try:
            state = _decode(header, values, found.layout, executed_by, endpoint.url, proven=proven)
        except ChainWatcherError as problem:
            if not proven:
                raise
            found, state = await self._read_otherwise(endpoint, header, executed_by, found, problem)
        if self.current is None or self.current[1] is not found:
            self._layouts.put(self._genesis, executed_by, found)
        self.current = executed_by, found
        return state

    async def _read_otherwise(
        self, endpoint: Endpoint, header: Header, version: int, wrong: ChainLayout, problem: ChainWatcherError
    ) -> tuple[ChainLayout, BlockState]:
        """Proven values that do not follow a layout: by this endpoint's own metadata, where it says something else.

        Whoever gave the wrong metadata is named then. LAYOUT_MISMATCH where it says the same, or does not fit either.
        """
        own = await self._said_by(endpoint, header, version)
        try:
            if own.layout == wrong.layout:
                raise problem
            values = await self._values(endpoint, header, own.layout)
            state = _decode(header, values, own.layout, version, endpoint.url, proven=True)
        except ChainWatcherError as still:
            if isinstance(still, RpcError) or still.code.startswith("ENDPOINT_"):
                raise
            raise ChainWatcherError(
                code="LAYOUT_MISMATCH",
                what=f"{endpoint.url}, runtime {version}, block {header.number}",
                why=f"proven values do not follow the layout of its metadata ({still})",
                action="Where no other endpoint's metadata fits either, the chain's items need to be set anew",
            ) from still
        for other in self._others(endpoint):
            said = self._said.get((other.url, version))
            if isinstance(said, ChainLayout) and said.layout == wrong.layout:
                self._blame(other, forged("ENDPOINT_METADATA_FORGED", other, f"block {header.number}: {problem}"))
        return own, state

    def _unproven(self, endpoint: Endpoint, header: Header) -> bool:
        return header.state_root == ZERO_ROOT or not endpoint.offers(READ_PROOF)

    async def _values(self, endpoint: Endpoint, header: Header, layout: Layout) -> dict[bytes, bytes | None]:
        keys = [*layout.keys.values(), LAST_UPGRADE_KEY]
        if not self._unproven(endpoint, header):
            try:
                return await self._proven(endpoint, header, keys)
            except RpcError as problem:
                if not self.unproven_allowed or problem.rpc_code is None:
                    raise
                endpoint.methods -= {READ_PROOF}  # named in rpc_methods and refused all the same (Chopsticks)
        if not self.unproven_allowed:
            raise ChainWatcherError(
                code="ENDPOINT_NO_PROOFS",
                what=endpoint.url,
                why="it offers no storage proofs, so its values are mere claims",
                action="Use another endpoint, or set unsafe_unproven_reads for a development chain",
            )
        together = await self._unproven_together(endpoint, header, keys)
        return together or {key: await self._unproven_value(endpoint, header, key) for key in keys}

    async def _unproven_together(
        self, endpoint: Endpoint, header: Header, keys: list[bytes]
    ) -> dict[bytes, bytes | None] | None:
        """All values in one question; None where the answer has another shape (Chopsticks at its genesis block)."""
        if not endpoint.offers(QUERY_STORAGE):
            return None
        answer = await endpoint.ask(QUERY_STORAGE, ["0x" + key.hex() for key in keys], hash_text(header))
        try:
            (at,) = answer
            found = {bytes.fromhex(key[2:]): value and bytes.fromhex(value[2:]) for key, value in at["changes"]}
        except (TypeError, KeyError, ValueError):
            return None
        return found if at.get("block") == hash_text(header) and found.keys() == set(keys) else None

    async def _proven(self, endpoint: Endpoint, header: Header, keys: list[bytes]) -> dict[bytes, bytes | None]:
        answer = await endpoint.ask(READ_PROOF, ["0x" + key.hex() for key in keys], hash_text(header))
        nodes = proof_nodes(endpoint, answer)
        try:
            return dict(read_proof(header.state_root, nodes, keys))
        except ChainWatcherError as problem:
            raise forged("ENDPOINT_PROOF_FORGED", endpoint, f"block {header.number}: {problem}") from problem

    async def _unproven_value(self, endpoint: Endpoint, header: Header, key: bytes) -> bytes | None:
        answer = await endpoint.ask("state_getStorage", "0x" + key.hex(), hash_text(header))
        if answer is None:
            return None
        try:
            return bytes.fromhex(answer[2:])
        except (TypeError, KeyError, ValueError) as problem:  # KeyError: a slice of an object, from Python 3.12 on
            raise ChainWatcherError(
                code="ENDPOINT_GARBAGE", what=endpoint.url, why="a storage value that is not hex"
            ) from problem

    async def _asked_version(self, endpoint: Endpoint, block_hash: str) -> int:
        answer = await endpoint.ask("state_getRuntimeVersion", block_hash)
        version = answer.get("specVersion") if isinstance(answer, Mapping) else None
        if not isinstance(version, int):
            raise ChainWatcherError(code="ENDPOINT_GARBAGE", what=endpoint.url, why="a runtime version without number")
        return version

    async def _first_layout(self, endpoint: Endpoint, header: Header) -> tuple[int, ChainLayout]:
        version = await self._asked_version(endpoint, _parent_or_self(header))
        return version, await self._layout(endpoint, header, version)

    async def _layout(self, endpoint: Endpoint, header: Header, version: int) -> ChainLayout:
        """The layout of runtime ``version``, which executed ``header``: from the cache, else from the metadata.

        A pinned layout hash decides (LAYOUT_NOT_PINNED); without pins the other endpoints' metadata has to be the
        same, byte by byte, where they answer.
        """
        known = self._layouts.get(self._genesis, version)
        return known if known is not None else await self._said_by(endpoint, header, version)

    async def _said_by(self, endpoint: Endpoint, header: Header, version: int) -> ChainLayout:
        """The layout in this endpoint's own metadata, asked for once.

        Fetching and parsing it may take long: whoever gives up waiting for it finds it further on the next time.
        """
        key = (endpoint.url, version)
        said = self._said.get(key)
        if isinstance(said, ChainLayout):
            return said
        if said is not None and self._now() - self._refused_at[key] < REFUSED_S:
            raise said
        reading = self._reading.get(key)
        if reading is None:
            reading = asyncio.create_task(self._read_layout(endpoint, header, version), name=f"metadata {key}")
            self._reading[key] = reading
            reading.add_done_callback(lambda done: self._take_said(key, done))
        return await asyncio.shield(reading)

    def _take_said(self, key: tuple[str, int], done: asyncio.Task[ChainLayout]) -> None:
        self._reading.pop(key, None)
        if done.cancelled():
            return
        problem = done.exception()
        if problem is None:
            self._said[key] = done.result()
        elif (
            isinstance(problem, ChainWatcherError) and problem.kind == "rejected" and not isinstance(problem, RpcError)
        ):
            self._said[key] = problem
            self._refused_at[key] = self._now()
        while len(self._said) > SAID_MAX:
            self._refused_at.pop(self._said.popitem(last=False)[0], None)

    async def _read_layout(self, endpoint: Endpoint, header: Header, version: int) -> ChainLayout:
        at = _parent_or_self(header)
        text = await endpoint.ask("state_getMetadata", at, timeout_s=METADATA_TIMEOUT_S)
        known = self._layouts.accepted(version, text) if isinstance(text, str) else None
        if known is not None:
            return known
        found = await read_metadata(text)
        self.layouts_read += 1
        if self._layout_hashes:
            if found.layout.hash not in self._layout_hashes:
                raise ChainWatcherError(
                    code="LAYOUT_NOT_PINNED",
                    what=f"{endpoint.url}, runtime {version}",
                    why=f"layout {found.layout.hash} is none of the {len(self._layout_hashes)} pinned ones",
                    action="Where the chain's runtime was upgraded, review its layout and pin it",
                )
        else:
            await self._confirm(endpoint, at, text, version)
        self._layouts.accept(version, text, found)
        return found

    async def _confirm(self, endpoint: Endpoint, at: str, text: str, version: int) -> None:
        """Ask the others for the same metadata; more against than for it means that this endpoint's is forged."""
        agree, differ = 1, 0
        for other in self._others(endpoint):
            try:
                answer = await other.ask("state_getMetadata", at, timeout_s=METADATA_TIMEOUT_S)
            except ChainWatcherError:
                continue
            agree, differ = (agree + 1, differ) if answer == text else (agree, differ + 1)
        if differ and differ >= agree:
            why = f"runtime {version}: {differ} endpoints give other metadata, {agree} the same"
            raise forged("ENDPOINT_METADATA_FORGED", endpoint, why)
        self.layouts_confirmed += agree - 1


def _parent_or_self(header: Header) -> str:
    return "0x" + header.parent_hash.hex() if header.number else hash_text(header)


def _spec_version(value: bytes | None) -> int | None:
    return None if value is None else Reader(value, "LastRuntimeUpgrade").compact()


def _decode(
    header: Header,
    values: Mapping[bytes, bytes | None],
    layout: Layout,
    spec: int,
    url: str,
    *,
    proven: bool,
) -> BlockState:
    ids, program, now = (values[layout.keys[name]] for name in ("enclave_ids", "dc_program", "now"))
    listed = read_entries(layout.decode_enclave_ids(ids))
    return BlockState(
        header=header,
        timestamp_ms=layout.decode_now(now) if now is not None else 0,
        program=layout.decode_dc_program(program),
        entries=listed.entries,
        refused_entries=listed.refused,
        values=(ids, program),
        layout=layout,
        spec_version=spec,
        proven=proven,
        endpoint=url,
    )


def state_facts(state: BlockState) -> dict[str, Any]:
    """JSON-able facts of a state for health pages."""
    return {
        "number": state.header.number,
        "hash": hash_text(state.header),
        "timestamp_ms": state.timestamp_ms,
        "spec_version": state.spec_version,
        "layout_hash": state.layout.hash,
        "proven_reads": state.proven,
        "refused_entries": [error.code for error in state.refused_entries],
    }
