import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from chain_watcher.proof import grandpa
from chain_watcher.proof.grandpa import (
    Checkpoint,
    Justification,
    Precommit,
    VoterSet,
    signed_message,
    verify_finality,
    verify_justification,
)
from chain_watcher.proof.header import Authorities, Header
from tests.doubles import chain_makers as makers
from tests.doubles.chain_makers import attempt, authorities, code_of, finalize, justify, raw, vote

FOUR = authorities(0, 1, 2, 3)


def members(rows: list[list[Any]]) -> Authorities:
    return tuple((raw(key), weight) for key, weight in rows)


@pytest.fixture(scope="module")
def polkadot(vectors: Path) -> dict[str, Any]:
    return json.loads((vectors / "chain/grandpa_polkadot_302592.json").read_text())


@pytest.fixture(scope="module")
def synthetic(vectors: Path) -> dict[str, Any]:
    return json.loads((vectors / "chain/grandpa_synthetic.json").read_text())


@pytest.fixture(scope="module")
def block() -> Header:
    return makers.header(5)


# --- known answers -------------------------------------------------------------------------------------------------


def test_real_justification(polkadot: dict[str, Any]) -> None:
    expect = polkadot["justification_expect"]
    data, voters = raw(polkadot["justification"]), members(expect["authorities"])
    justification = verify_justification(data, expect["set_id"], voters)
    assert (justification.round, justification.target_number) == (expect["round"], expect["number"])
    assert len(justification.precommits) == expect["precommits"]
    assert len(justification.ancestries) == expect["ancestries"]
    assert justification.encode() == data
    assert VoterSet(voters).threshold == 5
    assert code_of(lambda: verify_justification(data, 1, voters)) == "JUSTIFICATION_SIGNATURE_BAD"
    signers = {one.authority for one in justification.precommits}
    fewer = tuple(row for row in voters if row[0] not in signers) + voters[:3]
    assert code_of(lambda: verify_justification(data, 0, fewer)) == "JUSTIFICATION_BELOW_THRESHOLD"


def test_real_justification_with_a_flipped_bit(polkadot: dict[str, Any]) -> None:
    expect = polkadot["justification_expect"]
    data, voters = raw(polkadot["justification"]), members(expect["authorities"])
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        assert attempt(lambda data=bytes(broken): verify_justification(data, expect["set_id"], voters))[1], bit


def test_synthetic_cases(synthetic: dict[str, Any]) -> None:
    for case in synthetic["cases"]:
        data, voters = raw(case["justification"]), members(case["authorities"])
        justification, code = attempt(lambda c=case, d=data, v=voters: verify_justification(d, c["set_id"], v))
        assert (code is None) == case["valid"], case["name"]
        if "header" in case:
            header = Header.decode(raw(case["header"]))
            assert justification.target_hash == header.hash


def test_synthetic_cases_with_a_flipped_bit(synthetic: dict[str, Any]) -> None:
    for case in synthetic["cases"]:
        if not case["valid"]:
            continue
        data, voters = raw(case["justification"]), members(case["authorities"])
        for bit in range(0, len(data) * 8, 3):
            broken = bytearray(data)
            broken[bit // 8] ^= 1 << bit % 8
            found = attempt(lambda c=case, d=bytes(broken), v=voters: verify_justification(d, c["set_id"], v))
            assert found[1], (case["name"], bit)


def test_a_synthetic_change_of_the_set(synthetic: dict[str, Any]) -> None:
    cases = {case["name"]: case for case in synthetic["cases"]}
    old, new = cases["set change block signed by old set"], cases["block 5 signed by new set"]
    header = Header.decode(raw(old["header"]))
    checkpoint = Checkpoint(0, 0, members(old["authorities"]))
    following = verify_finality(checkpoint, [header], raw(old["justification"]))
    assert following == Checkpoint(4, 1, members(synthetic["next_set"]))
    verify_justification(raw(new["justification"]), following.set_id, following.authorities)
    plain = cases["3 of 4, all vote target"]
    header = Header.decode(raw(plain["header"]))
    assert verify_finality(checkpoint, [header], raw(plain["justification"])) is checkpoint


def test_the_signed_message() -> None:
    assert signed_message(b"\xaa" * 32, 0x01020304, 5, 6).hex() == (
        "01" + "aa" * 32 + "04030201" + "0500000000000000" + "0600000000000000"
    )


# --- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "threshold"),
    [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 3),
        (5, 4),
        (6, 5),
        (7, 5),
        (8, 6),
        (9, 7),
        (10, 7),
        (100, 67),
        (297, 199),
        (300, 201),
    ],
)
def test_thresholds(total: int, threshold: int) -> None:
    assert VoterSet(authorities(*range(total))).threshold == threshold
    assert VoterSet(((b"\0" * 32, total),)).threshold == threshold
    # The honest third: what is left out of a quorum can never be a quorum's intersection with another.
    assert 3 * threshold > 2 * total


