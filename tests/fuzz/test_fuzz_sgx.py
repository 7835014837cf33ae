"""The decoders of attestation raise only documented errors, for any bytes."""

import hashlib
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.artefact.measure import measure_image, measure_sgxs
from attestation.artefact.signed_files import sigstruct_in
from attestation.artefact.sigstruct import SigStruct
from attestation.errors import CODES, AttestationError
from attestation.network import NetworkKeys, decode_multibase, encode_multibase
from attestation.sgx import Attributes, KeyRequest, Report, TargetInfo
from attestation.simulated.__main__ import answer
from attestation.simulated.cpu import RootKeys, Secs, SoftwareCpu
from devnet.field.signed_elf import signed_elf

CPU = SoftwareCpu(RootKeys(b"\1" * 16, b"\2" * 16, b"\3" * 16, b"\4" * 32))
SECS = Secs(b"\5" * 32, b"\6" * 32, Attributes(5, 3))
KEYS = NetworkKeys((bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"),))
SIGSTRUCT_HEAD = bytes.fromhex("06000000e10000000000010000000000")
SIGSTRUCT_HEAD2 = bytes.fromhex("01010000600000006000000001000000")


def sparse(size: int) -> st.SearchStrategy[bytes]:
    """Bytes of about `size`, mostly zero, so that reserved fields let some of them pass."""

    def paint(spots: list[tuple[int, bytes]], extra: int) -> bytes:
        data = bytearray(max(0, size + extra))
        for offset, value in spots:
            data[offset : offset + len(value)] = value[: max(0, len(data) - offset)]
        return bytes(data)

    spots = st.lists(st.tuples(st.integers(0, size), st.binary(min_size=1, max_size=64)), max_size=6)
    return st.builds(paint, spots, st.sampled_from([0] * 8 + [-1, 1, -size]))


def only_documented(call: Callable[[], object]) -> bool:
    """Tell whether `call` returned; any exception but a documented AttestationError fails the test."""
    refusal = None
    try:
        call()
    except AttestationError as error:
        refusal = error
    if refusal is None:
        return True
    assert refusal.code in CODES
    assert str(refusal).startswith(f"{refusal.code}: ")
    return False


@pytest.mark.parametrize(("kind", "size"), [(TargetInfo, 512), (Report, 432), (KeyRequest, 512), (Attributes, 16)])
def test_structures(kind: Any, size: int) -> None:
    @given(st.one_of(st.binary(max_size=600), sparse(size)))
    @settings(max_examples=300, deadline=None)
    def check(data: bytes) -> None:
        if only_documented(lambda: kind.decode(data)):
            assert kind.decode(data).encode() == data

    check()


@given(st.one_of(st.binary(max_size=2000), sparse(1808)), st.booleans())
@settings(max_examples=300, deadline=None)
def test_sigstructs(data: bytes, dressed: bool) -> None:
    if dressed and len(data) == 1808:
        parts = (SIGSTRUCT_HEAD, data[16:24], SIGSTRUCT_HEAD2, data[40:512], b"\3\0\0\0", data[516:])
        data = b"".join(parts)
    if only_documented(lambda: SigStruct.decode(data)):
        signed = SigStruct.decode(data)
        assert signed.encode() == data
        assert not only_documented(signed.verify)


def _record(tag: bytes, offset: int, flags: int, data: bytes) -> bytes:
    return struct.pack("<8sQQ40x", tag, offset, flags) + data


RECORDS = st.builds(
    _record,
    st.sampled_from([b"EADD", b"EEXTEND", b"UNMEASRD", b"ECREATE", b"EADD\0x"]),
    st.sampled_from([0, 256, 4096, 8191, 8192, 1 << 63]),
    st.sampled_from([0, 0x200, 0x10000]),
    st.sampled_from([b"", bytes(256), bytes(255)]),
)


@given(st.lists(RECORDS, max_size=8), st.binary(max_size=70), st.integers(1, 500))
@settings(max_examples=300, deadline=None)
def test_sgxs_streams(records: list[bytes], junk: bytes, piece: int) -> None:
    head = struct.pack("<8sIQ44x", b"ECREATE", 1, 8192)
    for stream in (junk, head + b"".join(records), head + b"".join(records) + junk):
        only_documented(lambda stream=stream: measure_sgxs(stream[n : n + piece] for n in range(0, len(stream), piece)))
    if only_documented(lambda: measure_sgxs([head, *records])):
        measured = [record for record in records if not record.startswith(b"UNMEASRD")]
        assert measure_sgxs([head, *records]) == hashlib.sha256(b"".join([head, *measured])).digest()


@given(st.lists(st.binary(max_size=9000), max_size=4), st.integers(-1, 20000))
@settings(max_examples=200, deadline=None)
def test_images(chunks: list[bytes], size: int) -> None:
    fits = only_documented(lambda: measure_image(chunks, size))
    assert fits == (size > 0 and sum(map(len, chunks)) == size)


@given(st.one_of(st.text(max_size=80), st.text("abcdefghijklmnopqrstuvwxyz234567", max_size=80).map("b".__add__)))
@settings(max_examples=500, deadline=None)
def test_multibase(text: str) -> None:
    if only_documented(lambda: decode_multibase(text)):
        assert encode_multibase(decode_multibase(text)) == text


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_multibase_round_trip(data: bytes) -> None:
    assert decode_multibase(encode_multibase(data)) == data


@given(st.lists(st.text(max_size=70), max_size=4), st.integers(-1, 5))
@settings(max_examples=200, deadline=None)
def test_network_keys(texts: list[str], threshold: int) -> None:
    only_documented(lambda: NetworkKeys.parse(texts, threshold))


@given(st.text(max_size=70), st.lists(st.binary(max_size=70), max_size=4))
@settings(max_examples=200, deadline=None)
def test_network_signatures(enclave_id: str, signatures: list[bytes]) -> None:
    assert not only_documented(lambda: KEYS.verify(enclave_id, signatures))


@given(st.one_of(st.binary(max_size=1024), st.builds(lambda op, rest: op + rest, st.binary(max_size=1), sparse(576))))
@settings(max_examples=500, deadline=None)
def test_the_software_cpus_messages(message: bytes) -> None:
    reply = answer(CPU, SECS, message)
    assert reply[0] in (0, 1, 2)
    assert len(reply) in ({0: (17, 433, 513), 1: (3,), 2: (1,)}[reply[0]])


def test_a_planted_bug_is_found() -> None:
    """The canary: this kind of test finds a decoder with a bug in one case of many."""

    def buggy(data: bytes) -> None:
        report = Report.decode(data)
        if report.isvsvn > report.isvprodid:
            raise IndexError

    @given(sparse(432))
    @settings(max_examples=2000, deadline=None, database=None)
    def check(data: bytes) -> None:
        only_documented(lambda: buggy(data))

    with pytest.raises(IndexError):
        check()


def test_signed_binaries() -> None:
    head = SIGSTRUCT_HEAD.ljust(24, b"\0") + SIGSTRUCT_HEAD2
    good = signed_elf(head.ljust(1808, b"\0"))
    found = []

    @given(st.lists(st.tuples(st.integers(0, len(good)), st.binary(min_size=1, max_size=16)), max_size=4))
    @settings(max_examples=500, deadline=None)
    def check(spots: list[tuple[int, bytes]]) -> None:
        data = bytearray(good)
        for offset, value in spots:
            data[offset : offset + len(value)] = value
        found.append(only_documented(lambda: sigstruct_in(bytes(data))))

    check()
    assert {True, False} <= set(found)
