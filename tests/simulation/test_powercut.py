"""The journal's SQLite file after power cuts in which unsynced data is lost, kept or torn."""

import random
import shutil
from pathlib import Path

import pytest

from dcupgrade.adapters.journal import Journal

from .powercut.forgetful_disk import ForgetfulDisk, Record, record_child

STATES = 60


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Everything that a child wrote and synced while it journalled."""
    return record_child(tmp_path_factory.mktemp("powercut"), "writer.py", STATES)


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
    disk = ForgetfulDisk(file_sync=False)
    for record in records:
        disk.take(record)
    disk.power_cut(tmp_path, random.Random(5))
    try:
        found = restart(tmp_path)
    except Exception:
        found = -1
    assert found < disk.acknowledged
