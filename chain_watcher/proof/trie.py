"""Read proofs: the value of a storage key under a state root, from the trie nodes in a node's answer.

Format: Substrate's base-16 Merkle Patricia trie (Polkadot specification, "State storage and the storage trie"),
blake2b-256, layouts V0 (values inline) and V1 (values over 32 bytes stored by hash, as a proof item of their own).
Node = header byte with kind and partial-key length, partial key, children bitmap (u16), value, children::

    01xxxxxx leaf, 10xxxxxx branch, 11xxxxxx branch with value, 001xxxxx leaf with hashed value,
    0001xxxx branch with hashed value, 00000000 the empty trie (as the root only)

Decoding is strict. A node is found by its hash, from the root down, and in no other way. Every node on the path to a
key is decoded to its last byte. A missing node is an error; it never proves that the key is absent. Items that cannot
be reached from the root are refused, and so are repeated items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from chain_watcher.errors import ChainWatcherError

from .scale import Reader, refuse

HASH_BYTES: Final = 32
#: Limits of one proof, in items and bytes. EnclaveIds is the largest value that is read.
PROOF_NODES_MAX: Final = 4096
PROOF_BYTES_MAX: Final = 4 << 20

_EMPTY_NODE: Final = b"\0"
_NO_CHILDREN: Final[tuple[bytes | None, ...]] = (None,) * 16


def blake2b_256(data: bytes) -> bytes:
    """Return the 32-byte blake2b hash of `data`: Substrate's hash of headers, trie nodes and values."""
    return hashlib.blake2b(data, digest_size=32).digest()


#: State root of a trie without any key.
EMPTY_ROOT: Final = blake2b_256(_EMPTY_NODE)


class TrieNode(NamedTuple):
    """A decoded trie node.

    `partial` is the partial key as hex digits, one per nibble. `value` is None, the inline value, or the 32-byte hash
    of the value where `hashed` is true. `children` has 16 items: None, a 32-byte hash, or a shorter inline node.
    """

    partial: str
    value: bytes | None
    hashed: bool
    children: Sequence[bytes | None]


def _bad(why: str) -> ChainWatcherError:
    return refuse("PROOF_NODE_INVALID", "trie node", why)


def decode_node(data: bytes) -> TrieNode:
    """Decode one trie node. Raises PROOF_NODE_INVALID for anything that Substrate's codec would not write.

    The node of the empty trie (one zero byte) is refused here: it is never on the path to a key.
    """
    reader = Reader(data, "trie node")
    try:
        return _decode_node(reader)
    except ChainWatcherError as error:
        if error.code == "PROOF_NODE_INVALID":
            raise
        raise _bad(f"{error.code}: {error.why}") from error


