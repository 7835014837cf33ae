"""An IPFS gateway on loopback, and the blocks that `ipfs add` makes of a file (a tree, root first)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

CAR = "application/vnd.ipld.car"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def varint(number: int) -> bytes:
    """Encode a number as unsigned LEB128."""
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([number])


def protobuf(number: int, value: int | bytes) -> bytes:
    """Encode one field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


@dataclass
class Block:
    """A block with its children; together they contain `file_bytes` bytes of the file."""

    cid: bytes
    data: bytes = field(repr=False)
    file_bytes: int
    children: list[Block] = field(default_factory=list, repr=False)

    def walk(self) -> Iterator[Block]:
        """Yield the blocks depth first, in the order of a CAR."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def tree_bytes(self) -> int:
        """Return the size of all blocks."""
        return sum(len(item.data) for item in self.walk())

    @property
    def text(self) -> str:
        """The CID as text."""
        if self.cid[0] == 1:
            return "b" + base64.b32encode(self.cid).decode().lower().rstrip("=")
        number, digits = int.from_bytes(self.cid, "big"), ""
        while number:
            number, digit = divmod(number, 58)
            digits = _BASE58[digit] + digits
        return digits


def unixfs(data: bytes, children: list[Block], version: int, *, kind: int = 2) -> Block:
    """Make a dag-pb block: of a file if `kind` is 2."""
    size = len(data) + sum(child.file_bytes for child in children)
    inside = protobuf(1, kind) + (protobuf(2, data) if data else b"") + protobuf(3, size)
    inside += b"".join(protobuf(4, child.file_bytes) for child in children)
    links = (protobuf(1, child.cid) + protobuf(2, b"") + protobuf(3, child.tree_bytes) for child in children)
    block = b"".join(protobuf(2, link) for link in links) + protobuf(1, inside)
    return Block((b"\1\x70" if version else b"") + b"\x12\x20" + hashlib.sha256(block).digest(), block, size, children)


def raw_block(data: bytes) -> Block:
    """Make a raw leaf, which consists of its bytes only."""
    return Block(b"\1\x55\x12\x20" + hashlib.sha256(data).digest(), data, len(data))


def add(data: bytes, *, chunk: int = 262144, width: int = 174, raw: bool = False, version: int = 0) -> Block:
    """Make the tree that `ipfs add` makes, with its long-time defaults; `raw` is `--raw-leaves`."""
    pieces = [data[at : at + chunk] for at in range(0, len(data), chunk)] or [b""]
    level = [raw_block(piece) if raw else unixfs(piece, [], version) for piece in pieces]
    while len(level) > 1:
        level = [unixfs(b"", level[at : at + width], version) for at in range(0, len(level), width)]
    return level[0]


def section(block: Block) -> bytes:
    """Encode a block for a CAR."""
    return varint(len(block.cid) + len(block.data)) + block.cid + block.data


def car(root: Block, blocks: Iterator[Block] | list[Block] | None = None) -> bytes:
    """Make a CARv1 of `blocks`; by default all blocks of the tree in order."""
    link = b"\xd8\x2a\x58" + bytes([len(root.cid) + 1]) + b"\0" + root.cid
    header = b"\xa2\x65roots\x81" + link + b"\x67version\x01"
    return varint(len(header)) + header + b"".join(map(section, blocks if blocks is not None else root.walk()))


@dataclass
class Gateway:
    """Serves files by CID: `/ipfs/<CID>`, as a CAR on request if `gives_cars`. `asked`: the requested forms."""

    files: dict[str, tuple[Block, bytes]] = field(default_factory=dict, repr=False)
    gives_cars: bool = True
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, data: bytes, **how: int) -> str:
        """Store a file; returns its CID."""
        root = add(data, **how)  # type: ignore[arg-type]
        self.files[root.text] = (root, data)
        return root.text

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer as Kubo's gateway does."""
        if request.match_info["cid"] not in self.files:
            raise web.HTTPNotFound
        root, data = self.files[request.match_info["cid"]]
        as_car = self.gives_cars and request.query.get("format") == "car"
        self.asked.append("car" if as_car else "plain")
        if as_car:
            response = web.StreamResponse(headers={"Content-Type": CAR})
            await response.prepare(request)
            await response.write(car(root, []))
            for block in root.walk():
                await response.write(section(block))
            return response
        return web.Response(body=data, headers={"ETag": f'"{root.text}"'}, content_type="application/x-tar")


@asynccontextmanager
async def gateway(**how: bool) -> AsyncIterator[Gateway]:
    """Give a gateway that listens."""
    made = Gateway(**how)  # type: ignore[arg-type]
    app = web.Application()
    app.router.add_get("/ipfs/{cid}", made.get)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
