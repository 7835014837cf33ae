"""Files as trees of blocks: UnixFS in dag-pb, as IPFS keeps them. Pure: one block in, one value out, and back.

A block is a leaf that holds a piece of the file, or it links to the blocks that do. Formats:
https://ipld.io/specs/codecs/dag-pb/spec and https://specs.ipfs.tech/unixfs.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from .content_id import Bytes, ContentId, encode_varint, take_cid, take_varint

_KINDS: Final = {0: "raw", 1: "directory", 2: "file", 3: "metadata", 4: "symbolic link", 5: "sharded directory"}
_RAW, _FILE = 0, 2
LINKS_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class FileBlock:
    """A block of a file: the bytes that it holds itself, then its children with the file bytes below each."""

    content: bytes
    children: tuple[tuple[ContentId, int], ...]
    size: int


def decode_block(cid: ContentId, block: Bytes) -> FileBlock:
    """Decode a block of a file that `cid` names; whether it does is not checked. Raises ValueError."""
    if not cid.is_tree:
        return FileBlock(bytes(block), (), len(block))
    links: list[ContentId] = []
    data: Bytes | None = None
    for number, value in _fields(block):
        if number == 2 and not isinstance(value, int) and len(links) < LINKS_MAX:
            links.append(_decode_link(value))
        elif number == 1 and not isinstance(value, int) and data is None:
            data = value
        else:
            raise ValueError("a block has fields that a file's has not, or too many of them")
    return _decode_data(data or b"", links)


def _decode_link(data: Bytes) -> ContentId:
    found: ContentId | None = None
    for number, value in _fields(data):  # the others are the name and a size that nothing depends on
        if number == 1 and not isinstance(value, int) and found is None:
            found, rest = take_cid(value)
            if rest:
                raise ValueError("a link names more than a CID")
    if found is None:
        raise ValueError("a link names no CID")
    return found


def _decode_data(data: Bytes, links: list[ContentId]) -> FileBlock:
    kind, size, sizes = -1, -1, list[int]()
    content: Bytes = b""
    for number, value in _fields(data):  # the others say nothing of the content: its mode and time
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and not isinstance(value, int):
            content = value
        elif number == 3 and isinstance(value, int):
            size = value
        elif number == 4 and isinstance(value, int):
            sizes.append(value)
    if kind not in (_RAW, _FILE):
        raise ValueError(f"a block is of a {_KINDS.get(kind, 'thing without a type')}, not of a file")
    if len(sizes) != len(links) or size != len(content) + sum(sizes):
        raise ValueError("the sizes in a block do not add up")
    return FileBlock(bytes(content), tuple(zip(links, sizes, strict=True)), size)


def _fields(data: Bytes) -> Iterator[tuple[int, int | Bytes]]:
    """The numbered fields of a protobuf message; numbers and byte strings are all that occurs. Raises ValueError."""
    data = memoryview(data)
    while data:
        tag, data = take_varint(data)
        value, data = take_varint(data)
        if tag & 7 == 0:
            yield tag >> 3, value
        elif tag & 7 == 2 and value <= len(data):
            yield tag >> 3, data[:value]
            data = data[value:]
        else:
            raise ValueError("a field is of another type, or longer than what holds it")


@dataclass(frozen=True, slots=True)
class Node:
    """A block that was built: its CID as bytes, the file's bytes below it, and the bytes of all blocks below it."""

    cid: bytes
    file_bytes: int
    tree_bytes: int


Leaves = Literal["raw", "dag-pb"]


def leaf(data: bytes, leaves: Leaves, version: int) -> Node:
    """The leaf that holds `data`."""
    if leaves == "raw":
        return Node(b"\x01\x55\x12\x20" + hashlib.sha256(data).digest(), len(data), len(data))
    held = b"\x12" + encode_varint(len(data)) if data else b""
    end = b"\x18" + encode_varint(len(data))
    inside = b"\x08\x02" + held
    start = b"\x0a" + encode_varint(len(inside) + len(data) + len(end)) + inside
    hasher = hashlib.sha256(start)
    hasher.update(data)
    hasher.update(end)
    return Node(_tree_cid(hasher.digest(), version), len(data), len(start) + len(data) + len(end))


def parent(children: Iterable[Node], version: int) -> Node:
    """The block that links to `children`."""
    links, sizes = bytearray(), bytearray()
    file_bytes = tree_bytes = 0
    for child in children:
        link = b"\x0a" + encode_varint(len(child.cid)) + child.cid + b"\x12\x00\x18" + encode_varint(child.tree_bytes)
        links += b"\x12" + encode_varint(len(link)) + link
        sizes += b"\x20" + encode_varint(child.file_bytes)
        file_bytes += child.file_bytes
        tree_bytes += child.tree_bytes
    data = b"\x08\x02\x18" + encode_varint(file_bytes) + sizes
    block = bytes(links) + b"\x0a" + encode_varint(len(data)) + data
    return Node(_tree_cid(hashlib.sha256(block).digest(), version), file_bytes, tree_bytes + len(block))


def _tree_cid(digest: bytes, version: int) -> bytes:
    return (b"\x01\x70" if version else b"") + b"\x12\x20" + digest
