"""The real cryptography of the handover: HPKE of the `cryptography` package, HMAC-SHA256, the system's randomness.

HPKE base mode, KEM MLKEM768_X25519 as the package implements it, KDF HKDF-SHA256, AEAD AES-256-GCM. A public key on the
wire is the ML-KEM-768 key (1,184 bytes) followed by the X25519 key (32 bytes).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from keyvault.errors import KeyvaultError

from .messages import KEM_PUBLIC_KEY_BYTES

_MLKEM_PUBLIC_BYTES: Final = 1184
_MLKEM_SEED_BYTES: Final = 64
_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def load_private_key(data: bytes) -> MLKEM768X25519PrivateKey:
    """Return the key of a 64-byte ML-KEM seed followed by a 32-byte X25519 key (known-answer tests)."""
    return MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(data[:_MLKEM_SEED_BYTES]),
        X25519PrivateKey.from_private_bytes(data[_MLKEM_SEED_BYTES:]),
    )


class RealCrypto:
    """`keyvault.handover.party.Crypto` with real primitives."""

    def random(self, size: int) -> bytes:
        """Return `size` bytes from the operating system."""
        return os.urandom(size)

    def kem_generate(self) -> tuple[MLKEM768X25519PrivateKey, bytes]:
        """Return a fresh private key and its 1,216-byte public key."""
        mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        return MLKEM768X25519PrivateKey(mlkem, x25519), public

    def kem_seal(self, public_key: bytes, info: bytes, plaintext: bytearray) -> bytes:
        """Return encapsulation (1,120 bytes) and AEAD output. Raises `HANDOVER_MESSAGE_MALFORMED` on a bad key."""
        try:
            if len(public_key) != KEM_PUBLIC_KEY_BYTES:
                raise ValueError("wrong length")
            key = MLKEM768X25519PublicKey(
                MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC_BYTES]),
                X25519PublicKey.from_public_bytes(public_key[_MLKEM_PUBLIC_BYTES:]),
            )
            return _SUITE.encrypt(plaintext, key, info)
        except ValueError:
            raise KeyvaultError(
                code="HANDOVER_MESSAGE_MALFORMED",
                what="the request was refused",
                why="its KEM public key is not an ML-KEM-768 and X25519 key",
            ) from None

    def kem_open(self, private_key: MLKEM768X25519PrivateKey, info: bytes, ciphertext: bytes) -> bytearray:
        """Return the plaintext in a buffer that can be wiped. Raises `HANDOVER_CIPHERTEXT_BAD`."""
        try:
            return bytearray(_SUITE.decrypt(ciphertext, private_key, info))
        except (InvalidTag, ValueError):
            raise KeyvaultError(
                code="HANDOVER_CIPHERTEXT_BAD",
                what="the delivery was refused",
                why="its ciphertext does not open with this session's key and transcript",
            ) from None

    def mac(self, key: bytes | bytearray, data: bytes) -> bytes:
        """Return HMAC-SHA256."""
        return hmac.new(key, data, hashlib.sha256).digest()
