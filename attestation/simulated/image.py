"""A sealed, measured copy of an image, and how the simulated CPU executes it.

An image is a zipapp, which this Python runs, or a static ELF program, which is executed directly. Its measured bytes
alone determine which of the two it is.
"""

import errno
import fcntl
import os
import stat
import struct
import sys
from pathlib import Path
from typing import NoReturn

from attestation.artefact.files import IMAGE_BYTES_MAX, measure_fd, open_artefact, read_chunks
from attestation.errors import AttestationError

READ_BYTES = 1 << 20
_MFD_NOEXEC_SEAL, _MFD_EXEC = 0x8, 0x10
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_ELF_MAGIC = b"\x7fELF"
# System V ABI, chapters 4 and 5: of the header e_ident's class and byte order, e_phoff, e_phentsize and e_phnum.
_ELF_HEADER = struct.Struct("<4sBB10x16xQ14xHH6x")
_ELF_64, _ELF_LITTLE, _PT_INTERP, _PHDR_BYTES = 2, 1, 3, 56


def _sealable_memory(*, executable: bool) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        # A zipapp is only read, and a host may forbid memory files that could be executed (vm.memfd_noexec).
        return os.memfd_create("enclave", flags | (_MFD_EXEC if executable else _MFD_NOEXEC_SEAL))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("enclave", flags)  # Linux before 6.3


def private_copy(image: Path) -> tuple[int, bytes]:
    """Copy an image into sealed memory, which cannot be altered, and measure the copy. Returns descriptor, MRENCLAVE.

    The file on disk is read once, so replacing it later has no effect.
    """
    source = open_artefact(image)
    try:
        copy = _sealable_memory(executable=is_native(source))
        try:
            _fill(copy, source, image)
            fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
            return copy, measure_fd(copy)
        except BaseException:
            os.close(copy)
            raise
    finally:
        os.close(source)


def _fill(copy: int, source: int, image: Path) -> None:
    size = os.fstat(source).st_size
    if not stat.S_ISREG(os.fstat(source).st_mode) or size > IMAGE_BYTES_MAX:
        raise AttestationError(
            code="ARTEFACT_TOO_LARGE",
            what=f"{image} cannot be loaded",
            why=f"it is not a regular file of at most {IMAGE_BYTES_MAX} bytes",
        )
    for view in read_chunks(source, size, bytearray(READ_BYTES)):
        while view:
            view = view[os.write(copy, view) :]


def is_native(fd: int) -> bool:
    """Tell whether the image in an open file is an ELF program, by its first bytes."""
    try:
        return os.pread(fd, len(_ELF_MAGIC), 0) == _ELF_MAGIC
    except OSError:  # a pipe; reading it is refused later
        return False


def need_static(fd: int) -> None:
    """Raise ENCLAVE_START_FAILED unless a native image is a static program: its loader and libraries are not measured.

    A file that is not a 64-bit little-endian program passes here; the kernel refuses it.
    """
    header = os.pread(fd, _ELF_HEADER.size, 0)
    if len(header) < _ELF_HEADER.size:
        return
    _, elf_class, order, table, entry_bytes, entries = _ELF_HEADER.unpack(header)
    if (elf_class, order, entry_bytes) != (_ELF_64, _ELF_LITTLE, _PHDR_BYTES):
        raise _cannot_start("it is not a program for 64-bit little-endian machines")
    for number in range(entries):
        kind = os.pread(fd, 4, table + number * _PHDR_BYTES)
        if int.from_bytes(kind, "little") == _PT_INTERP:
            raise _cannot_start("it is loaded by another program, with libraries that are not measured")


def _cannot_start(why: str) -> AttestationError:
    return AttestationError(
        code="ENCLAVE_START_FAILED",
        what="the native image cannot be started",
        why=why,
        action="Build a static program; with Go: CGO_ENABLED=0.",
    )


def execute(fd: int, args: list[str], environment: dict[str, str]) -> NoReturn:
    """Replace this process by the image in sealed memory. Raises OSError."""
    if is_native(fd):
        os.set_inheritable(fd, False)
        os.execve(fd, ["enclave", *args], environment)  # noqa: S606 - no shell is wanted
    argv = [sys.executable, "-I", "-u", f"/proc/self/fd/{fd}", *args]
    os.execve(sys.executable, argv, environment)  # noqa: S606
