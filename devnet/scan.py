"""Search for key material where it must not be: in memory of processes (Linux, needs ptrace rights) and in files."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path

from devnet.reference_node.objects import KEY_SET_LENGTH, KEY_SET_MAGIC, KeySet, NodeError

PIECE_BYTES = 4 * 1024 * 1024


def memory_pieces(pid: int, overlap: int) -> Iterator[bytes]:
    """Yield the readable memory of a process in pieces that overlap by `overlap` bytes. Raises PermissionError."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps.splitlines():
            span, mode, *rest = line.split(maxsplit=5)
            if not mode.startswith("r") or (rest and rest[-1].startswith(("[vvar", "[vsyscall"))):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            while start < end:
                try:
                    memory.seek(start)
                    piece = memory.read(min(PIECE_BYTES, end - start))
                except OSError:  # a guard page, or a mapping that was removed
                    break
                yield piece
                if len(piece) <= overlap or start + len(piece) >= end:
                    break
                start += len(piece) - overlap


def find_key_set(pid: int, key_set_id: str) -> KeySet | None:
    """Return the key set with that id from a process's memory, or None. Its hash proves that the bytes are right."""
    for piece in memory_pieces(pid, KEY_SET_LENGTH):
        at = piece.find(KEY_SET_MAGIC)
        while at >= 0:
            try:
                found = KeySet(piece[at : at + KEY_SET_LENGTH])
            except NodeError:
                break  # cut off at the end of the piece; the next one overlaps
            if found.id == key_set_id:
                return found
            at = piece.find(KEY_SET_MAGIC, at + 1)
    return None


def needles(keys: KeySet) -> dict[str, bytes]:
    """Return every searched form of the keys: raw, hex in both cases, base64 at its three alignments."""
    found = {}
    for name, secret in (("data key", keys.data_key), ("name key", keys.name_key)):
        found[f"{name}, raw"] = secret
        found[f"{name}, hex"] = secret.hex().encode()
        found[f"{name}, HEX"] = secret.hex().upper().encode()
        for shift in range(3):
            # Only the characters that depend on the key alone, because the bytes around it are unknown.
            text = base64.b64encode(bytes(shift) + secret)[(0, 2, 3)[shift] :][: (32 - (3 - shift) % 3) // 3 * 4]
            found[f"{name}, base64 +{shift}"] = text
            found[f"{name}, base64url +{shift}"] = text.replace(b"+", b"-").replace(b"/", b"_")
    return found


def search(pieces: Iterable[bytes], wanted: dict[str, bytes]) -> set[str]:
    """Return the names of the needles that occur in any of the pieces."""
    found: set[str] = set()
    for piece in pieces:
        found |= {name for name, needle in wanted.items() if name not in found and needle in piece}
    return found


def search_memory(pid: int, wanted: dict[str, bytes]) -> set[str]:
    """Return the names of the needles that occur in a process's memory."""
    return search(memory_pieces(pid, max(map(len, wanted.values()))), wanted)


def search_files(folder: Path, wanted: dict[str, bytes], *, skip: Iterable[Path] = ()) -> dict[Path, set[str]]:
    """Return the files under `folder` in which needles occur, except below the folders in `skip`."""
    left_out = tuple(skip)
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file() or any(path.is_relative_to(other) for other in left_out):
            continue
        if names := search([path.read_bytes()], wanted):
            found[path] = names
    return found
