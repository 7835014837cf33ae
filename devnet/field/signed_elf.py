"""A file like those that `oesign` and `ego sign` make: an ELF whose section `.oeinfo` contains the SIGSTRUCT.

It is not a program. Only the place of the SIGSTRUCT is as in a real one (Open Enclave's `sgxproperties.h`), and the
payload that EGo appends and the section points to.
"""

import struct

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_NAMES = b"\0.oeinfo\0.shstrtab\0"
_PROPERTIES = struct.Struct("<IIQQQ")
CONFIG_BYTES, IMAGE_INFO_BYTES = 64, 48
END_MARKER = 0xECECECECECECECEC
PAYLOAD_OFFSET = 2048


def oeinfo(sigstruct: bytes, payload: tuple[int, int], *, image_info_bytes: int = IMAGE_INFO_BYTES) -> bytes:
    """Make the section's content. `payload`: offset and size of EGo's. Older headers have another image info."""
    before = _PROPERTIES.size + CONFIG_BYTES + image_info_bytes
    size = before + len(sigstruct) + 16
    section = _PROPERTIES.pack(size, 2, 1024, 64, 8) + bytes(CONFIG_BYTES + image_info_bytes) + sigstruct
    section += bytes(8) + struct.pack("<Q", END_MARKER)
    return section.ljust(PAYLOAD_OFFSET, b"\0") + struct.pack("<QQ", *payload)


def signed_elf(sigstruct: bytes, payload: bytes = b"", *, image_info_bytes: int = IMAGE_INFO_BYTES) -> bytes:
    """Make the whole file, with the payload appended."""
    size = len(oeinfo(sigstruct, (0, 0), image_info_bytes=image_info_bytes))
    section_at = _EHDR.size
    names_at = section_at + size
    table_at = (names_at + len(_NAMES) + 7) // 8 * 8
    payload_at = table_at + 3 * _SHDR.size
    section = oeinfo(sigstruct, (payload_at, len(payload)), image_info_bytes=image_info_bytes)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = _EHDR.pack(ident, 3, 62, 1, 0, 0, table_at, 0, _EHDR.size, 56, 0, _SHDR.size, 3, 2)
    table = bytes(_SHDR.size)
    table += _SHDR.pack(_NAMES.index(b".oeinfo"), 1, 3, 0, section_at, size, 0, 0, 16, 0)
    table += _SHDR.pack(_NAMES.index(b".shstrtab"), 3, 0, 0, names_at, len(_NAMES), 0, 0, 1, 0)
    return (header + section + _NAMES).ljust(table_at, b"\0") + table + payload
