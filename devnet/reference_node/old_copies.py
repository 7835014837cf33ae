"""Removes files of earlier versions from the data folder, so that it does not grow with every upgrade.

Each version seals the keys for itself. A committed version keeps its own copy and that of its predecessor, to which a
revert may go back. It removes older copies, but only after its own copy was read from disk and unsealed. Copies of
another key set stay, and copies of versions that are not in the list `versions.json`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from keyvault.store.disk import FolderDisk

from .objects import write_durably

COPY = re.compile(r"([0-9a-f]{64})\.keys-([0-9a-f]{64})\.[ab]\.sealed")
ENCLAVE_ID = re.compile(r"[0-9a-f]{64}")


class Versions:
    """The versions that sealed or served, the newest last."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "versions.json"

    def read(self) -> list[str]:
        """Read the list. Empty if it cannot be read, so that nothing is removed."""
        try:
            ids = json.loads(self._file.read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return []
        known = isinstance(ids, list) and all(isinstance(one, str) and ENCLAVE_ID.fullmatch(one) for one in ids)
        return ids if known else []

    def put_last(self, enclave_id: str) -> None:
        """Record that this version seals or serves now."""
        ids = self.read()
        if ids[-1:] != [enclave_id]:
            self._write([*(one for one in ids if one != enclave_id), enclave_id])

    def forget(self, gone: set[str]) -> None:
        """Drop versions that have no files any more."""
        self._write([one for one in self.read() if one not in gone])

    def _write(self, ids: list[str]) -> None:
        write_durably(self._file, json.dumps(ids).encode())


def remove_old_copies(folder: Path, own: str, key_set_id: str) -> set[str]:
    """Remove copies and commitments of versions before the predecessor of `own`; returns their enclave ids.

    Call it after the copy of `own` was proven to open. `folder`: the data folder.
    """
    versions = Versions(folder)
    ids = versions.read()
    if own not in ids:
        return set()
    gone = set(ids[: max(0, ids.index(own) - 1)])
    disk = FolderDisk(folder / "sealed")
    try:
        for name in disk.names():
            match = COPY.fullmatch(name)
            if match is None or match[1] not in gone:
                continue
            if match[2] == key_set_id:
                disk.remove(name)
            else:  # it may be the only copy of other keys
                gone.discard(match[1])
        disk.sync_folder()
    finally:
        disk.close()
    for enclave_id in gone:
        (folder / "commits" / enclave_id).unlink(missing_ok=True)
    versions.forget(gone)
    return gone
