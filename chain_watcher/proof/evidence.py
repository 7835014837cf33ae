"""Evidence of the chain's state for the vault, which trusts neither the endpoints nor the agent.

The vault pins the genesis hash, one checkpoint (a GRANDPA authority set and the block after which it is in force) and
the hashes of the storage layouts with which values may be decoded. The evidence contains the rest::

    {"mode": "proven",
     "genesis_hash": "0x..",
     "set_changes": [{"headers": ["0x.."], "justification": "0x.."}, ...],
     "header": "0x..", "route": ["0x..", ...], "justification": "0x..",
     "proof": ["0x..", ...],
     "layout": {...}}

`set_changes` leads from the pinned set to the current one (`headers`: from the block that announces the change to the
block that the justification finalizes, oldest first). `header` is the SCALE form of the proven block, `route`
(optional) the headers from its child to the block that `justification` finalizes. `proof` is the answer to
`state_getReadProof(layout.proof_keys, block)`.

Order of verification: form and sizes; pinned genesis hash and layout; each set change by the set before it; the block
by the last set; the values under its state root; and the genesis hash again, as stored in the chain's own state
(`System.BlockHash(0)`), so that evidence of another chain with the same authority keys is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chain_watcher.errors import ChainWatcherError

from .grandpa import Checkpoint, verify_finality
from .header import Header
from .layout import GENESIS_HASH_KEY, Layout, RawEntry, RawProgram, standard_layout
from .release import BlockRef, ChainEntry, VerifiedRelease, encode_signature
from .scale import refuse
from .trie import read_proof

#: Sum of all decoded bytes of one piece of evidence.
EVIDENCE_BYTES_MAX: Final = 16 << 20
SET_CHANGES_MAX: Final = 1024
#: Headers between a block and the justified block after it (a justification is stored every 512 blocks).
ROUTE_MAX: Final = 1024
PROOF_ITEMS_MAX: Final = 4096

#: Hashes of the public pallet's layouts, with 4 and 5 program fields: the accepted ones if none is pinned.
STANDARD_LAYOUTS: Final = frozenset(standard_layout(fields=count).hash for count in (4, 5))

_MEMBERS: Final = frozenset({"mode", "genesis_hash", "set_changes", "header", "justification", "proof", "layout"})
_CHANGE_MEMBERS: Final = frozenset({"headers", "justification"})


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """The values that the verifier pins: genesis hash (32 bytes), checkpoint, and hashes of accepted layouts."""

    genesis_hash: bytes
    checkpoint: Checkpoint
    layouts: frozenset[str] = STANDARD_LAYOUTS


@dataclass(frozen=True, slots=True)
class ProvenState:
    """The chain's state at a finalized block. Only `verify_evidence` makes one.

    `hash` is 0x and 64 hex characters; `timestamp_ms` is the block's own time since 1970; `entries` and `program` are
    the chain's bytes (check them with `release.read_entries` and `release.verify_release`); `checkpoint` is the newest
    authority set that the evidence proves: store it in place of the old one.
    """

    number: int
    hash: str
    timestamp_ms: int
    entries: tuple[RawEntry, ...]
    program: RawProgram | None
    checkpoint: Checkpoint

    @property
    def block(self) -> BlockRef:
        """The block as a reference."""
        return BlockRef(self.number, self.hash)


@dataclass(frozen=True, slots=True)
class SetChange:
    """Proof that one authority set followed another; `headers` oldest first, the last one justified."""

    headers: tuple[Header, ...]
    justification: bytes

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form (hex)."""
        return {"headers": [_to_hex(h.encoded) for h in self.headers], "justification": _to_hex(self.justification)}

    @classmethod
    def from_json(cls, value: object) -> SetChange:
        """Read the JSON form strictly (from storage). Raises EVIDENCE_*, SCALE_*, HEADER_DIGEST_INVALID."""
        return _Decoder().set_change(value)


