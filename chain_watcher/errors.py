"""The one exception of this package, and the list of its stable codes."""

from __future__ import annotations

from typing import Final, Literal

Kind = Literal["transient", "rejected", "invariant"]


class ChainWatcherError(Exception):
    """A refusal with a stable code; `str()` gives `CODE: what: why. action`.

    `kind` says who must act: `transient` (try again, perhaps elsewhere), `rejected` (this input or release is
    refused, trying again with the same bytes cannot help), `invariant` (stop and keep everything).
    """

    def __init__(self, *, code: str, what: str, why: str, action: str = "", kind: Kind = "rejected") -> None:
        super().__init__(code, what, why, action, kind)
        self.code = code
        self.what = what
        self.why = why
        self.action = action
        self.kind: Kind = kind

    def __str__(self) -> str:
        text = f"{self.code}: {self.what}: {self.why}"
        return f"{text}. {self.action}" if self.action else text

    def __reduce__(self) -> tuple[object, ...]:
        """Keep keyword-only construction picklable (errors cross process borders in the test runner)."""
        return (_rebuild, (self.code, self.what, self.why, self.action, self.kind))


def _rebuild(code: str, what: str, why: str, action: str, kind: Kind) -> ChainWatcherError:
    return ChainWatcherError(code=code, what=what, why=why, action=action, kind=kind)


#: Codes of the pure modules (bytes, proofs, releases).
_PURE_CODES: Final[dict[str, str]] = {
    "SCALE_TRUNCATED": "SCALE bytes end before the value does",
    "SCALE_TRAILING_BYTES": "bytes are left over after the SCALE value",
    "SCALE_COMPACT_NOT_CANONICAL": "a compact integer is not in its shortest form",
    "SCALE_TOO_LARGE": "a length or number in SCALE bytes is over its limit",
    "SCALE_VALUE_INVALID": "a SCALE value is outside its type (bool, option, enum, ordering of a set)",
    "HEADER_INVALID": "a block header in JSON-RPC form is not well formed",
    "HEADER_DIGEST_INVALID": "a digest item of a block header is not well formed",
    "HEADER_HASH_MISMATCH": "a header does not hash to the block hash it was given for",
    "HEADER_PARENT_MISMATCH": "a header is not the child of the header before it",
    "PROOF_INCOMPLETE": "the storage proof lacks a trie node on the way to the key",
    "PROOF_NODE_INVALID": "a trie node of the storage proof is not well formed",
    "PROOF_SUPERFLUOUS": "the storage proof holds a node that no key needs",
    "PROOF_TOO_LARGE": "the storage proof is over its size limits",
    "JUSTIFICATION_INVALID": "a GRANDPA justification is not well formed or breaks a rule of its votes",
    "JUSTIFICATION_SIGNATURE_BAD": "a precommit's signature is not good for this authority set id",
    "JUSTIFICATION_BELOW_THRESHOLD": "the precommits weigh less than the threshold of the authority set",
    "JUSTIFICATION_WRONG_TARGET": "a justification finalizes another block than the one asked for",
    "AUTHORITY_SET_INVALID": "a GRANDPA authority set is empty, too large or of unusable weight",
    "AUTHORITY_CHANGE_INVALID": "an authority set change cannot follow from the known set",
    "FINALITY_BEFORE_CHECKPOINT": "a block to prove is not above the block where the known authority set begins",
    "FINALITY_FORKED": "a block that is claimed to be final does not descend from the last final one",
    "FINALITY_NOT_PROVEN": "a proof that is needed to follow finality is not to be had",
    "AUTHORITY_SET_UNKNOWN": "finality is signed by an authority set that does not follow from the known one",
    "METADATA_UNREADABLE": "the chain's metadata could not be parsed",
    "CHAIN_WITHOUT_PALLET": "the chain's metadata has no pallet DcNode with its storage items",
    "LAYOUT_INVALID": "a storage layout is not well formed or not one this program can decode",
    "LAYOUT_MISMATCH": "storage bytes do not follow the layout",
    "RELEASE_ID_INVALID": "an enclave id is not 64 lower-case hex characters",
    "RELEASE_SIGNATURE_ENCODING": "a network signature is not canonical multibase base32 of 64 bytes",
    "RELEASE_FIELD_INVALID": "a text field of the program on chain is not usable text",
    "RELEASE_PROGRAM_ABSENT": "the chain names no program to run",
    "RELEASE_PROGRAM_WITHOUT_ENTRY": "the program's enclave id is not among the enclave ids on chain",
    "RELEASE_ENTRY_WITHOUT_PROGRAM": "an enclave id is on chain but is not the program to run",
    "RELEASE_SIGNATURE_REFUSED": "the network signature over the enclave id was refused",
    "EVIDENCE_INVALID": "chain evidence is not well formed",
    "EVIDENCE_TOO_LARGE": "chain evidence is over its size limits",
    "EVIDENCE_WRONG_GENESIS": "chain evidence is for another chain",
    "EVIDENCE_LAYOUT_NOT_PINNED": "the storage layout of the evidence is not one of the pinned layouts",
    "EVIDENCE_BELOW_FLOOR": "the block of the evidence is below the height floor",
    "CHECKPOINT_INVALID": "a checkpoint is not well formed",
}

