"""Confined unpacking of release archives: tar or tar.gz in, plain files in one folder out.

The reader parses the blocks of the stream itself (ustar headers, pax and GNU long names). It does not use `tarfile`,
because that reads extended headers of any size into memory and seeks backwards in compressed streams.
Layout: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header".
"""

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from .errors import ProcessSupervisorError
from .limits import ArchiveLimits

BLOCK = 512
COPY_BYTES = 256 * 1024
PADDING_BYTES_MAX = 4 * COPY_BYTES
PATH_CHARS_MAX = 255
DEPTH_MAX = 8
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*\Z")


@dataclass(frozen=True, slots=True)
class UnpackedFile:
    """One file that was written: its path inside the folder and its size in bytes."""

    name: str
    size: int


def _refuse(code: str, what: str, why: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code=code,
        what=what,
        why=why,
        action="It is not used; if the source keeps giving it, tell its publisher",
    )


def safe_member_path(name: str) -> PurePosixPath:
    """Return the path of a member inside the folder. Raises ARCHIVE_PATH_REFUSED for a name that could lead out of it.

    Only plain ASCII names without hidden components are accepted, so the result does not depend on how a file system
    treats case, Unicode forms, drive letters or backslashes.
    """
    if name.startswith("/") or len(name) > PATH_CHARS_MAX:
        raise _refuse("ARCHIVE_PATH_REFUSED", f"archive member {name[:200]!r}", "its path is absolute or too long")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if len(parts) > DEPTH_MAX or not all(_NAME.match(part) for part in parts):
        raise _refuse("ARCHIVE_PATH_REFUSED", f"archive member {name[:200]!r}", "its path leaves the folder or is odd")
    return PurePosixPath(*parts)


class _Blocks:
    """The bytes of the (decompressed) stream in exact amounts; truncation and damage become ARCHIVE_CORRUPT."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            try:
                data = self._stream.read(min(size, COPY_BYTES))
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise _refuse("ARCHIVE_CORRUPT", "archive", f"its compressed stream is damaged ({error})") from error
            if not data:
                raise _refuse("ARCHIVE_CORRUPT", "archive", "it ends in the middle of a member")
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def finish(self) -> None:
        """Read the rest of the stream, which must be padding; gzip verifies its checksum only at the end."""
        for _ in range(PADDING_BYTES_MAX // COPY_BYTES):
            try:
                data = self._stream.read(COPY_BYTES)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise _refuse("ARCHIVE_CORRUPT", "archive", f"its compressed stream is damaged ({error})") from error
            if not data:
                return
            if data.strip(b"\0"):
                break
        raise _refuse("ARCHIVE_CORRUPT", "archive", "it continues after its end")

    def chunks(self, size: int) -> Iterator[bytes]:
        padding = -size % BLOCK
        while size > 0:
            data = self.read(min(size, COPY_BYTES))
            size -= len(data)
            yield data
        self.read(padding)


def _open_stream(raw: BinaryIO) -> BinaryIO:
    magic = raw.read(2)
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw, mode="rb") if magic == b"\x1f\x8b" else raw  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class _Header:
    """The used fields of a member's header block; owners, times and modes are ignored."""

    name: str
    kind: bytes
    size: int


def _header(block: bytes) -> _Header:
    """Decode a ustar, GNU or old (v7) header. Raises ARCHIVE_CORRUPT."""
    try:
        declared = int(block[148:156].strip(b"\0 ") or b"0", 8)
        size = _size(block[124:136])
    except ValueError as error:
        raise _refuse("ARCHIVE_CORRUPT", "archive", "a header's number is malformed") from error
    plain = block[:148] + b" " * 8 + block[156:]
    # Some old programs counted bytes as signed.
    if declared not in (sum(plain), sum(byte - 256 if byte > 127 else byte for byte in plain)):
        raise _refuse("ARCHIVE_CORRUPT", "archive", "a header's checksum does not match")
    name, kind = block[:100].partition(b"\0")[0], block[156:157]
    prefix = block[345:500].partition(b"\0")[0]
    if prefix and block[257:263] == b"ustar\0":  # in GNU headers other fields lie there
        name = prefix + b"/" + name
    if kind == tarfile.AREGTYPE and name.endswith(b"/"):
        kind = tarfile.DIRTYPE
    return _Header(_text(name), kind, size)


def _size(field: bytes) -> int:
    """A size in octal digits, or in base 256 where it has more than eight GiB. Raises ValueError."""
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b"\0 ") or b"0", 8)
    if not 0 <= size < 10**18:
        raise ValueError("no size")
    return size


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """Records of the form `<length> <key>=<value>\\n`, the length counting the whole record; values may be binary."""
    records: dict[bytes, bytes] = {}
    while data:
        digits, separator, _ = data[:20].partition(b" ")
        if not separator or not digits.isdigit():
            raise _refuse("ARCHIVE_CORRUPT", "archive", "an extended header is malformed")
        length = int(digits)
        record, data = data[len(digits) + 1 : length], data[length:]
        key, equals, value = record.partition(b"=")
        if (
            length <= len(digits) + 1
            or length > len(record) + len(digits) + 1
            or not equals
            or not value.endswith(b"\n")
        ):
            raise _refuse("ARCHIVE_CORRUPT", "archive", "an extended header is malformed")
        records[key] = value[:-1]
    return records


def _changes_content(key: bytes) -> bool:
    """Return whether a pax record changes a member's name or content; times, owners and comments do not."""
    return key in (b"path", b"linkpath", b"size") or key.startswith(b"GNU.sparse")


