import io
import json
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import jsonschema
import pytest
from click.testing import CliRunner

from dcupgrade.adapters.journal import Journal
from dcupgrade.commands import explain as codes
from dcupgrade.commands import main as cli
from dcupgrade.commands import operator as operator_cli
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.events import Event, EventKind
from dcupgrade.machine.state import ChainFacts, Hold, Name, Release, State
from dcupgrade.machine.table import activity
from dcupgrade.settings import load
from dcupgrade.settings import schema as settings
from dcupgrade.upgrade.ports import Entry
from tests.conftest import ROOT

KEY = "bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"
NEW = Release("b" * 64, "1.1.0 [red]", added_height=9)


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
    assert "not running; what follows is of 1970-01-01 00:00:06 UTC" in text
    assert "NO_KEYS_ANYWHERE: see `dcupgrade explain NO_KEYS_ANYWHERE`" in text
    assert "1.1.0 [red]" in text
    assert json.loads(run(config, "status", "--json")[1])["state"]["halted"] == "NO_KEYS_ANYWHERE"


@pytest.mark.usefixtures("journal")
def test_history_tells_states_and_how_long_they_lasted(config: Path) -> None:
    rows = json.loads(run(config, "history", "--json", "--all")[1])
    assert [(row["to"], row["seconds_in_state"]) for row in rows] == [("idle", None), ("halted", 1.0)]
    assert run(config, "history")[1].startswith("1970-01-01 00:00:06 UTC  idle  halted")


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


@pytest.mark.usefixtures("journal")
def test_times_are_told_with_their_zone(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-3")
    time.tzset()
    assert run(config, "history")[1].startswith("1970-01-01 03:00:06 XYZ")


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


def test_explain_knows_every_code(config: Path) -> None:
    for code in codes.all_codes():
        exit_code, text = run(config, "explain", code)
        assert exit_code == 0
        assert text.startswith(f"{code}: ")
        assert "\nDo: " in text
        assert "**" not in text
        assert "`" not in text


def test_explain_names_the_codes_that_are_spelt_alike(config: Path) -> None:
    assert "SOURCE_WONT_START" in run(config, "explain", "SOURCE_WONT")[1]
    assert "VAULT_REPLACED" in run(config, "explain", "vault_replacd")[1]


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


class Answering(socketserver.ThreadingTCPServer):
    """Something that listens where the agent should be: keeps what it was asked and says `reply`."""

    daemon_threads = True

    def __init__(self, reply: bytes) -> None:
        self.reply, self.asked = reply, b""
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Answering)
        self.server.asked = self.request.recv(65536)
        self.request.sendall(self.server.reply)


@pytest.fixture
def answering() -> Iterator[Answering]:
    body = b'{"state": {"name": "idle"}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with Answering(head + body) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def listening(config: Path, address: str) -> settings.Settings:
    config.write_text(config.read_text().replace('127.0.0.1:9"\n[', address + '"\n['))
    return load.load(config, {})


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - settings
def test_the_agent_is_asked_on_loopback_by_a_name_that_it_answers_to(
    config: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # leads nowhere: the agent's answer would be lost
    monkeypatch.delenv("no_proxy", raising=False)
    loaded = listening(config, f"{host}:{answering.server_address[1]}")
    assert operator_cli.ask_agent(loaded, "/api/v1/status") == {"state": {"name": "idle"}}
    assert b"\r\nHost: localhost\r\n" in answering.asked


@pytest.mark.parametrize(
    ("listen", "address"), [("[::]:1", "[::1]:1"), ("::1:1", "[::1]:1"), ("10.0.0.7:1", "10.0.0.7:1")]
)
def test_every_form_of_the_agents_address_can_be_asked(listen: str, address: str) -> None:
    assert operator_cli.agent_address(listen) == address


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(
    "reply", [b"SSH-2.0-OpenSSH\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\n[]", b"HTTP/1.1 200 OK\r\n\r\n{}"]
)
def test_something_else_on_the_agents_port_is_not_the_agent(config: Path, answering: Answering, reply: bytes) -> None:
    answering.reply = reply
    listening(config, f"127.0.0.1:{answering.server_address[1]}")
    code, text = run(config, "status")
    assert (code, "not running" in text) == (0, True)


def test_a_journal_that_cannot_be_looked_at_is_an_error_with_a_code(config: Path) -> None:
    config.write_text(config.read_text().replace('state_dir = "', f'state_dir = "/{"x" * 300}'))
    for command in ("status", "history", "hold"):
        code, text = run(config, command)
        assert (code, text.split(":")[0]) == (1, "JOURNAL_UNREADABLE")
        assert "agent's user" in text


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


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_node_or_an_endpoint_said_is_not_obeyed_by_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    operator_cli._print_table(("", ""), [("reason", "\x1b]0;owned\x07 [red] :warning:\nstate idle")])
    text = capsys.readouterr().out
    assert "\x1b]0;" not in text
    assert r"\x1b]0;owned\x07 [red] :warning:\nstate idle" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["approve", "b" * 63],
        ["override", "B" * 64],
        ["hold", "--hours", "nan"],
        ["hold", "--hours", "1e300"],
        ["hold", "--reason", "x" * 1001],
    ],
)
def test_a_word_that_means_nothing_is_not_queued(config: Path, journal: Journal, arguments: list[str]) -> None:
    assert run(config, *arguments)[0] == 2
    assert journal.commands() == []


