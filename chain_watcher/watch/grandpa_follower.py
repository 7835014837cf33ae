"""Who says that a block is final: one endpoint, a quorum of them, or the chain's GRANDPA authorities.

A decider takes events of the pool and answers with headers that are final by its mode; it raises errors that name an
endpoint. Proven finality follows the authority sets from the pinned checkpoint and keeps every set change as proof.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from chain_watcher.endpoints.endpoint import JUSTIFICATIONS, PROVE_FINALITY, Endpoint, Event
from chain_watcher.endpoints.rpc import RpcError
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.evidence import SetChange
from chain_watcher.proof.grandpa import Checkpoint, Justification, verify_finality, verify_justification
from chain_watcher.proof.header import Header
from chain_watcher.proof.scale import Reader

from .counters import Counters
from .headers import FinalBlock, Headers, ancestry
from .state_reader import StateReader, forged, hash_text

FINALITY_PROOF_BYTES_MAX: Final = 8 * 1024 * 1024
UNKNOWN_HEADERS_MAX: Final = 100_000
#: A scheduled change is looked for so many blocks before the block where it takes effect (delays are 0 in practice).
CHANGE_DELAY_MAX: Final = 64
#: JSON-RPC error codes of an answer that is too large (jsonrpsee, and before its 0.16).
TOO_LARGE_CODES: Final = frozenset({-32008, -32702})
#: Nodes allow 15 MiB, in hex: more than so many headers, unless those are over 700 bytes each.
SET_STEP_BLOCKS: Final = 10_000
SET_STEPS_MAX: Final = 1000
#: Set changes kept in memory for evidence; older ones are asked for again.
CHANGES_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class HandOver:
    """A proven set change and the checkpoint after it."""

    change: SetChange
    after: Checkpoint


class ProvenDecider:
    """GRANDPA justifications under the authority set that follows from the checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        reader: StateReader,
        headers: Headers,
        gap_max: int,
        counters: Counters,
        followed: int = 0,
    ) -> None:
        self.checkpoint = checkpoint
        self.hand_overs: OrderedDict[int, HandOver] = OrderedDict()
        self._reader = reader
        self._headers = headers
        self._gap_max = gap_max
        self._counters = counters
        #: Headers from one that ordered a change not yet in force up to the last final one.
        self._pending: list[Header] = []
        #: Up to this block changes of the set were looked for; what another mode held for final does not count.
        self._followed = followed

    def to_json(self) -> dict[str, Any]:
        """What a restart needs: the set in force, and the block below the first header that orders its end, if any."""
        out: dict[str, Any] = {"checkpoint": self.checkpoint.to_json()}
        if self._pending:
            out["scan_from"] = self._pending[0].number - 1
        return out

    async def decide(self, event: Event, last: Header | None) -> FinalBlock | None:
        """Verify a justification, or look for one where an endpoint only gives heads."""
        floor = max(self.checkpoint.number, last.number if last else 0)
        if event.kind == "justification":
            data = _hex_bytes(event.endpoint, event.value)
            if _target(event.endpoint, data).target_number <= floor:
                return None
            return await self._verified(event.endpoint, data, last)
        if event.kind != "finalized":
            return None
        header = Header.from_json(event.value)
        self._headers.add(header)
        if header.number <= floor or (event.endpoint.offers(JUSTIFICATIONS) and last is not None):
            return None
        found = await self.justification_for(event.endpoint, header)
        if found is None or _target(event.endpoint, found).target_number <= floor:
            return None  # nodes answer with the best one they have, which may be an older block's
        return await self._verified(event.endpoint, found, last)

    async def justification_for(self, endpoint: Endpoint, header: Header) -> bytes | None:
        """A justification for ``header`` or another block, unverified; None where there is none yet."""
        if endpoint.offers(PROVE_FINALITY):
            answer = await _prove_finality(endpoint, header.number)
            if answer is not None:
                return decode_finality_proof(endpoint, answer)[1]
        return await _stored(endpoint, header)

    async def _verified(self, endpoint: Endpoint, data: bytes, last: Header | None) -> FinalBlock:
        block_hash = _target(endpoint, data).target_hash
        header = self._headers.get(block_hash) or await self._reader.header(endpoint, "0x" + block_hash.hex())
        self._headers.add(header)
        floor = max(self.checkpoint.number, self._followed)
        chain = await ancestry(self._reader, self._headers, endpoint, header, floor, self._gap_max)
        if chain is None:
            await self._hop(endpoint, header, data, floor)
            floor = max(self.checkpoint.number, header.number - CHANGE_DELAY_MAX)
            chain = await ancestry(self._reader, self._headers, endpoint, header, floor, self._gap_max) or [header]
            self._pending = []
        elif last is not None and floor == last.number and chain[0].parent_hash != last.hash:
            why = f"block {chain[0].number} does not descend from the final block {last.number}"
            raise forged("ENDPOINT_FORKED_FINALITY", endpoint, why)
        await self._follow(endpoint, chain, data)
        self._followed = header.number
        self._counters.justifications += 1
        return FinalBlock(endpoint, header, data)

    async def _follow(self, endpoint: Endpoint, chain: list[Header], data: bytes) -> None:
        """Verify ``data`` for the end of ``chain``, by way of every set change inside it."""
        rest = self._pending + chain
        while True:
            end = _end_of_set(rest)
            inside = end is not None and end < rest[-1].number
            count = (end or 0) - rest[0].number + 1 if inside else len(rest)
            part, proof = rest[:count], data
            if inside:
                found = await _stored(endpoint, part[-1]) or await self.justification_for(endpoint, part[-1])
                if found is None:
                    why = f"no justification for block {part[-1].number}, the last of set {self.checkpoint.set_id}"
                    raise ChainWatcherError(
                        code="ENDPOINT_NO_JUSTIFICATIONS", what=endpoint.url, why=why, kind="transient"
                    )
                proof = found
            self._apply(endpoint, part, proof)
            rest = rest[count:]
            if not rest:
                return

    def _apply(self, endpoint: Endpoint, part: list[Header], proof: bytes) -> None:
        before = self.checkpoint
        try:
            after = verify_finality(before, part, proof)
        except ChainWatcherError as problem:
            raise forged("ENDPOINT_JUSTIFICATION_FORGED", endpoint, f"block {part[-1].number}: {problem}") from problem
        if after.set_id == before.set_id:
            ordered = next((i for i, one in enumerate(part) if one.grandpa_change() is not None), None)
            self._pending = [] if ordered is None else part[ordered:]
            return
        self._pending = []
        self.checkpoint = after
        self.hand_overs[before.set_id] = HandOver(SetChange(tuple(_from_change(part)), proof), after)
        while len(self.hand_overs) > CHANGES_KEPT:
            self.hand_overs.popitem(last=False)
        self._counters.set_changes += 1

    async def _hop(self, endpoint: Endpoint, target: Header, data: bytes, known: int) -> None:
        """Cross many blocks by the last block of each authority set, as ``grandpa_proveFinality`` gives them.

        ``known`` is the last final block. Nodes send all headers from the block asked for to the end of its set, so
        the first question begins there and not where the set began.
        """
        while self.checkpoint.number < target.number:
            found = await self.hand_over(endpoint, self.checkpoint, known)
            if found is None:
                self._require_running(endpoint, target, data)
                return
            self._apply(endpoint, list(found.change.headers), found.change.justification)

    def _require_running(self, endpoint: Endpoint, target: Header, data: bytes) -> None:
        """No proof that the set ended: then it has to be the one that signed, or the endpoint cannot lead us there."""
        try:
            verify_justification(data, self.checkpoint.set_id, self.checkpoint.authorities)
        except ChainWatcherError as problem:
            why = f"block {target.number} is not signed by set {self.checkpoint.set_id}, and it does not prove its end"
            raise ChainWatcherError(
                code="ENDPOINT_NO_JUSTIFICATIONS",
                what=endpoint.url,
                why=why,
                action="Name an endpoint that keeps old justifications, or pin a newer checkpoint",
                kind="transient",
            ) from problem

    async def hand_over(self, endpoint: Endpoint, checkpoint: Checkpoint, known: int = 0) -> HandOver | None:
        """The proof that ``checkpoint``'s set handed over; None while it is the running set. Verified.

        ``known`` is a block that this set finalized, if one is known above the checkpoint.
        ENDPOINT_NO_JUSTIFICATIONS where the endpoint cannot prove finality, ENDPOINT_JUSTIFICATION_FORGED.
        """
        kept = self.hand_overs.get(checkpoint.set_id)
        if kept is not None:
            return kept
        if not endpoint.offers(PROVE_FINALITY):
            why = "it does not offer grandpa_proveFinality, which is needed to cross many blocks"
            raise ChainWatcherError(code="ENDPOINT_NO_JUSTIFICATIONS", what=endpoint.url, why=why, kind="transient")
        answer = await _prove_near_the_end(endpoint, max(checkpoint.number, known) + 1)
        if answer is None:
            return None
        block_hash, data = decode_finality_proof(endpoint, answer)
        last = await self._reader.header(endpoint, "0x" + block_hash.hex())
        if last.number <= checkpoint.number:
            return None
        part = [last]
        if last.grandpa_change() is None:
            floor = max(checkpoint.number, last.number - CHANGE_DELAY_MAX)
            part = await ancestry(self._reader, self._headers, endpoint, last, floor, CHANGE_DELAY_MAX) or part
        part = _from_change(part)
        try:
            after = verify_finality(checkpoint, part, data)
        except ChainWatcherError as problem:
            raise forged("ENDPOINT_JUSTIFICATION_FORGED", endpoint, f"block {last.number}: {problem}") from problem
        return None if after.set_id == checkpoint.set_id else HandOver(SetChange(tuple(part), data), after)


