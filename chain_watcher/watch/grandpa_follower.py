"""Mode `proven`: fetch what the GRANDPA follower needs from an endpoint, and decide whose fault a refusal is."""

from __future__ import annotations

from typing import Any

from chain_watcher.endpoints import answers
from chain_watcher.endpoints.endpoint import JUSTIFICATIONS, PROVE_FINALITY, Endpoint, Event
from chain_watcher.endpoints.messages import RpcError
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.follower import (
    FinalityProof,
    FinalityProofOf,
    Follower,
    HeaderOf,
    ProvenChange,
    Question,
    StoredJustificationOf,
    TooLarge,
    Walk,
)
from chain_watcher.proof.grandpa import JUSTIFICATION_BYTES_MAX, Checkpoint
from chain_watcher.proof.header import Header
from chain_watcher.proof.scale import Reader

from .headers import FinalBlock, FinalHeight, Headers
from .suspicion import forged

FINALITY_PROOF_BYTES_MAX = 8 * 1024 * 1024
#: JSON-RPC error codes of an answer that is too large (jsonrpsee, and before its 0.16).
TOO_LARGE_CODES = frozenset({-32008, -32702})
#: Refusals of the follower that no honest node can cause, mapped to the accusation.
FORGERIES = {
    "FINALITY_FORKED": "ENDPOINT_FORKED_FINALITY",
    "HEADER_HASH_MISMATCH": "ENDPOINT_HEADER_FORGED",
    "HEADER_PARENT_MISMATCH": "ENDPOINT_HEADER_FORGED",
    "JUSTIFICATION_BELOW_THRESHOLD": "ENDPOINT_JUSTIFICATION_FORGED",
    "JUSTIFICATION_INVALID": "ENDPOINT_JUSTIFICATION_FORGED",
    "JUSTIFICATION_SIGNATURE_BAD": "ENDPOINT_JUSTIFICATION_FORGED",
    "JUSTIFICATION_WRONG_TARGET": "ENDPOINT_JUSTIFICATION_FORGED",
}


class ProvenDecider:
    """A block is final if the authority set that follows from the checkpoint has signed it, whoever sends the proof."""

    def __init__(self, follower: Follower, headers: Headers) -> None:
        self.follower = follower
        self.justifications = 0
        self._headers = headers

    @property
    def learned(self) -> int:
        """The number of verified set changes and justifications."""
        return self.follower.set_changes + self.justifications

    def facts(self) -> dict[str, object]:
        """Return the authority set in force, for the journal."""
        return {"chain_state": self.follower.to_json()}

    async def decide(self, event: Event, last: FinalHeight | None) -> FinalBlock | None:
        """Verify a justification, or ask for one if an endpoint announced a head without one.

        A head is only a claim. An endpoint that sends justifications is asked about a head only if none arrived.
        """
        endpoint = event.endpoint
        if event.kind == "justification":
            data = answers.hex_bytes(endpoint.url, event.value, JUSTIFICATION_BYTES_MAX, "a justification")
            return await self._prove(endpoint, self.follower.prove(data))
        if event.kind not in ("finalized", "unproven"):
            return None
        head = Header.from_json(event.value)
        self._headers.add(head)
        if head.number <= self.follower.floor or (event.kind == "finalized" and endpoint.offers(JUSTIFICATIONS)):
            return None
        return await self._prove(endpoint, self.follower.prove_head(head))

    async def next_change(self, endpoint: Endpoint, checkpoint: Checkpoint) -> ProvenChange | None:
        """Return how the set of `checkpoint` ended; None if it has not ended, or the endpoint cannot prove it."""
        found: ProvenChange | None = await self._walk(endpoint, self.follower.next_change(checkpoint))
        return found

    async def _prove(self, endpoint: Endpoint, walk: Walk) -> FinalBlock | None:
        header = await self._walk(endpoint, walk)
        if header is None:
            return None
        self.justifications += 1
        return FinalBlock(endpoint, header, self.follower.justification)

    async def _walk(self, endpoint: Endpoint, walk: Any) -> Any:
        """Answer a walk's questions from the endpoint until it returns."""
        answer: object = None
        while True:
            try:
                question = walk.send(answer)
            except StopIteration as end:
                return end.value
            except ChainWatcherError as problem:
                raise _blamed(endpoint, problem) from problem
            answer = await self._ask(endpoint, question)

    async def _ask(self, endpoint: Endpoint, question: Question) -> object:
        if isinstance(question, HeaderOf):
            return await self._headers.fetch(endpoint, question.block_hash)
        try:
            if isinstance(question, StoredJustificationOf):
                block = await endpoint.ask("chain_getBlock", "0x" + question.block_hash.hex())
                return answers.stored_justification(endpoint.url, block, JUSTIFICATION_BYTES_MAX)
            return await _ask_finality_proof(endpoint, question)
        except RpcError as problem:
            # In a chain's first set, near its head, or if history is missing, nodes answer with an error.
            if problem.code in ("RPC_REFUSED", "RPC_METHOD_MISSING"):
                return None
            raise


async def _ask_finality_proof(endpoint: Endpoint, question: FinalityProofOf) -> FinalityProof | TooLarge | None:
    if not endpoint.offers(PROVE_FINALITY):
        return None
    try:
        answer = await endpoint.ask(PROVE_FINALITY, question.number)
    except RpcError as problem:
        if problem.rpc_code in TOO_LARGE_CODES:
            return TooLarge()
        raise
    return decode_finality_proof(endpoint, answer)


def decode_finality_proof(endpoint: Endpoint, answer: object) -> FinalityProof | None:
    """Decode a `FinalityProof` (hash, justification, unknown headers); None for null. Raises ENDPOINT_GARBAGE.

    The unknown headers are ignored: needed headers are requested by hash.
    """
    if answer is None:
        return None
    data = answers.hex_bytes(endpoint.url, answer, FINALITY_PROOF_BYTES_MAX, "a finality proof")
    reader = Reader(data, "finality proof")
    try:
        return FinalityProof(reader.take(32), reader.blob(JUSTIFICATION_BYTES_MAX))
    except ChainWatcherError as problem:
        raise answers.garbage(endpoint.url, f"a finality proof cannot be decoded: {problem}") from problem


def _blamed(endpoint: Endpoint, problem: ChainWatcherError) -> ChainWatcherError:
    """Convert the follower's refusal to an error of the endpoint, if the endpoint caused it."""
    if problem.code in FORGERIES:
        return forged(FORGERIES[problem.code], endpoint, str(problem))
    if problem.code == "FINALITY_NOT_PROVEN":
        return ChainWatcherError(
            code="ENDPOINT_NO_JUSTIFICATIONS",
            what=endpoint.url,
            why=problem.why,
            action="Name an endpoint that keeps old justifications, or pin a newer checkpoint",
            kind="transient",
        )
    if problem.code == "AUTHORITY_SET_UNKNOWN":
        return problem
    return answers.garbage(endpoint.url, f"finality: {problem}")