def _members(blocks: _Blocks, limits: ArchiveLimits) -> Iterator[_Header]:
    """Yield the header of each member, with extended headers applied; the caller consumes the data."""
    seen = 0
    override: dict[bytes, bytes] = {}
    while True:
        block = blocks.read(BLOCK)
        if not block.strip(b"\0"):
            blocks.finish()
            return
        seen += 1
        if seen > 3 * limits.members_max:
            raise _refuse("ARCHIVE_TOO_LARGE", "archive", f"it holds more than {limits.members_max} members")
        header = _header(block)
        if header.kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
            if header.size > limits.header_bytes_max:
                raise _refuse("ARCHIVE_TOO_LARGE", "archive", f"an extended header has {header.size} bytes")
            data = b"".join(blocks.chunks(header.size))
            if header.kind == tarfile.GNUTYPE_LONGNAME:
                override[b"path"] = data.partition(b"\0")[0]
                continue
            records = {key: value for key, value in _pax_records(data).items() if _changes_content(key)}
            if header.kind == tarfile.XHDTYPE:
                override.update(records)
            elif records:
                # Global headers carry comments (git archive) or times (GNU tar); one that renames members is refused.
                raise _refuse("ARCHIVE_MEMBER_REFUSED", "archive", "a global header changes its members")
            continue
        if any(key.startswith(b"GNU.sparse") for key in override):
            raise _refuse("ARCHIVE_MEMBER_REFUSED", f"archive member {header.name[:200]!r}", "it is a sparse file")
        size = override.get(b"size", b"%d" % header.size)
        if not re.fullmatch(rb"[0-9]{1,18}", size):
            raise _refuse("ARCHIVE_CORRUPT", "archive", "a member's size is malformed")
        name = _text(override[b"path"]) if b"path" in override else header.name
        yield _Header(name, header.kind, int(size))
        override = {}


def read_member(archive: Path, wanted: str, limits: ArchiveLimits, bytes_max: int) -> bytes | None:
    """Content of the first plain file named `wanted`, of `bytes_max` at most; None without one. Blocking, ARCHIVE_*.

    The whole archive is read, so that what is handed on to another reader is within `limits` too.
    """
    found: bytes | None = None
    total = 0
    with archive.open("rb") as raw:
        blocks = _Blocks(_open_stream(raw))
        for header in _members(blocks, limits):
            name, kind, size = header.name, header.kind, header.size
            total += size
            if size > limits.member_bytes_max or total > limits.total_bytes_max:
                why = f"{total} bytes are more than the limits allow"
                raise _refuse("ARCHIVE_TOO_LARGE", f"archive member {name[:200]!r}", why)
            if found is None and name.removeprefix("./") == wanted and kind in (tarfile.REGTYPE, tarfile.AREGTYPE):
                if size > bytes_max:
                    raise _refuse("ARCHIVE_TOO_LARGE", f"archive member {wanted!r}", f"it has {size} bytes")
                found = b"".join(blocks.chunks(size))
                continue
            for _ in blocks.chunks(size):
                pass
    return found


def unpack(archive: Path, folder: Path, limits: ArchiveLimits, members: frozenset[str] | None) -> list[UnpackedFile]:
    """Unpack `archive` into the empty `folder`; files get mode 0644 and are synced. Blocking.

    `members` names exactly the files that the archive must contain; None accepts any plain files. Raises ARCHIVE_*; the
    caller then removes the files written so far.
    """
    written: list[UnpackedFile] = []
    seen: set[PurePosixPath] = set()
    total = 0
    with archive.open("rb") as raw:
        blocks = _Blocks(_open_stream(raw))
        for header in _members(blocks, limits):
            name, kind, size = header.name, header.kind, header.size
            path = safe_member_path(name)
            if kind == tarfile.DIRTYPE and size == 0:
                continue
            _judge(path, kind, size, total, limits, members)
            if path in seen or len(seen) >= limits.members_max:
                code = "ARCHIVE_DUPLICATE_MEMBER" if path in seen else "ARCHIVE_TOO_LARGE"
                raise _refuse(code, f"archive member {name!r}", "it is there twice, or there are too many members")
            seen.add(path)
            total += size
            _write(folder, path, blocks.chunks(size))
            written.append(UnpackedFile(str(path), size))
    missing = (members or frozenset()) - {item.name for item in written}
    if missing:
        raise _refuse("ARCHIVE_MEMBER_MISSING", "archive", f"it lacks {', '.join(sorted(missing))}")
    return written


def _judge(
    path: PurePosixPath, kind: bytes, size: int, total: int, limits: ArchiveLimits, members: frozenset[str] | None
) -> None:
    what = f"archive member {str(path)!r}"
    if kind not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise _refuse("ARCHIVE_MEMBER_REFUSED", what, f"type {kind!r} is not a plain file")
    if not path.parts or (members is not None and str(path) not in members):
        raise _refuse("ARCHIVE_PATH_REFUSED", what, "a release has no such file")
    if size > limits.member_bytes_max or total + size > limits.total_bytes_max:
        raise _refuse("ARCHIVE_TOO_LARGE", what, f"{total + size} bytes are more than the limits allow")


def _write(folder: Path, path: PurePosixPath, chunks: Iterator[bytes]) -> None:
    target = folder.joinpath(*path.parts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # O_EXCL and O_NOFOLLOW: even if something else wrote here, an existing file or link is never written through.
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except (FileExistsError, NotADirectoryError) as error:
        why = "another member has this path, or a part of it, already"
        raise _refuse("ARCHIVE_DUPLICATE_MEMBER", f"archive member {str(path)!r}", why) from error
    with os.fdopen(fd, "wb") as file:
        # Independent of the umask: a container's user, who may be a different one, must be able to read the file.
        os.fchmod(fd, 0o644)
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