async def _prove_finality(endpoint: Endpoint, number: int) -> object:
    """The encoded finality proof, or None: in a chain's first set, and too close to its head, nodes answer an error."""
    try:
        return await endpoint.ask(PROVE_FINALITY, number)
    except RpcError as problem:
        if problem.code == "RPC_REFUSED":
            return None
        raise


async def _prove_near_the_end(endpoint: Endpoint, number: int) -> object:
    """The finality proof for the set of block ``number``, asked for at a later block of it where it is too large.

    It holds the headers from the block asked for to the end of the set. One that is too large shows that the set goes
    on for more than ``SET_STEP_BLOCKS``, so that the block so far above still belongs to it.
    """
    for _ in range(SET_STEPS_MAX):
        try:
            return await endpoint.ask(PROVE_FINALITY, number)
        except RpcError as problem:
            if problem.code != "RPC_REFUSED":
                raise
            if problem.rpc_code not in TOO_LARGE_CODES:
                return None
        number += SET_STEP_BLOCKS
    return None


def decode_finality_proof(endpoint: Endpoint, answer: object) -> tuple[bytes, bytes]:
    """Block hash and justification of an encoded ``FinalityProof`` (hash, bytes, unknown headers). ENDPOINT_GARBAGE."""
    reader = Reader(_hex_bytes(endpoint, answer), "finality proof")
    block_hash = reader.take(32)
    return block_hash, reader.blob(FINALITY_PROOF_BYTES_MAX)


