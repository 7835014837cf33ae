"""A cache of storage layouts by runtime, kept across starts: each runtime's metadata is fetched and parsed once."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.layout import Layout

LAYOUTS_MAX: Final = 16
FILE_BYTES_MAX: Final = 512 * 1024
_FORMAT: Final = 1


class LayoutCache:
    """Layouts by spec version, and those accepted by the digest of their metadata; the newest are kept.

    With `file`, layouts that decoded a state survive a restart; an unusable file is ignored. `pins` holds the accepted
    layout hashes; if it is empty, every layout is accepted. `beside()` returns a cache with separate entries for
    another endpoint: metadata that was accepted from one is recognised by its digest when another one sends it.
    """

    def __init__(self, file: Path | None = None, pins: frozenset[str] = frozenset()) -> None:
        self._known: dict[tuple[str, int], Layout] = {}
        self._accepted: dict[tuple[int, bytes], Layout] = {}
        self._file = file
        self._pins = pins
        if file is not None:
            self._load(file)

    def beside(self) -> LayoutCache:
        """Return another cache that shares only the layouts accepted by digest."""
        other = LayoutCache()
        other._accepted = self._accepted
        return other

    def get(self, genesis_hash: str, spec_version: int) -> Layout | None:
        """Return the layout of that runtime, if it decoded a state before."""
        return self._known.get((genesis_hash, spec_version))

    def newest(self, genesis_hash: str) -> tuple[int, Layout] | None:
        """Return the runtime of that chain that was stored last: version and layout."""
        found = [(spec, layout) for (genesis, spec), layout in self._known.items() if genesis == genesis_hash]
        return found[-1] if found else None

    def put(self, genesis_hash: str, spec_version: int, layout: Layout) -> bool:
        """Store a layout; return whether it is new, so that `save` is needed."""
        key = (genesis_hash, spec_version)
        if self._known.get(key) == layout:
            return False
        self._known.pop(key, None)
        _make_room(self._known)
        self._known[key] = layout
        return True

    def drop(self, genesis_hash: str, spec_version: int) -> None:
        """Remove the layout of a runtime; its metadata will be fetched again."""
        self._known.pop((genesis_hash, spec_version), None)

    def accepted(self, spec_version: int, metadata: str) -> Layout | None:
        """Return the layout of this metadata if exactly the same bytes were accepted for that runtime before."""
        return self._accepted.get((spec_version, _digest(metadata)))

    def accept(self, spec_version: int, metadata: str, layout: Layout) -> None:
        """Remember that this metadata was accepted for that runtime."""
        _make_room(self._accepted)
        self._accepted[(spec_version, _digest(metadata))] = layout

    def save(self) -> None:
        """Write the file atomically, through a temporary one. Blocking.

        If it cannot be written, the next start takes longer; no error is raised.
        """
        if self._file is None:
            return
        rows = [[genesis, spec, layout.to_json()] for (genesis, spec), layout in list(self._known.items())]
        beside = self._file.with_name(self._file.name + ".new")
        try:
            beside.write_text(json.dumps({"format": _FORMAT, "layouts": rows}), encoding="utf-8")
            beside.replace(self._file)
        except OSError:
            return

    def _load(self, file: Path) -> None:
        try:
            rows = json.loads(_read_small(file))["layouts"]
            for genesis, spec, value in rows[-LAYOUTS_MAX:]:
                layout = Layout(value)
                if isinstance(genesis, str) and type(spec) is int and (not self._pins or layout.hash in self._pins):
                    self._known[(genesis, spec)] = layout
        except (OSError, ValueError, TypeError, KeyError, RecursionError, ChainWatcherError):
            self._known.clear()


def _read_small(file: Path) -> bytes:
    """Read a regular file of at most `FILE_BYTES_MAX`. Raises OSError for anything else at that path."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > FILE_BYTES_MAX:
            raise OSError("not a small regular file")
        return opened.read(FILE_BYTES_MAX)


def _make_room(known: dict[Any, Layout]) -> None:
    while len(known) >= LAYOUTS_MAX:
        known.pop(next(iter(known)))


def _digest(metadata: str) -> bytes:
    return hashlib.sha256(metadata.encode()).digest()
