import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain_watcher.proof.header import (
    Authorities,
    AuthorityChange,
    DigestItem,
    GrandpaNotice,
    Header,
    decode_authorities,
    decode_grandpa_log,
    encode_authorities,
    require_chain,
)
from tests.doubles import chain_makers as makers
from tests.doubles.chain_makers import attempt, code_of, raw


@pytest.fixture(scope="module")
def solochain(vectors: Path) -> dict[str, Any]:
    return json.loads((vectors / "chain/readproof_solochain_v1.json").read_text())


@pytest.fixture(scope="module")
def synthetic(vectors: Path) -> dict[str, Any]:
    return json.loads((vectors / "chain/grandpa_synthetic.json").read_text())


def test_known_header(solochain: dict[str, Any]) -> None:
    header = Header.decode(raw(solochain["header_scale"]))
    assert header == Header.from_json(solochain["header"])
    assert header.encoded == raw(solochain["header_scale"])
    assert header.hash == raw(solochain["hash"])
    assert header.state_root == raw(solochain["stateRoot"])
    assert [item.engine for item in header.digest] == [b"aura", b"aura"]
    assert header.grandpa_change() is None
    assert not header.runtime_updated


def test_one_flipped_bit_is_another_hash_or_an_error(solochain: dict[str, Any]) -> None:
    encoded, block_hash = raw(solochain["header_scale"]), raw(solochain["hash"])
    for bit in range(len(encoded) * 8):
        broken = bytearray(encoded)
        broken[bit // 8] ^= 1 << bit % 8
        header, code = attempt(lambda data=bytes(broken): Header.decode(data))
        if code is None:
            assert header.encoded == broken
            assert header.hash != block_hash


def test_known_scheduled_change(synthetic: dict[str, Any]) -> None:
    header = Header.decode(raw(synthetic["scheduled_change_header"]))
    expected = tuple((raw(key), weight) for key, weight in synthetic["next_set"])
    assert header.grandpa_change() == AuthorityChange(expected, synthetic["delay"])
    assert header.number == 4


items = st.one_of(
    st.builds(DigestItem, st.just(0), st.just(b""), st.binary(max_size=80)),
    st.builds(DigestItem, st.sampled_from([4, 5, 6]), st.binary(min_size=4, max_size=4), st.binary(max_size=80)),
    st.just(DigestItem(8, b"", b"")),
)
hashes = st.binary(min_size=32, max_size=32)
headers = st.builds(Header, hashes, st.integers(0, 2**32 - 1), hashes, hashes, st.lists(items, max_size=6).map(tuple))


@given(headers)
def test_round_trip_in_both_forms(header: Header) -> None:
    assert Header.decode(header.encoded) == header
    as_json = {
        "parentHash": "0x" + header.parent_hash.hex(),
        "number": f"{header.number:#x}",
        "stateRoot": "0x" + header.state_root.hex(),
        "extrinsicsRoot": "0x" + header.extrinsics_root.hex(),
        "digest": {"logs": ["0x" + item.encode().hex() for item in header.digest]},
    }
    assert Header.from_json(as_json).hash == header.hash == makers.hash256(header.encoded)


def as_json(**changes: Any) -> dict[str, Any]:
    value = {
        "parentHash": "0x" + "11" * 32,
        "number": "0xa",
        "stateRoot": "0x" + "22" * 32,
        "extrinsicsRoot": "0x" + "33" * 32,
        "digest": {"logs": ["0x08"]},
    }
    return {**value, **changes}


@pytest.mark.parametrize(
    ("number", "expected"), [("0x0", 0), ("0x00000001", 1), ("0xFf", 255), ("0xffffffff", 2**32 - 1)]
)
def test_json_numbers(number: str, expected: int) -> None:
    assert Header.from_json(as_json(number=number, hash="more")).number == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"digest": []},
        as_json(digest={}),
        as_json(digest={"logs": "0x"}),
        as_json(digest={"logs": ["0x08"] * 1025}),
        as_json(digest={"logs": [8]}),
        as_json(digest={"logs": ["08"]}),
        as_json(digest={"logs": ["0x8"]}),
        as_json(digest={"logs": ["0x0g"]}),
        as_json(digest={"logs": ["0x0 8 "]}),
        as_json(digest={"logs": ["0x0600 00"]}),
        as_json(parentHash=None),
        as_json(parentHash="0x" + "11" * 31),
        as_json(stateRoot="0x" + "11" * 33),
        as_json(extrinsicsRoot="11" * 32),
        as_json(number=10),
        as_json(number="10"),
        as_json(number="0x"),
        as_json(number="0x1_0"),
        as_json(number="0x" + "0" * 17),
        as_json(number="0x100000000"),
    ],
)
def test_json_that_is_no_header(value: Any) -> None:
    assert code_of(lambda: Header.from_json(value)) == "HEADER_INVALID"


@pytest.mark.parametrize(
    ("log", "code"),
    [
        ("0x", "SCALE_TRUNCATED"),
        ("0x0800", "SCALE_TRAILING_BYTES"),
        ("0x0446524e", "SCALE_TRUNCATED"),
        ("0x0446524e4b0801", "SCALE_TRUNCATED"),
        ("0x01", "HEADER_DIGEST_INVALID"),
        ("0x02" + "00" * 32, "HEADER_DIGEST_INVALID"),
        ("0x07", "HEADER_DIGEST_INVALID"),
        ("0x09", "HEADER_DIGEST_INVALID"),
    ],
)
def test_json_digest_items_are_strict(log: str, code: str) -> None:
    assert code_of(lambda: Header.from_json(as_json(digest={"logs": [log]}))) == code


