from pathlib import Path

import pytest

from dcupgrade.adapters.journal import Journal
from tests.doubles.command_line import NEW, run


def test_an_operators_word_waits_in_the_journal_until_the_agent_is_there(config: Path, journal: Journal) -> None:
    assert "queued" in run(config, "hold", "--reason", "audit", "--hours", "2")[1]
    assert "queued" in run(config, "approve")[1]
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
