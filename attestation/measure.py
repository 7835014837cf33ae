"""MRENCLAVE: the SHA-256 over what ECREATE, EADD and EEXTEND log. Pure.

Log (SDM 3D): "ECREATE\\0" SSAFRAMESIZE:u32 SIZE:u64 44 zeros; per page "EADD\\0\\0\\0\\0" offset:u64 SECINFO:48;
per 256 bytes "EEXTEND\\0" offset:u64 48 zeros, then the bytes. An SGXS stream is the same bytes, with records
"UNMEASRD" for what is loaded and not hashed.
"""

import hashlib
import struct
from collections.abc import Iterable

from attestation.errors import AttestationError

PAGE = 4096
CHUNK = 256
SIZE_MAX = 1 << 36
READ, WRITE, EXECUTE = 0x1, 0x2, 0x4
TCS, REG = 0x100, 0x200
_ECREATE = struct.Struct("<8sIQ44s")
_EADD = struct.Struct("<8sQQ40s")
_EEXTEND = struct.Struct("<8sQ48s")


def _invalid(why: str) -> AttestationError:
    return AttestationError(code="MEASURE_LAYOUT_INVALID", what="an enclave cannot be measured", why=why)


class Measurement:
    """MRENCLAVE in the making: one enclave of `size` bytes (a power of two), pages added in the caller's order."""

    def __init__(self, size: int, ssaframesize: int = 1) -> None:
        if not 2 * PAGE <= size <= SIZE_MAX or size & (size - 1):
            raise _invalid(f"SIZE {size} is no power of two from {2 * PAGE} to {SIZE_MAX}")
        if not 0 < ssaframesize <= size // PAGE:
            raise _invalid(f"SSAFRAMESIZE {ssaframesize} does not fit into the enclave")
        self._size = size
        self._hash = hashlib.sha256(_ECREATE.pack(b"ECREATE", ssaframesize, size, b""))

    def add_pages(self, offset: int, flags: int, data: bytes) -> None:
        """Add and measure whole pages of one kind from `offset` on; `flags` is SECINFO.FLAGS."""
        if offset % PAGE or len(data) % PAGE or not 0 <= offset <= self._size - len(data):
            raise _invalid(f"{len(data)} bytes at {offset:#x} are not pages inside the enclave")
        view = memoryview(data)
        for start in range(0, len(data), PAGE):
            at = offset + start
            parts: list[bytes | memoryview] = [_EADD.pack(b"EADD", at, flags, b"")]
            for chunk in range(0, PAGE, CHUNK):
                parts.append(_EEXTEND.pack(b"EEXTEND", at + chunk, b""))
                parts.append(view[start + chunk : start + chunk + CHUNK])
            self._hash.update(b"".join(parts))

    def digest(self) -> bytes:
        """Give MRENCLAVE (32 bytes) of what was added so far."""
        return self._hash.digest()


def image_enclave_size(size: int) -> int:
    """Give SIZE for an image of `size` bytes: TCS page and image pages, rounded up to a power of two."""
    pages = 1 + -(-size // PAGE)
    return max(2 * PAGE, 1 << (pages * PAGE - 1).bit_length())


def measure_image(chunks: Iterable[bytes], size: int) -> bytes:
    """Measure an image file of `size` bytes given in pieces: its MRENCLAVE (32 bytes).

    Layout: ECREATE with SSAFRAMESIZE 1; at 0 one TCS page, whose OENTRY (offset 32) holds `size`, so that two
    images that differ in trailing zeros differ here too; from 4096 on the file as REG pages R|X, zero-padded.
    Raises MEASURE_LAYOUT_INVALID if the pieces do not add up to `size`.
    """
    if size <= 0:
        raise _invalid("the image is empty")
    measurement = Measurement(image_enclave_size(size))
    measurement.add_pages(0, TCS, bytes(32) + struct.pack("<Q", size) + bytes(PAGE - 40))
    pending = bytearray()
    offset, seen = PAGE, 0
    for chunk in chunks:
        pending += chunk
        seen += len(chunk)
        if seen > size:
            break
        whole = len(pending) - len(pending) % PAGE
        measurement.add_pages(offset, REG | READ | EXECUTE, bytes(pending[:whole]))
        offset += whole
        del pending[:whole]
    if seen != size:
        raise _invalid(f"the image has {'more' if seen > size else 'fewer'} bytes than the {size} announced")
    if pending:
        measurement.add_pages(offset, REG | READ | EXECUTE, bytes(pending.ljust(PAGE, b"\0")))
    return measurement.digest()
