import base64
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain_watcher.errors import CODES, ChainWatcherError
from chain_watcher.proof.layout import RawEntry, RawProgram
from chain_watcher.proof.release import (
    BlockRef,
    ChainEntry,
    SignatureVerifier,
    VerifiedRelease,
    decode_enclave_id,
    decode_signature,
    encode_signature,
    lowest_heights,
    newer,
    read_entries,
    verify_release,
)
from tests.doubles.chain_makers import attempt, code_of

ID, OTHER = "ab" * 32, "cd" * 32
SIG, SIG2 = bytes(range(64)), bytes(64)
BLOCK = BlockRef(9, "0x" + "12" * 32)
PROGRAM = RawProgram(b"https://a/x.tar.gz", b"", ID.encode(), b"1.2.3")


def entry(height: int = 5, enclave_id: str = ID, signature: bytes = SIG) -> ChainEntry:
    return ChainEntry(height, enclave_id, signature)


ENTRY = entry()


def accept(enclave_id: str, signatures: tuple[bytes, ...]) -> None:
    assert enclave_id
    assert signatures


def release(
    program: RawProgram | None = PROGRAM, entries: Sequence[ChainEntry] = (ENTRY,), verify: SignatureVerifier = accept
) -> VerifiedRelease:
    return verify_release(program, entries, verify, BLOCK)


# --- ids and signatures --------------------------------------------------------------------------------------------


def test_ids() -> None:
    assert decode_enclave_id(ID.encode()) == ID


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        ID[:-1].encode(),
        ID.encode() + b"a",
        ID.upper().encode(),
        (ID[:-1] + "B").encode(),
        ("0x" + ID)[:64].encode(),
        (ID[:-1] + "g").encode(),
        (ID[:-1] + " ").encode(),
        (ID[:-1] + "\n").encode(),
        (ID + "\n").encode(),
        bytes.fromhex(ID),
        b"\xff" * 64,
        "\u0660".encode() * 32,  # a digit, but not an ASCII one
    ],
)
def test_what_is_no_id(raw: bytes) -> None:
    assert code_of(lambda: decode_enclave_id(raw)) == "RELEASE_ID_INVALID"


def test_upper_case_is_named() -> None:
    with pytest.raises(ChainWatcherError, match="upper-case"):
        decode_enclave_id(ID.upper().encode())


@given(st.binary(min_size=64, max_size=64))
def test_signatures_round_trip(signature: bytes) -> None:
    text = encode_signature(signature)
    assert len(text) == 104
    assert decode_signature(text) == signature


def test_signature_text_of_the_go_library(vectors: Path) -> None:
    """A public key's text from the field shows the alphabet: multibase base32, lower case, no padding."""
    text = "bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"
    key = base64.b32decode(text[1:].upper() + "====")
    assert "b" + base64.b32encode(key).decode().rstrip("=").lower() == text
    assert len(key) == 32


GOOD = encode_signature(SIG)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        GOOD[1:],
        GOOD[:-1],
        GOOD + b"a",
        GOOD + b"=",
        GOOD + b"\n",
        b"B" + GOOD[1:],
        b"c" + GOOD[1:],
        GOOD.upper(),
        GOOD[:50] + b"A" + GOOD[51:],
        GOOD[:50] + b"1" + GOOD[51:],
        GOOD[:50] + b" " + GOOD[51:],
        GOOD[:50] + b"\xc3\xa9" + GOOD[52:],
        SIG,
        b"m" + base64.b64encode(SIG),
    ],
)
def test_what_is_no_signature_text(raw: bytes) -> None:
    assert code_of(lambda: decode_signature(raw)) == "RELEASE_SIGNATURE_ENCODING"


def test_unused_bits_are_zero() -> None:
    """The last character has two significant bits: of 32 characters 4 are canonical."""
    alphabet = b"abcdefghijklmnopqrstuvwxyz234567"
    good = [letter for letter in alphabet if attempt(lambda x=letter: decode_signature(GOOD[:-1] + bytes([x])))[0]]
    assert bytes(good) == b"aiqy"


@given(st.binary(max_size=110) | st.text(max_size=104).map(str.encode))
def test_decoding_signatures_is_injective(raw: bytes) -> None:
    signature, code = attempt(lambda: decode_signature(raw))
    assert code or encode_signature(signature) == raw
    attempt(lambda: decode_enclave_id(raw))