def test_votes_are_counted_one_by_one(block: Header) -> None:
    for size in range(1, 8):
        voters = authorities(*range(size))
        needed = VoterSet(voters).threshold
        verify_justification(finalize(block, range(needed)), 0, voters)
        short = finalize(block, range(needed - 1))
        assert code_of(lambda d=short, v=voters: verify_justification(d, 0, v)) == "JUSTIFICATION_BELOW_THRESHOLD"


def test_weights_count(block: Header) -> None:
    heavy = (*authorities(0, weight=5), *authorities(1, 2, weight=1))
    assert VoterSet(heavy).threshold == 5
    verify_justification(finalize(block, [0]), 0, heavy)
    assert code_of(lambda: verify_justification(finalize(block, [1, 2]), 0, heavy)) == "JUSTIFICATION_BELOW_THRESHOLD"
    # Repeated keys are summed, zero weights left out.
    split = (*authorities(0, weight=2), *authorities(0, weight=3), *authorities(1, 2), *authorities(3, weight=0))
    assert dict(VoterSet(split).weights) == dict(VoterSet(heavy).weights)
    verify_justification(finalize(block, [0]), 0, split)
    largest = ((makers.public(0), 2**64 - 1),)
    verify_justification(finalize(block, [0]), 0, largest)


@pytest.mark.parametrize(
    "voters", [(), authorities(0, weight=0), (*authorities(0, weight=2**64 - 1), *authorities(1, weight=1))]
)
def test_unusable_sets(voters: Authorities, block: Header) -> None:
    assert code_of(lambda: verify_justification(finalize(block, [0]), 0, voters)) == "AUTHORITY_SET_INVALID"


# --- single rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"set_id": 1},
        {"round_number": 8},
        {"kind": 0},  # a prevote
        {"kind": 2},
    ],
)
def test_a_vote_for_something_else_is_no_vote(change: dict[str, Any], block: Header) -> None:
    votes = [vote(0, block), vote(1, block), vote(2, block, **change)]
    assert code_of(lambda: verify_justification(justify(block, votes), 0, FOUR)) == "JUSTIFICATION_SIGNATURE_BAD"