def test_a_user_without_a_name_may_say_a_word(config: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 10666")

    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr("getpass.getuser", nobody)
    assert run(config, "hold")[0] == 0
    assert journal.commands()[0].who.startswith("uid ")


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


@pytest.mark.parametrize(
    ("until", "told"),
    [(0.0, "audit (by eve)"), (90.0, "ended 1970-01-01 00:01:30 UTC"), (110.0, "until 1970-01-01 00:01:50 UTC")],
)
def test_a_hold_is_told_with_its_end(capsys: pytest.CaptureFixture[str], until: float, told: str) -> None:
    state = State(hold=Hold("audit", "eve", until)).to_json()
    operator_cli._print_status({"agent": "running", "now_unix_s": 100.0, "state": state}, "")
    assert told in capsys.readouterr().out


def test_the_findings_of_check_follow_their_schema(config: Path) -> None:
    code, text = run(config, "check", "--json")
    assert code == 1  # the endpoint does not answer
    jsonschema.validate(json.loads(text), json.loads((ROOT / "docs" / "schemas" / "check.schema.json").read_text()))


def test_status_tells_alarms_and_what_fails_for_now(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {
        "agent": "running",
        "state": State(Name.HALTED, running=NEW, halted="NO_KEYS_ANYWHERE").to_json(),
        "alarms": [{"code": "NO_KEYS_ANYWHERE", "detail": ""}, {"code": "RUNNING_REVOKED", "detail": NEW.enclave_id}],
        "progress": {"retry": {"what": "download", "code": "FETCH", "detail": "FETCH: mirror silent"}},
        "chain": {"problem": {"code": "ENDPOINT_NONE_USABLE", "text": "ENDPOINT_NONE_USABLE: none"}},
    }
    operator_cli._print_status(facts, "")
    text = capsys.readouterr().out
    assert f"alarm          RUNNING_REVOKED: {NEW.enclave_id}" in text
    assert "tried again    FETCH: mirror silent" in text
    assert "chain problem  ENDPOINT_NONE_USABLE: none" in text
    assert text.count("NO_KEYS_ANYWHERE:") == 1


def test_a_narrow_terminal_cuts_nothing_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    operator_cli._print_table(("", ""), [("target", "1.1.0  " + NEW.enclave_id)])
    assert capsys.readouterr().out.count("b") == len(NEW.enclave_id)


def test_history_tells_who_said_a_word_and_why(config: Path, journal: Journal) -> None:
    word = Event(EventKind.OVERRIDE, "b" * 64, who="eve", detail="audit", at_unix_s=9.0)
    journal.append(Entry(State(), word, State(override="b" * 64), (), 0))
    assert run(config, "history", "--all")[1].splitlines()[-1].endswith("override audit (by eve)")
    rows = json.loads(run(config, "history", "--all", "--json")[1])
    assert [row.get("who") for row in rows] == [None, None, "eve"]
    jsonschema.validate({"rows": rows}, json.loads((ROOT / "docs" / "schemas" / "history.schema.json").read_text()))
