"""What `adopt` refuses before it looks at anything; the rest is tried with real nodes (tests/e2e/test_adopt.py)."""

import os
from pathlib import Path

import pytest

from dcupgrade import adopt
from dcupgrade.errors import DcupgradeError
from dcupgrade.journal import Journal
from dcupgrade.ports import Entry
from dcupgrade.settings import structure
from dcupgrade.states import Event, EventKind, Release, State
from process_supervisor.errors import ProcessSupervisorError

OURS, ANOTHER = (Release(letter * 64, "1.0.0") for letter in "ab")


def test_root_is_sent_to_the_agents_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OfSomebody(type(tmp_path)):  # type: ignore[misc]
        def stat(self, **_: bool) -> os.stat_result:
            return os.stat_result((0o40700, 0, 0, 0, 12345, 12345, 0, 0, 0, 0))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(DcupgradeError, match=r"AGENT_STATE_UNUSABLE.*user 12345.*runuser"):
        adopt._need_own_folder(OfSomebody(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    adopt._need_own_folder(OfSomebody(tmp_path))
    adopt._need_own_folder(tmp_path / "not made yet")


def test_an_agent_that_has_a_node_takes_over_no_other(tmp_path: Path) -> None:
    loaded = structure(
        {
            "agent": {"state_dir": str(tmp_path)},
            "chain": {"endpoints": ["ws://127.0.0.1:1"], "network_keys": ["00" * 31 + "02"], "finality": "single"},
            "node": {"id": "n", "data_dir": str(tmp_path / "data")},
            "vault": {"start": False},
        },
        environ={},
    )
    adopt._need_free_journal(loaded, OURS.enclave_id)
    journal = Journal(tmp_path / "journal.sqlite3")
    journal.append(Entry(State(), Event(EventKind.ADOPTED), State(running=OURS), ()))
    journal.close()
    adopt._need_free_journal(loaded, OURS.enclave_id)
    with pytest.raises(ProcessSupervisorError, match=f"NODE_NOT_ADOPTABLE.*{OURS.enclave_id} is this agent's node"):
        adopt._need_free_journal(loaded, ANOTHER.enclave_id)
