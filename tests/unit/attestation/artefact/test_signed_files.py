"""The SIGSTRUCT of a signed enclave is found where signing tools leave it, and nowhere else."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.artefact.signed_files import read_signed_enclave, sigstruct_in, verify_sigstruct
from attestation.artefact.sigstruct import HEADER, SigStruct, sign_sigstruct
from attestation.errors import AttestationError
from devnet.field.signed_elf import PAYLOAD_OFFSET, signed_elf
from tests.doubles.signed_enclaves import Key

MRENCLAVE = bytes(range(32))


@pytest.fixture(scope="module")
def sigstruct() -> bytes:
    return sign_sigstruct(Key(), MRENCLAVE, date=0x20260101).encode()


def at(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def test_a_signed_binary_and_a_bare_file_show_their_sigstruct(sigstruct: bytes, tmp_path: Path) -> None:
    for data in (sigstruct, signed_elf(sigstruct), signed_elf(sigstruct, b"payload" * 1000)):
        assert sigstruct_in(data) == sigstruct
        path = tmp_path / "enclave"
        path.write_bytes(data)
        assert verify_sigstruct(read_signed_enclave(path)) == MRENCLAVE.hex()


@pytest.mark.parametrize("image_info_bytes", [24, 40, 64])
def test_an_older_header_is_searched(sigstruct: bytes, image_info_bytes: int) -> None:
    assert sigstruct_in(signed_elf(sigstruct, image_info_bytes=image_info_bytes)) == sigstruct


def test_a_section_that_lies_does_not_pass(sigstruct: bytes) -> None:
    elf = signed_elf(sigstruct)
    place = elf.index(HEADER)
    another = at(elf, place + 960, b"\xff" * 32)
    with pytest.raises(AttestationError, match="SIGSTRUCT_SIGNATURE_BAD"):
        verify_sigstruct(sigstruct_in(another))
    unsigned = at(elf, place, bytes(1808))
    for size in (elf[64:68], struct.pack("<I", 0), struct.pack("<I", 2**32 - 1)):
        with pytest.raises(AttestationError, match="SIGSTRUCT_NOT_FOUND"):
            sigstruct_in(at(unsigned, 64, size))


def test_two_that_look_like_one_are_none(sigstruct: bytes) -> None:
    """If it is not at the header's offset, two candidates are ambiguous."""
    elf = signed_elf(sigstruct, image_info_bytes=24)
    assert sigstruct_in(elf) == sigstruct
    hidden = at(elf, 64 + PAYLOAD_OFFSET - 100, sigstruct[:40])
    assert sigstruct_in(hidden) == sigstruct, "what is cut off is no second one"


def test_a_debug_enclave_is_refused() -> None:
    debug = sign_sigstruct(Key(), MRENCLAVE, date=0x20260101, debug=True)
    with pytest.raises(AttestationError, match="SIGSTRUCT_DEBUG"):
        verify_sigstruct(debug.encode())
    unsigned = replace(debug, signature=bytes(384))
    with pytest.raises(AttestationError, match="SIGSTRUCT_SIGNATURE_BAD"):
        verify_sigstruct(SigStruct.encode(unsigned))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 1807,
        b"#!/bin/sh\n",
        b"\x7fELF",
        b"\x7fELF\x01\x01\x01" + bytes(200),  # 32 bit
        b"\x7fELF\x02\x01\x01" + bytes(200),  # no sections
    ],
)
def test_what_is_no_signed_enclave_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(AttestationError, match="SIGSTRUCT_NOT_FOUND"):
        sigstruct_in(data)
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(AttestationError, match="SIGSTRUCT_NOT_FOUND"):
        read_signed_enclave(path)


def test_headers_that_point_out_of_the_file_are_refused(sigstruct: bytes) -> None:
    elf = signed_elf(sigstruct)
    table = struct.unpack_from("<Q", elf, 40)[0]
    for change in (
        at(elf, 40, struct.pack("<Q", 2**63)),  # section headers
        at(elf, 60, struct.pack("<H", 9)),  # their number
        at(elf, 60, struct.pack("<H", 0)),
        at(elf, 62, struct.pack("<H", 7)),  # the names' section
        at(elf, table + 64 + 24, struct.pack("<Q", 2**63)),  # .oeinfo's offset
        at(elf, table + 64 + 32, struct.pack("<Q", 2**63)),  # and size
        at(elf, table + 128 + 24, struct.pack("<Q", 2**63)),  # names
        elf[:-1],
    ):
        with pytest.raises(AttestationError, match="SIGSTRUCT_NOT_FOUND"):
            sigstruct_in(change)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("none", "link"):
        with pytest.raises(AttestationError, match="ARTEFACT_UNREADABLE"):
            read_signed_enclave(tmp_path / name)
