"""The plan evaluates the current gates, also if there is nothing to upgrade (case F7)."""

from dataclasses import replace

import pytest

from dcupgrade.machine.gates import GateRules, Window
from dcupgrade.machine.plan import plan
from dcupgrade.machine.state import ChainFacts, Hold, Name, Record, Release, State

A, B = (Release(letter * 64, f"1.{n}.0", added_height=n + 1) for n, letter in enumerate("ab"))
UP_TO_DATE = State(running=A, chain=ChainFacts(A, ((A.enclave_id, 1),)))
OFFERED = State(running=A, chain=ChainFacts(B, ((A.enclave_id, 1), (B.enclave_id, 2))))
HELD = Hold("a holiday", "ann")
SHUT_WINDOW = (Window(("mon",), "01:00", 60),)
FRIDAY_UNIX_S = 1700000000.0


def gates(state: State, rules: GateRules | None = None) -> dict[str, bool]:
    found = plan(state, rules or GateRules("n"), FRIDAY_UNIX_S, FRIDAY_UNIX_S)
    return {gate.code: gate.shut is None for gate in found.gates}


@pytest.mark.parametrize(
    "state",
    [
        UP_TO_DATE,
        OFFERED,
        OFFERED.with_record(Record(B.enclave_id, quarantine="BUDGET_SPENT")),
        replace(OFFERED, name=Name.HALTED, halted="DATA_LOCKED"),
        replace(OFFERED, name=Name.DELIVERING, target=B),
        State(),
    ],
)
def test_a_hold_is_shown_as_shut_whatever_the_machine_is_doing(state: State) -> None:
    assert gates(replace(state, hold=HELD))["GATE_HELD"] is False
    assert gates(state)["GATE_HELD"] is True
    assert gates(state, GateRules("n", windows=SHUT_WINDOW))["GATE_WINDOW_SHUT"] is False


def test_gates_of_one_release_are_shown_only_where_there_is_one() -> None:
    assert set(gates(UP_TO_DATE)) == {"GATE_HELD", "GATE_WINDOW_SHUT"}
    assert "GATE_APPROVAL_MISSING" in gates(OFFERED)


def test_a_quarantined_release_names_the_command_that_releases_it() -> None:
    state = OFFERED.with_record(Record(B.enclave_id, quarantine="BUDGET_SPENT"))
    (line,) = plan(state, GateRules("n"), FRIDAY_UNIX_S, FRIDAY_UNIX_S).lines
    assert "`dcupgrade retry`" in line
