"""Evidence for the vault, collected from the endpoints and verified here before it is returned."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from chain_watcher.endpoints.endpoint import READ_PROOF, Endpoint
from chain_watcher.endpoints.pool import EndpointPool
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.evidence import SET_CHANGES_MAX, SetChange, TrustRoot, build_evidence, verify_evidence
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.proof.header import Header
from chain_watcher.proof.layout import Layout
from chain_watcher.proof.trie import needed_items

from .grandpa_follower import ProvenDecider
from .state_reader import hash_text, read_proof_nodes
from .suspicion import LYING, forged

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many set changes to collect: stop at `count` changes, or once they have `size` bytes in total."""

    count: int
    size: int


#: Limits of set changes in evidence. Hex doubles the bytes, and a vault accepts 8 MiB of JSON.
EVIDENCE_CHANGES: Final = Bounds(count=SET_CHANGES_MAX, size=3 << 20)
#: Limits of one step that brings a vault up to date; small, so that the vault verifies it within a second.
STEP: Final = Bounds(count=256, size=256 << 10)


@dataclass(frozen=True, slots=True)
class ProofBase:
    """A final block with its own justification (SCALE bytes), and the layout of its state."""

    genesis_hash: bytes
    header: Header
    justification: bytes
    layout: Layout


def not_ready(why: str) -> ChainWatcherError:
    """The error for evidence that cannot be made yet; the next final block may allow it."""
    return ChainWatcherError(
        code="EVIDENCE_NOT_READY", what="evidence", why=why, action="Ask again after the next block", kind="transient"
    )


def vault_checkpoint(vault_state: Mapping[str, Any], fallback: Checkpoint) -> Checkpoint:
    """Return the authority set that the vault knows: the learned one, else the built-in one, else `fallback`."""
    chain = vault_state.get("chain")
    for name in ("authorities", "checkpoint"):
        known = chain.get(name) if isinstance(chain, Mapping) else None
        if known is not None:
            return Checkpoint.from_json(known)
    return fallback


async def prove(
    pool: EndpointPool, decider: ProvenDecider, base: ProofBase, vault_state: Mapping[str, Any], pinned: Checkpoint
) -> dict[str, Any]:
    """Return proven evidence for `base`, starting from the vault's last known authority set; try each endpoint.

    Raises EVIDENCE_NOT_READY, or the error of the last endpoint.
    """
    start = vault_checkpoint(vault_state, pinned)
    if base.header.number <= start.number:
        raise not_ready(f"the vault knows the chain up to block {start.number}, proven here is {base.header.number}")
    return await _at_any(pool, lambda endpoint: _prove_at(endpoint, decider, base, start))


async def next_set_changes(pool: EndpointPool, decider: ProvenDecider, start: Checkpoint) -> list[SetChange]:
    """Return the set changes after `start`, at most one step of them; none if its set is the current one.

    Raises EVIDENCE_NOT_READY, or the error of the last endpoint.
    """
    if start.set_id >= decider.follower.checkpoint.set_id:
        return []

    async def gather(endpoint: Endpoint) -> list[SetChange]:
        return (await _gather(endpoint, decider, start, STEP))[0]

    return await _at_any(pool, gather)


async def _at_any(pool: EndpointPool, ask: Callable[[Endpoint], Awaitable[T]]) -> T:
    """Return the first answer of any endpoint; accuse an endpoint that forges."""
    problem: ChainWatcherError = not_ready("no endpoint is connected and trusted at the moment")
    for endpoint in pool.usable():
        try:
            return await ask(endpoint)
        except ChainWatcherError as failure:
            problem = failure
            if failure.code in LYING:
                pool.accuse(endpoint, failure)
    raise problem


async def _gather(
    endpoint: Endpoint, decider: ProvenDecider, start: Checkpoint, bounds: Bounds, below: int | None = None
) -> tuple[list[SetChange], bool]:
    """Return the set changes after `start` within bounds, and whether more follow (before block `below`, if given)."""
    changes: list[SetChange] = []
    known, size = start, 0
    while known.set_id < decider.follower.checkpoint.set_id:
        if len(changes) == bounds.count or size >= bounds.size:
            return changes, True
        found = await decider.next_change(endpoint, known)
        if found is None:
            running = decider.follower.checkpoint.set_id
            why = f"it gives no proof of how set {known.set_id} ended, and set {running} is in force"
            raise ChainWatcherError(code="ENDPOINT_NO_JUSTIFICATIONS", what=endpoint.url, why=why, kind="transient")
        if below is not None and found.after.number >= below:
            break
        changes.append(found.change)
        size += len(found.change.justification) + sum(len(header.encoded) for header in found.change.headers)
        known = found.after
    return changes, False


async def _prove_at(endpoint: Endpoint, decider: ProvenDecider, base: ProofBase, start: Checkpoint) -> dict[str, Any]:
    changes, more = await _gather(endpoint, decider, start, EVIDENCE_CHANGES, base.header.number)
    if more:
        why = f"the vault knows set {start.set_id}, the chain is at set {decider.follower.checkpoint.set_id}"
        raise not_ready(f"{why}: it is brought up to date step by step first")
    keys = base.layout.proof_keys
    answer = await endpoint.ask(READ_PROOF, ["0x" + key.hex() for key in keys], hash_text(base.header))
    nodes = read_proof_nodes(endpoint, answer)
    try:
        evidence = build_evidence(
            genesis_hash=base.genesis_hash,
            set_changes=changes,
            headers=[base.header],
            justification=base.justification,
            proof=needed_items(base.header.state_root, nodes, keys),
            layout=base.layout,
        )
        verify_evidence(evidence, TrustRoot(base.genesis_hash, start, frozenset({base.layout.hash})))
    except ChainWatcherError as problem:
        if problem.code != "PROOF_INCOMPLETE":
            raise  # every part was verified before, so this endpoint is not at fault
        why = f"evidence for block {base.header.number}: {problem}"
        raise forged("ENDPOINT_PROOF_FORGED", endpoint, why) from problem
    return evidence
