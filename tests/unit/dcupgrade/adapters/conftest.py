from collections.abc import Iterator
from pathlib import Path

import pytest

from process_supervisor.data_lock import DataLock
from tests.doubles.node_driver import NEW, OLD


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for release in (OLD, NEW):
        (tmp_path / "state" / "slots" / release.enclave_id).mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def lock(data_dir: Path) -> Iterator[DataLock]:
    with DataLock(data_dir, "somebody") as held:
        yield held
