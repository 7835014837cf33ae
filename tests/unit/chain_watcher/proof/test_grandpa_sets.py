"""Authority sets that follow from a pinned checkpoint, and the form of checkpoints."""

import json
from dataclasses import replace
from typing import Any

import pytest

from chain_watcher.proof.grandpa import (
    Checkpoint,
    Justification,
    checkpoint_genesis,
    verify_finality,
    verify_justification,
)
from chain_watcher.proof.header import Authorities, Header
from tests.doubles import chain_makers as makers
from tests.doubles.chain_makers import authorities, code_of, finalize, vote

FOUR = authorities(0, 1, 2, 3)

NEXT = authorities(4, 5, 6, 7)
START = Checkpoint(0, 3, FOUR)


def signed(target: Header, *, set_id: int = 3, voters: tuple[int, ...] = (0, 1, 2)) -> bytes:
    return finalize(target, voters, set_id)


def test_a_plain_block_keeps_the_set() -> None:
    headers = makers.chain(1, 4)
    assert verify_finality(START, headers, signed(headers[-1])) is START
    assert verify_finality(START, headers[-1:], signed(headers[-1])) is START


def test_scheduled_change_without_delay() -> None:
    change = makers.header(8, b"\0" * 32, makers.scheduled(NEXT))
    following = verify_finality(START, [change], signed(change))
    assert following == Checkpoint(8, 4, NEXT)
    child = makers.header(9, change.hash)
    assert verify_finality(following, [child], signed(child, set_id=4, voters=(4, 5, 6))) is following
    # The old set is over, and the new one has no say about its own beginning.
    assert code_of(lambda: verify_finality(following, [child], signed(child))) == "JUSTIFICATION_BELOW_THRESHOLD"
    late = signed(change, set_id=4, voters=(4, 5, 6))
    assert code_of(lambda: verify_finality(following, [change], late)) == "FINALITY_BEFORE_CHECKPOINT"
    assert code_of(lambda: verify_finality(START, [change, child], signed(child))) == "AUTHORITY_CHANGE_INVALID"


def test_scheduled_change_with_delay() -> None:
    change = makers.header(8, b"\0" * 32, makers.scheduled(NEXT, delay=2))
    rest = makers.chain(9, 3, change.hash)
    assert verify_finality(START, [change], signed(change)) is START
    assert verify_finality(START, [change, rest[0]], signed(rest[0])) is START
    assert verify_finality(START, [change, *rest[:2]], signed(rest[1])) == Checkpoint(10, 4, NEXT)
    data = signed(rest[2])
    assert code_of(lambda: verify_finality(START, [change, *rest], data)) == "AUTHORITY_CHANGE_INVALID"
    # Without the ordering header nothing shows that the set ends.
    assert verify_finality(START, rest[:2], signed(rest[1])) is START


def test_forced_change() -> None:
    change = makers.header(8, b"\0" * 32, makers.forced(NEXT, delay=2, median=5))
    rest = makers.chain(9, 3, change.hash)
    assert verify_finality(START, [change], signed(change)) == Checkpoint(8, 4, NEXT)
    assert verify_finality(START, [change, *rest[:2]], signed(rest[1])) == Checkpoint(10, 4, NEXT)
    data = signed(rest[2])
    assert code_of(lambda: verify_finality(START, [change, *rest], data)) == "AUTHORITY_CHANGE_INVALID"
    # The new set cannot vouch for itself.
    data = signed(change, set_id=4, voters=(4, 5, 6))
    assert code_of(lambda: verify_finality(START, [change], data)) == "JUSTIFICATION_BELOW_THRESHOLD"


def test_changes_that_cannot_be() -> None:
    change = makers.header(8, b"\0" * 32, makers.scheduled(NEXT, delay=2))
    again = makers.header(9, change.hash, makers.scheduled(FOUR, delay=1))
    data = signed(again)
    assert code_of(lambda: verify_finality(START, [change, again], data)) == "AUTHORITY_CHANGE_INVALID"
    nobody = makers.header(8, b"\0" * 32, makers.scheduled(()))
    assert code_of(lambda: verify_finality(START, [nobody], signed(nobody))) == "AUTHORITY_SET_INVALID"
    last = replace(START, set_id=2**64 - 1)
    plain = makers.header(8, b"\0" * 32, makers.scheduled(NEXT))
    data = signed(plain, set_id=2**64 - 1)
    assert code_of(lambda: verify_finality(last, [plain], data)) == "AUTHORITY_CHANGE_INVALID"
    malformed = makers.header(8, b"\0" * 32, makers.frnk(b"\1\4"))
    assert code_of(lambda: verify_finality(START, [malformed], signed(malformed))) == "SCALE_TRUNCATED"