async def _stored(endpoint: Endpoint, header: Header) -> bytes | None:
    """The GRANDPA justification that the node stored with the block (at set changes, every 512 blocks)."""
    answer = await endpoint.ask("chain_getBlock", hash_text(header))
    try:
        for engine, data in (answer or {}).get("justifications") or ():
            if bytes(engine) == b"FRNK":
                return bytes(data)
    except (TypeError, ValueError, AttributeError) as problem:
        raise ChainWatcherError(code="ENDPOINT_GARBAGE", what=endpoint.url, why="a block of odd shape") from problem
    return None


def _end_of_set(headers: list[Header]) -> int | None:
    """The number of the last block of the set, where a header orders a change."""
    for header in headers:
        change = header.grandpa_change()
        if change is not None:
            return header.number + (0 if change.forced_after is not None else change.delay)
    return None


def _from_change(headers: list[Header]) -> list[Header]:
    """The headers from the one that orders a change; the last one alone where none does."""
    start = next((i for i, one in enumerate(headers) if one.grandpa_change() is not None), len(headers) - 1)
    return headers[start:]


def _target(endpoint: Endpoint, data: bytes) -> Justification:
    try:
        return Justification.decode(data)
    except ChainWatcherError as problem:
        raise forged("ENDPOINT_JUSTIFICATION_FORGED", endpoint, str(problem)) from problem


def _hex_bytes(endpoint: Endpoint, value: object) -> bytes:
    try:
        if isinstance(value, str) and value.startswith("0x"):
            return bytes.fromhex(value[2:])
    except ValueError:
        pass
    raise ChainWatcherError(code="ENDPOINT_GARBAGE", what=endpoint.url, why="an answer that is not 0x and hex")
