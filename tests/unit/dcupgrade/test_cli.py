import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dcupgrade import cli, codes
from dcupgrade.journal import Journal
from dcupgrade.machine import activity
from dcupgrade.ports import Entry
from dcupgrade.states import ChainFacts, Event, EventKind, Name, Release, State

KEY = "bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"
NEW = Release("b" * 64, "1.1.0 [red]", added_height=9)


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
        made.append(Entry(one, Event(EventKind.CHAIN, at_unix_s=5.0 + number), two, activity(two)))
    return made


def run(config: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.cli, ["--config", str(config), *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return 1, str(done.exception)
    return done.exit_code, done.output


def test_every_command_teaches_by_its_help() -> None:
    ctx = click.Context(cli.cli)
    for name in cli.cli.list_commands(ctx):
        command = cli.cli.get_command(ctx, name)
        assert command is not None
        assert command.get_short_help_str(), name
        assert command.get_help(click.Context(command, info_name=name))


@pytest.mark.usefixtures("journal")
def test_status_of_a_stopped_agent_comes_from_the_journal(config: Path) -> None:
    code, text = run(config, "status")
    assert code == 0
    assert "not running" in text
    assert "NO_KEYS_ANYWHERE: see `dcupgrade explain NO_KEYS_ANYWHERE`" in text
    assert "1.1.0 [red]" in text
    assert json.loads(run(config, "status", "--json")[1])["state"]["halted"] == "NO_KEYS_ANYWHERE"


@pytest.mark.usefixtures("journal")
def test_history_tells_states_and_how_long_they_lasted(config: Path) -> None:
    rows = json.loads(run(config, "history", "--json", "--all")[1])
    assert [(row["to"], row["seconds_in_state"]) for row in rows] == [("idle", None), ("halted", 1.0)]
    assert "halted" in run(config, "history")[1]


def test_an_operators_word_waits_in_the_journal_until_the_agent_is_there(config: Path, journal: Journal) -> None:
    assert "queued" in run(config, "hold", "--reason", "audit", "--hours", "2")[1]
    assert "queued" in run(config, "approve")[1]
    hold, approve = journal.commands()
    assert (hold.kind, hold.arguments["reason"]) == ("hold", "audit")
    assert hold.arguments["until_unix_s"] > 7200
    assert (approve.kind, approve.arguments["enclave_id"]) == ("approve", NEW.enclave_id)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status"], "NO_JOURNAL"),
        (["plan"], "AGENT_NOT_RUNNING"),
        (["explain", "NONSENSE"], "UNKNOWN_CODE"),
    ],
)
def test_errors_carry_their_code(config: Path, arguments: list[str], code: str) -> None:
    exit_code, text = run(config, *arguments)
    assert exit_code == 1
    assert code in text


def test_an_error_is_one_line_for_an_operator_and_never_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["dcupgrade", "--config", str(tmp_path / "absent"), "status"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: SETTINGS_UNREADABLE: ")


def test_explain_knows_every_code(config: Path) -> None:
    for code in codes.all_codes():
        exit_code, text = run(config, "explain", code)
        assert exit_code == 0
        assert "Do:" in text


def test_the_example_settings_are_good_once_filled_in(config: Path, tmp_path: Path) -> None:
    example = tmp_path / "example.toml"
    text = run(config, "config", "example")[1].replace("[vault]", "[vault]\nstart = false")
    text = text.replace("b…", KEY).replace("[chain]", '[chain]\nfinality = "single"')
    example.write_text(text)
    assert run(example, "config", "validate")[0] == 0
    assert json.loads(run(example, "config", "show")[1])["node"]["port"] == 6667


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(config: Path, shell: str) -> None:
    assert "_DCUPGRADE_COMPLETE" in run(config, "completion", shell)[1]


def test_watch_with_dry_run_starts_nothing(config: Path, tmp_path: Path) -> None:
    assert "Would watch ws://127.0.0.1:9" in run(config, "watch", "--dry-run")[1]
    assert not (tmp_path / "journal.sqlite3").exists()
