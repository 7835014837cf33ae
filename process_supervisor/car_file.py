"""Verify a file that arrives as a CAR: block after block, each against the CID that names it. Pure.

The gateway is asked for CARv1 (https://ipld.io/specs/transport/car/carv1) in depth-first order with duplicates
(https://specs.ipfs.tech/ipips/ipip-0412). So each block is the one that the file needs next: it is verified and passed
on at once, and only the links still to be followed are kept. The header and the CID in front of a block are not
trusted; only the file's own CID and the links below it decide.
"""

from typing import Final

from .content_id import ContentId, take_cid, take_varint
from .unixfs import LINKS_MAX, decode_block

HEADER_BYTES_MAX: Final = 4096
BLOCK_BYTES_MAX: Final = 4 << 20
"""Twice what nodes of IPFS exchange."""
_LENGTH_BYTES_MAX: Final = 9


class CarFile:
    """A file that is read out of a CAR. `size` is the file's size in bytes, known once its first block has arrived."""

    def __init__(self, cid: ContentId) -> None:
        self.size: int | None = None
        self._wanted: list[tuple[ContentId, int | None]] = [(cid, None)]  # the next one last
        self._buffer = bytearray()
        self._header_seen = False

    @property
    def complete(self) -> bool:
        """Whether every byte of the file has arrived and been verified."""
        return not self._wanted

    def feed(self, data: bytes | bytearray) -> bytes:
        """Take the next bytes of the CAR; return the bytes of the file that they complete.

        Raises ValueError with the reason if the CAR is malformed, has another order, or a block is not what its CID
        names. Nothing can be fed after that.
        """
        self._buffer += data
        pieces = []
        while (section := self._next_section()) is not None:
            if self._header_seen:
                pieces.append(self._take_block(section))
            self._header_seen = True
        return b"".join(pieces)

    def _next_section(self) -> bytes | None:
        """Return the next section of the buffer; None until it is complete."""
        head = bytes(self._buffer[:_LENGTH_BYTES_MAX])
        if len(head) < _LENGTH_BYTES_MAX and all(byte > 0x7F for byte in head):
            return None
        length, rest = take_varint(head)
        if not 0 < length <= (BLOCK_BYTES_MAX if self._header_seen else HEADER_BYTES_MAX):
            raise ValueError(f"it has a section of {length} bytes")
        start = len(head) - len(rest)
        if len(self._buffer) < start + length:
            return None
        section = bytes(memoryview(self._buffer)[start : start + length])
        del self._buffer[: start + length]
        return section

    def _take_block(self, section: bytes) -> bytes:
        if not self._wanted:
            raise ValueError("it continues after the end of the file")
        cid, expected = self._wanted[-1]
        named, block = take_cid(memoryview(section))
        if named != cid:
            raise ValueError("its blocks are not in the order of the file")
        if not cid.names(block):
            raise ValueError("a block is not what its CID names")
        found = decode_block(cid, block)
        if expected is not None and found.size != expected:
            raise ValueError(f"a block holds {found.size} bytes of the file instead of {expected}")
        if len(self._wanted) + len(found.children) > LINKS_MAX:
            raise ValueError(f"more than {LINKS_MAX} of its blocks are still to come at once")
        if self.size is None:
            self.size = found.size
        self._wanted[-1:] = reversed(found.children)
        return found.content
