"""The chain's state at one finalized block, from proven or unproven evidence.

The release decision reads `ChainState` only. In the mode "proven" it is built from a verified justification and storage
proof. In the other modes it is only the agent's claim; a vault accepts it only if its measured policy allows that mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.evidence import (
    STANDARD_LAYOUTS,
    TrustRoot,
    decode_set_changes,
    follow_set_changes,
    verify_evidence,
)
from chain_watcher.proof.grandpa import Checkpoint
from keyvault.errors import KeyvaultError
from keyvault.handover.messages import is_hex_id

ENTRIES_MAX: Final = 4096
TEXT_CHARS_MAX: Final = 2048
_HEIGHT_MAX: Final = 2**32 - 1
_UNIX_MS_MAX: Final = 2**53
UNPROVEN_MODES: Final = ("single", "quorum")


@dataclass(frozen=True)
class Entry:
    """One entry of `EnclaveIds`: height at which it was added, enclave id, network signature as on chain (text)."""

    height: int
    enclave_id: str
    signature: str


@dataclass(frozen=True)
class ChainState:
    """The two storage items at one finalized block.

    `mode` "proven", "quorum" or "single"; hashes 64 lower-case hex characters; `program_id` is the enclave id in
    `DcProgram` or None; `authorities` is the GRANDPA set known after this block, in JSON, or None.
    """

    mode: str
    genesis_hash: str
    block_number: int
    block_hash: str
    timestamp_ms: int
    program_id: str | None
    entries: tuple[Entry, ...]
    authorities: Mapping[str, Any] | None = None

    def heights(self) -> dict[str, int]:
        """Return the lowest height of each listed enclave id."""
        lowest: dict[str, int] = {}
        for entry in self.entries:
            lowest[entry.enclave_id] = min(entry.height, lowest.get(entry.enclave_id, entry.height))
        return lowest


def malformed(why: str) -> KeyvaultError:
    """Return `VAULT_EVIDENCE_MALFORMED` with its reason."""
    return KeyvaultError(code="VAULT_EVIDENCE_MALFORMED", what="the chain evidence was refused", why=why)


def exact_fields(value: object, names: frozenset[str], where: str) -> Mapping[str, Any]:
    """Return `value` as an object with exactly these fields."""
    if not isinstance(value, dict):
        raise malformed(f"{where} is not an object")
    if value.keys() != names:
        raise malformed(f"{where} must have exactly the fields {', '.join(sorted(names))}")
    return value


def whole_number(value: object, high: int, where: str) -> int:
    """Return `value` as a number from 0 to `high`."""
    if type(value) is not int or not 0 <= value <= high:
        raise malformed(f"{where} is not a number from 0 to {high}")
    return value


def short_text(value: object, where: str) -> str:
    """Return `value` as text of at most 2,048 characters."""
    if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX:
        raise malformed(f"{where} is not text of at most {TEXT_CHARS_MAX} characters")
    return value


def block_hash(value: object, where: str) -> str:
    """Return a 32-byte hash as 64 hex characters, without the prefix 0x."""
    text = value.removeprefix("0x") if isinstance(value, str) else value
    if not isinstance(text, str) or not is_hex_id(text):
        raise malformed(f"{where} is not a 32-byte hash in lower-case hex")
    return text


_FIELDS: Final = frozenset(
    {"mode", "genesis_hash", "block_number", "block_hash", "timestamp_ms", "program", "enclave_ids"}
)
_PROGRAM_FIELDS: Final = frozenset({"enclave_id", "version", "origin_url", "mirror_url"})
_ENTRY_FIELDS: Final = frozenset({"height", "enclave_id", "signature"})


def _entry(value: object) -> Entry:
    fields = exact_fields(value, _ENTRY_FIELDS, "an entry of enclave_ids")
    return Entry(
        whole_number(fields["height"], _HEIGHT_MAX, "height"),
        short_text(fields["enclave_id"], "enclave_id"),
        short_text(fields["signature"], "signature"),
    )


def decode_unproven(value: object) -> ChainState:
    """Decode evidence of the modes "single" and "quorum": the agent's claim, of which only the form is checked.

    Entries whose id is not an enclave id are left out, so that one bad entry on the chain does not hide the good ones.
    Raises `VAULT_EVIDENCE_MALFORMED`.
    """
    fields = exact_fields(value, _FIELDS, "the evidence")
    if fields["mode"] not in UNPROVEN_MODES:
        raise malformed("mode is neither single nor quorum")
    program = fields["program"]
    program_id = None
    if program is not None:
        names = exact_fields(program, _PROGRAM_FIELDS, "program")
        program_id = {name: short_text(names[name], name) for name in sorted(_PROGRAM_FIELDS)}["enclave_id"]
    entries = fields["enclave_ids"]
    if not isinstance(entries, list) or len(entries) > ENTRIES_MAX:
        raise malformed(f"enclave_ids is not a list of at most {ENTRIES_MAX}")
    return ChainState(
        mode=fields["mode"],
        genesis_hash=block_hash(fields["genesis_hash"], "genesis_hash"),
        block_number=whole_number(fields["block_number"], _HEIGHT_MAX, "block_number"),
        block_hash=block_hash(fields["block_hash"], "block_hash"),
        timestamp_ms=whole_number(fields["timestamp_ms"], _UNIX_MS_MAX, "timestamp_ms"),
        program_id=program_id,
        entries=tuple(entry for entry in map(_entry, entries) if is_hex_id(entry.enclave_id)),
    )


def trust_root(genesis_hash: str, checkpoint: Mapping[str, Any], layouts: tuple[str, ...]) -> TrustRoot:
    """Return the trust root of the measured policy. Raises `VAULT_POLICY_INVALID` if the checkpoint is malformed."""
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
    """Verify evidence of the mode "proven". Raises the codes of `chain_watcher.proof.evidence` as KeyvaultError.

    Entries whose id is not an enclave id are left out, so that one bad entry does not hide the good ones.
    """
    try:
        proven = verify_evidence(evidence, trust)
    except ChainWatcherError as error:
        raise _unproven(error) from error
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


def verify_set_changes(set_changes: object, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Verify set changes, starting from the set `known`, and return the newest authority set in JSON.

    Changes that `known` includes already are skipped. This proves nothing about a block's state or the chain's genesis;
    the evidence that follows does. Raises the codes of `chain_watcher.proof` as KeyvaultError.
    """
    try:
        return follow_set_changes(Checkpoint.from_json(dict(known)), decode_set_changes(set_changes)).to_json()
    except ChainWatcherError as error:
        raise _unproven(error) from error


def _unproven(error: ChainWatcherError) -> KeyvaultError:
    return KeyvaultError(code=error.code, what=error.what, why=error.why, action=error.action, kind=error.kind)


def _text(raw: bytes) -> str:
    """Decode ASCII bytes of the chain. Other bytes become U+FFFD, which occurs in no id and no signature."""
    return raw.decode("ascii", "replace")
