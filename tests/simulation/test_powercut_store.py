"""The sealed store after power cuts, on a disk with working folder sync and on one where it does nothing."""

import random
import shutil
from pathlib import Path

import pytest

from keyvault.errors import KeyvaultError
from keyvault.store.disk import FolderDisk
from keyvault.store.sealed_file import KIND_FACTS
from tests.doubles.vault_kit import store

from .powercut.forgetful_disk import ForgetfulDisk, Record, record_child

PUTS = 24


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Everything that a child wrote, synced and renamed while it sealed."""
    return record_child(tmp_path_factory.mktemp("powercut"), "sealer.py", PUTS)


def restart(folder: Path) -> int:
    """The number of the value that a restart finds; 0 for none."""
    disk = FolderDisk(folder)
    try:
        payload = store(disk).get(KIND_FACTS, "").payload
        assert payload == payload[:4] * (len(payload) // 4)
        return int.from_bytes(payload[:4], "big")
    except KeyvaultError:
        return 0
    finally:
        disk.close()


@pytest.mark.parametrize("folder_sync", [True, False], ids=["folder sync works", "folder sync does nothing"])
def test_no_acknowledged_value_is_lost_by_a_power_cut_after_any_step(
    records: list[Record], tmp_path: Path, folder_sync: bool
) -> None:
    rng = random.Random(17)
    disk = ForgetfulDisk(folder_sync=folder_sync)
    for number, record in enumerate(records):
        disk.take(record)
        for again in range(3):
            folder = tmp_path / f"{number} {again}"
            folder.mkdir()
            disk.power_cut(folder, rng)
            assert disk.acknowledged <= restart(folder) <= disk.acknowledged + 1, f"after step {number}"
            shutil.rmtree(folder)
    assert disk.acknowledged == PUTS


def test_without_the_sync_of_the_renamed_file_a_dead_folder_sync_is_noticed(
    records: list[Record], tmp_path: Path
) -> None:
    """The control: where nothing at all makes the rename safe, acknowledged values are lost."""
    disk = ForgetfulDisk(folder_sync=False, rename_by_file=False)
    found = []
    for number, record in enumerate(records):
        disk.take(record)
        folder = tmp_path / str(number)
        folder.mkdir()
        disk.power_cut(folder, random.Random(number))
        found.append(restart(folder) - disk.acknowledged)
    assert min(found) < 0
