"""Settings and a journal for the command line."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcupgrade.adapters.journal import Journal
from dcupgrade.machine.events import ChainSeen
from dcupgrade.machine.state import ChainFacts, Name, State
from dcupgrade.machine.table import activity
from dcupgrade.upgrade.ports import Entry
from tests.doubles.command_line import KEY, NEW


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "dcupgrade.toml"
    path.write_text(
        f'[agent]\nstate_dir = "{tmp_path}"\nhttp_listen = "127.0.0.1:9"\n'
        f'[chain]\nendpoints = ["ws://127.0.0.1:9"]\nnetwork_keys = ["{KEY}"]\n'
        'finality = "single"\n'
        f'[node]\nid = "n1"\ndata_dir = "{tmp_path}/data"\n[vault]\nstart = false\n'
    )
    return path


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "journal.sqlite3")
    before = State(chain=ChainFacts(NEW, ((NEW.enclave_id, 9),), 12))
    after = State(Name.HALTED, target=NEW, chain=before.chain, halted="NO_KEYS_ANYWHERE", resume_to="idle")
    for number, (one, two) in enumerate(((State(), before), (before, after))):
        made.append(Entry(one, ChainSeen(ChainFacts(), at_unix_s=5.0 + number), two, activity(two)))
    return made
