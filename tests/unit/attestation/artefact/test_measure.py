import hashlib
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attestation.artefact import measure
from attestation.artefact.measure import (
    BATCH,
    EXECUTE,
    PAGE,
    READ,
    REG,
    SIZE_MAX,
    SS_FIRST,
    SS_REST,
    TCS,
    WRITE,
    Measurement,
    image_enclave_size,
    measure_image,
    measure_sgxs,
)
from attestation.errors import AttestationError
from tests.doubles.signed_enclaves import ENARX, FORTANIX


def plain_mrenclave(size: int, pages: list[tuple[int, int, bytes]]) -> bytes:
    """Compute MRENCLAVE as in the manual, record by record."""
    log = struct.pack("<8sIQ44x", b"ECREATE", 1, size)
    for offset, flags, page in pages:
        log += struct.pack("<8sQQ40x", b"EADD", offset, flags)
        for at in range(0, PAGE, 256):
            log += struct.pack("<8sQ48x", b"EEXTEND", offset + at) + page[at : at + 256]
    return hashlib.sha256(log).digest()


def plain_image(image: bytes, size: int) -> bytes:
    padded = image + bytes(-len(image) % PAGE)
    tcs = bytes(32) + struct.pack("<Q", len(image)) + bytes(PAGE - 40)
    pages = [(0, TCS, tcs)]
    pages += [(PAGE + at, REG | READ | EXECUTE, padded[at : at + PAGE]) for at in range(0, len(padded), PAGE)]
    return plain_mrenclave(size, pages)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(AttestationError) as caught:
        call()
    assert caught.value.code == "MEASURE_LAYOUT_INVALID"
    return caught.value.why


def test_enarxs_image_measures_as_enarx_says(vectors: Path) -> None:
    image = (vectors / "enarx" / "encl.bin").read_bytes()
    measurement = Measurement(32768)
    measurement.add_pages(0, TCS, image[:PAGE])
    measurement.add_pages(PAGE, REG | READ | WRITE | EXECUTE, image[PAGE:])
    assert measurement.digest().hex() == ENARX


@pytest.mark.parametrize("piece", [1 << 20, 1000, 64, 1])
def test_fortanixs_stream_measures_as_fortanix_says(piece: int, vectors: Path) -> None:
    stream = (vectors / "fortanix" / "sgx_detect.test_enclave.sgxs").read_bytes()
    assert measure_sgxs(stream[at : at + piece] for at in range(0, len(stream), piece)).hex() == FORTANIX


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, BATCH, BATCH + 5, 3 * BATCH - PAGE, 5 * BATCH + 77])
def test_batches_give_the_measurement_of_the_book(length: int) -> None:
    image = random.Random(length).randbytes(length)
    expected = plain_image(image, image_enclave_size(length))
    assert measure_image([image], length) == expected
    assert measure_image((image[at : at + 5000] for at in range(0, length, 5000)), length) == expected
    assert measure_image([b"", image, b""], length) == expected


def test_offsets_carry_into_bit_24_and_beyond_bit_32() -> None:
    data = random.Random(1).randbytes(2 * BATCH)
    for start in ((1 << 24) - BATCH - PAGE, (1 << 24) - BATCH, (1 << 24) - PAGE, (1 << 32) - PAGE, 1 << 33):
        measurement = Measurement(SIZE_MAX)
        measurement.add_pages(start, REG | READ, data)
        pages = [(start + at, REG | READ, data[at : at + PAGE]) for at in range(0, len(data), PAGE)]
        assert measurement.digest() == plain_mrenclave(SIZE_MAX, pages)


def test_the_same_low_offsets_come_back_after_16_mib() -> None:
    data = random.Random(3).randbytes(BATCH)
    measurement = Measurement(1 << 26)
    pages = []
    for start in (0, 1 << 24, 1 << 25):
        measurement.add_pages(start, REG | READ, data)
        pages += [(start + at, REG | READ, data[at : at + PAGE]) for at in range(0, len(data), PAGE)]
    assert measurement.digest() == plain_mrenclave(1 << 26, pages)


def test_a_callers_buffer_is_measured_in_place_and_may_be_filled_again() -> None:
    image = random.Random(2).randbytes(3 * BATCH)
    buffer = bytearray(BATCH)

    def pieces() -> Iterator[Any]:
        for at in range(0, len(image), BATCH):
            buffer[:] = image[at : at + BATCH]
            yield memoryview(buffer)

    assert measure_image(pieces(), len(image), buffer) == measure_image([image], len(image))
    assert "buffer" in refused(lambda: measure_image([image], len(image), bytearray(BATCH - 1)))


def test_trailing_zeros_are_measured_too() -> None:
    assert measure_image([b"abc"], 3) != measure_image([b"abc\0"], 4)


@pytest.mark.parametrize(("length", "size"), [(1, 8192), (PAGE, 8192), (PAGE + 1, 16384), (7 * PAGE, 32768)])
def test_the_enclave_is_a_power_of_two(length: int, size: int) -> None:
    assert image_enclave_size(length) == size


