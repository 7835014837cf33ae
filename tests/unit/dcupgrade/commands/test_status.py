import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dcupgrade.commands import status as status_command
from dcupgrade.machine.state import ChainFacts, State
from tests.conftest import ROOT
from tests.doubles.command_line import NEW, run


def answering(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
    """Have an agent answer that runs `NEW`, with `facts` over its own."""
    state = State(running=NEW, chain=ChainFacts(NEW, ((NEW.enclave_id, 9),), 9)).to_json()
    answer = {"state": state, "now_unix_s": 100.0, "node": {"status": "serving"}, "alarms": [], "chain": None}
    answer["chain"] = {"last_number": 791, "finalized_age_s": 1.0, "endpoint": "ws://a", "finality": "proven"}
    monkeypatch.setattr(status_command, "ask_agent", lambda *_: {**answer, **facts})


@pytest.mark.usefixtures("journal")
def test_status_of_a_stopped_agent_comes_from_the_journal(config: Path) -> None:
    code, text = run(config, "status")
    assert code == 0
    assert text.startswith("The agent is not running.")
    assert "last written 1970-01-01 00:00:06 UTC" in text
    assert "NO_KEYS_ANYWHERE: " in text
    assert "1.1.0 [red]" in text
    told = json.loads(run(config, "status", "--json")[1])
    assert told["state"]["halted"] == "NO_KEYS_ANYWHERE"
    jsonschema.validate(told, json.loads((ROOT / "docs" / "schemas" / "status.schema.json").read_text()))


@pytest.mark.usefixtures("journal")
def test_the_exit_code_says_that_the_agent_is_down_where_it_is_asked_for(config: Path) -> None:
    assert run(config, "status", "--exit-code")[0] == 4
    assert run(config, "status", "--exit-code", "--json")[0] == 4


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({}, 0),
        ({"alarms": [{"code": "RUNNING_REVOKED", "detail": ""}]}, 3),
        ({"vault": {"reachable": False}}, 3),
        ({"node": {"status": "silent"}}, 4),
    ],
)
def test_the_exit_code_says_how_things_stand(
    config: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], code: int
) -> None:
    answering(monkeypatch, **facts)
    assert run(config, "status")[0] == 0
    assert run(config, "status", "--exit-code")[0] == code


def test_an_alarm_is_told_with_its_meaning_and_its_remedy(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, alarms=[{"code": "RUNNING_REVOKED", "detail": NEW.enclave_id}])
    lines = run(config, "status")[1].splitlines()
    assert lines[0] == "1.1.0 [red] serves. 1 condition needs attention."
    [number] = [n for n, line in enumerate(lines) if line.startswith("needs you")]
    assert f"RUNNING_REVOKED: {NEW.enclave_id}" in lines[number]
    assert "The network has withdrawn its signature" in lines[number + 1]
    assert lines[number + 2].strip().startswith("do ")


def test_the_height_is_that_of_the_last_finalized_block(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, block_number=60)
    text = run(config, "status")[1]
    assert "last finalized block  791, 1.0 s ago" in text
    assert "last change at block  60" in text
