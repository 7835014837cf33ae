"""Errors of the agent, each under a stable code; ``python -m dcupgrade explain CODE`` tells what a code means."""

from typing import Literal

Kind = Literal["transient", "rejected", "invariant"]

CODES: dict[str, str] = {
    # the release manager's tools (publish.py, release_cli.py)
    "RELEASE_KEY_UNREADABLE": "a signing key file is missing or is neither a 32-byte seed nor a PKCS#8 ed25519 key",
    "RELEASE_ID_MALFORMED": "an enclave id is not 64 lower-case hexadecimal digits",
    "RELEASE_SIGSTRUCT_UNREADABLE": "a SIGSTRUCT file from which the enclave id was to be taken cannot be used",
    "RELEASE_SIGNATURE_BAD": "a network signature does not verify over the enclave id with the given network keys",
    "RELEASE_ALREADY_PUBLISHED": "the chain already names this very release as the one to run",
    "RELEASE_NOT_NEWER": "the enclave id was added to the chain no later than the one it is to replace",
    "RELEASE_NOT_LISTED": "the enclave id is not in the chain's list, so there is nothing to revoke",
    "RELEASE_FIELD_BAD": "a field of a release is empty, too long or holds characters that no client would accept",
    "PUBLISH_CHAIN_UNREACHABLE": "the chain's RPC endpoint cannot be reached or broke off",
    "PUBLISH_PALLET_MISSING": "the chain has no pallet with the DCNode calls and storage",
    "PUBLISH_CALL_UNKNOWN_FIELD": "a call of the pallet has an argument that this version does not know how to fill",
    "PUBLISH_NO_KEY": "no account was given that could sign the extrinsic",
    "PUBLISH_EXTRINSIC_REFUSED": "the chain did not take the extrinsic into its pool",
    "PUBLISH_DISPATCH_FAILED": "the extrinsic was included, but the call inside it failed",
    "PUBLISH_NOT_IN_STORAGE": "the calls succeeded, yet the finalized state does not show the release",
    "SETTINGS_UNREADABLE": "the settings file cannot be read or is not TOML",
    "SETTINGS_INVALID": "the settings file has mistakes; all of them are listed",
    "UNKNOWN_CODE": "no part of the program knows the code that was asked about",
}


class DcupgradeError(Exception):
    """What failed, why, and what to do, under a stable code.

    ``kind`` says who must act: ``transient`` (retry with backoff), ``rejected`` (this input is refused), ``invariant``
    (stop and keep everything).
    """

    def __init__(self, *, code: str, what: str, why: str, action: str = "", kind: Kind = "rejected") -> None:
        self.code = code
        self.what = what
        self.why = why
        self.action = action
        self.kind: Kind = kind
        end = "" if why.endswith("\n") else ". " if action else "."
        super().__init__(f"{code}: {what}: {why}{end}{action}")
