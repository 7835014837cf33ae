import sys

import pytest

from dcupgrade.commands import tables
from tests.doubles.command_line import NEW


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_node_or_an_endpoint_said_is_not_obeyed_by_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    tables.print_table(("", ""), [("reason", "\x1b]0;owned\x07 [red] :warning:\nstate idle")])
    text = capsys.readouterr().out
    assert "\x1b]0;" not in text
    assert r"\x1b]0;owned\x07 [red] :warning:\nstate idle" in text


def test_a_narrow_terminal_cuts_nothing_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    tables.print_table(("", ""), [("target", "1.1.0  " + NEW.enclave_id)])
    assert capsys.readouterr().out.count("b") == len(NEW.enclave_id)
