"""Whatever a source or the chain gives, only documented errors come out of the supervisor's decoders."""

import contextlib
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devnet.field.ipfs import add, car, protobuf
from process_supervisor.car_file import CarFile
from process_supervisor.content_id import ContentId, decode_cid, take_cid
from process_supervisor.errors import CODES, ProcessSupervisorError
from process_supervisor.sources import decode_source
from process_supervisor.unixfs import decode_block

CONTENT = bytes(range(256)) * 4
TREE = add(CONTENT, chunk=50, width=3)
CAR = car(TREE)
DAMAGE = st.lists(st.tuples(st.integers(0, len(CAR)), st.integers(0, 16), st.binary(max_size=16)), max_size=4)


def damaged(good: bytes, spots: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes replaced, inserted and removed."""
    for at, taken, given_ in spots:
        good = good[:at] + given_ + good[at + taken :]
    return good


@given(st.one_of(st.text(max_size=80), st.from_regex(r"(Qm|[bBfFkKzZ])[0-9a-zA-Z]{0,70}", fullmatch=True)))
@settings(max_examples=500, deadline=None)
def test_texts(text: str) -> None:
    for decode in (decode_source, decode_cid):
        refusal = None
        try:
            decode(text)
        except ProcessSupervisorError as error:
            refusal = error
        assert refusal is None or (refusal.code in CODES and refusal.kind == "transient")


@given(st.binary(max_size=60), st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_cids_and_blocks(data: bytes, block: bytes) -> None:
    with contextlib.suppress(ValueError):
        found, rest = take_cid(data)
        assert data.endswith(rest)
        assert len(found.digest) in (32, 64)
    with contextlib.suppress(ValueError):
        decode_block(ContentId("dag-pb", "sha256", bytes(32)), block)


FIELDS = st.recursive(
    st.tuples(st.integers(0, 9), st.one_of(st.integers(0, 2**63 - 1), st.binary(max_size=40))),
    lambda inner: st.tuples(st.integers(0, 9), st.lists(inner, max_size=4)),
    max_leaves=8,
)


def encoded(fields: list[object]) -> bytes:
    """Fields of a protobuf message, nested ones as bytes."""
    message = b""
    for number, value in cast(list[Any], fields):
        message += protobuf(number, encoded(value) if isinstance(value, list) else value)
    return message


@given(st.lists(FIELDS, max_size=6))
@settings(max_examples=150, deadline=None)
def test_messages_that_are_almost_blocks(fields: list[object]) -> None:
    cid = ContentId("dag-pb", "sha256", bytes(32))
    with contextlib.suppress(ValueError):
        found = decode_block(cid, encoded(fields))
        assert found.size == len(found.content) + sum(size for _, size in found.children)


@given(st.one_of(st.binary(max_size=300), DAMAGE.map(lambda spots: damaged(CAR, spots))), st.integers(1, 400))
@settings(max_examples=300, deadline=None)
def test_cars(data: bytes, piece: int) -> None:
    """No wrong byte of the file comes out, and a file is complete only if it is the file."""
    file, came = CarFile(decode_cid(TREE.text)), b""
    with contextlib.suppress(ValueError):
        for at in range(0, len(data), piece):
            came += file.feed(data[at : at + piece])
    assert CONTENT.startswith(came)
    assert file.complete == (came == CONTENT)
    assert len(file._buffer) <= len(data)


def test_a_planted_bug_is_found() -> None:
    """The canary: this kind of test finds a reader that does not compare a block with its CID."""

    class Trusting(CarFile):
        def _take_block(self, section: bytes) -> bytes:
            cid, _ = self._wanted.pop()
            _, block = take_cid(section)
            found = decode_block(cid, block)
            self._wanted += reversed(found.children)
            return found.content

    @given(DAMAGE)
    @settings(max_examples=500, deadline=None, database=None)
    def check(spots: list[tuple[int, int, bytes]]) -> None:
        file, came = Trusting(decode_cid(TREE.text)), b""
        try:
            came = file.feed(damaged(CAR, spots))
        except (ValueError, IndexError):
            return
        assert CONTENT.startswith(came)

    with pytest.raises(AssertionError):
        check()
