"""A key set in memory: opaque bytes that are never printed and can be overwritten.

The bytes are in one `bytearray`, so that `wipe` overwrites them. Immutable `bytes` copies made by libraries (HPKE and
AES-GCM return them) cannot be wiped; docs/secrets.md lists them.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from keyvault.errors import KeyvaultError

KEY_SET_BYTES_MAX: Final = 64 * 1024
_ID_TAG: Final = b"dcupgrade key set v1\0"


def key_set_id(data: bytes | bytearray | memoryview) -> str:
    """Return the id of a key set: hex SHA-256 over a domain tag and its bytes (64 characters)."""
    digest = hashlib.sha256(_ID_TAG)
    digest.update(data)
    return digest.hexdigest()


class KeySet:
    """Application keys of a node: 1 to 65,536 opaque bytes, with their id. Never printed or pickled; can be wiped.

    Copies `data`; the caller wipes its own buffer. Raises `KEY_SET_SIZE_INVALID`.
    """

    __slots__ = ("_buffer", "_wiped", "key_set_id")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        if not 0 < len(data) <= KEY_SET_BYTES_MAX:
            raise KeyvaultError(
                code="KEY_SET_SIZE_INVALID",
                what="the key set was refused",
                why=f"it has {len(data)} bytes, allowed are 1 to {KEY_SET_BYTES_MAX}",
            )
        self._buffer = bytearray(data)
        self._wiped = False
        self.key_set_id = key_set_id(self._buffer)

    def view(self) -> memoryview:
        """Return a read-only view of the bytes. Do not use it after `wipe`. Raises `KEY_SET_WIPED`."""
        if self._wiped:
            raise KeyvaultError(
                code="KEY_SET_WIPED",
                what="the key set cannot be read",
                why="its bytes were already overwritten in memory",
                kind="invariant",
            )
        return memoryview(self._buffer).toreadonly()

    @property
    def buffer(self) -> bytearray:
        """The bytearray itself, for locking its pages; use `view` to read."""
        return self._buffer

    def wipe(self) -> None:
        """Overwrite the bytes with zeros. Safe to call twice."""
        wipe(self._buffer)
        self._wiped = True

    def __len__(self) -> int:
        return len(self._buffer)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeySet):
            return NotImplemented
        return hmac.compare_digest(self.view(), other.view())

    __hash__ = None  # type: ignore[assignment]  # mutable, and a hash would invite use as a dictionary key

    def __repr__(self) -> str:
        return f"KeySet({self.key_set_id[:8]}…, {len(self._buffer)} bytes, not shown)"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a key set is not pickled")

    def __enter__(self) -> KeySet:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()


def wipe(buffer: bytearray) -> None:
    """Overwrite a buffer with zeros in place."""
    buffer[:] = bytes(len(buffer))