def test_an_image_has_the_announced_size() -> None:
    assert "more" in refused(lambda: measure_image([b"abc", b"d"], 3))
    assert "fewer" in refused(lambda: measure_image([b"ab"], 3))
    refused(lambda: measure_image([], 0))


@pytest.mark.parametrize("size", [0, PAGE, 3 * PAGE, SIZE_MAX * 2, -8192])
def test_an_enclave_size_must_be_possible(size: int) -> None:
    refused(lambda: Measurement(size))


def test_pages_must_fit_and_be_whole() -> None:
    measurement = Measurement(8192)
    for offset, data in ((1, bytes(PAGE)), (0, bytes(PAGE - 1)), (PAGE, bytes(2 * PAGE)), (-PAGE, bytes(PAGE))):
        refused(lambda offset=offset, data=data: measurement.add_pages(offset, REG, data))
    refused(lambda: measurement.add_pages(0, REG | 1 << 16, bytes(PAGE)))
    refused(lambda: Measurement(8192, 0))
    refused(lambda: Measurement(8192, 3))


@pytest.mark.parametrize("flags", [0, READ, 0x300, 0x400, 0x700, TCS | READ, REG | WRITE, REG | 0x40, REG | 0x80])
def test_a_page_is_of_a_kind_that_eadd_takes(flags: int) -> None:
    assert "SECINFO" in refused(lambda: Measurement(8192).add_pages(0, flags, bytes(PAGE)))
    assert "SECINFO" in refused(lambda: measure_sgxs([HEAD + record(EADD, 0, flags)]))


@pytest.mark.parametrize(
    "flags", [TCS, REG, REG | READ, REG | EXECUTE, REG | READ | WRITE | EXECUTE, SS_FIRST, SS_REST]
)
def test_every_kind_of_page_that_eadd_takes_is_measured(flags: int) -> None:
    measurement, page = Measurement(8192), bytes(range(256)) * 16
    measurement.add_pages(PAGE, flags, page)
    stream = HEAD + record(EADD, PAGE, flags)
    stream += b"".join(record(EEXTEND, PAGE + at, tail=page[at : at + 256]) for at in range(0, PAGE, 256))
    assert measurement.digest() == measure_sgxs([stream]) == hashlib.sha256(stream).digest()


def test_a_page_is_added_once() -> None:
    measurement = Measurement(1 << 16)
    for offset, pages in ((0x2000, 2), (0x4000, 1), (0x8000, 2), (0x0, 1)):
        measurement.add_pages(offset, REG, bytes(pages * PAGE))
    before = measurement.digest()
    for offset, pages in ((0x2000, 1), (0x3000, 1), (0x4000, 1), (0x7000, 2), (0x9000, 3), (0x0, 16)):
        assert "already" in refused(
            lambda offset=offset, pages=pages: measurement.add_pages(offset, REG, bytes(pages * PAGE))
        )
    assert measurement.digest() == before
    measurement.add_pages(0x6000, REG, b"")
    measurement.add_pages(0x5000, REG, bytes(3 * PAGE))


def record(tag: bytes, *numbers: int, tail: bytes = b"") -> bytes:
    return (tag + b"".join(number.to_bytes(8, "little") for number in numbers)).ljust(64, b"\0") + tail


HEAD = struct.pack("<8sIQ44x", b"ECREATE", 1, 8192)
EADD, EEXTEND, UNMEASURED = b"EADD\0\0\0\0", b"EEXTEND\0", b"UNMEASRD"


def test_unmeasured_chunks_are_loaded_and_not_hashed() -> None:
    page = HEAD + record(EADD, 0, REG | READ) + record(EEXTEND, 0, tail=b"\1" * 256)
    assert measure_sgxs([page, record(UNMEASURED, 256, tail=b"\2" * 256)]) == measure_sgxs([page])
    assert measure_sgxs([page]) == hashlib.sha256(page).digest()


def test_pages_and_chunks_may_come_in_any_order_and_be_measured_in_part() -> None:
    head = struct.pack("<8sIQ44x", b"ECREATE", 1, 1 << 37)  # servers take enclaves of more than 64 GiB
    chunk = bytes(range(256))
    stream = head + record(EADD, 3 << 35, REG | READ) + record(EADD, 0, TCS) + record(EADD, 8192, REG | READ | WRITE)
    stream += record(EEXTEND, (3 << 35) + 3840, tail=chunk) + record(EEXTEND, 768, tail=chunk)
    stream += record(EEXTEND, 3 << 35, tail=chunk) + record(EADD, 4096, REG)
    assert measure_sgxs([stream]) == hashlib.sha256(stream).digest()


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0), (0, 0), (1, 1)])
def test_a_chunk_that_was_given_is_not_overwritten(first: int, second: int) -> None:
    page = HEAD + record(EADD, 0, REG | READ | EXECUTE)
    chunks = [record((EEXTEND, UNMEASURED)[which], 256, tail=bytes([which]) * 256) for which in (first, second)]
    assert "twice" in refused(lambda: measure_sgxs([page, *chunks]))
    assert measure_sgxs([page, chunks[0]])