#: Codes of the shells (endpoints, metadata, watcher).
_SHELL_CODES: Final[dict[str, str]] = {
    "RPC_CONNECT_FAILED": "a websocket to the endpoint could not be opened",
    "RPC_TLS_FAILED": "the endpoint's certificate was not accepted, or the pinned CA cannot be read",
    "RPC_CLOSED": "the connection to the endpoint ended",
    "RPC_TIMEOUT": "the endpoint did not answer a question within its deadline",
    "RPC_GARBAGE": "the endpoint sent something that is not JSON-RPC",
    "RPC_MESSAGE_TOO_BIG": "the endpoint sent a message over the size limit",
    "RPC_RATE_LIMITED": "the endpoint asks for fewer requests",
    "RPC_METHOD_MISSING": "the endpoint does not offer a method",
    "RPC_REFUSED": "the endpoint answered a question with an error",
    "ENDPOINT_WRONG_GENESIS": "the endpoint serves another chain",
    "ENDPOINT_GARBAGE": "the endpoint gave an answer of the wrong shape",
    "ENDPOINT_BEHIND": "the endpoint does not have a block that was final before, or one that leads to it",
    "ENDPOINT_SILENT": "the endpoint sends no more finalized blocks although there are some",
    "ENDPOINT_OTHER_HISTORY": "the endpoint has another block at a height that was final before",
    "ENDPOINT_UNEXPECTED": "an event of the endpoint could not be processed",
    "ENDPOINT_NONE_USABLE": "no endpoint is connected and trusted at the moment",
    "ENDPOINT_FORKED_FINALITY": "the endpoint calls a block final that does not descend from the last finalized block",
    "ENDPOINT_HEADER_FORGED": "the endpoint gave a header that does not hash to the block asked for",
    "ENDPOINT_PROOF_FORGED": "the endpoint gave a storage proof that does not hold under the state root",
    "ENDPOINT_JUSTIFICATION_FORGED": "the endpoint gave a justification that the authority set did not sign",
    "ENDPOINT_UNPROVEN_HEIGHT": "the endpoint claims finalized blocks that it cannot prove",
    "ENDPOINT_DISAGREES": "the endpoint's finalized hash differs from the one a quorum agrees on",
    "ENDPOINT_METADATA_FORGED": "the endpoint's metadata differs from the pinned layout or from the other endpoints",
    "ENDPOINT_NO_PROOFS": "the endpoint offers no storage proofs and unproven reads are not allowed",
    "ENDPOINT_NO_JUSTIFICATIONS": "the endpoint offers no way to get GRANDPA justifications",
    "QUORUM_VALUES_DIFFER": "endpoints give different unproven values for one final block, and no quorum agrees",
    "LAYOUT_NOT_PINNED": "the storage layout in an endpoint's metadata is not one of the pinned ones",
    "CHECKPOINT_NOT_NOW": "no checkpoint can be taken while an authority set change is pending",
    "WATCHER_CONFIG_INVALID": "the watcher's settings contradict each other",
    "WATCHER_NO_VIEW": "no finalized state was read yet",
    "EVIDENCE_NOT_READY": "the evidence for this release cannot be given yet",
}

#: Every code this package can raise, with its meaning in one line.
CODES: Final[dict[str, str]] = {**_PURE_CODES, **_SHELL_CODES}
