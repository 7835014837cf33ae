"""A simulated disk that replays the recorded writes and syncs of a child, with a power cut after any of them."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PARTS = Path(__file__).resolve().parent
SECTOR_BYTES = 512


@dataclass(frozen=True)
class Record:
    kind: str
    path: str
    offset: int
    data: bytes


def record_child(folder: Path, child: str, count: int) -> list[Record]:
    """Run a program of this folder over `folder`/disk; everything that it wrote, synced and renamed."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler for the recorder")
    library, log, disk = folder / "recorder.so", folder / "log", folder / "disk"
    disk.mkdir()
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, PARTS / "recorder.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "RECORD_DIR": str(disk), "RECORD_LOG": str(log)}
    argv = [sys.executable, str(PARTS / child), str(disk), str(count)]
    subprocess.run(argv, check=True, env={**environment, "PYTHONPATH": str(ROOT)})
    return list(_decode(log.read_bytes(), disk.name))


def _decode(raw: bytes, folder: str) -> Iterator[Record]:
    """The records, each under its file's name alone; the folder itself is ""."""
    at = 0
    while at < len(raw):
        kind = raw[at : at + 1].decode()
        length = int.from_bytes(raw[at + 1 : at + 5], "little")
        name = Path(raw[at + 5 : at + 5 + length].decode()).name
        at += 5 + length
        offset, size = (int.from_bytes(raw[at + i : at + i + 8], "little") for i in (0, 8))
        yield Record(kind, "" if name == folder else name, offset, raw[at + 16 : at + 16 + size])
        at += 16 + size


def _apply(content: bytearray, record: Record) -> None:
    if record.kind == "t":
        del content[record.offset :]
        content.extend(bytes(record.offset - len(content)))
    else:
        content.extend(bytes(max(0, record.offset - len(content))))
        content[record.offset : record.offset + len(record.data)] = record.data


@dataclass(eq=False)
class _File:
    """The bytes of one file: what was synced, and what was written since. `moved`: renamed since the last commit."""

    safe: bytearray = field(default_factory=bytearray)
    loose: list[Record] = field(default_factory=list)
    moved: bool = False


class ForgetfulDisk:
    """Files as a power cut leaves them: all that was synced, and of the rest what chance spares.

    Names are made safe by a sync of their folder, and by one of a file that is new or was renamed, as ext4, XFS and
    btrfs do it. `folder_sync` False: a folder's sync returns and does nothing, as under Gramine. `file_sync` False:
    so does a file's. `rename_by_file` False: a file's sync leaves names alone, as POSIX allows.
    """

    def __init__(self, *, folder_sync: bool = True, file_sync: bool = True, rename_by_file: bool = True) -> None:
        self._folder_sync, self._file_sync, self._rename_by_file = folder_sync, file_sync, rename_by_file
        self._names: dict[str, _File] = {}
        self._safe_names: dict[str, _File] = {}
        self.acknowledged = 0

    def take(self, record: Record) -> None:
        """Do what the child did next."""
        if record.path == "acknowledged":
            self.acknowledged = int.from_bytes(record.data, "big") if record.kind == "w" else self.acknowledged
        elif record.path == "":
            if record.kind == "s" and self._folder_sync:
                self._commit_names()
        elif record.kind == "u":
            self._names.pop(record.path, None)
        elif record.kind == "r":
            file = self._names[Path(record.data.decode()).name] = self._names.pop(record.path)
            file.moved = True
        elif record.kind == "s":
            self._sync(record.path)
        else:
            self._names.setdefault(record.path, _File(moved=True)).loose.append(record)

    def _sync(self, name: str) -> None:
        file = self._names.setdefault(name, _File(moved=True))
        if not self._file_sync:
            return
        for item in file.loose:
            _apply(file.safe, item)
        file.loose.clear()
        if file.moved and (self._rename_by_file or file not in self._safe_names.values()):
            self._commit_names()

    def _commit_names(self) -> None:
        self._safe_names = dict(self._names)
        for file in self._names.values():
            file.moved = False

    def power_cut(self, folder: Path, rng: random.Random) -> None:
        """Write into `folder` what the next start finds: the names as they are or as they were last made safe."""
        for name, file in sorted((self._names if rng.random() < 0.5 else self._safe_names).items()):
            if name.endswith("-shm"):
                continue
            content = bytearray(file.safe)
            for item in file.loose:
                fate = rng.random()
                if fate < 0.4:
                    _apply(content, item)
                elif fate < 0.6 and item.kind == "w":
                    torn = rng.randrange(0, len(item.data) + 1, SECTOR_BYTES)
                    _apply(content, Record("w", item.path, item.offset, item.data[:torn]))
            (folder / name).write_bytes(content)
