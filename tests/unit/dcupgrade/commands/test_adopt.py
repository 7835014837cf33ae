"""Refusals of `adopt` before it looks at the host. tests/e2e/test_adopt.py tests the rest with real nodes."""

from pathlib import Path

import pytest

from dcupgrade.adapters.journal import Journal
from dcupgrade.commands import adopt
from dcupgrade.machine.events import Adopted, ChainSeen
from dcupgrade.machine.state import ChainFacts, Name, Release, State
from dcupgrade.settings.load import structure
from dcupgrade.settings.schema import Settings
from dcupgrade.upgrade.ports import Entry
from process_supervisor.errors import ProcessSupervisorError

OURS, ANOTHER = (Release(letter * 64, "1.0.0") for letter in "ab")


def settings_in(folder: Path) -> Settings:
    return structure(
        {
            "agent": {"state_dir": str(folder)},
            "chain": {"endpoints": ["ws://127.0.0.1:1"], "network_keys": ["00" * 31 + "02"], "finality": "single"},
            "node": {"id": "n", "data_dir": str(folder / "data")},
            "vault": {"start": False},
        },
        environ={},
    )


@pytest.mark.parametrize(("name", "free"), [(Name.STAGED, True), (Name.HALTED, False), (Name.PROBATION, False)])
def test_a_first_install_under_way_is_not_passed_over(tmp_path: Path, name: Name, free: bool) -> None:
    """`watch` would continue with it and ignore the node that was taken over."""
    journal = Journal(tmp_path / "journal.sqlite3")
    journal.append(Entry(State(), ChainSeen(ChainFacts()), State(name, target=OURS, first_install=True), ()))
    journal.close()
    if free:
        adopt._need_free_journal(settings_in(tmp_path), ANOTHER.enclave_id)
        return
    with pytest.raises(ProcessSupervisorError, match=f"NODE_NOT_ADOPTABLE.*first install is in state {name.value}"):
        adopt._need_free_journal(settings_in(tmp_path), ANOTHER.enclave_id)


def test_an_agent_that_has_a_node_takes_over_no_other(tmp_path: Path) -> None:
    loaded = settings_in(tmp_path)
    adopt._need_free_journal(loaded, OURS.enclave_id)
    journal = Journal(tmp_path / "journal.sqlite3")
    journal.append(Entry(State(), Adopted(OURS.enclave_id), State(running=OURS), ()))
    journal.close()
    adopt._need_free_journal(loaded, OURS.enclave_id)
    with pytest.raises(ProcessSupervisorError, match=f"NODE_NOT_ADOPTABLE.*{OURS.enclave_id} is this agent's node"):
        adopt._need_free_journal(loaded, ANOTHER.enclave_id)