def build_evidence(
    *,
    genesis_hash: bytes,
    set_changes: Sequence[SetChange],
    headers: Sequence[Header],
    justification: bytes,
    proof: Sequence[bytes],
    layout: Layout,
) -> dict[str, Any]:
    """Return the JSON form. `headers`: the proven block and its route, oldest first (ValueError if empty)."""
    if not headers:
        raise ValueError("evidence needs the header of its block")
    return {
        "mode": "proven",
        "genesis_hash": _to_hex(genesis_hash),
        "set_changes": [change.to_json() for change in set_changes],
        "header": _to_hex(headers[0].encoded),
        "route": [_to_hex(header.encoded) for header in headers[1:]],
        "justification": _to_hex(justification),
        "proof": [_to_hex(item) for item in proof],
        "layout": layout.to_json(),
    }


def claimed_evidence(
    *,
    mode: str,
    genesis_hash: bytes,
    block: BlockRef,
    timestamp_ms: int,
    release: VerifiedRelease | None,
    entries: Sequence[ChainEntry],
) -> dict[str, Any]:
    """Return the unproven form (mode "quorum" or "single", else ValueError): only the sender's claim.

    Entries without a readable signature are reported with an empty one.
    """
    if mode not in ("quorum", "single"):
        raise ValueError("claims have the mode quorum or single")
    return {
        "mode": mode,
        "genesis_hash": _to_hex(genesis_hash),
        "block_number": block.number,
        "block_hash": block.hash,
        "timestamp_ms": timestamp_ms,
        "program": release
        and {
            "enclave_id": release.enclave_id,
            "version": release.version,
            "origin_url": release.origin_url,
            "mirror_url": release.mirror_url,
        },
        "enclave_ids": [
            {
                "height": entry.height,
                "enclave_id": entry.enclave_id,
                "signature": encode_signature(entry.signature).decode("ascii") if entry.signature else "",
            }
            for entry in entries
        ],
    }


def verify_evidence(evidence: object, trust: TrustRoot, *, floor: int = 0) -> ProvenState:
    """Verify evidence and return the proven state. `floor`: lowest acceptable block number (from earlier evidence).

    Set changes before the pinned checkpoint are skipped, so that a repeated request still verifies.

    Raises EVIDENCE_INVALID, EVIDENCE_TOO_LARGE, EVIDENCE_WRONG_GENESIS, EVIDENCE_LAYOUT_NOT_PINNED,
    EVIDENCE_BELOW_FLOOR, LAYOUT_*, HEADER_*, SCALE_*, PROOF_*, JUSTIFICATION_*, FINALITY_BEFORE_CHECKPOINT,
    AUTHORITY_*.
    """
    decoder = _Decoder()
    fields = decoder.members(evidence, _MEMBERS | {"route"}, "evidence", optional="route")
    if fields["mode"] != "proven":
        raise _invalid("mode is not proven")
    if decoder.blob(fields["genesis_hash"], "genesis_hash") != trust.genesis_hash:
        why = f"it names the genesis {fields['genesis_hash']}, not 0x{trust.genesis_hash.hex()}"
        raise refuse("EVIDENCE_WRONG_GENESIS", "evidence", why)
    layout = Layout(fields["layout"]) if isinstance(fields["layout"], Mapping) else None
    if layout is None or layout.hash not in trust.layouts:
        why = f"layout {layout.hash if layout else 'missing'} is none of the {len(trust.layouts)} pinned ones"
        raise refuse("EVIDENCE_LAYOUT_NOT_PINNED", "evidence", why)
    changes = decoder.items(fields["set_changes"], SET_CHANGES_MAX, "set_changes")
    set_changes = [decoder.set_change(change) for change in changes]
    route = decoder.items(fields.get("route", []), ROUTE_MAX, "route")
    headers = [decoder.header(text, "header") for text in (fields["header"], *route)]
    justification = decoder.blob(fields["justification"], "justification")
    proof = [decoder.blob(item, "proof") for item in decoder.items(fields["proof"], PROOF_ITEMS_MAX, "proof")]
    header = headers[0]
    if header.number < floor:
        why = f"block {header.number} is below block {floor}"
        raise refuse("EVIDENCE_BELOW_FLOOR", "evidence", why)
    checkpoint = follow_set_changes(trust.checkpoint, set_changes)
    checkpoint = verify_finality(checkpoint, headers, justification)
    values = read_proof(header.state_root, proof, layout.proof_keys)
    if values[GENESIS_HASH_KEY] != trust.genesis_hash:
        raise refuse("EVIDENCE_WRONG_GENESIS", "evidence", "the proven state belongs to another genesis")
    return ProvenState(
        number=header.number,
        hash=_to_hex(header.hash),
        timestamp_ms=layout.decode_now(values[layout.keys["now"]]),
        entries=layout.decode_enclave_ids(values[layout.keys["enclave_ids"]]),
        program=layout.decode_dc_program(values[layout.keys["dc_program"]]),
        checkpoint=checkpoint,
    )


