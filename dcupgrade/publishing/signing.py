"""Signing an enclave id with the network's key, and verifying such signatures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dcupgrade.errors import DcupgradeError, why_of

ENCLAVE_ID = re.compile(r"[0-9a-f]{64}\Z")


def require_enclave_id(enclave_id: str) -> str:
    """Return the id, or raise RELEASE_ID_MALFORMED: case counts, for the signature is over these characters."""
    if not ENCLAVE_ID.match(enclave_id):
        raise DcupgradeError(
            code="RELEASE_ID_MALFORMED",
            what=f"cannot use {enclave_id[:80]!r} as an enclave id",
            why=f"it must be 64 lower-case hexadecimal digits, and this has {len(enclave_id)} characters",
            action="Take the id from the SIGSTRUCT with --sigstruct, or as the build printed it.",
        )
    return enclave_id


def enclave_id_of_sigstruct(path: Path) -> str:
    """Enclave id in a SIGSTRUCT whose RSA signature verifies; RELEASE_SIGSTRUCT_UNREADABLE otherwise."""
    from attestation.artefact.sigstruct import SigStruct
    from attestation.errors import AttestationError

    try:
        sigstruct = SigStruct.decode(path.read_bytes())
        sigstruct.verify()
    except (OSError, AttestationError) as error:
        raise DcupgradeError(
            code="RELEASE_SIGSTRUCT_UNREADABLE", what=f"cannot take the enclave id from {path}", why=why_of(error)
        ) from error
    return sigstruct.mrenclave.hex()


def sign_enclave_id(key: Ed25519PrivateKey, enclave_id: str) -> str:
    """Network signature as the chain stores it: multibase base32 of ed25519 over the 64 ASCII characters of the id."""
    from attestation.network import encode_multibase

    text: str = encode_multibase(key.sign(require_enclave_id(enclave_id).encode("ascii")))
    return text


def network_key_text(key: Ed25519PrivateKey) -> str:
    """Public half of a network key, in the multibase form that settings take."""
    from attestation.network import encode_multibase

    text: str = encode_multibase(key.public_key().public_bytes_raw())
    return text


def verify_signatures(enclave_id: str, signatures: Sequence[str], keys: Sequence[str], threshold: int = 1) -> None:
    """Raise RELEASE_SIGNATURE_BAD unless enough of the network keys signed exactly this id."""
    from attestation.errors import AttestationError
    from attestation.network import NetworkKeys, decode_multibase

    require_enclave_id(enclave_id)
    try:
        network = NetworkKeys.parse(tuple(keys), threshold)
    except (AttestationError, ValueError) as error:
        raise DcupgradeError(
            code="RELEASE_NETWORK_KEY_BAD",
            what="the network keys cannot be used",
            why=str(error),
            action="Give each public key as multibase base32 or 64 hex digits.",
        ) from error
    try:
        network.verify(enclave_id, [decode_multibase(text) for text in signatures])
    except (AttestationError, ValueError) as error:
        raise DcupgradeError(
            code="RELEASE_SIGNATURE_BAD",
            what=f"the network signature over {enclave_id} was not accepted",
            why=str(error),
            action="Sign this exact id with the network's key, and compare the key with --network-key.",
        ) from error
