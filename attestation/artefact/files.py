"""Image files and their SIGSTRUCTs on disk: building, signing, and verifying that they belong together."""

import datetime
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attestation.errors import AttestationError
from attestation.sgx import MODE64BIT, XFRM_LEGACY

from .measure import BATCH, measure_image
from .sigstruct import SIGSTRUCT_SIZE, SigStruct, sign_sigstruct

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

IMAGE_BYTES_MAX = 1 << 30
# The earliest time in a zip archive. Fixed, so that the bytes of an image do not depend on the time of the build.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_MAIN = "import sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"


def _unreadable(path: Path, error: OSError) -> AttestationError:
    return AttestationError(
        code="ARTEFACT_UNREADABLE",
        what=f"{path} cannot be read",
        why=error.strerror or type(error).__name__,
        action="Look at the file and its permissions.",
        kind="transient",
    )


def open_artefact(path: Path) -> int:
    """Open an image or SIGSTRUCT for reading and return its descriptor. Does not wait for a writer if it is a pipe.

    Raises ARTEFACT_UNREADABLE.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_chunks(fd: int, size: int, buffer: bytearray) -> Iterator[memoryview]:
    """Yield `size` bytes from the start of an open file in pieces; raise if the file is longer.

    Each piece stays in `buffer` until the next one is requested.
    """
    window = memoryview(buffer)
    offset = 0
    while count := os.preadv(fd, [window[: size + 1 - offset]], offset):
        offset += count
        yield window[:count]


def measure_fd(fd: int) -> bytes:
    """Measure the image in an open file, from its start: its MRENCLAVE (32 bytes).

    Raises ARTEFACT_TOO_LARGE, MEASURE_LAYOUT_INVALID (also if the size changes meanwhile), OSError.
    """
    size = os.fstat(fd).st_size
    if size > IMAGE_BYTES_MAX:
        raise AttestationError(
            code="ARTEFACT_TOO_LARGE",
            what="an image cannot be used",
            why=f"it has {size} bytes, over the limit of {IMAGE_BYTES_MAX}",
        )
    buffer = bytearray(BATCH)
    return measure_image(read_chunks(fd, size, buffer), size, buffer)


def measure_file(image: Path) -> bytes:
    """Measure an image file: its MRENCLAVE (32 bytes). Raises ARTEFACT_* and MEASURE_LAYOUT_INVALID."""
    fd = open_artefact(image)
    try:
        return measure_fd(fd)
    except OSError as error:
        raise _unreadable(image, error) from error
    finally:
        os.close(fd)


def read_sigstruct(path: Path) -> SigStruct:
    """Read and decode a SIGSTRUCT file. Raises ARTEFACT_UNREADABLE, SIGSTRUCT_INVALID."""
    fd = open_artefact(path)
    try:
        data = os.read(fd, SIGSTRUCT_SIZE + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(fd)
    return SigStruct.decode(data)


def verify_artefact(image: Path, sigstruct: Path, *, production: bool = False) -> str:
    """Verify that `sigstruct` is a good SIGSTRUCT over `image`, and return the enclave id.

    With `production`, a SIGSTRUCT that can only start as a debug enclave is refused as well.

    Raises SIGSTRUCT_INVALID, SIGSTRUCT_SIGNATURE_BAD, SIGSTRUCT_DEBUG, SIGSTRUCT_MRENCLAVE_MISMATCH,
    MEASURE_LAYOUT_INVALID, ARTEFACT_UNREADABLE, ARTEFACT_TOO_LARGE.
    """
    signed = read_sigstruct(sigstruct)
    signed.verify()
    if production:
        signed.need_production()
    signed.need_mrenclave(measure_file(image))
    return signed.enclave_id


class _PemKey:
    """Adapts a `cryptography` RSA key to `sign_sigstruct`."""

    def __init__(self, key: "RSAPrivateKey") -> None:
        self._key = key
        numbers = key.public_key().public_numbers()
        self.modulus, self.exponent = numbers.n, numbers.e

    def sign(self, message: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        return self._key.sign(message, PKCS1v15(), SHA256())


def build_sigstruct(
    image: Path,
    key: "RSAPrivateKey",
    *,
    isvprodid: int = 0,
    isvsvn: int = 0,
    debug: bool = False,
    flags: int = MODE64BIT,
    xfrm: int = XFRM_LEGACY,
    date: datetime.date,
) -> bytes:
    """Measure `image` and sign it: 1,808 bytes. `key` is RSA-3072 with exponent 3; `debug` makes a debug enclave.

    `flags` and `xfrm` are its ATTRIBUTES.
    """
    return sign_sigstruct(
        _PemKey(key),
        measure_file(image),
        date=int(date.strftime("%Y%m%d"), 16),
        isvprodid=isvprodid,
        isvsvn=isvsvn,
        debug=debug,
        flags=flags,
        xfrm=xfrm,
    ).encode()


def build_image(out: Path, sources: Mapping[str, Path | bytes], main: str) -> None:
    """Write a zipapp whose bytes depend on its content alone: sorted, stored, fixed times and modes.

    `sources` maps archive names to bytes, files, or folders (without caches). `main` is "package.module:function"; it
    is called without arguments and returns the exit code. Writes a temporary file and renames it.
    """
    import zipfile  # imported here: only builders need it, and each import delays an enclave's start

    members = dict(_members(sources))
    module, _, function = main.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), function]) or "__main__.py" in members:
        raise ValueError(f"{main!r} is no package.module:function, or the sources have a __main__.py")
    members["__main__.py"] = _MAIN.format(module=module, function=function).encode("ascii")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _ZIP_TIME)
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, members[name])
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    aside.write_bytes(buffer.getvalue())
    aside.replace(out)


def _members(sources: Mapping[str, Path | bytes]) -> Iterator[tuple[str, bytes]]:
    for name, source in sources.items():
        if isinstance(source, bytes):
            yield name, source
        elif source.is_dir():
            for path in source.rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".so"):
                    yield f"{name}/{path.relative_to(source).as_posix()}", path.read_bytes()
        else:
            yield name, source.read_bytes()
