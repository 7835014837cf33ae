"""The exception of this package and its stable codes."""

from typing import Literal

Kind = Literal["transient", "rejected", "invariant"]

CODES: dict[str, str] = {
    "SGX_LENGTH_WRONG": "an SGX structure has another length than the architecture gives it",
    "SGX_RESERVED_NOT_ZERO": "reserved bytes of an SGX structure are not zero",
    "SGX_FIELD_INVALID": "a field of an SGX structure is outside its range",
    "SIGSTRUCT_INVALID": "a SIGSTRUCT is not one: length, header, exponent, vendor, date or reserved bytes",
    "SIGSTRUCT_SIGNATURE_BAD": "the RSA-3072 signature of a SIGSTRUCT, or its Q1/Q2, does not verify",
    "SIGSTRUCT_MRENCLAVE_MISMATCH": "the measured image is not the one that the SIGSTRUCT signs",
    "SIGSTRUCT_NOT_PINNED": "a SIGSTRUCT leaves open, or switches on, something that changes the seal key",
    "SIGSTRUCT_DEBUG": "a SIGSTRUCT is for a debug enclave, and a production one is wanted",
    "SIGSTRUCT_NOT_FOUND": "a file that should be a signed enclave contains no SIGSTRUCT at the expected place",
    "SIGSTRUCT_KEY_INVALID": "the signing key is not RSA-3072 with exponent 3",
    "MEASURE_LAYOUT_INVALID": "pages, sizes or an SGXS stream do not form an enclave",
    "ARTEFACT_UNREADABLE": "an image or SIGSTRUCT file cannot be read",
    "ARTEFACT_TOO_LARGE": "an image or SIGSTRUCT file is larger than the limit",
    "ENCLAVE_ID_INVALID": "an enclave id is not 64 lower-case hex digits",
    "MULTIBASE_INVALID": "text is not canonical multibase base32 (prefix b, lower case, no padding)",
    "NETWORK_KEYS_INVALID": "the network keys or their threshold are invalid",
    "NETWORK_SIGNATURE_MISSING": "no network signature was given",
    "NETWORK_SIGNATURE_BAD": "no given signature is the network's over this enclave id",
    "NETWORK_SIGNATURE_THRESHOLD": "fewer network keys signed this enclave id than the threshold asks for",
    "POLICY_INVALID": "an acceptance policy contradicts itself",
    "PEER_NOT_INIT": "the peer's report says that its enclave was never initialised",
    "PEER_DEBUG": "the peer is a debug enclave: its host can read its memory",
    "PEER_ATTRIBUTES": "the peer has attribute bits that the policy does not allow, or lacks ones it needs",
    "PEER_XFRM": "the peer's XFRM is outside what the policy allows",
    "PEER_MISCSELECT": "the peer's MISCSELECT has bits that the policy does not allow",
    "PEER_CET_ATTRIBUTES": "the peer's CET attributes are not the ones the policy allows",
    "PEER_CONFIG": "the peer's CONFIGID or CONFIGSVN is not the expected one",
    "PEER_ISVPRODID": "the peer's ISVPRODID is not the expected one",
    "PEER_ISVSVN_TOO_LOW": "the peer's ISVSVN is below the policy's floor",
    "PEER_NOT_TARGET": "the peer is not the enclave that may receive the keys",
    "PEER_NOT_SOURCE": "the peer is not the enclave that the keys come from",
    "PEER_NOT_UPGRADER": "the peer is not one of the expected upgraders",
    "TRANSITION_FORBIDDEN": "the policy does not allow this source to hand over to this target",
    "REPORT_MAC_BAD": "a report was not made for this enclave on this CPU",
    "REPORT_DATA_INVALID": "REPORTDATA is not 64 bytes",
    "TEE_MISSING": "this process does not run inside a TEE",
    "TEE_GONE": "the TEE no longer answers",
    "TEE_PROTOCOL": "the TEE's answer does not fit the request",
    "TEE_KEY_REFUSED": "the TEE refused a key request",
    "SEAL_KEY_ZERO": "the TEE gave an all-zero key",
    "CPU_FOLDER_INVALID": "the simulated CPU's folder is damaged, incomplete or open to others",
    "CPU_SETTING_INVALID": "an argument of the simulated CPU is invalid",
    "EINIT_ATTRIBUTES": "the enclave's ATTRIBUTES or MISCSELECT are not those its SIGSTRUCT allows",
    "EINIT_FORBIDDEN": "the enclave asks for a privilege that this CPU never grants",
    "ENCLAVE_START_FAILED": "the enclave's process could not be started",
    "GRAMINE_INTERFACE": "/dev/attestation did not behave as documented",
    "EGETKEY_MISSING": "the EGETKEY extension is not built or not measured into this enclave",
}


class AttestationError(Exception):
    """An attestation failure that says what failed, why, and what to do.

    `code` is stable (see `CODES`); `kind` says who must act: "transient" (try again), "rejected" (refuse the
    peer or the artefact), "invariant" (stop and keep everything). `expected` and `found` are set by refusals
    that compare a value; both are safe to log.
    """

    def __init__(
        self,
        *,
        code: str,
        what: str,
        why: str,
        action: str = "",
        kind: Kind = "rejected",
        expected: str | None = None,
        found: str | None = None,
    ) -> None:
        self.code = code
        self.what = what
        self.why = why
        self.action = action
        self.kind: Kind = kind
        self.expected = expected
        self.found = found
        super().__init__(code, what, why, action)

    def __str__(self) -> str:
        text = f"{self.code}: {self.what}: {self.why}."
        return f"{text} {self.action}" if self.action else text
