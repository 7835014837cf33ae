"""Files with the network's signing key, and who else may read them."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from dcupgrade.errors import DcupgradeError, why_of


def load_signing_key(path: Path, passphrase: Callable[[], str] | None = None) -> Ed25519PrivateKey:
    """Network key from a file: 32 raw bytes, 64 hex digits, or PKCS#8 PEM of an ed25519 key.

    `passphrase` is called only for an encrypted PEM. Raises RELEASE_KEY_UNREADABLE.
    """
    try:
        data = path.read_bytes()
        if b"-----BEGIN" in data:
            return _ed25519_of_pem(data, passphrase)
        text = data.strip().removeprefix(b"0x")
        seed = bytes.fromhex(text.decode("ascii", "replace")) if len(text) == 64 else data
        if len(seed) != 32:
            raise ValueError("it is neither PEM, nor 64 hex digits, nor 32 bytes")
        return Ed25519PrivateKey.from_private_bytes(seed)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DcupgradeError(
            code="RELEASE_KEY_UNREADABLE",
            what=f"cannot use {path} as the network's signing key",
            why=why_of(error),
            action=_advice(error),
        ) from error


def _advice(error: Exception) -> str:
    if isinstance(error, OSError):
        return "Name the file of the network's signing key."
    return "A network's first key is made with: openssl genpkey -algorithm ed25519 -aes256 -out network.pem"


def _ed25519_of_pem(data: bytes, passphrase: Callable[[], str] | None) -> Ed25519PrivateKey:
    # PKCS#8 says so in its first line, the older PEM of OpenSSL in a header
    encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data or b"Proc-Type: 4,ENCRYPTED" in data
    if encrypted and passphrase is None:
        raise ValueError("it is encrypted, and nobody can be asked for its passphrase")
    key = load_pem_private_key(data, password=passphrase().encode() if encrypted and passphrase else None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("the PEM holds a key of another kind")
    return key


def open_to_others(path: Path) -> str:
    """A warning where others than its owner may read a key's file; empty where all is well."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return ""  # whoever opens it says what is wrong
    return f"{path} is open to others (mode {mode:o}): chmod 600 it" if mode & 0o077 else ""
