"""Verify plain bytes against the CID of a tree, by building the trees that `ipfs add` may have made of them. Pure.

A file's CID depends on the chunk size, the number of links per block and the kind of leaves. The layouts tried here are
those of Kubo's settings and profiles (https://specs.ipfs.tech/ipips/ipip-0499): balanced trees, chunks of 256 KiB or
1 MiB, 174 or 1,024 links, leaves in dag-pb or raw. Memory use does not grow with the file.
"""

from typing import Final

from .content_id import ContentId, take_cid
from .unixfs import Leaves, Node, leaf, parent

CHUNK_BYTES: Final = (256 * 1024, 1024 * 1024)
WIDTHS: Final = (174, 1024)
LEAVES: Final[tuple[Leaves, ...]] = ("dag-pb", "raw")


class _Tree:
    """A balanced tree over leaves as they come. `levels` has the nodes that no block links to yet, leaves first."""

    def __init__(self, width: int, version: int) -> None:
        self._width = width
        self._version = version
        self._levels: list[list[Node]] = [[]]

    def add(self, node: Node, depth: int = 0) -> None:
        """Add the next node of a level; a full block of nodes becomes one node of the level above."""
        if depth == len(self._levels):
            self._levels.append([])
        level = self._levels[depth]
        level.append(node)
        if len(level) == self._width:
            self._levels[depth] = []
            self.add(parent(level, self._version), depth + 1)

    def root(self) -> Node:
        """Return the single node above all leaves; nothing can be added after that."""
        depth = 0
        while depth + 1 < len(self._levels) or len(self._levels[depth]) > 1:
            if level := self._levels[depth]:
                self._levels[depth] = []
                self.add(parent(level, self._version), depth + 1)
            depth += 1
        return self._levels[depth][0]


class _Chunks:
    """Trees of every width over chunks of one size, with leaves of one kind."""

    def __init__(self, size: int, leaves: Leaves, version: int) -> None:
        self._size, self._leaves, self._version = size, leaves, version
        self._chunk = bytearray()
        self._trees = [_Tree(width, version) for width in WIDTHS]
        self._empty = True

    def update(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            taken = view[: self._size - len(self._chunk)]
            self._chunk += taken
            view = view[len(taken) :]
            if len(self._chunk) == self._size:
                self._add_leaf()

    def roots(self) -> list[Node]:
        if self._chunk or self._empty:
            self._add_leaf()
        return [tree.root() for tree in self._trees]

    def _add_leaf(self) -> None:
        node = leaf(bytes(self._chunk), self._leaves, self._version)
        self._chunk.clear()
        self._empty = False
        for tree in self._trees:
            tree.add(node)


class KnownLayouts:
    """The trees over one stream of bytes."""

    def __init__(self, version: int) -> None:
        self._chunks = [_Chunks(size, leaves, version) for size in CHUNK_BYTES for leaves in LEAVES]

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the file."""
        for item in self._chunks:
            item.update(data)

    def roots(self) -> frozenset[ContentId]:
        """Return the possible CIDs of the complete file; call it once, at the end."""
        return frozenset(take_cid(node.cid)[0] for item in self._chunks for node in item.roots())