def test_an_unsized_stream_has_no_measurement_yet() -> None:
    assert "size open" in refused(lambda: measure_sgxs([b"UNSIZED\0" + HEAD[8:]]))


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        HEAD[:-1],
        record(b"ECREATE\1", 1),
        HEAD[:-1] + b"\1",
        struct.pack("<8sIQ44x", b"ECREATE", 1, 8191),
        HEAD + record(EADD, 1, REG),
        HEAD + record(EADD, 8192, REG),
        HEAD + record(EADD, 0, REG) * 2,
        HEAD + record(EADD, 0, 1 << 16),
        HEAD + record(EADD, 0, REG, 1),
        HEAD + record(EEXTEND, 0, tail=bytes(256)),
        HEAD + record(EADD, 0, REG) + record(EEXTEND, 4096, tail=bytes(256)),
        HEAD + record(EADD, 0, REG) + record(EEXTEND, 1, tail=bytes(256)),
        HEAD + record(EADD, 0, REG) + record(EEXTEND, 0, 1, tail=bytes(256)),
        HEAD + record(EADD, 0, REG) + record(EEXTEND, 0, tail=bytes(255)),
        HEAD + record(b"EREMOVE\0", 0),
        HEAD + HEAD,
        HEAD + b"\0",
    ],
)
def test_a_stream_that_is_no_enclave_is_refused(stream: bytes) -> None:
    refused(lambda: measure_sgxs([stream]))


def plain_pages(start: int, count: int, flags: int, data: bytes) -> list[bytes]:
    """The records of pages in a row, measured whole and in order."""
    records = []
    for offset in range(start, start + count * PAGE, PAGE):
        records.append(record(EADD, offset, flags))
        for at in range(0, PAGE, 256):
            chunk = offset - start + at
            records.append(record(EEXTEND, offset + at, tail=data[chunk : chunk + 256]))
    return records


def outcome(stream: bytes, piece: int = 1 << 20) -> str:
    try:
        return measure_sgxs(stream[at : at + piece] for at in range(0, len(stream), piece)).hex()
    except AttestationError as error:
        return error.why


@pytest.mark.parametrize("piece", [1 << 20, 400_000, 5000, 64])
@pytest.mark.parametrize("start", [0, 7 * PAGE, (1 << 24) - 70 * PAGE, (1 << 36) + PAGE])
def test_a_long_stream_measures_as_the_hash_of_its_bytes(start: int, piece: int) -> None:
    head = struct.pack("<8sIQ44x", b"ECREATE", 1, 1 << 37)
    data = random.Random(start).randbytes(200 * PAGE)
    records = plain_pages(start, 150, REG | READ, data) + plain_pages(start + 150 * PAGE, 50, TCS, data)
    stream = head + b"".join(records)
    assert outcome(stream, piece) == hashlib.sha256(stream).hexdigest()


def test_pieces_of_a_stream_may_be_read_into_one_buffer() -> None:
    stream = HEAD + b"".join(plain_pages(0, 2, REG | READ, random.Random(4).randbytes(2 * PAGE)))
    buffer = bytearray(1000)

    def pieces() -> Iterator[Any]:
        for at in range(0, len(stream), len(buffer)):
            piece = stream[at : at + len(buffer)]
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]
            yield b""

    assert measure_sgxs(pieces()) == hashlib.sha256(stream).digest()


def test_a_batch_of_pages_is_looked_at_as_closely_as_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, count = random.Random(5), 67
    head = struct.pack("<8sIQ44x", b"ECREATE", 1, 1 << 19)
    records = plain_pages(0, count, REG | READ, chance.randbytes(count * PAGE))
    plain = head + b"".join(records)
    streams = [plain]
    for _ in range(60):
        changed, line = list(records), chance.randrange(len(records))
        broken = bytearray(changed[line])
        broken[chance.choice([0, 3, 8, 9, 10, 11, 15, 16, 17, 18, 24, 63])] ^= 1 << chance.randrange(8)
        changed[line] = bytes(broken)
        streams.append(head + b"".join(changed))
    for line in (0, 1, 17, 63 * 17, 63 * 17 + 16):
        swapped, unmeasured = list(records), list(records)
        swapped[line], swapped[line + 1] = swapped[line + 1], swapped[line]
        unmeasured[line] = UNMEASURED + unmeasured[line][8:]
        streams += [head + b"".join(one) for one in (swapped, unmeasured, records[:line] + records[line + 1 :])]
    streams += [plain + records[40 * 17], plain + b"".join(records), records[70 * 16] + plain, plain[:-1]]
    streams += [head + record(EADD, 40 * PAGE, REG) + b"".join(records)]
    streams += [head[:12] + struct.pack("<Q", 1 << 18) + head[20:] + b"".join(plain_pages(PAGE, 64, REG, plain))]
    found = [outcome(stream) for stream in streams]
    monkeypatch.setattr(measure._PlainPages, "follow", lambda *_: False)
    assert found == [outcome(stream) for stream in streams]
    assert found[0] == hashlib.sha256(plain).hexdigest()
    refusals = {why for why in found if " " in why}
    assert 10 < len(refusals) < len(found) - 10