def test_scale_form_is_strict() -> None:
    encoded = makers.header(5).encoded
    assert code_of(lambda: Header.decode(encoded + b"\0")) == "SCALE_TRAILING_BYTES"
    assert code_of(lambda: Header.decode(encoded[:-1])) == "SCALE_TRUNCATED"
    assert code_of(lambda: Header.decode(bytes((1 << 20) + 1))) == "SCALE_TOO_LARGE"
    assert code_of(lambda: Header.decode(encoded[:-1] + b"\x05\x10")) == "SCALE_TOO_LARGE"  # 1025 digest items
    padded = encoded[:32] + b"\x15\x00" + encoded[33:]
    assert code_of(lambda: Header.decode(padded)) == "SCALE_COMPACT_NOT_CANONICAL"
    over = encoded[:32] + bytes.fromhex("070000000001") + encoded[33:]
    assert code_of(lambda: Header.decode(over)) == "SCALE_TOO_LARGE"


def test_json_form_has_the_same_limit() -> None:
    log = "0x00" + makers.compact(1 << 19).hex() + "00" * (1 << 19)
    value = {
        "parentHash": "0x" + "00" * 32,
        "number": "0x1",
        "stateRoot": "0x" + "00" * 32,
        "extrinsicsRoot": "0x" + "00" * 32,
        "digest": {"logs": [log]},
    }
    assert len(Header.from_json(value).encoded) > 1 << 19
    value["digest"] = {"logs": [log] * 3}
    assert code_of(lambda: Header.from_json(value)) == "HEADER_INVALID"


def test_runtime_update_marker() -> None:
    assert makers.header(1, b"\0" * 32, DigestItem(0, b"", b"x"), DigestItem(8, b"", b"")).runtime_updated


def test_which_change_counts() -> None:
    one, two = makers.authorities(1), makers.authorities(2)
    other_engine = DigestItem(4, b"BABE", b"\1")
    seal = DigestItem(5, b"FRNK", b"\xff")
    on_disabled = makers.frnk(b"\3" + bytes(8))
    header = makers.header(1, b"\0" * 32, other_engine, seal, on_disabled)
    assert header.grandpa_change() is None
    header = makers.header(1, b"\0" * 32, makers.scheduled(one, 3), makers.scheduled(two, 4))
    assert header.grandpa_change() == AuthorityChange(one, 3)
    header = makers.header(1, b"\0" * 32, makers.scheduled(one, 3), makers.forced(two, 4, 9))
    assert header.grandpa_change() == AuthorityChange(two, 4, 9)


def test_other_grandpa_logs() -> None:
    assert decode_grandpa_log(b"\3" + (7).to_bytes(8, "little")) == GrandpaNotice(3, 7)
    assert decode_grandpa_log(b"\4" + (8).to_bytes(4, "little")) == GrandpaNotice(4, 8)
    assert decode_grandpa_log(b"\5" + (9).to_bytes(4, "little")) == GrandpaNotice(5, 9)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "SCALE_TRUNCATED"),
        (b"\0", "HEADER_DIGEST_INVALID"),
        (b"\6", "HEADER_DIGEST_INVALID"),
        (b"\1\0\0\0\0\0\0", "SCALE_TRAILING_BYTES"),
        (b"\1\4\0", "SCALE_TRUNCATED"),
        (b"\1" + b"\x02\x00\x02\x00", "SCALE_TOO_LARGE"),
    ],
)
def test_malformed_grandpa_logs(data: bytes, code: str) -> None:
    assert code_of(lambda: decode_grandpa_log(data)) == code
    item = makers.header(1, b"\0" * 32, makers.frnk(data))
    assert code_of(item.grandpa_change) == code


authority_lists = st.lists(st.tuples(hashes, st.integers(0, 2**64 - 1)), max_size=5).map(tuple)


@given(authority_lists, st.integers(0, 2**32 - 1), st.none() | st.integers(0, 2**32 - 1))
def test_changes_round_trip(authorities: Authorities, delay: int, median: int | None) -> None:
    change = AuthorityChange(authorities, delay, median)
    assert decode_grandpa_log(change.encode()) == change
    assert decode_authorities(encode_authorities(authorities)) == authorities


def test_authorities_without_a_scale_form() -> None:
    assert code_of(lambda: decode_authorities(b"\0\0")) == "SCALE_TRAILING_BYTES"
    for bad in ((b"short", 1), (b"\0" * 32, 2**64)):
        with pytest.raises(ValueError, match="authority"):
            encode_authorities((bad,))


def test_sizes_at_their_limits() -> None:
    item = DigestItem(8, b"", b"")
    full = makers.header(5, b"\0" * 32, *[item] * 1024)
    assert Header.decode(full.encoded) == full
    assert len(Header.from_json(as_json(digest={"logs": ["0x08"] * 1024})).digest) == 1024
    encode_authorities(((b"\0" * 32, 0), (b"\0" * 32, 2**64 - 1)))


def test_parents_are_verified_by_hash_and_number() -> None:
    first, second = makers.chain(1, 2)
    require_chain([])
    require_chain([first, second])
    assert code_of(lambda: require_chain([second, first])) == "HEADER_PARENT_MISMATCH"
    jump = makers.header(3, first.hash)
    assert code_of(lambda: require_chain([first, jump])) == "HEADER_PARENT_MISMATCH"
    forged = makers.header(2, b"\0" * 32)
    assert code_of(lambda: require_chain([first, forged])) == "HEADER_PARENT_MISMATCH"
