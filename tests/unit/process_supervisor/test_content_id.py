"""CIDs as text and bytes."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from process_supervisor.content_id import decode_cid, encode_varint, take_cid, take_varint
from process_supervisor.errors import ProcessSupervisorError

DIGEST = hashlib.sha256(b"content").digest()
RAW = b"\1\x55\x12\x20" + DIGEST
TREE_V0 = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"
TREE_V1 = "bafybeie5nqv6kd3qnfjupgvz34woh3oksc3iau6abmyajn7qvtf6d2ho34"  # the same, as `ipfs cid base32` prints it


def based(alphabet: str, data: bytes) -> str:
    number, digits = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, len(alphabet))
        digits = alphabet[digit] + digits
    return digits


BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
BASE32_TEXT = base64.b32encode(RAW).decode().rstrip("=")
FORMS = (
    *("b" + BASE32_TEXT.lower(), "B" + BASE32_TEXT, "f" + RAW.hex(), "F" + RAW.hex().upper()),
    *("k" + based(BASE36, RAW), "K" + based(BASE36, RAW).upper(), "z" + based(BASE58, RAW)),
)


@pytest.mark.parametrize("text", FORMS)
def test_a_cid_in_every_base(text: str) -> None:
    found = decode_cid(text)
    assert (found.codec, found.hash_name, found.digest) == ("raw", "sha256", DIGEST)
    assert (found.version, found.text, found.is_tree) == (1, text, False)
    assert found.names(b"content")
    assert not found.names(b"other content")


def test_both_versions_name_the_same_block() -> None:
    first, second = decode_cid(TREE_V0), decode_cid(TREE_V1)
    assert first == second
    assert (first.version, second.version) == (0, 1)
    assert first.is_tree


@pytest.mark.parametrize(("code", "name"), [(0x13, "sha512"), (0x14, "sha3_512"), (0x16, "sha3_256")])
def test_other_hashes(code: int, name: str) -> None:
    digest = hashlib.new(name, b"content").digest()
    found = decode_cid("f" + (bytes([1, 0x55, code, len(digest)]) + digest).hex())
    assert found.names(b"content")


@pytest.mark.parametrize(
    "text",
    [
        *("", "b", "Qm", "zzz", "\u00e9", "Q" * 300, TREE_V0[:-1], TREE_V0 + "x", TREE_V0.replace("C", "0")),
        *(BASE32_TEXT, "b" + BASE32_TEXT[:-3].lower(), "f" + RAW.hex() + "00", "f" + RAW.hex()[:-2], "f1"),
        *("z" + TREE_V0, "f" + (b"\1\x71" + RAW[2:]).hex(), "f" + (b"\2" + RAW[1:]).hex()),
        *("f" + (b"\1\x55\x00\x07content").hex(), "f" + (b"\1\x55\x12\x1f" + DIGEST[1:]).hex(), "f" + "ff" * 40),
    ],
)
def test_what_is_no_cid_of_a_file_is_refused(text: str) -> None:
    with pytest.raises(ProcessSupervisorError) as caught:
        decode_cid(text)
    assert (caught.value.code, caught.value.kind) == ("DOWNLOAD_SOURCE_UNSUPPORTED", "transient")


@given(st.integers(0, 2**63 - 1), st.binary(max_size=3))
def test_numbers_round_trip(number: int, rest: bytes) -> None:
    assert take_varint(encode_varint(number) + rest) == (number, rest)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 20])
def test_a_number_that_does_not_end(data: bytes) -> None:
    with pytest.raises(ValueError, match="does not end"):
        take_varint(data)


def test_what_follows_a_cid_is_left() -> None:
    assert take_cid(RAW + b"block") == (decode_cid(FORMS[0]), b"block")
