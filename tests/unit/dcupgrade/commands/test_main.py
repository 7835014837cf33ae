import io
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dcupgrade import __version__
from dcupgrade.commands import explain as codes
from dcupgrade.commands import main as cli
from dcupgrade.errors import DcupgradeError, why_of
from tests.conftest import ROOT
from tests.doubles.command_line import KEY, run


def test_every_command_teaches_by_its_help() -> None:
    ctx = click.Context(cli.cli)
    for name in cli.cli.list_commands(ctx):
        command = cli.cli.get_command(ctx, name)
        assert command is not None
        assert command.get_short_help_str(), name
        assert command.get_help(click.Context(command, info_name=name))


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


@pytest.mark.parametrize(
    ("typed", "told"), [("stauts", "Did you mean status"), ("--stauts", "--stauts"), ("zzz", "--help")]
)
def test_a_misspelt_command_is_answered_with_the_one_that_is_meant(config: Path, typed: str, told: str) -> None:
    code, text = run(config, typed)
    assert (code, told in text) == (2, True)


def test_a_missing_settings_file_is_answered_with_what_to_do(tmp_path: Path) -> None:
    code, text = run(tmp_path / "absent", "status")
    assert (code, "--config" in text, "mistake" in text) == (1, True, False)


def test_an_error_is_one_line_for_an_operator_and_never_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["dcupgrade", "--config", str(tmp_path / "absent"), "status"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: SETTINGS_UNREADABLE: ")


def test_the_example_settings_are_good_once_filled_in(config: Path, tmp_path: Path) -> None:
    example = tmp_path / "example.toml"
    text = run(config, "config", "example")[1].replace("[vault]", "[vault]\nstart = false")
    text = text.replace("b…", KEY).replace("[chain]", '[chain]\nfinality = "single"')
    example.write_text(text)
    assert run(example, "config", "validate")[0] == 0
    assert json.loads(run(example, "config", "show")[1])["node"]["port"] == 6667


def test_what_may_follow_is_completed_also_below_commands_that_are_imported_late() -> None:
    asked = {"_DCUPGRADE_COMPLETE": "bash_complete", "COMP_WORDS": "dcupgrade node ", "COMP_CWORD": "2"}
    done = CliRunner().invoke(cli.cli, [], prog_name="dcupgrade", env=asked, standalone_mode=True)
    assert done.output.split() == ["plain,restart", "plain,start", "plain,stop"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(config: Path, shell: str) -> None:
    assert "_DCUPGRADE_COMPLETE" in run(config, "completion", shell)[1]


def test_watch_with_dry_run_starts_nothing(config: Path, tmp_path: Path) -> None:
    assert "Would watch ws://127.0.0.1:9" in run(config, "watch", "--dry-run")[1]
    assert not (tmp_path / "journal.sqlite3").exists()


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["dcupgrade", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("odd\x1b[2J"), r"RuntimeError: odd\x1b[2J"), (PermissionError("no"), "agent's user")],
)
def test_an_error_that_nobody_foresaw_is_no_traceback_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    def broken(_: str) -> str:
        raise error

    monkeypatch.setattr(codes, "runbook_entry", broken)
    assert main(monkeypatch, "explain", "UNEXPECTED") == 1
    text = capsys.readouterr().err
    assert text.startswith("error: UNEXPECTED: ")
    assert told in text
    assert text.count("\n") == 1
    monkeypatch.setenv("DCUPGRADE_TRACEBACK", "1")
    monkeypatch.setattr("sys.argv", ["dcupgrade", "explain", "UNEXPECTED"])
    with pytest.raises(type(error)):
        cli.main()


def test_a_locale_without_a_letter_for_it_does_not_stop_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1", write_through=True))
    assert main(monkeypatch, "explain", "HTTP_TOKEN_REFUSED") == 0
    assert rb"Bearer \u2026" in raw.getvalue()