def follow_set_changes(checkpoint: Checkpoint, set_changes: Sequence[SetChange]) -> Checkpoint:
    """Verify set changes and return the checkpoint after them. Changes not above `checkpoint` are skipped.

    Raises what `verify_finality` raises, and EVIDENCE_INVALID for a set change that changes nothing.
    """
    for change in set_changes:
        if change.headers and change.headers[-1].number <= checkpoint.number:
            continue
        following = verify_finality(checkpoint, change.headers, change.justification)
        if following is checkpoint:
            raise _invalid(f"nothing changes after block {change.headers[-1].number}")
        checkpoint = following
    return checkpoint


def decode_set_changes(value: object) -> list[SetChange]:
    """Read a list of set changes in JSON, as in evidence, without verifying them.

    Raises EVIDENCE_INVALID, EVIDENCE_TOO_LARGE, SCALE_*, HEADER_DIGEST_INVALID.
    """
    decoder = _Decoder()
    return [decoder.set_change(change) for change in decoder.items(value, SET_CHANGES_MAX, "set_changes")]


class _Decoder:
    """Reads the JSON form and limits the sum of the bytes."""

    def __init__(self) -> None:
        self._left = EVIDENCE_BYTES_MAX

    def members(self, value: object, names: frozenset[str], what: str, optional: str = "") -> Mapping[str, Any]:
        if not isinstance(value, Mapping) or not names - {optional} <= value.keys() <= names:
            raise _invalid(f"{what} has the members {', '.join(sorted(names))}")
        return value

    def items(self, value: object, maximum: int, what: str) -> Sequence[Any]:
        if not isinstance(value, list | tuple):
            raise _invalid(f"{what} is not a list")
        if len(value) > maximum:
            raise refuse("EVIDENCE_TOO_LARGE", "evidence", f"{what} has {len(value)} items, at most {maximum}")
        return value

    def blob(self, value: object, what: str) -> bytes:
        if not isinstance(value, str):
            raise _invalid(f"{what} is not text")
        self._left -= len(value) // 2
        if self._left < 0:
            raise refuse("EVIDENCE_TOO_LARGE", "evidence", f"over {EVIDENCE_BYTES_MAX} bytes")
        data = _from_hex(value.removeprefix("0x")) if value.startswith("0x") else None
        if data is None:
            raise _invalid(f"{what} is not 0x and lower-case hex")
        return data

    def header(self, value: object, what: str) -> Header:
        return Header.decode(self.blob(value, what))

    def set_change(self, value: object) -> SetChange:
        fields = self.members(value, _CHANGE_MEMBERS, "a set change")
        texts = self.items(fields["headers"], ROUTE_MAX, "headers")
        headers = tuple(self.header(text, "headers") for text in texts)
        return SetChange(headers, self.blob(fields["justification"], "justification"))


def _from_hex(digits: str) -> bytes | None:
    """Decode lower-case hex, or return None (`fromhex` also accepts spaces and capitals)."""
    try:
        data = bytes.fromhex(digits)
    except ValueError:
        return None
    return data if data.hex() == digits else None


def _to_hex(data: bytes) -> str:
    return "0x" + data.hex()


def _invalid(why: str) -> ChainWatcherError:
    return refuse("EVIDENCE_INVALID", "evidence", why)