def test_a_signature_has_64_bytes() -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        encode_signature(bytes(63))


# --- entries -------------------------------------------------------------------------------------------------------


def test_bad_entries_do_not_hide_good_ones() -> None:
    good = RawEntry(5, ID.encode(), GOOD)
    found = read_entries(
        [
            RawEntry(1, ID.upper().encode(), GOOD),
            good,
            RawEntry(3, ID.encode(), GOOD.upper()),
            RawEntry(4, b"", b""),
            RawEntry(7, OTHER.encode(), GOOD),
        ]
    )
    assert found.entries == (entry(5), entry(3, signature=b""), entry(7, OTHER))
    assert [error.code for error in found.refused] == [
        "RELEASE_ID_INVALID",
        "RELEASE_SIGNATURE_ENCODING",
        "RELEASE_ID_INVALID",
    ]
    assert read_entries([]).entries == ()
    many = read_entries([*[RawEntry(4, b"", b"")] * 5000, good])
    assert (many.entries, len(many.refused)) == ((entry(5),), 256), "errors of bad entries are kept up to a number"


def test_the_lowest_height_of_an_id_counts() -> None:
    pairs = [(ID, 8), (OTHER, 5), (ID, 6), (OTHER, 9), (ID, 7)]
    assert lowest_heights(pairs) == {ID: 6, OTHER: 5}
    assert lowest_heights([*{ID: 6}.items(), *{ID: 4, OTHER: 1}.items()]) == {ID: 4, OTHER: 1}
    assert lowest_heights([]) == {}


# --- newer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "is_newer"),
    [(5, 6, True), (5, 5, False), (6, 5, False), (None, 0, True), (0, 0, False), (0, 1, True), (2**32 - 1, 0, False)],
)
def test_a_release_is_newer_only_above_the_height_of_its_source(
    source: int | None, target: int, is_newer: bool
) -> None:
    assert newer(source, target) is is_newer


# --- releases ------------------------------------------------------------------------------------------------------


def test_a_release() -> None:
    found = release(replace(PROGRAM, mirr_cids=(b"bafy1", b"bafy2")), [entry(7, OTHER), entry(5)])
    assert (found.enclave_id, found.version, found.origin_url, found.mirror_url) == (
        ID,
        "1.2.3",
        "https://a/x.tar.gz",
        "",
    )
    assert found.cids == ("bafy1", "bafy2")
    assert found.signatures == (SIG,)
    assert (found.added_height, found.block_number, found.block_hash) == (5, 9, BLOCK.hash)


def test_several_entries_are_m_of_n() -> None:
    seen = []
    entries = [entry(8), entry(5, signature=SIG2), entry(6), entry(4, OTHER), entry(7, signature=b"")]
    found = release(entries=entries, verify=lambda *call: seen.append(call))
    assert seen == [(ID, (SIG, SIG2))]
    assert found.signatures == (SIG, SIG2)
    assert found.added_height == 5


def test_an_entry_with_an_unreadable_signature_counts_for_the_height() -> None:
    assert release(entries=[entry(8), entry(3, signature=b"")]).added_height == 3
    assert code_of(lambda: release(entries=[entry(3, signature=b"")])) == "RELEASE_SIGNATURE_ENCODING"


def test_program_and_entries_belong_together() -> None:
    assert code_of(lambda: release(None, [])) == "RELEASE_PROGRAM_ABSENT"
    assert code_of(lambda: release(None, [entry()])) == "RELEASE_ENTRY_WITHOUT_PROGRAM"
    assert code_of(lambda: release(entries=[])) == "RELEASE_PROGRAM_WITHOUT_ENTRY"
    assert code_of(lambda: release(entries=[entry(5, OTHER)])) == "RELEASE_PROGRAM_WITHOUT_ENTRY"
    upper = read_entries([RawEntry(5, ID.upper().encode(), GOOD)]).entries
    assert code_of(lambda: release(entries=upper)) == "RELEASE_PROGRAM_WITHOUT_ENTRY"


