"""Objects on disk, AES-256-GCM under application keys.

The file of an object; its name is an HMAC of the object's name, so that the folder reveals no names::

    magic "DCOBJ\\x01\\0\\0" (8) | salt (32) | length of name frame u16 | name frame | data frames

Every frame is AES-256-GCM under HKDF-SHA256(data key, salt). The nonce is ``kind (1) | zero (6) | index u32 | last
(1)``, the STREAM construction: frames cannot be reordered, dropped or cut off unnoticed. The associated data of the
data frames contains magic, salt and the object's name, so that a file cannot replace that of another object.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_SET_MAGIC = b"DCKEYS\x01\x00"
KEY_SET_LENGTH = len(KEY_SET_MAGIC) + 64
KEY_SET_ID_TAG = b"dcupgrade key set v1\0"
OBJECT_MAGIC = b"DCOBJ\x01\x00\x00"
CHUNK_BYTES = 256 * 1024
TAG_BYTES = 16
OBJECT_BYTES_MAX = 256 * 1024 * 1024
NAME_BYTES_MAX = 200
CANARY_TEXT = b"the canary sings only under the first version's keys"


class NodeError(Exception):
    """A failure of the node, with a stable code."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code
        self.why = why


@dataclass(frozen=True, slots=True)
class KeySet:
    """Application keys: `magic (8) | data key (32) | name key (32)`; made once, by the first version ever started."""

    encoded: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.encoded) != KEY_SET_LENGTH or not self.encoded.startswith(KEY_SET_MAGIC):
            raise NodeError("NODE_KEY_SET_MALFORMED", "what was received or unsealed is not a key set of this node")

    @classmethod
    def draw(cls) -> KeySet:
        """Generate random keys."""
        return cls(KEY_SET_MAGIC + secrets.token_bytes(64))

    @property
    def data_key(self) -> bytes:
        """The key that encrypts contents."""
        return self.encoded[8:40]

    @property
    def name_key(self) -> bytes:
        """The key from which file names are made."""
        return self.encoded[40:72]

    @property
    def id(self) -> str:
        """Public name of the key set: hex SHA-256 over a domain tag and its bytes."""
        return hashlib.sha256(KEY_SET_ID_TAG + self.encoded).hexdigest()


