"""The one exception of this package, and the list of its stable codes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

Kind = Literal["transient", "rejected", "invariant"]
_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,79}")
KINDS: Final[tuple[Kind, ...]] = ("transient", "rejected", "invariant")


class KeyvaultError(Exception):
    """A refusal or failure with a stable code; `str()` gives `CODE: what: why. action`.

    `kind` says who must act: `transient` (ask again later), `rejected` (this request is refused, the same bytes
    cannot succeed), `invariant` (stop and keep everything; a person must look).
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

    def to_json(self) -> dict[str, str]:
        """Return the error as the JSON object of an HTTP answer."""
        return {"code": self.code, "what": self.what, "why": self.why, "action": self.action, "kind": self.kind}


def _rebuild(code: str, what: str, why: str, action: str, kind: Kind) -> KeyvaultError:
    return KeyvaultError(code=code, what=what, why=why, action=action, kind=kind)


def error_from_json(value: Mapping[str, object]) -> KeyvaultError | None:
    """Return the error a peer answered with, or None if the object is not one.

    Texts are cut to 500 characters and lose what cannot be printed: they go into logs, where a line break of a
    stranger's would begin a line of its own.
    """
    texts = [value.get(name) for name in ("code", "what", "why", "action", "kind")]
    if not all(isinstance(text, str) for text in texts):
        return None
    code, what, why, action, kind_text = (_printable(str(text)[:500]) for text in texts)
    if not _CODE.fullmatch(code):
        return None
    for kind in KINDS:
        if kind == kind_text:
            return KeyvaultError(code=code, what=what, why=why, action=action, kind=kind)
    return None


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


