"""Chain evidence of the mode "proven", verified in this process: justification, set changes, storage proof. Pure.

The verifying itself is ``chain_watcher.proof.evidence``; here its result becomes the ``ChainState`` that the release decision
reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.evidence import STANDARD_LAYOUTS, TrustRoot, verify_evidence
from chain_watcher.proof.grandpa import Checkpoint
from keyvault.errors import KeyvaultError
from keyvault.handover.messages import is_hex_id

from .chain_state import ChainState, Entry


def trust_root(genesis_hash: str, checkpoint: Mapping[str, Any], layouts: tuple[str, ...]) -> TrustRoot:
    """Return what is pinned; raises ``VAULT_POLICY_INVALID`` for a checkpoint that is not one."""
    try:
        parsed = Checkpoint.from_json(dict(checkpoint))
    except ChainWatcherError as error:
        raise KeyvaultError(
            code="VAULT_POLICY_INVALID",
            what="the checkpoint was refused",
            why=f"{error.code}: {error.why}",
            action="Print one with python -m dcupgrade chain checkpoint.",
        ) from error
    return TrustRoot(bytes.fromhex(genesis_hash), parsed, frozenset(layouts) if layouts else STANDARD_LAYOUTS)


def verify_proven(evidence: object, trust: TrustRoot) -> ChainState:
    """Return the proven state of the chain; raises the codes of ``chain_watcher.proof.evidence`` as KeyvaultError.

    Entries whose id or signature is no ASCII text are left out: one bad entry does not hide the good ones.
    """
    try:
        proven = verify_evidence(evidence, trust)
    except ChainWatcherError as error:
        raise KeyvaultError(
            code=error.code, what=error.what, why=error.why, action=error.action, kind=error.kind
        ) from error
    entries = []
    for raw in proven.entries:
        name, signature = _text(raw.enclave_id), _text(raw.signature)
        if is_hex_id(name):
            entries.append(Entry(raw.height, name, signature))
    return ChainState(
        mode="proven",
        genesis_hash=trust.genesis_hash.hex(),
        block_number=proven.number,
        block_hash=proven.hash.removeprefix("0x"),
        timestamp_ms=proven.timestamp_ms,
        program_id=_text(proven.program.enclave_id) if proven.program is not None else None,
        entries=tuple(entries),
        authorities=proven.checkpoint.to_json(),
    )


def _text(raw: bytes) -> str:
    """Bytes of the chain as text; what is not ASCII becomes text that no id and no signature equals."""
    return raw.decode("ascii", "replace")
