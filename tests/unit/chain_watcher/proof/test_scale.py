import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain_watcher.proof.scale import Reader, encode_blob, encode_compact
from tests.doubles.chain_makers import attempt, code_of

# Known answers of the SCALE specification and of parity-scale-codec's own tests.
COMPACT = {
    0: "00",
    1: "04",
    42: "a8",
    63: "fc",
    64: "0101",
    69: "1501",
    16383: "fdff",
    16384: "02000100",
    65535: "feff0300",
    2**30 - 1: "feffffff",
    2**30: "0300000040",
    2**32 - 1: "03ffffffff",
    2**32: "070000000001",
    100_000_000_000_000: "0b00407a10f35a",
    2**40: "0b000000000001",
    2**48: "0f00000000000001",
    2**56 - 1: "0fffffffffffffff",
    2**56: "130000000000000001",
    2**64 - 1: "13ffffffffffffffff",
    2**536 - 1: "ff" + "ff" * 67,
}


@pytest.mark.parametrize(("number", "encoded"), COMPACT.items())
def test_compact_known_answers(number: int, encoded: str) -> None:
    assert encode_compact(number).hex() == encoded
    reader = Reader(bytes.fromhex(encoded))
    assert reader.compact(2**536) == number
    reader.finish()


@pytest.mark.parametrize(
    "encoded",
    [
        "0100",  # 0 in two bytes
        "fd00",  # 63 in two bytes
        "02000000",
        "feff0000",  # 16383 in four bytes
        "0300000000",
        "03ffffff3f",  # 2**30 - 1 in five bytes
        "0700000040" + "00",  # 2**30 in six bytes
        "07ffffffff00",  # a leading zero byte
        "13ffffffffffffff00",
    ],
)
def test_compact_longer_than_needed_is_refused(encoded: str) -> None:
    assert code_of(lambda: Reader(bytes.fromhex(encoded)).compact(2**536)) == "SCALE_COMPACT_NOT_CANONICAL"


@pytest.mark.parametrize("encoded", ["", "01", "02", "020001", "03", "03000000", "0700000000", "ff" * 67])
def test_compact_cut_short(encoded: str) -> None:
    assert code_of(lambda: Reader(bytes.fromhex(encoded)).compact(2**536)) == "SCALE_TRUNCATED"


def test_compact_over_its_limit() -> None:
    assert code_of(lambda: Reader(encode_compact(2**32)).compact()) == "SCALE_TOO_LARGE"
    assert code_of(lambda: Reader(encode_compact(11)).compact(10)) == "SCALE_TOO_LARGE"
    assert Reader(encode_compact(10)).compact(10) == 10


@given(st.integers(0, 2**536 - 1))
def test_compact_round_trip(number: int) -> None:
    reader = Reader(encode_compact(number))
    assert reader.compact(2**536) == number
    assert reader.left == 0


@given(st.binary(max_size=70))
def test_a_compact_that_decodes_encodes_to_the_same_bytes(data: bytes) -> None:
    reader = Reader(data)
    number, code = attempt(lambda: reader.compact(2**536))
    assert code or encode_compact(number) == data[: reader.position]


@pytest.mark.parametrize("number", [-1, 2**536])
def test_numbers_without_a_compact_form(number: int) -> None:
    with pytest.raises(ValueError, match="compact"):
        encode_compact(number)


def test_fixed_integers_and_bool() -> None:
    reader = Reader(bytes.fromhex("01 0200 03000000 0400000000000000 00 01".replace(" ", "")))
    assert (reader.u8(), reader.uint(2), reader.u32(), reader.u64()) == (1, 2, 3, 4)
    assert (reader.bool(), reader.bool()) == (False, True)
    reader.finish()
    assert code_of(reader.u8) == "SCALE_TRUNCATED"
    assert code_of(Reader(b"\2").bool) == "SCALE_VALUE_INVALID"


def test_lengths_are_bounded_before_they_are_believed() -> None:
    assert Reader(encode_blob(b"abc")).blob() == b"abc"
    assert code_of(lambda: Reader(encode_blob(b"abc")).blob(2)) == "SCALE_TOO_LARGE"
    assert code_of(lambda: Reader(encode_compact(2**31)).blob()) == "SCALE_TRUNCATED"
    assert code_of(lambda: Reader(encode_compact(2) + b"1234567").length(10, 4)) == "SCALE_TRUNCATED"
    assert Reader(encode_compact(2) + b"12345678").length(10, 4) == 2


def test_leftovers_are_refused() -> None:
    reader = Reader(b"\0\0")
    reader.u8()
    assert code_of(reader.finish) == "SCALE_TRAILING_BYTES"
