"""Encoders for the tests: tries with proofs, headers, votes. They share no code with the decoders under test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain_watcher.errors import CODES, ChainWatcherError
from chain_watcher.proof.grandpa import Justification, Precommit
from chain_watcher.proof.header import Authorities, AuthorityChange, DigestItem, Header
from chain_watcher.proof.trie import ReadProof

EMPTY_ROOT = bytes.fromhex("03170a2e7597b7b7e3d84c05391d139a62b157e78786d8c082f29dcf4c111314")


def code_of(call: Callable[[], Any]) -> str:
    """Return the code that `call` is refused with."""
    with pytest.raises(ChainWatcherError) as caught:
        call()
    assert caught.value.code in CODES
    return caught.value.code


def attempt(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return (value, None), or (None, code) when refused under a documented code; nothing else may escape."""
    try:
        return call(), None
    except ChainWatcherError as error:
        if error.code not in CODES:
            raise
        return None, error.code


def raw(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def hash256(data: bytes) -> bytes:
    return blake2b(data, digest_size=32).digest()


def compact(number: int) -> bytes:
    if number < 1 << 6:
        return bytes([number << 2])
    if number < 1 << 14:
        return (number << 2 | 1).to_bytes(2, "little")
    return (number << 2 | 2).to_bytes(4, "little")


def blob(data: bytes) -> bytes:
    return compact(len(data)) + data


# --- trie --------------------------------------------------------------------------------------------------------

_KINDS = {
    ("leaf", "inline"): (0x40, 0x3F),
    ("leaf", "hashed"): (0x20, 0x1F),
    ("branch", "none"): (0x80, 0x3F),
    ("branch", "inline"): (0xC0, 0x3F),
    ("branch", "hashed"): (0x10, 0x0F),
}


def node_bytes(
    partial: str,
    *,
    value: bytes | None = None,
    hashed: bool = False,
    children: Mapping[int, bytes] | None = None,
) -> bytes:
    """Encode one node; `partial` holds hex digits, `value` is the 32-byte hash when `hashed`."""
    shape = "branch" if children is not None else "leaf"
    prefix, top = _KINDS[shape, "none" if value is None else "hashed" if hashed else "inline"]
    out = bytearray([prefix | min(len(partial), top)])
    left = len(partial) - top
    while left >= 0:
        out.append(min(left, 255))
        left -= 255
    out += bytes.fromhex("0" * (len(partial) % 2) + partial)
    if children is not None:
        out += sum(1 << index for index in children).to_bytes(2, "little")
    if value is not None:
        out += value if hashed else blob(value)
    for index in sorted(children or {}):
        out += blob((children or {})[index])
    return bytes(out)


class Trie:
    """The trie of `state`; `version` 1 stores values over 32 bytes by hash."""

    def __init__(self, state: Mapping[bytes, bytes], version: int = 1) -> None:
        self._version = version
        self._items: dict[bytes, bytes] = {}
        self._ways: dict[bytes, list[bytes]] = {}
        self._state = dict(state)
        rows = sorted((key.hex(), value) for key, value in state.items())
        root = self._build(rows, 0) if rows else b"\0"
        self.root = hash256(root)
        self._items[self.root] = root

    def _build(self, rows: Sequence[tuple[str, bytes]], depth: int) -> bytes:
        first, last = rows[0][0], rows[-1][0]
        end = depth
        while end < len(first) and first[end : end + 1] == last[end : end + 1]:
            end += 1
        value, hashed = None, False
        if len(first) == end:
            value = rows[0][1]
            rows = rows[1:]
            hashed = self._version == 1 and len(value) > 32
            if hashed:
                self._items[hash256(value)] = value
                value = hash256(value)
        children: dict[int, bytes] = {}
        for index in range(16):
            group = [row for row in rows if row[0][end] == f"{index:x}"]
            if group:
                child = self._build(group, end + 1)
                if len(child) >= 32:
                    self._items[hash256(child)] = child
                    child = hash256(child)
                children[index] = child
        return node_bytes(first[depth:end], value=value, hashed=hashed, children=children or None)

    @property
    def items(self) -> list[bytes]:
        """All nodes and hashed values."""
        return list(self._items.values())

    def prove(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return the items on the ways of `keys`: each item without which an answer changes."""
        needed: dict[bytes, bytes] = {}
        for key in keys:
            have: dict[bytes, bytes] = {}
            while True:
                try:
                    found = ReadProof(have.values()).read(self.root, key)
                    break
                except ChainWatcherError as error:
                    digest = bytes.fromhex(error.why.rpartition("0x")[2])
                    have[digest] = self._items[digest]
            assert found == self._state.get(key)
            needed |= have
        return list(needed.values())


# --- headers and votes ---------------------------------------------------------------------------------------------


@cache
def key(index: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hash256(b"test authority %d" % index))


@cache
def public(index: int) -> bytes:
    return key(index).public_key().public_bytes_raw()


def authorities(*indexes: int, weight: int = 1) -> Authorities:
    return tuple((public(index), weight) for index in indexes)


def frnk(data: bytes) -> DigestItem:
    return DigestItem(4, b"FRNK", data)


def scheduled(new: Authorities, delay: int = 0) -> DigestItem:
    return frnk(AuthorityChange(new, delay).encode())


def forced(new: Authorities, delay: int = 0, median: int = 0) -> DigestItem:
    return frnk(AuthorityChange(new, delay, median).encode())


def header(
    number: int, parent: bytes = b"\x11" * 32, *digest: DigestItem, state_root: bytes = b"\x22" * 32, salt: int = 0
) -> Header:
    return Header(parent, number, state_root, bytes([salt]) * 32, digest)


def chain(first: int, count: int, parent: bytes = b"\x11" * 32, salt: int = 0) -> list[Header]:
    headers: list[Header] = []
    for number in range(first, first + count):
        headers.append(header(number, headers[-1].hash if headers else parent, salt=salt))
    return headers


def vote(
    voter: int, block: Header, *, set_id: int = 0, round_number: int = 7, number: int | None = None, kind: int = 1
) -> Precommit:
    height = block.number if number is None else number
    message = bytes([kind]) + block.hash + height.to_bytes(4, "little")
    message += round_number.to_bytes(8, "little") + set_id.to_bytes(8, "little")
    return Precommit(block.hash, height, key(voter).sign(message), public(voter))


def justify(
    target: Header, votes: Iterable[Precommit], ancestries: Iterable[Header] = (), round_number: int = 7
) -> bytes:
    return Justification(round_number, target.hash, target.number, tuple(votes), tuple(ancestries)).encode()


def finalize(target: Header, voters: Iterable[int], set_id: int = 0) -> bytes:
    return justify(target, [vote(voter, target, set_id=set_id) for voter in voters])