def test_a_dry_run_reads_the_files_that_the_settings_name(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    good = config.read_text()
    config.write_text(good + f'[[webhooks]]\nurl = "https://h.example/T0K3N"\nsecret_file = "{tmp_path}/empty"\n')
    code, text = run(config, "watch", "--dry-run")
    assert (code, text.split(":")[0]) == (1, "WEBHOOK_SECRET_UNREADABLE")
    assert "T0K3N" not in text
    proven = f'checkpoint_file = "{tmp_path}/checkpoint"\ngenesis_hash = "0x{"ab" * 32}"'
    config.write_text(good.replace('finality = "single"', proven))
    assert f"there is no {tmp_path}/checkpoint" in run(config, "watch", "--dry-run")[1]
    assert f"there is no {tmp_path}/checkpoint" in run(config, "config", "validate")[1]
    (tmp_path / "checkpoint").write_text("[")
    assert run(config, "watch", "--dry-run")[1].startswith("CHECKPOINT_UNREADABLE")


@pytest.mark.parametrize(
    ("why", "action", "text"),
    [
        ("why", "Do.", "C: what: why. Do."),
        ("why.", "Do.", "C: what: why. Do."),
        ("why?", "Do.", "C: what: why? Do."),
        ("why", "", "C: what: why."),
        ("why.", "", "C: what: why."),
        ("1 mistake:\n  - x\n", "Do.", "C: what: 1 mistake:\n  - x\nDo."),
    ],
)
def test_an_error_reads_as_sentences(why: str, action: str, text: str) -> None:
    assert str(DcupgradeError(code="C", what="what", why=why, action=action)) == text


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize("flag", ["--config", "-c"])
@pytest.mark.parametrize("command", [["status"], ["history", "-n", "3"], ["config", "validate"]])
def test_the_settings_file_may_be_named_after_the_command(config: Path, flag: str, command: list[str]) -> None:
    done = CliRunner().invoke(cli.cli, [*command, flag, str(config)])
    assert (done.exit_code, done.exception) == (0, None)
    done = CliRunner().invoke(cli.cli, ["--config", "/nonexistent/x.toml", *command, flag, str(config)])
    assert done.exit_code == 0  # the later one counts


@pytest.mark.parametrize("asked", [["version"], ["--version"], ["-V"]])
def test_the_version_is_told(asked: list[str]) -> None:
    done = CliRunner().invoke(cli.cli, asked)
    assert (done.exit_code, __version__ in done.output) == (0, True)


def test_an_error_of_the_host_is_told_once_and_without_its_number(tmp_path: Path) -> None:
    text = run(tmp_path / "absent", "status")[1]
    assert text.count("absent") == 1
    assert "no such file or directory" in text
    assert "Errno" not in text
    (tmp_path / "broken").write_text("[agent\n")
    text = run(tmp_path / "broken", "status")[1]
    assert "line 1" in text
    assert "Correct that line" in text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "/x"), "no space left on device"),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "connect call failed ('127.0.0.1', 1)"),
        (ValueError("IPv6 is odd"), "IPv6 is odd"),
        (OSError("no number"), "no number"),
    ],
)
def test_the_reason_of_an_error_reads_as_a_sentence_goes_on(error: Exception, told: str) -> None:
    assert why_of(error) == told


def test_taking_the_comment_signs_away_from_the_example_gives_valid_toml(config: Path) -> None:
    text = run(config, "config", "example")[1]
    bare = re.sub(r"^# (\w+ = |\[)", r"\1", text, flags=re.MULTILINE)
    assert tomllib.loads(bare)["chain"]["ca_file"] == "/etc/…"
    assert "# not set" in bare


@pytest.mark.parametrize("module", ["main", "status", "history", "operator", "explain"])
def test_what_an_operator_types_often_imports_nothing_heavy(module: str) -> None:
    """`--help` stays quick: 2 s of it were imports of aiohttp that only `watch` needs."""
    heavy = '{"aiohttp", "rich", "cryptography", "substrateinterface", "prometheus_client"}'
    program = f"import sys, dcupgrade.commands.{module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