def test_one_bad_signature_spoils_all(block: Header) -> None:
    """As in Substrate, even where enough others are good, and for strangers too."""
    good = [vote(voter, block) for voter in (0, 1, 2)]
    for other in (3, 9):
        bad = replace(vote(other, block), signature=bytes(64))
        for votes in ([*good, bad], [bad, *good]):
            data = justify(block, votes)
            assert code_of(lambda data=data: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_SIGNATURE_BAD"


def test_strangers_do_not_count(block: Header) -> None:
    assert code_of(lambda: verify_justification(finalize(block, [0, 1, 9]), 0, FOUR)) == "JUSTIFICATION_BELOW_THRESHOLD"
    verify_justification(finalize(block, [0, 1, 2, 9]), 0, FOUR)
    assert code_of(lambda: verify_justification(finalize(block, [7, 8, 9]), 0, FOUR)) == "JUSTIFICATION_BELOW_THRESHOLD"


def test_no_votes(block: Header) -> None:
    assert code_of(lambda: verify_justification(justify(block, []), 0, FOUR)) == "JUSTIFICATION_BELOW_THRESHOLD"


def test_repeated_votes_count_once(block: Header) -> None:
    once = [vote(0, block), vote(1, block)]
    data = justify(block, [*once, *once, *once])
    assert code_of(lambda: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_BELOW_THRESHOLD"
    verify_justification(justify(block, [*once, *once, vote(2, block)]), 0, FOUR)


def test_who_votes_twice_counts_for_everything() -> None:
    target, *_ = makers.chain(5, 1)
    left, right = makers.header(6, target.hash, salt=1), makers.header(6, target.hash, salt=2)
    both = [vote(2, left), vote(2, right)]
    verify_justification(justify(target, [vote(0, target), vote(1, target), *both], [left, right]), 0, FOUR)
    # Equivocating on other branches supports a branch nobody of the two votes for.
    left2 = makers.header(7, left.hash)
    votes = [vote(0, left2), vote(1, left2), vote(2, target), vote(2, right)]
    verify_justification(justify(left, votes, [left2, left, right]), 0, FOUR)
    # Without the second vote it does not.
    votes = [vote(0, left2), vote(1, left2), vote(2, target)]
    data = justify(left, votes, [left2, left])
    assert code_of(lambda: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_BELOW_THRESHOLD"
    # A third vote and repetitions of the two change nothing; one equivocator has one weight.
    third = makers.header(6, target.hash, salt=3)
    votes = [vote(0, target), *both, *both, vote(2, third)]
    data = justify(target, votes, [left, right, third])
    assert code_of(lambda: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_BELOW_THRESHOLD"
    # A stranger's equivocation has none.
    votes = [vote(0, target), vote(1, target), vote(9, left), vote(9, right)]
    data = justify(target, votes, [left, right])
    assert code_of(lambda: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_BELOW_THRESHOLD"


def test_equivocators_alone_prove_no_block() -> None:
    target, *_ = makers.chain(5, 1)
    left, right = makers.header(6, target.hash, salt=1), makers.header(6, target.hash, salt=2)
    both = [one for voter in (0, 1, 2, 3) for one in (vote(voter, left), vote(voter, right))]
    data = justify(target, both, [left, right])
    assert code_of(lambda: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_BELOW_THRESHOLD"
    # Nor with a faithful vote that is for another branch.
    data = justify(left, [*both[2:], vote(0, right)], [left, right])
    assert code_of(lambda: verify_justification(data, 0, FOUR)) in (
        "JUSTIFICATION_BELOW_THRESHOLD",
        "JUSTIFICATION_INVALID",
    )
    # The control: one voter who stands by the target.
    verify_justification(justify(target, [*both[2:], vote(0, left)], [left, right]), 0, FOUR)


# --- ancestry ------------------------------------------------------------------------------------------------------


def test_votes_for_descendants() -> None:
    target, second, third = makers.chain(5, 3)
    for votes, ancestries in (
        ([vote(0, target), vote(1, target), vote(2, second)], [second]),
        ([vote(0, target), vote(1, second), vote(2, third)], [third, second]),
        ([vote(0, third), vote(1, third), vote(2, third)], [second, third]),
        ([vote(0, second), vote(1, third), vote(2, third)], [second, third]),
    ):
        verify_justification(justify(target, votes, ancestries), 0, FOUR)
        for gone in range(len(ancestries)):
            rest = ancestries[:gone] + ancestries[gone + 1 :]
            data = justify(target, votes, rest)
            assert code_of(lambda data=data: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_INVALID"


def test_votes_below_the_target_have_no_weight() -> None:
    """Newer nodes send them; the lowest vote is then the root of all routes."""
    below, target, above = makers.chain(4, 3)
    votes = [vote(0, target), vote(1, above), vote(2, target), vote(3, below)]
    verify_justification(justify(target, votes, [target, above]), 0, FOUR)
    votes = [vote(0, target), vote(1, above), vote(3, below)]
    data = justify(target, votes, [target, above])
    assert code_of(lambda: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_BELOW_THRESHOLD"
    # All votes below: the target is on no route.
    data = justify(target, [vote(voter, below) for voter in (0, 1, 2)])
    assert code_of(lambda: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_BELOW_THRESHOLD"
    # The root itself is no ancestry header.
    votes = [vote(0, target), vote(1, above), vote(2, target), vote(3, below)]
    data = justify(target, votes, [target, above, below])
    assert code_of(lambda: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_INVALID"


def test_votes_on_a_fork() -> None:
    below, target = makers.chain(4, 2)
    fork = makers.header(5, below.hash, salt=1)
    good = [vote(0, target), vote(1, target), vote(2, target)]
    for extra, ancestries in (
        ([vote(3, fork)], []),
        ([vote(3, fork)], [fork]),
        ([vote(3, fork)], [fork, target]),
    ):
        data = justify(target, [*good, *extra], ancestries)
        assert code_of(lambda data=data: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_INVALID"
    # With a common root among the votes a fork has a route, and no weight.
    five = authorities(0, 1, 2, 3, 4)
    votes = [*good, vote(3, fork), vote(4, below)]
    data = justify(target, votes, [target, fork])
    assert code_of(lambda: verify_justification(data, 0, five)) == "JUSTIFICATION_BELOW_THRESHOLD"
    verify_justification(data, 0, FOUR)


def test_unused_headers_are_refused() -> None:
    target, second = makers.chain(5, 2)
    votes = [vote(0, target), vote(1, target), vote(2, target)]
    for unused in ([second], [target], [makers.header(9)], [target, second], [target, second, makers.header(9)]):
        data = justify(target, votes, unused)
        assert code_of(lambda data=data: verify_justification(data, 0, FOUR)) == "JUSTIFICATION_INVALID"


def test_numbers_follow_the_headers(block: Header) -> None:
    second = makers.header(6, block.hash)
    lie = [vote(0, block), vote(1, block), vote(2, block, number=6)]
    assert code_of(lambda: verify_justification(justify(block, lie), 0, FOUR)) == "JUSTIFICATION_INVALID"
    lie = [vote(0, block), vote(1, block), vote(2, block, number=4)]
    assert code_of(lambda: verify_justification(justify(block, lie), 0, FOUR)) == "JUSTIFICATION_INVALID"
    lie = [vote(0, block), vote(1, block), vote(2, second, number=7)]
    assert code_of(lambda: verify_justification(justify(block, lie, [second]), 0, FOUR)) == "JUSTIFICATION_INVALID"
    jump = makers.header(8, block.hash)
    votes = [vote(0, block), vote(1, block), vote(2, jump)]
    assert code_of(lambda: verify_justification(justify(block, votes, [jump]), 0, FOUR)) == "JUSTIFICATION_INVALID"
    # All votes give the target a lower number than the justification does.
    lie = [vote(voter, block, number=4) for voter in (0, 1, 2)]
    assert code_of(lambda: verify_justification(justify(block, lie), 0, FOUR)) == "JUSTIFICATION_BELOW_THRESHOLD"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_tree_of_votes_is_weighed_like_a_plain_count(data: DataObject) -> None:
    """Random trees and votes, against a count that walks parents for each vote by itself."""
    blocks = [makers.header(10)]
    for index in range(data.draw(st.integers(0, 5))):
        parent = data.draw(st.sampled_from(blocks))
        blocks.append(makers.header(parent.number + 1, parent.hash, salt=index + 1))
    by_hash = {one.hash: one for one in blocks}
    voters = data.draw(st.lists(st.integers(0, 5), max_size=8))
    votes = [vote(voter, data.draw(st.sampled_from(blocks))) for voter in voters]
    target = data.draw(st.sampled_from(blocks))

    def line(one: Header | None) -> Iterator[bytes]:
        while one is not None:
            yield one.hash
            one = by_hash.get(one.parent_hash)

    root = min([target, *(by_hash[one.target_hash] for one in votes)], key=lambda one: one.number)
    routes = [list(line(by_hash[one.target_hash])) for one in votes]
    needed = {found for route in routes if root.hash in route for found in route[: route.index(root.hash)]}
    encoded = justify(target, votes, [by_hash[found] for found in needed])
    choices: dict[bytes, set[bytes]] = {}
    for one in votes:
        if one.authority in dict(FOUR):
            choices.setdefault(one.authority, set()).add(one.target_hash)
    weight = sum(
        len(chosen) > 1 or target.hash in list(line(by_hash[next(iter(chosen))])) for chosen in choices.values()
    )
    expected = weight >= 3 and all(root.hash in route for route in routes)
    assert (attempt(lambda: verify_justification(encoded, 0, FOUR))[1] is None) == expected


# --- form ----------------------------------------------------------------------------------------------------------


def test_form_is_strict(block: Header, monkeypatch: pytest.MonkeyPatch) -> None:
    data = finalize(block, [0, 1, 2])
    assert code_of(lambda: verify_justification(data + b"\0", 0, FOUR)) == "SCALE_TRAILING_BYTES"
    for cut in range(len(data)):
        assert code_of(lambda cut=cut: verify_justification(data[:cut], 0, FOUR)) == "SCALE_TRUNCATED"
    assert data[44] == 3 << 2
    padded = data[:44] + b"\x0d\x00" + data[45:]
    assert code_of(lambda: Justification.decode(padded)) == "SCALE_COMPACT_NOT_CANONICAL"
    many = data[:44] + b"\x02\x00\x04\x00" + data[45:]
    assert code_of(lambda: Justification.decode(many)) == "SCALE_TOO_LARGE"
    monkeypatch.setattr(grandpa, "JUSTIFICATION_BYTES_MAX", len(data) - 1)
    assert code_of(lambda: verify_justification(data, 0, FOUR)) == "SCALE_TOO_LARGE"


hashes = st.binary(min_size=32, max_size=32)
numbers = st.integers(0, 2**32 - 1)
precommits = st.builds(Precommit, hashes, numbers, st.binary(min_size=64, max_size=64), hashes)


@given(
    st.integers(0, 2**64 - 1), hashes, numbers, st.lists(precommits, max_size=3), st.lists(numbers.map(makers.header))
)
def test_round_trip(round_number: int, target: bytes, number: int, votes: Any, headers: Any) -> None:
    justification = Justification(round_number, target, number, tuple(votes), tuple(headers[:3]))
    assert Justification.decode(justification.encode()) == justification


# --- signatures at the edge (ZIP-215) ------------------------------------------------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
#: The eight points of small order, and their encodings that are not canonical (ZIP-215 accepts all of them).
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
]


def test_signatures_follow_zip_215(block: Header) -> None:
    for key in SMALL_ORDER:
        for point in SMALL_ORDER:
            odd = Precommit(block.hash, block.number, raw(point) + bytes(32), raw(key))
            verify_justification(justify(block, [odd]), 0, ((raw(key), 1),))


def test_a_scalar_over_the_group_order_is_refused(block: Header) -> None:
    good = vote(0, block)
    scalar = int.from_bytes(good.signature[32:], "little") + L
    bad = replace(good, signature=good.signature[:32] + scalar.to_bytes(32, "little"))
    data = justify(block, [bad])
    assert code_of(lambda: verify_justification(data, 0, authorities(0))) == "JUSTIFICATION_SIGNATURE_BAD"


def test_a_key_that_is_no_point_is_refused(block: Header) -> None:
    key = (2).to_bytes(32, "little")
    data = justify(block, [replace(vote(0, block), authority=key)])
    assert code_of(lambda: verify_justification(data, 0, ((key, 1),))) == "JUSTIFICATION_SIGNATURE_BAD"
