"""Headers of native programs, without code."""

LOAD, INTERPRETER = 1, 3


def elf(*kinds: int, elf_class: int = 2) -> bytes:
    """A 64-bit little-endian ELF header with program headers of these types behind it."""
    header = b"\x7fELF" + bytes([elf_class, 1]) + bytes(26) + (64).to_bytes(8, "little") + bytes(14)
    header += (56).to_bytes(2, "little") + len(kinds).to_bytes(2, "little") + bytes(6)
    return header + b"".join(kind.to_bytes(4, "little") + bytes(52) for kind in kinds)
