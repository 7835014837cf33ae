"""Files from CARs: block by block, in order, each verified by its CID."""

import hashlib
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devnet.field.ipfs import Block, add, car, protobuf, raw_block, section, unixfs, varint
from process_supervisor import car_file
from process_supervisor import unixfs as unixfs_module
from process_supervisor.car_file import CarFile
from process_supervisor.content_id import decode_cid

CONTENT = bytes(range(256)) * 8


def read(root: Block, data: bytes, piece: int = 700) -> CarFile:
    """Feed a CAR in pieces; what came of it has to be CONTENT where the file is complete."""
    file = CarFile(decode_cid(root.text))
    came = b"".join(file.feed(data[at : at + piece]) for at in range(0, len(data), piece))
    assert CONTENT.startswith(came)
    assert file.complete == (came == CONTENT)
    return file


@given(
    st.binary(max_size=500),
    st.integers(1, 60),
    st.integers(2, 5),
    st.booleans(),
    st.sampled_from([0, 1]),
    st.integers(1, 300),
)
@settings(max_examples=200, deadline=None)
def test_any_tree_of_a_file(data: bytes, chunk: int, width: int, raw: bool, version: int, piece: int) -> None:
    root = add(data, chunk=chunk, width=width, raw=raw, version=version)
    file, whole = CarFile(decode_cid(root.text)), car(root)
    pieces = [file.feed(whole[at : at + piece]) for at in range(0, len(whole), piece)]
    assert b"".join(pieces) == data
    assert file.complete
    assert file.size == len(data)


def test_bytes_are_handed_on_as_they_come() -> None:
    root = add(CONTENT, chunk=100)
    file, whole = CarFile(decode_cid(root.text)), car(root)
    came = file.feed(whole[: len(whole) // 2])
    assert came
    assert len(came) % 100 == 0
    assert CONTENT.startswith(came)
    assert (file.size, file.complete) == (len(CONTENT), False)


def test_a_block_may_hold_bytes_and_link_to_others() -> None:
    """As the trickle layout does."""
    inner = unixfs(CONTENT[10:20], [raw_block(CONTENT[20:40]), unixfs(CONTENT[40:], [], 0, kind=0)], 0)
    root = unixfs(CONTENT[:10], [inner], 0)
    assert read(root, car(root)).complete


def test_the_same_block_twice_comes_twice() -> None:
    root = add(bytes(1000), chunk=100)
    file = CarFile(decode_cid(root.text))
    assert file.feed(car(root)) == bytes(1000)


def _without_one(root: Block) -> bytes:
    blocks = list(root.walk())
    return car(root, [*blocks[:3], *blocks[4:]])


def _swapped(root: Block) -> bytes:
    blocks = list(root.walk())
    blocks[2], blocks[3] = blocks[3], blocks[2]
    return car(root, blocks)


def _other_bytes(root: Block) -> bytes:
    blocks = list(root.walk())
    return car(root, [*blocks[:3], Block(blocks[3].cid, blocks[3].data[:-1] + b"?", 0), *blocks[4:]])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_without_one, "not in the order"),
        (_swapped, "not in the order"),
        (_other_bytes, "not what its CID names"),
        (lambda root: car(root) + section(raw_block(b"more")), "continues after the end"),
        (lambda root: car(root, []) + b"\0", "section of 0 bytes"),
        (lambda root: car(root, []) + varint(car_file.BLOCK_BYTES_MAX + 1), "section of"),
        (lambda root: b"\xff" * 20, "does not end"),
        (lambda root: varint(car_file.HEADER_BYTES_MAX + 1), "section of"),
        (lambda root: b"<html>" * 100, "not|version|codec|hash|end"),
        (lambda root: car(root, []) + varint(3) + b"abc", "version"),
    ],
)
def test_other_cars_are_refused(make: Callable[[Block], bytes], why: str) -> None:
    root = add(CONTENT, chunk=100, raw=True)
    with pytest.raises(ValueError, match=why):
        read(root, make(root))


def _lying_size() -> Block:
    leaf = raw_block(CONTENT[:100])
    return unixfs(b"", [Block(leaf.cid, leaf.data, 99)], 0)


def _node(data: bytes, links: bytes = b"") -> Block:
    block = links + protobuf(1, data)
    return Block(b"\x12\x20" + hashlib.sha256(block).digest(), block, 0)


@pytest.mark.parametrize(
    ("root", "why"),
    [
        (unixfs(b"", [], 0, kind=1), "of a directory"),
        (unixfs(b"target", [], 0, kind=4), "symbolic link"),
        (unixfs(b"", [], 0, kind=5), "sharded"),
        (_node(b""), "without a type"),
        (_node(protobuf(1, 2) + protobuf(3, 5)), "do not add up"),
        (_node(protobuf(1, 2) + protobuf(3, 5) + protobuf(4, 5)), "do not add up"),
        (_node(protobuf(1, 2) + protobuf(3, 0), protobuf(2, b"")), "names no CID"),
        (_node(protobuf(1, 2) + protobuf(3, 0), protobuf(2, protobuf(1, b"\x12\x20" + bytes(33)))), "more than a CID"),
        (_node(protobuf(1, 2) + protobuf(3, 0), protobuf(7, 1)), "fields that a file's has not"),
        (_node(b"\x0d\0\0\0\0"), "of another type"),
        (_node(b"\x12\x7f"), "longer than what holds it"),
    ],
)
def test_blocks_that_are_no_files_are_refused(root: Block, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CarFile(decode_cid(root.text)).feed(car(root))


def test_a_size_that_lies_is_refused() -> None:
    root = _lying_size()
    with pytest.raises(ValueError, match="holds 100 bytes of the file instead of 99"):
        CarFile(decode_cid(root.text)).feed(car(root))


def test_mode_and_time_of_a_file_say_nothing_of_its_content() -> None:
    root = _node(
        protobuf(1, 2) + protobuf(2, CONTENT) + protobuf(3, len(CONTENT)) + protobuf(7, 420) + protobuf(8, b"")
    )
    assert read(root, car(root)).complete


def test_links_to_follow_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    root = add(CONTENT, chunk=100)
    monkeypatch.setattr(car_file, "LINKS_MAX", 10)
    with pytest.raises(ValueError, match="still to come at once"):
        CarFile(decode_cid(root.text)).feed(car(root))
    monkeypatch.setattr(unixfs_module, "LINKS_MAX", 10)
    with pytest.raises(ValueError, match="too many"):
        CarFile(decode_cid(root.text)).feed(car(root))


def test_a_chain_of_blocks_needs_no_recursion() -> None:
    root = raw_block(CONTENT)
    blocks = [root]
    for _ in range(5000):
        root = unixfs(b"", [Block(root.cid, b"", root.file_bytes)], 0)
        blocks.append(root)
    file = CarFile(decode_cid(root.text))
    assert file.feed(car(root, blocks[::-1])) == CONTENT
    assert file.complete


def test_damage_anywhere_gives_no_wrong_byte() -> None:
    root = add(CONTENT, chunk=100, width=5)
    good = car(root)
    generator = random.Random(1)
    for _ in range(300):
        bad = bytearray(good)
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
        file, came = CarFile(decode_cid(root.text)), b""
        try:
            for at in range(0, len(bad), 64):
                came += file.feed(bad[at : at + 64])
        except ValueError:
            pass
        assert CONTENT.startswith(came)
        assert not file.complete or came == CONTENT
