"""MRENCLAVE: the SHA-256 over what ECREATE, EADD and EEXTEND log. Pure.

Log (SDM 3D): "ECREATE\\0" SSAFRAMESIZE:u32 SIZE:u64 44 zeros; per page "EADD\\0\\0\\0\\0" offset:u64 SECINFO:48;
per 256 bytes "EEXTEND\\0" offset:u64 48 zeros, then the bytes. An SGXS stream (fortanix/rust-sgx, sgxs crate) is the
same bytes, with records "UNMEASRD" for what is loaded and not hashed.

The log is 81 lines of 64 bytes per page. Making it piece by piece would cost more than hashing it, so whole batches
of pages are joined by one call, and what differs from line to line is then written as columns of bytes.
"""

import hashlib
import struct
from collections.abc import Iterable
from functools import lru_cache

from attestation.errors import AttestationError

PAGE = 4096
CHUNK = 256
SIZE_MAX = 1 << 56  # more than any CPU takes: each says its own limit (CPUID leaf 12H), 2**36 on the first ones
READ, WRITE, EXECUTE = 0x1, 0x2, 0x4
TCS, REG, SS_FIRST, SS_REST = 0x100, 0x200, 0x500, 0x600
_PAGE_TYPES = (TCS, REG, SS_FIRST, SS_REST)
_RESERVED_FLAGS = ~0xFF3F
BATCH_PAGES = 64
BATCH = BATCH_PAGES * PAGE
_CARRY = 1 << 24  # offsets are equal from this bit on, but for a batch that goes past a multiple of it
_LINE = 64
_PAGE_LOG = _LINE + PAGE // CHUNK * (_LINE + CHUNK)
_ECREATE = struct.Struct("<8sIQ44s")
_EADD = struct.Struct("<8sQQ40s")
_EEXTEND = struct.Struct("<8sQ48s")
_PAGE_PIECES = struct.Struct("0s0s" + f"{CHUNK}s" * (PAGE // CHUNK))  # the empty ones as in `_BatchLog`
_Columns = list[tuple[slice, bytearray]]  # where in the log, and the bytes that go there
# Where the lines of a page that hold an offset begin in its log, each a column with those of the batch's other pages.
_EADD_LINE, *_EEXTEND_LINES = (0, *range(_LINE, _PAGE_LOG, _LINE + CHUNK))
_HIGH_PAGES = (1 << 16) // PAGE
_ALL_CHUNKS = (1 << PAGE // CHUNK) - 1
_PAGE_LINES = 1 + PAGE // CHUNK
_CHUNK_LINES = f"{_LINE}s{CHUNK}x" * (PAGE // CHUNK)
_HIGH_PLACES = [slice(line + 10, None, _PAGE_LOG) for line in (_EADD_LINE, *_EEXTEND_LINES)]


def _invalid(why: str) -> AttestationError:
    return AttestationError(code="MEASURE_LAYOUT_INVALID", what="an enclave cannot be measured", why=why)


def _column(line: int, at: int) -> slice:
    """Select byte `at` of the line that begins at `line` in the log of each page."""
    return slice(line + at, None, _PAGE_LOG)


class _BatchLog:
    """Makes the log of `BATCH_PAGES` pages at a time."""

    def __init__(self, buffer: bytearray) -> None:
        self._buffer = buffer
        self._window = memoryview(buffer)
        chunks = [self._window[start : start + CHUNK] for start in range(0, BATCH, CHUNK)]
        # Joined by one 64-byte line, two empty pieces in front of each page's chunks leave room for its EADD.
        self._pieces: list[bytes | memoryview] = [b""]
        for start in range(0, len(chunks), PAGE // CHUNK):
            self._pieces += [b"", *chunks[start : start + PAGE // CHUNK]]
        self._kinds: dict[int, _Columns] = {}
        self._chunks: dict[int, _Columns] = {}
        # Bits 16 to 23 of the offset of each page below 2**24, and on to the end of a batch that begins there.
        self._high = bytearray(number for number in range(256) for _ in range(_HIGH_PAGES))
        self._high += self._high[:BATCH_PAGES]

    def make(self, offset: int, flags: int, data: memoryview) -> bytearray:
        """Give the log of adding and measuring `BATCH` bytes at `offset` with SECINFO.FLAGS `flags`."""
        if data.obj is not self._buffer:
            self._window[:] = data
        log = self._joined(offset)
        page = offset % _CARRY // PAGE
        for place, column in self._kind_columns(flags):
            log[place] = column
        for place, column in self._chunk_columns(page % _HIGH_PAGES):
            log[place] = column
        high = self._high[page : page + BATCH_PAGES]
        for place in _HIGH_PLACES:
            log[place] = high
        return log

    def _joined(self, offset: int) -> bytearray:
        """Join the pieces by lines. Bits 24 and up of the offsets travel in the line, bits 0 to 7 are zero."""
        low = offset // _CARRY * _CARRY
        line = bytearray(_EEXTEND.pack(b"EEXTEND", low, b""))
        pages = (low + _CARRY - offset) // PAGE
        if pages >= BATCH_PAGES:
            return line.join(self._pieces)
        # The batch goes past a multiple of 2**24: the lines of its later pages differ in those bits.
        cut = 1 + pages * (1 + PAGE // CHUNK)
        rest = bytearray(_EEXTEND.pack(b"EEXTEND", low + _CARRY, b"")).join([b"", *self._pieces[cut:]])
        return line.join(self._pieces[:cut]) + rest

    def _kind_columns(self, flags: int) -> _Columns:
        """Give the EADDs' tag and SECINFO.FLAGS, where they are not what an EEXTEND has there."""
        if flags not in self._kinds:
            wanted, there = _EADD.pack(b"EADD", 0, flags, b""), _EEXTEND.pack(b"EEXTEND", 0, b"")
            self._kinds[flags] = [
                (_column(_EADD_LINE, at), bytearray([wanted[at]]) * BATCH_PAGES)
                for at in range(_LINE)
                if wanted[at] != there[at]
            ]
        return self._kinds[flags]

    def _chunk_columns(self, first: int) -> _Columns:
        """Give bits 8 to 15 of the offsets, for a batch that begins `first` pages after a multiple of 2**16."""
        if first not in self._chunks:
            pages = range(first * PAGE, first * PAGE + BATCH, PAGE)
            lines = [(_EADD_LINE, 0), *zip(_EEXTEND_LINES, range(0, PAGE, CHUNK), strict=True)]
            self._chunks[first] = [
                (_column(line, 9), bytearray((page + chunk) >> 8 & 0xFF for page in pages)) for line, chunk in lines
            ]
        return self._chunks[first]


def need_enclave_size(size: int, ssaframesize: int) -> None:
    """Raise MEASURE_LAYOUT_INVALID unless ECREATE takes SIZE (bytes) and SSAFRAMESIZE (pages)."""
    if not 2 * PAGE <= size <= SIZE_MAX or size & (size - 1):
        raise _invalid(f"SIZE {size} is no power of two from {2 * PAGE} to {SIZE_MAX}")
    if not 0 < ssaframesize <= size // PAGE:
        raise _invalid(f"SSAFRAMESIZE {ssaframesize} does not fit into the enclave")


def _need_secinfo(offset: int, flags: int) -> None:
    """Raise MEASURE_LAYOUT_INVALID unless EADD takes SECINFO.FLAGS and logs them as they are (SDM 3D, EADD)."""
    kind, access = flags & 0xFF00, flags & (READ | WRITE | EXECUTE)
    if flags & _RESERVED_FLAGS:
        why = "has reserved bits"
    elif kind not in _PAGE_TYPES:
        why = "is for no page that can be added"
    elif kind == TCS and access:
        why = "gives a TCS access rights, which the CPU would clear"
    elif access & WRITE and not access & READ:
        why = "lets a page be written and not read"
    else:
        return
    raise _invalid(f"SECINFO.FLAGS {flags:#x} of the page at {offset:#x} {why}")


class Measurement:
    """MRENCLAVE in the making: one enclave of `size` bytes (a power of two), pages added in the caller's order.

    Pages handed over in `buffer` (`BATCH` bytes, which the caller may fill again and again) are not copied.
    """

    def __init__(self, size: int, ssaframesize: int = 1, buffer: bytearray | None = None) -> None:
        need_enclave_size(size, ssaframesize)
        if buffer is not None and len(buffer) != BATCH:
            raise _invalid(f"the buffer has {len(buffer)} bytes instead of {BATCH}")
        self._size = size
        self._added: list[tuple[int, int]] = []
        self._batch_log: _BatchLog | None = None
        self._buffer = buffer
        self._hash = hashlib.sha256(_ECREATE.pack(b"ECREATE", ssaframesize, size, b""))

    def add_pages(self, offset: int, flags: int, data: bytes | bytearray | memoryview) -> None:
        """Add and measure whole pages of one kind from `offset` on; `flags` is SECINFO.FLAGS (R, W, X, page type).

        Raises MEASURE_LAYOUT_INVALID if they do not fit, are there already, or cannot be added so.
        """
        if offset % PAGE or len(data) % PAGE or not 0 <= offset <= self._size - len(data):
            raise _invalid(f"{len(data)} bytes at {offset:#x} are not pages inside the enclave")
        _need_secinfo(offset, flags)
        self._add(offset, offset + len(data))
        view = memoryview(data)
        start = 0
        while start < len(view):
            if len(view) - start >= BATCH:
                if self._batch_log is None:
                    self._batch_log = _BatchLog(bytearray(BATCH) if self._buffer is None else self._buffer)
                self._hash.update(self._batch_log.make(offset + start, flags, view[start : start + BATCH]))
                start += BATCH
            else:
                self._hash.update(_page_log(offset + start, flags, view[start : start + PAGE]))
                start += PAGE

    def _add(self, start: int, end: int) -> None:
        """Take note that the pages from `start` to `end` are there. Pages in a row make one entry."""
        if start == end:
            return
        if any(start < other_end and other < end for other, other_end in self._added):
            raise _invalid(f"a page from {start:#x} to {end:#x} is there already")
        if self._added and self._added[-1][1] == start:
            start = self._added.pop()[0]
        self._added.append((start, end))

    def digest(self) -> bytes:
        """Give MRENCLAVE (32 bytes) of what was added so far."""
        return self._hash.digest()


def _page_log(offset: int, flags: int, page: memoryview) -> bytearray:
    line = bytearray(_EEXTEND.pack(b"EEXTEND", offset, b""))
    log = line.join(_PAGE_PIECES.unpack(page))
    log[:_LINE] = _EADD.pack(b"EADD", offset, flags, b"")
    log[_LINE + 9 :: _LINE + CHUNK] = bytearray(range(line[9], line[9] + PAGE // CHUNK))  # bits 8 to 15
    return log


def image_enclave_size(size: int) -> int:
    """Give SIZE for an image of `size` bytes: TCS page and image pages, rounded up to a power of two."""
    pages = 1 + -(-size // PAGE)
    return 1 << (pages * PAGE - 1).bit_length()


def measure_image(chunks: Iterable[bytes | memoryview], size: int, buffer: bytearray | None = None) -> bytes:
    """Measure an image file of `size` bytes given in pieces: its MRENCLAVE (32 bytes); `buffer` as in `Measurement`.

    Layout: ECREATE with SSAFRAMESIZE 1; at 0 one TCS page, whose OENTRY (offset 32) holds `size`, so that two
    images that differ in trailing zeros differ here too; from 4096 on the file as REG pages R|X, zero-padded.
    Raises MEASURE_LAYOUT_INVALID if the pieces do not add up to `size`.
    """
    if size <= 0:
        raise _invalid("the image is empty")
    measurement = Measurement(image_enclave_size(size), buffer=buffer)
    measurement.add_pages(0, TCS, bytes(32) + struct.pack("<Q", size) + bytes(PAGE - 40))
    flags = REG | READ | EXECUTE
    pending = bytearray()  # the beginning of a batch
    offset, seen = PAGE, 0
    for chunk in chunks:
        seen += len(chunk)
        if seen > size:
            break
        view = memoryview(chunk)
        if pending:
            missing = BATCH - len(pending)
            pending += view[:missing]
            view = view[missing:]
            if len(pending) == BATCH:
                measurement.add_pages(offset, flags, pending)
                offset += BATCH
                pending = bytearray()
        whole = len(view) - len(view) % BATCH
        measurement.add_pages(offset, flags, view[:whole])
        offset += whole
        pending += view[whole:]
    if seen != size:
        raise _invalid(f"the image has {'more' if seen > size else 'fewer'} bytes than the {size} announced")
    measurement.add_pages(offset, flags, pending + bytes(-len(pending) % PAGE))
    return measurement.digest()


class _SgxsReader:
    """Cuts a stream in pieces into the records that the parser asks for. A piece may end anywhere."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = memoryview(b"")
        self._rest = memoryview(b"")  # what comes after `_held`, of the newest piece

    def _more(self) -> memoryview:
        """Give what is left of the newest piece, or else the next one; nothing at the end."""
        while not self._rest and (piece := next(self._chunks, None)) is not None:
            self._rest = memoryview(piece)
        return self._rest

    def peek(self, count: int) -> memoryview:
        """Give the next `count` bytes, or all until the end if there are fewer, and leave them in the stream."""
        if not self._held:
            self._held, self._rest = self._more(), memoryview(b"")
        if len(self._held) < count:
            # Copied before the next piece is asked for: the caller may read them all into one buffer.
            parts, missing = [bytes(self._held)], count - len(self._held)
            while missing and (more := self._more()):
                parts.append(bytes(more[:missing]))
                missing -= len(parts[-1])
                self._rest = more[len(parts[-1]) :]
            self._held = memoryview(b"".join(parts))
        return self._held[:count]

    def pages(self, most: int) -> memoryview:
        """Give the rest of the next pages, of which the first line was taken, and leave it there.

        There are at most `most` and `BATCH_PAGES` of them. Nothing is copied
        but for a page that lies in two pieces. Fewer bytes mean that the stream ends.
        """
        rest = self.peek(_PAGE_LOG - _LINE)
        if len(self._held) > len(rest):
            count = min(most, BATCH_PAGES, (len(self._held) + _LINE) // _PAGE_LOG)
            rest = self._held[: count * _PAGE_LOG - _LINE]
        return rest

    def skip(self, count: int) -> None:
        """Pass over `count` bytes that `peek` gave."""
        self._held = self._held[count:]

    def take(self, count: int, end_allowed: bool = False) -> bytes:
        """Give the next `count` bytes and pass over them; nothing at the end, where that may be."""
        taken = bytes(self.peek(count))
        if len(taken) < count and (taken or not end_allowed):
            raise _invalid("the SGXS stream ends inside a record")
        self.skip(count)
        return taken


@lru_cache(maxsize=BATCH_PAGES)
def _rest_lines(pages: int) -> struct.Struct:
    """What takes the EEXTENDs and EADDs, but for the first EADD, out of the log of so many pages."""
    return struct.Struct(_CHUNK_LINES + f"{_LINE}s{_CHUNK_LINES}" * (pages - 1))


class _PlainPages:
    """Recognises pages as most streams have them: in a row, of one kind, measured whole and in order.

    Looking at their records one by one takes ten times as long as hashing them. `rest` is what comes after the EADD
    `line` of the first page, at `offset`, to the end of the last one. Only the first page may begin at a
    multiple of `_CARRY`.
    """

    def __init__(self) -> None:
        self._kind: tuple[int, int] | None = None
        self._lines = bytearray()
        # Bits 8 to 15 and 16 to 23 of the offset in each line of pages from 0 on.
        chunks = bytes([0, *range(PAGE // CHUNK)])
        low = b"".join(bytes(page << 4 | chunk for chunk in chunks) for page in range(_HIGH_PAGES))
        self._low = bytearray(low * (BATCH_PAGES // _HIGH_PAGES + 1))
        self._high = bytearray().join(bytes([number]) * _HIGH_PAGES * _PAGE_LINES for number in range(256))

    def end(self, offset: int, flags: int, rest: memoryview) -> bool:
        """Tell whether `rest` may be such pages, by the EADD of the last one: the cheap look first."""
        size = (len(rest) + _LINE) // _PAGE_LOG * PAGE
        if size < PAGE:
            return False
        return size == PAGE or rest[-_PAGE_LOG:][:_LINE] == _EADD.pack(b"EADD", offset + size - PAGE, flags, b"")

    def follow(self, line: bytes, offset: int, flags: int, rest: memoryview) -> bool:
        """Tell whether `line` and `rest` are such pages, all of them; `end` must have said that they may be."""
        pages = (len(rest) + _LINE) // _PAGE_LOG
        return b"".join((line, *_rest_lines(pages).unpack(rest))) == self._expected(offset, flags, pages)

    def _expected(self, offset: int, flags: int, pages: int) -> bytearray:
        """Give all lines of such pages from `offset` on."""
        high, page = offset // _CARRY * _CARRY, offset % _CARRY // PAGE
        if self._kind != (high, flags):
            self._kind = high, flags
            kind = [_EADD.pack(b"EADD", high, flags, b""), _EEXTEND.pack(b"EEXTEND", high, b"") * (PAGE // CHUNK)]
            self._lines = bytearray().join(kind * BATCH_PAGES)
        lines = self._lines[: pages * _PAGE_LINES * _LINE]
        for at, offsets, first in ((9, self._low, page % _HIGH_PAGES), (10, self._high, page)):
            lines[at::_LINE] = offsets[first * _PAGE_LINES : (first + pages) * _PAGE_LINES]
        return lines


def measure_sgxs(chunks: Iterable[bytes]) -> bytes:
    """Measure an SGXS stream given in pieces: its MRENCLAVE (32 bytes).

    Pages and chunks may come in any order and pages may be measured in part or not at all, as EADD and EEXTEND
    allow; else strict: one ECREATE first, reserved bytes zero, pages aligned, inside the enclave, of a kind that
    EADD takes and added once, chunks only of pages that were added and each given once (so that nothing unmeasured
    overwrites what was measured). Raises MEASURE_LAYOUT_INVALID.
    """
    reader = _SgxsReader(chunks)
    head = reader.take(_LINE)
    tag, ssaframesize, size, reserved = _ECREATE.unpack(head)
    if tag == b"UNSIZED\0":
        raise _invalid("the SGXS stream leaves the enclave's size open")
    if tag != b"ECREATE\0" or any(reserved):
        raise _invalid("the SGXS stream does not begin with a sound ECREATE")
    need_enclave_size(size, ssaframesize)
    digest = hashlib.sha256(head)
    plain = _PlainPages()
    pages: dict[int, int] = {}  # offset, and a bit for each chunk that was given
    while line := reader.take(_LINE, end_allowed=True):
        tag, offset = line[:8], int.from_bytes(line[8:16], "little")
        if tag == b"EADD\0\0\0\0":
            if offset % PAGE or offset >= size or offset in pages:
                raise _invalid(f"a page at {offset:#x} is misplaced or there twice")
            if any(line[24:]):
                raise _invalid(f"SECINFO of the page at {offset:#x} has reserved bits")
            flags = int.from_bytes(line[16:24], "little")
            _need_secinfo(offset, flags)
            pages[offset] = 0
            digest.update(line)
            rest = reader.pages((_CARRY - offset % _CARRY) // PAGE)
            if plain.end(offset, flags, rest):
                with_rest = digest.copy()
                with_rest.update(rest)  # first, since it brings the rest near, and looking at it is then faster
                batch = range(offset, offset + (len(rest) + _LINE) // _PAGE_LOG * PAGE, PAGE)
                new = batch[-1] < size and pages.keys().isdisjoint(batch[1:])
                if new and plain.follow(line, offset, flags, rest):
                    pages.update(dict.fromkeys(batch, _ALL_CHUNKS))
                    digest = with_rest
                    reader.skip(len(rest))
        elif tag in (b"EEXTEND\0", b"UNMEASRD"):
            page = offset - offset % PAGE
            if offset % CHUNK or page not in pages or any(line[16:]):
                raise _invalid(f"a chunk at {offset:#x} belongs to no page that was added")
            chunk = 1 << (offset - page) // CHUNK
            if pages[page] & chunk:
                raise _invalid(f"a chunk at {offset:#x} is there twice")
            pages[page] |= chunk
            data = reader.take(CHUNK)
            if tag == b"EEXTEND\0":
                digest.update(line + data)
        else:
            raise _invalid(f"the SGXS stream has an unknown record {tag!r}")
    return digest.digest()
