import itertools
import json
import time
from pathlib import Path

import jsonschema
import pytest

from dcupgrade.adapters.journal import Journal
from dcupgrade.machine.events import OverrideCommand, Settled
from dcupgrade.machine.state import Name, State
from dcupgrade.upgrade.ports import Entry
from tests.conftest import ROOT
from tests.doubles.command_line import NEW, run


def schema(name: str) -> object:
    return json.loads((ROOT / "docs" / "schemas" / f"{name}.schema.json").read_text())


@pytest.mark.usefixtures("journal")
def test_the_steps_tell_states_and_how_long_they_lasted(config: Path) -> None:
    rows = json.loads(run(config, "history", "--json", "--all")[1])
    assert [(row["to"], row["seconds_in_state"]) for row in rows] == [("idle", None), ("halted", 1.0)]
    header, line = run(config, "history", "--steps")[1].splitlines()
    assert header.split() == ["time", "version", "from", "to", "after", "why"]
    assert line.startswith("1970-01-01 00:00:06 UTC  1.1.0 [red]  idle  halted")


def test_history_is_a_line_for_each_upgrade_with_version_and_outcome(config: Path, journal: Journal) -> None:
    steps = (Name.IDLE, Name.STAGING, Name.STAGED, Name.STOPPING, Name.PROBATION, Name.COMMITTED, Name.IDLE)
    for number, (one, two) in enumerate(itertools.pairwise(steps)):
        before, after = (State(name, target=None if name is Name.IDLE else NEW) for name in (one, two))
        journal.append(Entry(before, Settled("", at_unix_s=10.0 + number), after, ()))
    header, line, *_ = run(config, "history", "-n", "1")[1].splitlines()
    assert header.split() == ["began", "version", "outcome", "took", "downtime", "why"]
    assert line.split("  ") == ["1970-01-01 00:00:10 UTC", "1.1.0 [red]", "committed", "5.0 s", "1.0 s"]
    told = json.loads(run(config, "history", "--json", "-n", "1")[1])
    jsonschema.validate(told, schema("upgrades"))
    assert [step["state"] for step in told["upgrades"][0]["steps"]] == [name.value for name in steps[1:-1]]


def test_a_journal_without_upgrades_says_so(config: Path, tmp_path: Path) -> None:
    Journal(tmp_path / "journal.sqlite3").close()
    assert run(config, "history") == (0, "There was no upgrade yet.\n")


@pytest.mark.usefixtures("journal")
def test_times_are_told_with_their_zone(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-3")
    time.tzset()
    assert run(config, "history")[1].splitlines()[1].startswith("1970-01-01 03:00:06 XYZ")


def test_history_tells_who_gave_a_command_and_why(config: Path, journal: Journal) -> None:
    command = OverrideCommand("eve", "audit", "b" * 64, at_unix_s=9.0)
    journal.append(Entry(State(), command, State(override="b" * 64), (), 0))
    assert run(config, "history", "--all")[1].splitlines()[-1].endswith("override audit (by eve)")
    rows = json.loads(run(config, "history", "--all", "--json")[1])
    assert [row.get("who") for row in rows] == [None, None, "eve"]
    jsonschema.validate({"rows": rows}, schema("history"))