def _decode_node(reader: Reader) -> TrieNode:
    first = reader.u8()
    if first >= 0x40:
        length_max, hashed = 0x3F, False
        is_branch, has_value = first >= 0x80, first < 0x80 or first >= 0xC0
    elif first >= 0x10:
        hashed = has_value = True
        is_branch = first < 0x20
        length_max = 0x0F if is_branch else 0x1F
    else:
        raise _bad(f"header byte {first:#04x}")
    nibbles = first & length_max
    if nibbles == length_max:
        more = 255
        while more == 255:
            more = reader.u8()
            nibbles += more
    partial = reader.take((nibbles + 1) // 2).hex()
    if nibbles & 1:
        if partial[0] != "0":
            raise _bad("padding nibble of the partial key is not 0")
        partial = partial[1:]
    bitmap = 0
    if is_branch:
        bitmap = reader.uint(2)
        if not bitmap:
            raise _bad("branch without children")
    value = None
    if has_value:
        value = reader.take(HASH_BYTES) if hashed else reader.blob()
    children = _decode_children(reader, bitmap) if bitmap else _NO_CHILDREN
    reader.finish()
    return TrieNode(partial, value, hashed, children)


def _decode_children(reader: Reader, bitmap: int) -> list[bytes | None]:
    """Read the children of a branch: by hash (0x80 is the compact length 32) or inline (shorter)."""
    data, position, end = reader.data, reader.position, len(reader.data)
    children: list[bytes | None] = [None] * 16
    for index in range(16):
        if not bitmap >> index & 1:
            continue
        if position >= end:
            raise _bad("children end early")
        size = data[position]
        # Compact lengths up to 63 are one byte with the low bits 00; a child never has more than 32 bytes.
        if size & 3 or not 0 < size <= HASH_BYTES << 2:
            raise _bad(f"child {index} has no length of 1 to 32 bytes")
        start = position + 1
        position = start + (size >> 2)
        if position > end:
            raise _bad("children end early")
        children[index] = data[start:position]
    reader.position = position
    return children


class ReadProof:
    """The items of a `state_getReadProof` answer, by hash. Call `read` for each key, then `finish` once."""

    __slots__ = ("_items", "_nodes", "_used")

    def __init__(self, items: Iterable[bytes]) -> None:
        """Hash the items. Raises PROOF_TOO_LARGE over the limits, PROOF_SUPERFLUOUS for a repeated item."""
        found: dict[bytes, bytes] = {}
        count = size = 0
        for item in items:
            count += 1
            size += len(item)
            if count > PROOF_NODES_MAX or size > PROOF_BYTES_MAX:
                why = f"over {PROOF_NODES_MAX} items or {PROOF_BYTES_MAX} bytes"
                raise refuse("PROOF_TOO_LARGE", "storage proof", why)
            found[hashlib.blake2b(item, digest_size=32).digest()] = item
        if len(found) != count:
            raise refuse("PROOF_SUPERFLUOUS", "storage proof", "the same item twice")
        self._items = found
        self._nodes: dict[bytes, TrieNode] = {}
        self._used: set[bytes] = set()

    def read(self, root: bytes, key: bytes) -> bytes | None:
        """Return the value of `key` under `root`, or None if the key is proven absent.

        Raises PROOF_INCOMPLETE if an item on the path is missing, PROOF_NODE_INVALID if one is malformed.
        """
        if root == EMPTY_ROOT:
            self._used.update(self._items.keys() & {root})
            return None
        rest = key.hex()
        node = self._node(root)
        while True:
            partial = node.partial
            if partial and not rest.startswith(partial):
                return None
            rest = rest[len(partial) :]
            if not rest:
                return self._value(node)
            child = node.children[int(rest[0], 16)]
            if child is None:
                return None
            rest = rest[1:]
            node = self._node(child) if len(child) == HASH_BYTES else decode_node(child)

    @property
    def used(self) -> list[bytes]:
        """The items that were needed by the reads so far."""
        return [item for digest, item in self._items.items() if digest in self._used]

    def finish(self, root: bytes) -> None:
        """Raise PROOF_SUPERFLUOUS if an item cannot be reached from `root`.

        A reachable item that no read key needed is accepted, because a proof of several keys is read key by key.
        """
        if len(self._used) == len(self._items):
            return
        reached: set[bytes] = set()
        waiting = [root] if root in self._items else []
        if root == EMPTY_ROOT:
            reached, waiting = {root}, []
        while waiting:
            digest = waiting.pop()
            reached.add(digest)
            waiting.extend(child for child in self._links(self._node(digest), reached) if child not in reached)
        unused = len(self._items.keys() - reached - self._used)
        if unused:
            raise refuse("PROOF_SUPERFLUOUS", "storage proof", f"{unused} items cannot be reached from the root")

    def _links(self, node: TrieNode, reached: set[bytes]) -> Iterable[bytes]:
        """Yield the hashes of child nodes among the items. Value items are added to `reached`, never decoded."""
        if node.hashed and node.value in self._items:
            reached.add(node.value)
        for child in node.children:
            if child is None:
                continue
            if len(child) < HASH_BYTES:
                yield from self._links(decode_node(child), reached)
            elif child in self._items:
                yield child

    def _node(self, digest: bytes) -> TrieNode:
        node = self._nodes.get(digest)
        if node is None:
            node = self._nodes[digest] = decode_node(self._item(digest))
        return node

    def _item(self, digest: bytes) -> bytes:
        item = self._items.get(digest)
        if item is None:
            raise refuse("PROOF_INCOMPLETE", "storage proof", f"no item with hash 0x{digest.hex()}")
        self._used.add(digest)
        return item

    def _value(self, node: TrieNode) -> bytes | None:
        if not node.hashed or node.value is None:
            return node.value
        return self._item(node.value)


def read_proof(root: bytes, items: Iterable[bytes], keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
    """Return the value of each key under `root`, None where the key is proven absent.

    Every item must be reachable from `root`. Raises PROOF_INCOMPLETE, PROOF_NODE_INVALID, PROOF_SUPERFLUOUS,
    PROOF_TOO_LARGE, and ValueError if `root` is not 32 bytes long.
    """
    if len(root) != HASH_BYTES:
        raise ValueError("a state root has 32 bytes")
    proof = ReadProof(items)
    values = {key: proof.read(root, key) for key in keys}
    proof.finish(root)
    return values


def needed_items(root: bytes, items: Iterable[bytes], keys: Iterable[bytes]) -> list[bytes]:
    """Return the items that are needed to read `keys` under `root`. Nodes may send more than these.

    Raises PROOF_INCOMPLETE, PROOF_NODE_INVALID or PROOF_TOO_LARGE.
    """
    proof = ReadProof(dict.fromkeys(items))
    for key in keys:
        proof.read(root, key)
    return proof.used
