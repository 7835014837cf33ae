"""Strict SCALE decoding and encoding primitives.

Layout: https://docs.polkadot.com/polkadot-protocol/parachain-basics/data-encoding/ (little-endian fixed integers,
compact integers in four modes by the low two bits of the first byte, vectors as compact length and items).

Decoding is strict: every byte is used, compact integers have their shortest form, and lengths are bounded before
anything is allocated. Only `ChainWatcherError` with a `SCALE_*` code escapes.
"""

from __future__ import annotations

from typing import Final

from chain_watcher.errors import ChainWatcherError

U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1

#: Largest compact integer of the format: 67 bytes (mode 3 with the six upper bits set).
_COMPACT_BYTES_MAX: Final = 67


def refuse(code: str, what: str, why: str) -> ChainWatcherError:
    """Return an error of kind `rejected`: the same bytes will never be accepted."""
    return ChainWatcherError(code=code, what=what, why=why, kind="rejected")


class Reader:
    """Reads SCALE values from `data` in order. `finish` raises unless all bytes were read.

    `what` names the thing being decoded in error messages.
    """

    __slots__ = ("data", "position", "what")

    def __init__(self, data: bytes, what: str = "SCALE value") -> None:
        self.data = data
        self.position = 0
        self.what = what

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self.data) - self.position

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes. Raises SCALE_TRUNCATED if fewer are left."""
        start = self.position
        end = start + count
        if end > len(self.data):
            raise refuse("SCALE_TRUNCATED", self.what, f"{count} bytes wanted at {start}, {self.left} left")
        self.position = end
        return self.data[start:end]

    def uint(self, size: int) -> int:
        """Return a fixed-width little-endian unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def u8(self) -> int:
        """Return one byte as an integer."""
        return self.uint(1)

    def u32(self) -> int:
        """Return a u32."""
        return self.uint(4)

    def u64(self) -> int:
        """Return a u64."""
        return self.uint(8)

    def bool(self) -> bool:
        """Return a bool. Raises SCALE_VALUE_INVALID for any byte but 0 and 1."""
        value = self.uint(1)
        if value > 1:
            raise refuse("SCALE_VALUE_INVALID", self.what, f"bool byte {value:#04x}")
        return value == 1

    def compact(self, maximum: int = U32_MAX) -> int:
        """Return a compact integer in its shortest form, at most `maximum`.

        Raises SCALE_COMPACT_NOT_CANONICAL for a longer form, SCALE_TOO_LARGE over `maximum`.
        """
        start = self.position
        first = self.uint(1)
        mode = first & 3
        if mode == 0:
            value = first >> 2
        elif mode == 3:
            size = (first >> 2) + 4
            value = self.uint(size)
            if value < 2**30 or value < 2 ** (8 * (size - 1)):
                raise refuse("SCALE_COMPACT_NOT_CANONICAL", self.what, f"{value} in {size + 1} bytes at {start}")
        else:
            size = 2 if mode == 1 else 4
            value = (first | self.uint(size - 1) << 8) >> 2
            if value < (2**6 if mode == 1 else 2**14):
                raise refuse("SCALE_COMPACT_NOT_CANONICAL", self.what, f"{value} in {size} bytes at {start}")
        if value > maximum:
            raise refuse("SCALE_TOO_LARGE", self.what, f"compact integer {value} over {maximum} at {start}")
        return value

    def length(self, maximum: int, item_bytes: int = 1) -> int:
        """Return the number of items of a vector.

        Raises SCALE_TOO_LARGE over `maximum`, SCALE_TRUNCATED if that many items of `item_bytes` bytes or more do not
        fit into the bytes left.
        """
        count = self.compact(maximum)
        if count * item_bytes > self.left:
            raise refuse("SCALE_TRUNCATED", self.what, f"{count} items wanted, {self.left} bytes left")
        return count

    def blob(self, maximum: int = U32_MAX) -> bytes:
        """Return a `Vec<u8>` of at most `maximum` bytes."""
        return self.take(self.length(maximum))

    def finish(self) -> None:
        """Raise SCALE_TRAILING_BYTES unless all bytes were read."""
        if self.left:
            raise refuse("SCALE_TRAILING_BYTES", self.what, f"{self.left} bytes after the value")


def encode_compact(value: int) -> bytes:
    """Return the shortest compact form of `value`. Raises ValueError unless it is 0 to 2**536 - 1."""
    if value < 0:
        raise ValueError("compact integers are not negative")
    if value < 2**6:
        return bytes([value << 2])
    if value < 2**14:
        return (value << 2 | 1).to_bytes(2, "little")
    if value < 2**30:
        return (value << 2 | 2).to_bytes(4, "little")
    size = (value.bit_length() + 7) // 8
    if size > _COMPACT_BYTES_MAX:
        raise ValueError("compact integers have at most 67 bytes")
    return bytes([(size - 4) << 2 | 3]) + value.to_bytes(size, "little")


def encode_blob(data: bytes) -> bytes:
    """Return `data` as a `Vec<u8>`: compact length and the bytes."""
    return encode_compact(len(data)) + data
