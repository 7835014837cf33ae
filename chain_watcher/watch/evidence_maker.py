"""Evidence for the vault, gathered from the endpoints and verified here before it is handed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chain_watcher.endpoints.endpoint import READ_PROOF, Endpoint
from chain_watcher.endpoints.pool import EndpointPool
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.evidence import SET_CHANGES_MAX, SetChange, TrustRoot, build_evidence, verify_evidence
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.proof.header import Header
from chain_watcher.proof.layout import Layout

from .grandpa_follower import ProvenDecider
from .state_reader import forged, hash_text, proof_nodes


@dataclass(frozen=True, slots=True)
class ProofBase:
    """A final block with its own justification, and the layout of its state."""

    genesis_hash: bytes
    header: Header
    justification: bytes
    layout: Layout


def not_ready(why: str) -> ChainWatcherError:
    """The error for evidence that the next final block may allow."""
    return ChainWatcherError(
        code="EVIDENCE_NOT_READY", what="evidence", why=why, action="Ask again after the next block", kind="transient"
    )


def vault_checkpoint(vault_state: Mapping[str, Any], fallback: Checkpoint) -> Checkpoint:
    """The authority set that the vault knows: what it learned, else what it was built with, else ``fallback``."""
    chain = vault_state.get("chain")
    for name in ("authorities", "checkpoint"):
        known = chain.get(name) if isinstance(chain, Mapping) else None
        if known is not None:
            return Checkpoint.from_json(known)
    return fallback


async def prove(
    pool: EndpointPool, decider: ProvenDecider, base: ProofBase, vault_state: Mapping[str, Any], pinned: Checkpoint
) -> dict[str, Any]:
    """Proven evidence for ``base``, from the vault's own last known authority set on; each endpoint is tried.

    Raises EVIDENCE_NOT_READY, or what the last endpoint failed with.
    """
    start = vault_checkpoint(vault_state, pinned)
    if base.header.number <= start.number:
        raise not_ready(f"the vault knows the chain up to block {start.number}, proven here is {base.header.number}")
    problem: ChainWatcherError = not_ready("no endpoint is connected and trusted at the moment")
    for endpoint in pool.usable():
        try:
            return await _prove_at(endpoint, decider, base, start)
        except ChainWatcherError as failure:
            problem = failure
            if failure.code.startswith("ENDPOINT_") and failure.code.endswith("_FORGED"):
                pool.accuse(endpoint, failure)
    raise problem


async def _prove_at(endpoint: Endpoint, decider: ProvenDecider, base: ProofBase, start: Checkpoint) -> dict[str, Any]:
    changes: list[SetChange] = []
    known = start
    while known.set_id < decider.checkpoint.set_id:
        if len(changes) == SET_CHANGES_MAX:
            why = f"the vault knows set {start.set_id}, the chain is at set {decider.checkpoint.set_id}"
            action = "Build a vault with a newer checkpoint: a vault follows so many changes of the set in one step"
            raise ChainWatcherError(code="EVIDENCE_TOO_LARGE", what="evidence", why=why, action=action)
        found = await decider.hand_over(endpoint, known)
        if found is None:
            why = f"it gives no proof of how set {known.set_id} ended, and set {decider.checkpoint.set_id} is in force"
            raise ChainWatcherError(code="ENDPOINT_NO_JUSTIFICATIONS", what=endpoint.url, why=why, kind="transient")
        if found.after.number >= base.header.number:
            break
        changes.append(found.change)
        known = found.after
    answer = await endpoint.ask(
        READ_PROOF, ["0x" + key.hex() for key in base.layout.proof_keys], hash_text(base.header)
    )
    evidence = build_evidence(
        genesis_hash=base.genesis_hash,
        set_changes=changes,
        headers=[base.header],
        justification=base.justification,
        proof=proof_nodes(endpoint, answer),
        layout=base.layout,
    )
    try:
        verify_evidence(evidence, TrustRoot(base.genesis_hash, start, frozenset({base.layout.hash})))
    except ChainWatcherError as problem:
        if not problem.code.startswith("PROOF_"):
            raise  # the rest was verified before it was put together: it is not this endpoint's doing
        raise forged(
            "ENDPOINT_PROOF_FORGED", endpoint, f"evidence for block {base.header.number}: {problem}"
        ) from problem
    return evidence
