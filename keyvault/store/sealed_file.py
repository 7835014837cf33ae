"""Format of a sealed file: an authenticated header and AES-256-GCM under a key derived from the TEE's seal key.

Layout, little-endian, header of 652 bytes, all of it authenticated as associated data:

    0:8     magic "DCSEALED"
    8:2     format version: 1 without a store id, 2 with one
    10:2    kind: 1 key set, 2 facts of the vault
    12:8    epoch: increases with every write of the same name
    20:512  the whole KEYREQUEST (CPUSVN, KEYID, policy MRENCLAVE), with which EGETKEY returns the seal key
    532:32  MRENCLAVE of the enclave that sealed
    564:32  release id: MRENCLAVE of the enclave from which the key set was collected (zero for facts)
    596:32  name: the key set id (zero for facts)
    628:12  AES-GCM nonce
    640:4   length of the plaintext
    644:8   store id: random, the same in all files of one vault's store (zero in format 1, which nodes write)
    652     ciphertext, then the 16-byte tag; nothing follows

Key = HKDF-SHA256(seal key, salt = KEYID, info = tag, MRENCLAVE, kind). KEYID is random per write: no key is used twice.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.errors import AttestationError
from attestation.sgx import POLICY_MRENCLAVE, SEAL_KEY, KeyRequest
from keyvault.errors import KeyvaultError

MAGIC: Final = b"DCSEALED"
FORMAT_PLAIN: Final = 1
FORMAT_WITH_STORE_ID: Final = 2
STORE_ID_BYTES: Final = 8
NO_STORE_ID: Final = bytes(STORE_ID_BYTES)
KIND_KEY_SET: Final = 1
KIND_FACTS: Final = 2
FACTS_NAME: Final = bytes(32)
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
PLAINTEXT_BYTES_MAX: Final = 4 * 1024 * 1024
_LAYOUT: Final = struct.Struct("<8sHHQ512s32s32s32s12sI8s")
HEADER_BYTES: Final = _LAYOUT.size
FILE_BYTES_MAX: Final = HEADER_BYTES + PLAINTEXT_BYTES_MAX + TAG_BYTES
_INFO: Final = b"dcupgrade sealed store v1\0"


@dataclass(frozen=True)
class Header:
    """The authenticated header. Ids and names are raw bytes; the module's docstring has the layout."""

    kind: int
    epoch: int
    key_request: KeyRequest
    sealer: bytes
    source: bytes
    name: bytes
    nonce: bytes
    plaintext_bytes: int
    store_id: bytes = NO_STORE_ID

    def encode(self) -> bytes:
        """Return the header's 652 bytes."""
        return _LAYOUT.pack(
            MAGIC,
            FORMAT_PLAIN if self.store_id == NO_STORE_ID else FORMAT_WITH_STORE_ID,
            self.kind,
            self.epoch,
            self.key_request.encode(),
            self.sealer,
            self.source,
            self.name,
            self.nonce,
            self.plaintext_bytes,
            self.store_id,
        )


def _invalid(why: str) -> KeyvaultError:
    return KeyvaultError(
        code="STORE_FORMAT_INVALID",
        what="a sealed file was refused",
        why=why,
        action="It is kept as it is. Look at the disk and at what else writes into the store's folder.",
        kind="invariant",
    )


def decode_header(data: bytes) -> Header:
    """Decode a sealed file's header and check its form. It is authenticated only by `open_sealed`.

    Raises `STORE_FORMAT_INVALID`.
    """
    if not HEADER_BYTES + TAG_BYTES <= len(data) <= FILE_BYTES_MAX:
        raise _invalid(f"it has {len(data)} bytes")
    magic, version, kind, epoch, request, sealer, source, name, nonce, length, store_id = _LAYOUT.unpack_from(data)
    if magic != MAGIC:
        raise _invalid("its magic bytes are wrong")
    if version not in (FORMAT_PLAIN, FORMAT_WITH_STORE_ID):
        raise _invalid(f"its format version is {version}, this program knows {FORMAT_PLAIN} and {FORMAT_WITH_STORE_ID}")
    if kind not in (KIND_KEY_SET, KIND_FACTS) or (version == FORMAT_PLAIN) != (store_id == NO_STORE_ID):
        raise _invalid("its kind is unknown, or its store id does not fit its format version")
    if len(data) != HEADER_BYTES + length + TAG_BYTES:
        raise _invalid("its length is not the one its header names")
    try:
        key_request = KeyRequest.decode(request)
    except AttestationError as error:
        raise _invalid(f"its KEYREQUEST is not one: {error.why}") from None
    # Under a weaker policy another enclave could open this enclave's files, or make this one open foreign files.
    if key_request.key_name != SEAL_KEY or key_request.key_policy != POLICY_MRENCLAVE:
        raise _invalid("its KEYREQUEST does not ask for a seal key under the MRENCLAVE policy")
    return Header(kind, epoch, key_request, sealer, source, name, nonce, length, store_id)


def _cipher(seal_key: bytes, header: Header) -> AESGCM:
    info = _INFO + header.sealer + header.kind.to_bytes(2, "little")
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=header.key_request.key_id, info=info).derive(seal_key))


def check_seal_key(seal_key: bytes, tee_kind: str, allow_simulated: bool) -> None:
    """Raise `STORE_SEAL_KEY_UNSAFE` for an all-zero key, and for a simulated TEE unless `allow_simulated`."""
    if allow_simulated and any(seal_key):
        return
    if not any(seal_key) or tee_kind == "simulated":
        raise KeyvaultError(
            code="STORE_SEAL_KEY_UNSAFE",
            what="sealing was refused",
            why="the seal key is all zero" if not any(seal_key) else "the TEE is simulated: its host can read the key",
            action="Run in a real TEE, or measure a policy with unsafe_simulated_tee = true for development.",
            kind="invariant",
        )


def seal(header: Header, seal_key: bytes, plaintext: bytes | bytearray | memoryview) -> bytes:
    """Return the whole file for `plaintext`. Sets the header's length field."""
    header = replace(header, plaintext_bytes=len(plaintext))
    associated = header.encode()
    return associated + _cipher(seal_key, header).encrypt(header.nonce, plaintext, associated)


def open_sealed(data: bytes, seal_key: bytes) -> tuple[Header, bytearray]:
    """Return header and plaintext (a wipeable buffer). Raises `STORE_FORMAT_INVALID`, `STORE_UNSEAL_FAILED`."""
    header = decode_header(data)
    try:
        plaintext = _cipher(seal_key, header).decrypt(header.nonce, data[HEADER_BYTES:], data[:HEADER_BYTES])
    except InvalidTag:
        raise KeyvaultError(
            code="STORE_UNSEAL_FAILED",
            what="a sealed file does not open",
            why="its authentication tag does not fit this enclave's seal key: damaged, or from another CPU",
            action="It is kept. Restore the CPU's root keys or the file; the other generation is tried first.",
            kind="invariant",
        ) from None
    return header, bytearray(plaintext)