class BrokenKeysError(Exception):
    kind = "invariant"


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("bad signature"), "rejected"), (BrokenKeysError("no keys"), "invariant")]
)
def test_whatever_the_verifier_raises_refuses(error: Exception, kind: str) -> None:
    def refuse(enclave_id: str, signatures: tuple[bytes, ...]) -> None:
        raise error

    with pytest.raises(ChainWatcherError) as caught:
        release(verify=refuse)
    assert caught.value.code == "RELEASE_SIGNATURE_REFUSED"
    assert caught.value.kind == kind
    assert caught.value.__cause__ is error
    assert str(error) in str(caught.value)


def test_the_verifier_is_not_asked_about_a_broken_program() -> None:
    def fail(enclave_id: str, signatures: tuple[bytes, ...]) -> None:
        pytest.fail("asked")

    for program in (
        replace(PROGRAM, enclave_id=ID.upper().encode()),
        replace(PROGRAM, version=b"\n"),
        replace(PROGRAM, enclave_id=OTHER.encode()),
    ):
        assert code_of(lambda program=program: release(program, verify=fail)) in CODES


def test_too_many_signatures() -> None:
    entries = [entry(5, signature=bytes([index]) * 64) for index in range(65)]
    assert code_of(lambda: release(entries=entries)) == "RELEASE_SIGNATURE_REFUSED"
    assert len(release(entries=entries[:64]).signatures) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"version": b"1" * 129},
        {"version": b"1.0\x1b[31m"},
        {"version": b"\xff"},
        {"version": "1.0\u202e".encode()},
        {"origin_url": b"u" * 2049},
        {"origin_url": b"https://a\nb"},
        {"mirror_url": b"https://a\x00"},
        {"mirr_cids": (b"",)},
        {"mirr_cids": (b"c" * 257,)},
        {"mirr_cids": ("\u00e9".encode(),)},
        {"mirr_cids": (b"bafy",) * 33},
    ],
)
def test_unusable_fields(change: dict[str, Any]) -> None:
    assert code_of(lambda: release(replace(PROGRAM, **change))) == "RELEASE_FIELD_INVALID"


@pytest.mark.parametrize(
    "change",
    [
        {"version": b"1" * 128},
        {"version": b""},
        {"origin_url": b"u" * 2048},
        {"mirror_url": "https://b\u00fcro/".encode()},
        {"mirr_cids": (b"c" * 256,) * 32},
    ],
)
def test_fields_at_their_limits(change: dict[str, Any]) -> None:
    release(replace(PROGRAM, **change))


@pytest.mark.parametrize("raw", [b"", ID[:-2].encode(), ID.upper().encode(), b"0x" + ID.encode()])
def test_a_program_with_a_bad_id(raw: bytes) -> None:
    assert code_of(lambda: release(replace(PROGRAM, enclave_id=raw))) == "RELEASE_ID_INVALID"


def test_nobody_else_builds_a_release() -> None:
    found = release()
    fields = {name: getattr(found, name) for name in found.__slots__}
    with pytest.raises(TypeError):
        VerifiedRelease(**fields)
    with pytest.raises(TypeError, match="verify_release"):
        VerifiedRelease(**fields, token=object())
    with pytest.raises((TypeError, ValueError)):
        replace(found, version="2")  # type: ignore[call-arg]
    with pytest.raises(FrozenInstanceError):
        found.version = "2"


@pytest.mark.parametrize(
    ("number", "block_hash"),
    [(-1, BLOCK.hash), (2**32, BLOCK.hash), (1, "12" * 32), (1, "0x12"), (1, BLOCK.hash.replace("12", "AB"))],
)
def test_block_references_are_strict(number: int, block_hash: str) -> None:
    assert BlockRef(0, BLOCK.hash).number == 0
    assert BlockRef(2**32 - 1, BLOCK.hash).hash == BLOCK.hash
    with pytest.raises(ValueError, match="block reference"):
        BlockRef(number, block_hash)


@given(
    st.builds(RawProgram, *[st.binary(max_size=40)] * 4, st.lists(st.binary(max_size=9), max_size=3).map(tuple)),
    st.lists(st.builds(RawEntry, st.integers(0, 2**32 - 1), st.binary(max_size=70), st.binary(max_size=110))),
)
def test_arbitrary_chain_bytes(program: RawProgram, entries: list[RawEntry]) -> None:
    attempt(lambda: verify_release(program, read_entries(entries).entries, accept, BLOCK))
    own = replace(program, enclave_id=ID.encode())
    attempt(lambda: verify_release(own, [entry()], accept, BLOCK))
