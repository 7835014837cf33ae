import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dcupgrade.adapters.journal import Journal
from dcupgrade.commands import operator
from dcupgrade.machine.operator_commands import event_of, outcome_of
from dcupgrade.machine.state import Hold, Record, Release, State
from dcupgrade.upgrade.ports import Entry
from tests.doubles.command_line import NEW, run


def test_a_command_waits_in_the_journal_until_the_agent_is_there(config: Path, journal: Journal) -> None:
    assert "queued as command 1" in run(config, "hold", "--reason", "audit", "--hours", "2")[1]
    assert "`dcupgrade cancel 2` withdraws it" in run(config, "approve")[1]
    hold, approve = journal.commands()
    assert (hold.kind, hold.arguments["reason"]) == ("hold", "audit")
    assert hold.arguments["until_unix_s"] > 7200
    assert (approve.kind, approve.arguments["enclave_id"]) == ("approve", NEW.enclave_id)


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
def test_a_command_that_means_nothing_is_not_queued(config: Path, journal: Journal, arguments: list[str]) -> None:
    assert run(config, *arguments)[0] == 2
    assert journal.commands() == []


def test_a_reason_that_is_not_utf_8_is_refused_and_says_so(config: Path, journal: Journal) -> None:
    code, told = run(config, "hold", "-r", b"f\xfcr".decode("utf-8", "surrogateescape"))
    assert code == 2
    assert "reason is not UTF-8 text" in told
    assert journal.commands() == []


def test_a_user_without_a_name_may_give_a_command(
    config: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 10666")

    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr("getpass.getuser", nobody)
    assert run(config, "hold")[0] == 0
    assert journal.commands()[0].who.startswith("uid ")


def take_up(journal: Journal, before: State, after: State) -> None:
    """What the agent does with the commands that wait."""
    for command in journal.commands():
        event = event_of(command, before, time.time())
        outcome = outcome_of(before, event, after)
        journal.append(Entry(before, event, after, (), command.id, outcome))


@pytest.fixture
def agent_takes(monkeypatch: pytest.MonkeyPatch, journal: Journal) -> Callable[[State, State], None]:
    """Simulate an agent that is in the first state, and in the second one after each command."""

    def set_up(before: State, after: State) -> None:
        def asked(*_: object) -> dict[str, bool]:
            take_up(journal, before, after)
            return {"ok": True}

        monkeypatch.setattr(operator, "ask_agent", asked)

    return set_up


IDLE = State(running=NEW)
HELD = State(running=NEW, hold=Hold("audit", "eve"))


@pytest.mark.parametrize(
    ("command", "before", "after", "told"),
    [
        ("unhold", IDLE, IDLE, "unhold: nothing was held.\n"),
        ("unhold", HELD, IDLE, "unhold: the hold is lifted.\n"),
        ("resume", IDLE, IDLE, "resume: nothing was halted.\n"),
        ("retry", IDLE, IDLE, "retry: nothing was in quarantine.\n"),
    ],
)
def test_a_command_tells_what_came_of_it(
    config: Path, agent_takes: Callable[[State, State], None], command: str, before: State, after: State, told: str
) -> None:
    agent_takes(before, after)
    assert run(config, command) == (0, told)


def test_a_refused_command_has_its_code_and_exit_code_1(
    config: Path, agent_takes: Callable[[State, State], None]
) -> None:
    agent_takes(IDLE, IDLE)
    code, text = run(config, "revert")
    assert (code, text.split(":")[0]) == (1, "REVERT_IMPOSSIBLE")
    assert "dcupgrade explain REVERT_IMPOSSIBLE" in text


def test_approve_does_not_lift_a_quarantine(config: Path, agent_takes: Callable[[State, State], None]) -> None:
    failed = State(running=Release("a" * 64), records=(Record(NEW.enclave_id, quarantine="OPERATOR_REVERT"),))
    agent_takes(failed, failed)
    code, text = run(config, "approve", NEW.enclave_id)
    assert (code, text.split(":")[0]) == (1, "RELEASE_QUARANTINED")
    assert "retry" in text


def test_a_command_that_is_not_taken_up_is_said_to_wait(
    config: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator, "ask_agent", lambda *_: {"ok": True})
    monkeypatch.setattr(operator, "ANSWER_WAIT_S", 0.0)
    code, text = run(config, "revert")
    assert (code, text.split(":")[0]) == (1, "COMMAND_WAITS")
    assert [command.kind for command in journal.commands()] == ["revert"]


def test_what_waits_is_listed_and_can_be_withdrawn(config: Path, journal: Journal) -> None:
    run(config, "revert", "--reason", "bad")
    text = run(config, "status")[1]
    assert "queued" in text
    assert "revert by" in text
    assert "refused after" in text
    assert "bad (`dcupgrade cancel 1`)" in text
    assert run(config, "cancel", "1") == (0, "command 1 is withdrawn.\n")
    assert journal.commands() == []
    code, text = run(config, "cancel", "1")
    assert (code, text.split(":")[0], "cancelled by" in text) == (1, "COMMAND_NOT_WAITING", True)
    assert run(config, "cancel", "7")[0] == 1


@pytest.mark.usefixtures("journal")
def test_a_command_that_acts_expires_and_one_that_says_how_things_are_to_be_does_not(config: Path) -> None:
    assert "It takes this up when it runs until " in run(config, "revert")[1]
    assert "It takes this up when it runs. " in run(config, "hold")[1]
