"""The SIGSTRUCT of a signed enclave whose measurement cannot be made here. Finding it is pure: bytes in, bytes out.

Open Enclave and EGo keep it in the ELF section `.oeinfo` of the signed binary (layout: Open Enclave's public header
`sgxproperties.h`), Gramine in a file of its own (1,808 bytes). It names what was signed; the CPU enforces what runs.
"""

import mmap
import os
import struct
from pathlib import Path

from attestation.errors import AttestationError

from .sigstruct import HEADER, HEADER2, SIGSTRUCT_SIZE, SigStruct

ELF_MAGIC = b"\x7fELF"
SIGNED_FILE_BYTES_MAX = 4 << 30
_SECTION = b".oeinfo\0"
_SECTION_BYTES_MAX = 1 << 20
_SECTIONS_MAX = 1 << 16
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_PROPERTIES = struct.Struct("<II")
_TYPE_SGX = 2
_SIGSTRUCT_OFFSET = 144

Bytes = bytes | memoryview | mmap.mmap


def _not_found(why: str) -> AttestationError:
    return AttestationError(
        code="SIGSTRUCT_NOT_FOUND",
        what="a signed enclave shows no SIGSTRUCT",
        why=why,
        action="Name the signed binary (Open Enclave, EGo) or the .sig file (Gramine) of the release.",
        kind="transient",  # perhaps the settings name the wrong file, so the release is not refused
    )


def sigstruct_in(data: Bytes) -> bytes:
    """Return the 1,808 bytes of the SIGSTRUCT in a signed enclave: an ELF file with `.oeinfo`, or the bare structure.

    Only locates them; `SigStruct.decode` and `verify` check them. Raises SIGSTRUCT_NOT_FOUND.
    """
    if len(data) == SIGSTRUCT_SIZE:
        return bytes(data[:])
    if bytes(data[: len(ELF_MAGIC)]) != ELF_MAGIC:
        raise _not_found("it is neither an ELF file nor 1,808 bytes")
    return _in_properties(_oeinfo(data))


def _oeinfo(data: Bytes) -> bytes:
    """Return the content of the section `.oeinfo`, of which there must be exactly one."""
    if len(data) < _EHDR.size or bytes(data[: len(_ELF64_LITTLE)]) != _ELF64_LITTLE:
        raise _not_found("it is no 64-bit little-endian ELF file")
    (*_, table, _flags, _ehsize, _phentsize, _phnum, entry_size, count, names) = _EHDR.unpack(bytes(data[: _EHDR.size]))
    if entry_size != _SHDR.size or not table:
        raise _not_found("it has no section headers")
    if count == 0:  # more than 65,279 sections: the first header contains their number
        count = _header(data, table, 0)[5]
    if not 0 < count <= _SECTIONS_MAX or names >= count:
        raise _not_found(f"it says that it has {count} sections")
    _, _, _, _, names_at, names_size, *_ = _header(data, table, names)
    found = []
    for number in range(count):
        name, _, _, _, offset, size, *_ = _header(data, table, number)
        if name < names_size and bytes(data[names_at + name : names_at + name + len(_SECTION)]) == _SECTION:
            found.append((offset, size))
    if len(found) != 1:
        raise _not_found(f"it has {len(found)} sections .oeinfo")
    offset, size = found[0]
    if size > _SECTION_BYTES_MAX or offset + size > len(data):
        raise _not_found("its section .oeinfo does not lie in the file")
    return bytes(data[offset : offset + size])


def _header(data: Bytes, table: int, number: int) -> tuple[int, ...]:
    at = table + number * _SHDR.size
    if at + _SHDR.size > len(data):
        raise _not_found("its section headers do not lie in the file")
    return _SHDR.unpack(bytes(data[at : at + _SHDR.size]))


def _in_properties(section: bytes) -> bytes:
    """Find it at the offset of the current header if its fields agree, else at the only offset that looks like one.

    In older headers, image information of another size precedes it.
    """
    if len(section) >= _SIGSTRUCT_OFFSET + SIGSTRUCT_SIZE:
        size, kind = _PROPERTIES.unpack_from(section)
        fits = _SIGSTRUCT_OFFSET + SIGSTRUCT_SIZE <= size <= len(section)
        if fits and kind == _TYPE_SGX and _begins(section, _SIGSTRUCT_OFFSET):
            return section[_SIGSTRUCT_OFFSET : _SIGSTRUCT_OFFSET + SIGSTRUCT_SIZE]
    places, at = [], section.find(HEADER)
    while at >= 0:
        if _begins(section, at) and at + SIGSTRUCT_SIZE <= len(section):
            places.append(at)
        at = section.find(HEADER, at + 1)
    if len(places) != 1:
        raise _not_found(f"its section .oeinfo holds {len(places)} of them: is the binary signed?")
    return section[places[0] : places[0] + SIGSTRUCT_SIZE]


def _begins(section: bytes, at: int) -> bool:
    return section.startswith(HEADER, at) and section.startswith(HEADER2, at + 24)


def read_signed_enclave(path: Path) -> bytes:
    """Apply `sigstruct_in` to a file without reading all of it. Raises SIGSTRUCT_NOT_FOUND, ARTEFACT_UNREADABLE."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            size = os.fstat(fd).st_size
            if not 0 < size <= SIGNED_FILE_BYTES_MAX:
                raise _not_found(f"it has {size} bytes")
            with mmap.mmap(fd, size, prot=mmap.PROT_READ) as data:
                return sigstruct_in(data)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise AttestationError(
            code="ARTEFACT_UNREADABLE",
            what=f"{path} cannot be read",
            why=str(error),
            action="Look at the file and its permissions.",
            kind="transient",
        ) from error


def verify_sigstruct(sigstruct: bytes) -> str:
    """Verify a production SIGSTRUCT and return its enclave id. The enclave itself cannot be measured here.

    Raises SIGSTRUCT_INVALID, SIGSTRUCT_SIGNATURE_BAD, SIGSTRUCT_DEBUG.
    """
    signed = SigStruct.decode(sigstruct)
    signed.verify()
    signed.need_production()
    return signed.enclave_id