class ObjectStore:
    """Encrypted objects in `folder`. `format_tag` is part of the key derivation: with another one nothing decrypts."""

    def __init__(self, folder: Path, keys: KeySet, format_tag: bytes = b"dc object v1") -> None:
        self._folder = folder / "objects"
        self._canary = folder / "canary.json"
        self._keys = keys
        self._tag = format_tag
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for rest in self._folder.glob("*.part"):
            rest.unlink()

    def _path(self, name: str) -> Path:
        return self._folder / hmac.new(self._keys.name_key, name.encode(), hashlib.sha256).hexdigest()

    def _cipher(self, salt: bytes) -> AESGCM:
        return AESGCM(HKDF(SHA256(), 32, salt, self._tag).derive(self._keys.data_key))

    async def put(self, name: str, body: AsyncIterator[bytes]) -> int:
        """Store an object and return its size in bytes. Atomic and durable: it is stored whole or not at all."""
        salt = secrets.token_bytes(32)
        cipher = self._cipher(salt)
        aad = OBJECT_MAGIC + salt + name.encode()
        target = self._path(name)
        aside = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        size = index = 0
        rest = bytearray()
        try:
            with aside.open("xb") as file:
                name_frame = cipher.encrypt(_nonce(b"N", 0, True), name.encode(), OBJECT_MAGIC + salt)
                file.write(OBJECT_MAGIC + salt + len(name_frame).to_bytes(2, "little") + name_frame)
                async for part in body:
                    size += len(part)
                    if size > OBJECT_BYTES_MAX:
                        raise NodeError("NODE_OBJECT_TOO_LARGE", f"an object may have {OBJECT_BYTES_MAX} bytes")
                    rest += part
                    while len(rest) > CHUNK_BYTES:
                        file.write(cipher.encrypt(_nonce(b"D", index, False), bytes(rest[:CHUNK_BYTES]), aad))
                        del rest[:CHUNK_BYTES]
                        index += 1
                file.write(cipher.encrypt(_nonce(b"D", index, True), bytes(rest), aad))
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, target)
            _sync_folder(self._folder)
        finally:
            aside.unlink(missing_ok=True)
        return size

    def open(self, name: str) -> tuple[int, Iterator[bytes]]:
        """Return size and plaintext chunks. Raises NODE_OBJECT_MISSING, and NODE_OBJECT_UNREADABLE while reading."""
        try:
            file = self._path(name).open("rb")
        except FileNotFoundError:
            raise NodeError("NODE_OBJECT_MISSING", f"there is no object {name}") from None
        try:
            salt, found = self._read_name(file)
            if found != name:
                raise NodeError("NODE_OBJECT_UNREADABLE", f"the file of {name} holds another object")
            size = _plain_size(os.fstat(file.fileno()).st_size - file.tell())
            return size, self._chunks(file, salt, name)
        except BaseException:
            file.close()
            raise

    def _read_name(self, file: BinaryIO) -> tuple[bytes, str]:
        head = file.read(42)
        salt, length = head[8:40], int.from_bytes(head[40:42], "little")
        if len(head) != 42 or not head.startswith(OBJECT_MAGIC):
            raise NodeError("NODE_OBJECT_UNREADABLE", "a file in the store is not an object")
        try:
            name = self._cipher(salt).decrypt(_nonce(b"N", 0, True), file.read(length), OBJECT_MAGIC + salt)
        except InvalidTag:
            raise NodeError("NODE_OBJECT_UNREADABLE", "an object does not decrypt under these keys") from None
        return salt, name.decode()

    def _chunks(self, file: BinaryIO, salt: bytes, name: str) -> Iterator[bytes]:
        cipher, aad, index = self._cipher(salt), OBJECT_MAGIC + salt + name.encode(), 0
        with file:
            frame = file.read(CHUNK_BYTES + TAG_BYTES)
            while True:
                following = file.read(CHUNK_BYTES + TAG_BYTES)
                try:
                    yield cipher.decrypt(_nonce(b"D", index, not following), frame, aad)
                except (InvalidTag, ValueError):
                    raise NodeError("NODE_OBJECT_UNREADABLE", f"object {name} does not decrypt") from None
                if not following:
                    return
                frame, index = following, index + 1

    def delete(self, name: str) -> None:
        """Remove an object. Raises NODE_OBJECT_MISSING."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise NodeError("NODE_OBJECT_MISSING", f"there is no object {name}") from None
        _sync_folder(self._folder)

    def sizes(self) -> dict[str, int]:
        """Return names and sizes (bytes) of all objects. Each name is decrypted from its file."""
        found = {}
        for path in self._folder.iterdir():
            if path.suffix == ".part":
                continue
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # it may be deleted meanwhile
                _, name = self._read_name(file)
                found[name] = _plain_size(os.fstat(file.fileno()).st_size - file.tell())
        return dict(sorted(found.items()))

    def is_empty(self) -> bool:
        """Tell whether there is neither an object nor a canary."""
        return not self._canary.exists() and not any(self._folder.iterdir())

    def write_canary(self, version: str) -> None:
        """Write the canary record. Only the first version does; later versions only read it."""
        salt = secrets.token_bytes(32)
        record = self._cipher(salt).encrypt(_nonce(b"C", 0, True), CANARY_TEXT, OBJECT_MAGIC + salt)
        write_durably(
            self._canary, json.dumps({"written_by": version, "salt": salt.hex(), "record": record.hex()}).encode()
        )

    def canary_sings(self) -> bool:
        """Read the canary record from disk and tell whether it decrypts."""
        try:
            data = json.loads(self._canary.read_bytes())
            salt = bytes.fromhex(data["salt"])
            record = bytes.fromhex(data["record"])
            text = self._cipher(salt).decrypt(_nonce(b"C", 0, True), record, OBJECT_MAGIC + salt)
        except (OSError, ValueError, KeyError, TypeError, InvalidTag):
            return False
        return hmac.compare_digest(text, CANARY_TEXT)


def write_durably(path: Path, data: bytes) -> None:
    """Write a temporary file, fsync, rename, fsync the folder; mode 0600."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nonce(kind: bytes, index: int, last: bool) -> bytes:
    return kind + bytes(6) + index.to_bytes(4, "little") + bytes([last])


def _plain_size(stored: int) -> int:
    frames = max(1, -(-stored // (CHUNK_BYTES + TAG_BYTES)))
    return stored - frames * TAG_BYTES
