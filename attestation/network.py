"""Network signatures: ed25519 by the DC network's keys over an enclave id. Pure.

The signed message is the 64 ASCII bytes of the enclave id (lower-case hex of MRENCLAVE), as the network's governance
signs it on chain. Keys and signatures travel as multibase base32 (prefix `b`).
"""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass

import ed25519_zebra  # type: ignore[import-untyped]

from .errors import AttestationError

KEY_SIZE = 32
SIGNATURE_SIZE = 64
SIGNATURES_MAX = 64
KEYS_MAX = 64
TEXT_CHARS_MAX = 128 * 1024
_ENCLAVE_ID = re.compile(r"[0-9a-f]{64}\Z")
_BASE32 = re.compile(r"b[a-z2-7]*\Z")
_HEX_KEY = re.compile(r"(0x)?[0-9a-f]{64}\Z")


def _multibase_invalid(why: str) -> AttestationError:
    return AttestationError(
        code="MULTIBASE_INVALID",
        what="a multibase value cannot be read",
        why=why,
        action="Give canonical multibase base32: prefix b, lower case, no padding.",
    )


def encode_multibase(data: bytes) -> str:
    """Encode bytes as multibase base32 text (prefix `b`, lower case, no padding)."""
    return "b" + base64.b32encode(data).decode("ascii").rstrip("=").lower()


def decode_multibase(text: str) -> bytes:
    """Decode multibase base32 text. Only the canonical form is accepted, so that each value has one text.

    Raises MULTIBASE_INVALID: other prefix, case or alphabet, padding, impossible length, non-zero spare bits.
    """
    if len(text) > TEXT_CHARS_MAX:
        raise _multibase_invalid(f"it has {len(text)} characters, over the limit of {TEXT_CHARS_MAX}")
    if not _BASE32.match(text):
        raise _multibase_invalid("it is not lower-case base32 behind the prefix b")
    digits = text[1:].upper()
    try:
        data = base64.b32decode(digits + "=" * (-len(digits) % 8))
    except binascii.Error as error:
        raise _multibase_invalid("its length is impossible") from error
    if encode_multibase(data) != text:
        raise _multibase_invalid("it is not the canonical text of its value")
    return data


def need_enclave_id(enclave_id: str) -> str:
    """Return `enclave_id`, or raise ENCLAVE_ID_INVALID unless it is 64 lower-case hex digits."""
    if not isinstance(enclave_id, str) or not _ENCLAVE_ID.match(enclave_id):
        shown = enclave_id[:80] if isinstance(enclave_id, str) else type(enclave_id).__name__
        raise AttestationError(
            code="ENCLAVE_ID_INVALID",
            what="an enclave id cannot be used",
            why=f"{shown!r} is not 64 lower-case hex digits",
        )
    return enclave_id


def _keys_invalid(why: str) -> AttestationError:
    return AttestationError(code="NETWORK_KEYS_INVALID", what="the network keys cannot be used", why=why)


@dataclass(frozen=True)
class NetworkKeys:
    """The network's ed25519 public keys (32 raw bytes each) and how many of them must have signed."""

    keys: tuple[bytes, ...]
    threshold: int = 1

    def __post_init__(self) -> None:
        if not 0 < len(self.keys) <= KEYS_MAX:
            raise _keys_invalid(f"there are {len(self.keys)} instead of 1 to {KEYS_MAX}")
        if any(type(key) is not bytes or len(key) != KEY_SIZE for key in self.keys):
            raise _keys_invalid(f"a key is not {KEY_SIZE} bytes")
        if len(set(self.keys)) != len(self.keys):
            raise _keys_invalid("a key is there twice, and would count twice")
        if any(_order_is_small(key) for key in self.keys):
            raise _keys_invalid("a key is a point of small order: anybody can sign for it")
        if type(self.threshold) is not int or not 0 < self.threshold <= len(self.keys):
            raise _keys_invalid(f"the threshold is {self.threshold!r} for {len(self.keys)} keys")

    @classmethod
    def parse(cls, texts: Iterable[str], threshold: int = 1) -> "NetworkKeys":
        """Read keys from settings: multibase base32, or 64 hex digits (with or without 0x)."""
        keys = []
        for text in texts:
            if not isinstance(text, str):
                raise _keys_invalid("a key is not text")
            compact = text.strip()
            if _HEX_KEY.match(compact):
                keys.append(bytes.fromhex(compact.removeprefix("0x")))
            else:
                keys.append(decode_multibase(compact))
        return cls(tuple(keys), threshold)

    def verify(self, enclave_id: str, signatures: Iterable[bytes]) -> frozenset[int]:
        """Verify the network's signature over `enclave_id`; returns the indexes of the keys that signed.

        Signatures of other keys are ignored, because anybody can append one. Each network key counts once. Raises
        ENCLAVE_ID_INVALID, NETWORK_SIGNATURE_MISSING, _BAD, _THRESHOLD.
        """
        message = need_enclave_id(enclave_id).encode("ascii")
        given = tuple(signatures)
        what = f"enclave {enclave_id} is not accepted by the network"
        if not given:
            raise AttestationError(
                code="NETWORK_SIGNATURE_MISSING",
                what=what,
                why="there is no network signature",
                expected=str(self.threshold),
                found="0",
            )
        usable = [s for s in given[:SIGNATURES_MAX] if isinstance(s, bytes) and len(s) == SIGNATURE_SIZE]
        signed = frozenset(
            index for index, key in enumerate(self.keys) if any(_signed_by(key, s, message) for s in usable)
        )
        if len(signed) >= self.threshold:
            return signed
        if not signed:
            raise AttestationError(
                code="NETWORK_SIGNATURE_BAD",
                what=what,
                why=f"none of {len(given)} signatures is by a network key over this id",
                action="Compare the network keys in the settings with the network's.",
                expected=str(self.threshold),
                found="0",
            )
        raise AttestationError(
            code="NETWORK_SIGNATURE_THRESHOLD",
            what=what,
            why=f"{len(signed)} network keys signed it, {self.threshold} are needed",
            action="Wait for more signatures.",
            expected=str(self.threshold),
            found=str(len(signed)),
        )


def _signed_by(key: bytes, signature: bytes, message: bytes) -> bool:
    # ZIP-215 rules, as on the chain. They accept more signatures than others, but only the owner of a key could make
    # those, and keys of small order are refused above.
    return bool(ed25519_zebra.ed_verify(signature, message, key))


def _order_is_small(key: bytes) -> bool:
    """Tell whether an encoded point has order 1, 2, 4 or 8; all encodings, also non-canonical ones.

    y coordinates of the eight torsion points of edwards25519, as in libsodium's blocklist.
    """
    y = int.from_bytes(key, "little") & ((1 << 255) - 1)
    return y % ((1 << 255) - 19) in _SMALL_ORDER_Y


_P = (1 << 255) - 19
_Y8 = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})