def test_finality_is_of_the_headers_given() -> None:
    first, second = makers.chain(1, 2)
    assert code_of(lambda: verify_finality(START, [], signed(first))) == "JUSTIFICATION_WRONG_TARGET"
    assert code_of(lambda: verify_finality(START, [second], signed(first))) == "JUSTIFICATION_WRONG_TARGET"
    assert code_of(lambda: verify_finality(START, [first, second], signed(first))) == "JUSTIFICATION_WRONG_TARGET"
    assert code_of(lambda: verify_finality(START, [second, first], signed(first))) == "HEADER_PARENT_MISMATCH"
    later = replace(START, number=1)
    assert code_of(lambda: verify_finality(later, [first, second], signed(second))) == "FINALITY_BEFORE_CHECKPOINT"
    assert verify_finality(later, [second], signed(second)) is later
    # A justification that gives the right hash another number.
    lie = Justification.decode(signed(second))
    votes = tuple(vote(voter, second, set_id=3, number=9) for voter in (0, 1, 2))
    data = replace(lie, target_number=9, precommits=votes).encode()
    verify_justification(data, 3, FOUR)
    assert code_of(lambda: verify_finality(START, [second], data)) == "JUSTIFICATION_WRONG_TARGET"


def test_checkpoints_as_json() -> None:
    largest = ((bytes(range(32)), 2**64 - 1),)
    for checkpoint in (Checkpoint(0, 0, largest), Checkpoint(2**32 - 1, 2**64 - 1, FOUR), Checkpoint(7, 9, FOUR)):
        assert Checkpoint.from_json(json.loads(json.dumps(checkpoint.to_json()))) == checkpoint
    bare = {**checkpoint.to_json(), "authorities": [[key.hex(), 1] for key, _ in FOUR]}
    assert Checkpoint.from_json(bare) == checkpoint
    printed = {"genesis_hash": "0x" + "ab" * 32, **checkpoint.to_json()}
    assert Checkpoint.from_json(printed) == checkpoint, "as `chain checkpoint` prints it"
    assert checkpoint_genesis(printed) == "0x" + "ab" * 32
    assert checkpoint_genesis(checkpoint.to_json()) is None


GOOD = Checkpoint(7, 9, FOUR).to_json()


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {**GOOD, "more": 1},
        {**GOOD, "genesis_hash": None},
        {**GOOD, "genesis_hash": "0x00"},
        {"genesis_hash": "0x" + "00" * 32},
        {**GOOD, "block_number": "7"},
        {**GOOD, "block_number": True},
        {**GOOD, "block_number": -1},
        {**GOOD, "block_number": 2**32},
        {**GOOD, "set_id": 2**64},
        {**GOOD, "set_id": 1.0},
        {**GOOD, "authorities": None},
        {**GOOD, "authorities": [[]] * 10_001},
        {**GOOD, "authorities": ["0x00"]},
        {**GOOD, "authorities": [["0x00"]]},
        {**GOOD, "authorities": [[7, 1]]},
        {**GOOD, "authorities": [["0x00", 1]]},
        {**GOOD, "authorities": [["zz" * 32, 1]]},
        {**GOOD, "authorities": [["00" * 32, "1"]]},
        {**GOOD, "authorities": [["00" * 32, 2**64]]},
    ],
)
def test_json_that_is_no_checkpoint(value: Any) -> None:
    assert code_of(lambda: Checkpoint.from_json(value)) == "CHECKPOINT_INVALID"


@pytest.mark.parametrize("rows", [[], [["00" * 32, 0]]])
def test_checkpoints_of_nobody(rows: Authorities) -> None:
    assert code_of(lambda: Checkpoint.from_json({**GOOD, "authorities": rows})) == "AUTHORITY_SET_INVALID"
