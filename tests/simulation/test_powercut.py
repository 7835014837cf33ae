"""The journal's SQLite file after power cuts in which what was not synced is lost, kept or torn."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dcupgrade.adapters.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
PARTS = Path(__file__).resolve().parent / "powercut"
STATES = 60
SECTOR_BYTES = 512


@dataclass(frozen=True)
class Record:
    kind: str
    path: str
    offset: int
    data: bytes


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Everything that a child wrote and synced while it journalled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler for the recorder")
    folder = tmp_path_factory.mktemp("powercut")
    library, log, disk = folder / "recorder.so", folder / "log", folder / "disk"
    disk.mkdir()
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, PARTS / "recorder.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "RECORD_DIR": str(disk), "RECORD_LOG": str(log)}
    writer = [sys.executable, str(PARTS / "writer.py"), str(disk), str(STATES)]
    subprocess.run(writer, check=True, env={**environment, "PYTHONPATH": str(ROOT)})
    return list(decode(log.read_bytes()))


def decode(raw: bytes) -> Iterator[Record]:
    at = 0
    while at < len(raw):
        kind = raw[at : at + 1].decode()
        length = int.from_bytes(raw[at + 1 : at + 5], "little")
        path = raw[at + 5 : at + 5 + length].decode()
        at += 5 + length
        offset, size = (int.from_bytes(raw[at + i : at + i + 8], "little") for i in (0, 8))
        yield Record(kind, Path(path).name, offset, raw[at + 16 : at + 16 + size])
        at += 16 + size


def apply(content: bytearray, record: Record) -> None:
    if record.kind == "t":
        del content[record.offset :]
        content.extend(bytes(record.offset - len(content)))
    else:
        content.extend(bytes(max(0, record.offset - len(content))))
        content[record.offset : record.offset + len(record.data)] = record.data


class ForgetfulDisk:
    """Files as a power cut leaves them: all that was synced, and of the rest what chance spares."""

    def __init__(self) -> None:
        self.safe: dict[str, bytearray] = {}
        self.loose: dict[str, list[Record]] = {}
        self.acknowledged = 0

    def take(self, record: Record, *, honest: bool = True) -> None:
        if record.path == "acknowledged":
            self.acknowledged = int.from_bytes(record.data, "big")
        elif record.kind == "u":
            self.safe.pop(record.path, None)
            self.loose.pop(record.path, None)
        elif record.kind == "s":
            content = self.safe.setdefault(record.path, bytearray())
            for item in self.loose.pop(record.path, []) if honest else ():
                apply(content, item)
        else:
            self.loose.setdefault(record.path, []).append(record)

    def power_cut(self, folder: Path, rng: random.Random) -> None:
        for name in sorted({*self.safe, *self.loose}):
            if name.endswith("-shm"):
                continue
            content = bytearray(self.safe.get(name, b""))
            for item in self.loose.get(name, ()):
                fate = rng.random()
                if fate < 0.4:
                    apply(content, item)
                elif fate < 0.6 and item.kind == "w":
                    torn = rng.randrange(0, len(item.data) + 1, SECTOR_BYTES)
                    apply(content, Record("w", item.path, item.offset, item.data[:torn]))
            (folder / name).write_bytes(content)


def restart(folder: Path) -> int:
    """The number of the state that a restart finds."""
    journal = Journal(folder / "journal.sqlite3")
    try:
        state = journal.load()
        return int(state.detail) if state is not None else 0
    finally:
        journal.close()


def test_no_acknowledged_state_is_lost_by_a_power_cut_at_any_write(records: list[Record], tmp_path: Path) -> None:
    rng = random.Random(5)
    disk = ForgetfulDisk()
    cuts = 0
    for number, record in enumerate(records):
        disk.take(record)
        if disk.acknowledged == 0 and number % 7:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        disk.power_cut(folder, rng)
        found = restart(folder)
        assert disk.acknowledged <= found <= disk.acknowledged + 1, f"after write {number}"
        shutil.rmtree(folder)
        cuts += 1
    assert disk.acknowledged == STATES
    assert cuts > STATES * 3


def test_a_disk_that_does_not_sync_is_noticed(records: list[Record], tmp_path: Path) -> None:
    """The control: with syncs that do nothing, acknowledged states are lost."""
    disk = ForgetfulDisk()
    for record in records:
        disk.take(record, honest=False)
    disk.power_cut(tmp_path, random.Random(5))
    try:
        found = restart(tmp_path)
    except Exception:
        found = -1
    assert found < disk.acknowledged