CODES: Final[dict[str, str]] = {
    # messages and sessions of the handover
    "HANDOVER_MESSAGE_MALFORMED": "a handover message is not the strict JSON object that the protocol asks for",
    "HANDOVER_MESSAGE_TOO_LARGE": "a handover message or one of its values is over its size limit",
    "HANDOVER_VERSION_UNSUPPORTED": "the two sides share no version of the handover protocol",
    "HANDOVER_GENESIS_MISMATCH": "the two sides belong to different chains",
    "HANDOVER_SESSION_UNKNOWN": "the session does not exist, was already used, or is older than its 60 seconds",
    "HANDOVER_HOST_REFUSED": "the request's Host header is not a loopback name",
    "HANDOVER_OUT_OF_ORDER": "a step of the handover was called before the step it follows",
    "HANDOVER_REPORTDATA_MISMATCH": "a report does not carry this very conversation in its REPORTDATA",
    "HANDOVER_PEER_CHANGED": "a later report comes from another enclave than the one that began the session",
    "HANDOVER_UPGRADER_UNLISTED": "a node that follows the chain gives no keys to a vault that is not in its list",
    "HANDOVER_CIPHERTEXT_BAD": "the delivered ciphertext does not open with the requester's key for this transcript",
    "HANDOVER_RECEIPT_BAD": "the receipt's MAC is wrong: the peer did not decrypt the delivery",
    "HANDOVER_KEY_SET_MISMATCH": "the key set is not the one this step is about",
    "HANDOVER_DOWNGRADE_REFUSED": "the older handover protocol is not allowed for this node",
    "HANDOVER_PEER_UNREACHABLE": "the other side of the handover cannot be reached or broke off",
    "HANDOVER_ANSWER_MALFORMED": "the other side answered something that is not part of the protocol",
    "HANDOVER_NOTHING_HELD": "this node has no application keys to hand over yet",
    # key sets
    "KEY_SET_SIZE_INVALID": "a key set is empty or larger than 64 KiB",
    "KEY_SET_WIPED": "the bytes of this key set were already overwritten in memory",
    # what may be released, and to whom
    "NO_PERMIT_YET": "no release permit names this enclave; it may ask again",
    "PERMIT_EXPIRED": "the release permit for this enclave has run out",
    "PERMIT_OTHER_TARGET": "the keys are permitted to another enclave id",
    "PERMIT_INSTANCES_SPENT": "the permitted enclave asked for the keys more often than is allowed",
    "PERMIT_ALREADY_DURABLE": "the permitted enclave already confirmed that it holds the keys durably",
    "PERMIT_TARGET_NOT_PROGRAM": "the target is not the program that the chain names",
    "PERMIT_TARGET_NOT_LISTED": "the target is not in the chain's list of enclave ids (never added, or revoked)",
    "PERMIT_TARGET_NOT_NEWER": "the target was not added to the chain later than the source",
    "PERMIT_TARGET_UNSIGNED": "the chain's entries of the target carry no good network signature",
    "PERMIT_TARGET_IS_SOURCE": "source and target of a permit are the same enclave id",
    "PERMIT_TRANSITION_REFUSED": "the measured policy does not allow an upgrade from this source to this target",
    "PERMIT_KEY_SET_UNKNOWN": "the vault holds no key set of this id from this source",
    "RELEASE_REVOKED": "the enclave id was removed from the chain's list, so it gets no keys",
    "RELEASE_KEY_SET_WIPED": "the key set was wiped after the handover and its retention time",
    "RELEASE_KEY_SET_UNREADABLE": "the sealed copy of the key set cannot be opened now",
    # evidence about the chain
    "VAULT_EVIDENCE_MALFORMED": "chain evidence is not the strict JSON object that the vault asks for",
    "VAULT_EVIDENCE_UNPROVEN": "the evidence is only the agent's claim and this vault's measured policy asks for more",
    "VAULT_EVIDENCE_WRONG_CHAIN": "the evidence belongs to another chain than the measured one",
    "VAULT_EVIDENCE_BELOW_FLOOR": "the evidence is older than what the vault has already seen",
    "VAULT_EVIDENCE_STALE": "the evidence is too old or lies in the future by the vault's clock",
    "VAULT_EVIDENCE_FORKED": "two different blocks are claimed at the height the vault has already seen",
    "VAULT_EVIDENCE_NEEDED": "the vault must see chain evidence that lists its own id before it collects keys",
    "VAULT_NOT_LISTED": "the vault's own enclave id is not in the chain's list",
    # the vault as a service
    "VAULT_POLICY_INVALID": "the measured policy of the vault is missing or has mistakes",
    "VAULT_SETTING_LOOSENS": "a setting from the host would loosen what the measured policy fixes",
    "VAULT_REPLACED": "the store was sealed by another vault build",
    "VAULT_FACTS_MISSING": "sealed key sets are there but the sealed record of permits and heights is gone",
    "VAULT_TOO_MANY_KEY_SETS": "the store already holds as many key sets as it may",
    "VAULT_TOKEN_REFUSED": "the request does not prove the agent's token",
    "VAULT_NOT_PROVEN": "what answers at the vault's address does not know the agent's token",
    "VAULT_REQUEST_MALFORMED": "a request of the agent is not the JSON object that the call asks for",
    "VAULT_REQUEST_TOO_SLOW": "a client did not send its request in time",
    "VAULT_PATH_UNKNOWN": "the vault has no such path or method",
    "VAULT_NODE_URL_REFUSED": "a node's address is not a plain http address",
    "VAULT_INTERNAL": "the vault failed in a way that it does not expect; details are in its log",
    "VAULT_STEP_HANGS": "a step of the vault, such as a write to its store, has not ended for more than a minute",
    "VAULT_UNREACHABLE": "the vault's process cannot be reached or broke off",
    "VAULT_ANSWER_MALFORMED": "the vault answered something that is not part of its API",
    "VAULT_REBUILD_DIFFERS": "a vault that was built again is not the expected one",
    "VAULT_START_REFUSED": "the vault cannot start as it was called",
    # sealed store
    "STORE_SEAL_KEY_UNSAFE": "the seal key is all zero, or of a simulated TEE, which the policy does not allow",
    "STORE_FORMAT_INVALID": "a sealed file is damaged or not one of ours",
    "STORE_OTHER_ENCLAVE": "a sealed file was sealed by another enclave",
    "STORE_UNSEAL_FAILED": "a sealed file does not open with this enclave's seal key",
    "STORE_MISSING": "the store holds nothing under this name",
    "STORE_READ_FAILED": "a sealed file could not be read from disk",
    "STORE_WRITE_FAILED": "a sealed file could not be written to disk",
    "STORE_READ_BACK_FAILED": "what was read back from disk is not what was sealed",
    "STORE_NAME_INVALID": "a name is not usable for a sealed file",
    # conformance suite
    "CONFORMANCE_FAILED": "a node does not follow the handover protocol",
    # handover v1
    "V1_MESSAGE_INVALID": "a v1 message has another form, length or encoding than the protocol gives it",
    "V1_KEY_INVALID": "a v1 requester's key is not a point of ed25519, or is of low order",
    "V1_DECRYPT_FAILED": "a v1 answer's ciphertext does not open with the key of this session",
    "V1_HOLDER_CHANGED": "a v1 answer comes from another enclave than the challenge",
    "V1_SIGNATURE_BAD": "a v1 answer's REPORTDATA is not its key's signature over the ciphertext",
    "V1_CHALLENGE_UNKNOWN": "a v1 request answers no live challenge",
    "V1_REFUSED": "a v1 holder refused, or has nothing to give yet",
}
