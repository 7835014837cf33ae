"""Gates: windows in their time zones, holds, approval, staggering, override; all from inputs alone."""

from datetime import datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcupgrade.machine.gates import (
    RECHECK_MAX_S,
    GateRules,
    Shut,
    Window,
    fraction,
    recheck_after_s,
    shut_gates,
    window_at,
)
from dcupgrade.machine.state import Hold

ID = "b" * 64
NIGHT = Window(("sat",), "23:00", 4 * 3600, "Europe/Berlin")


def at(text: str, zone: str = "Europe/Berlin") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def gates(rules: GateRules, now: float, **facts: Any) -> list[str]:
    known: dict[str, Any] = {"since_unix_s": 0.0, "hold": None, "approved": "", "override": "", **facts}
    return [item.code for item in shut_gates(rules, enclave_id=ID, now_unix_s=now, **known)]


def test_without_rules_every_gate_is_open() -> None:
    assert gates(GateRules("n"), 1e9) == []


@pytest.mark.parametrize(
    ("now", "shut"),
    [
        ("2026-01-03T22:59:59", ["GATE_WINDOW_SHUT"]),
        ("2026-01-03T23:00:00", []),
        ("2026-01-04T02:59:59", []),  # past midnight
        ("2026-01-04T03:00:00", ["GATE_WINDOW_SHUT"]),
        ("2026-01-04T23:30:00", ["GATE_WINDOW_SHUT"]),
    ],
)
def test_a_window_opens_in_its_own_time_zone(now: str, shut: list[str]) -> None:
    assert gates(GateRules("n", windows=(NIGHT,)), at(now)) == shut


def test_a_shut_window_says_when_it_opens() -> None:
    now = at("2026-01-01T12:00:00")
    rules = GateRules("n", windows=(NIGHT,))
    (shut,) = shut_gates(rules, enclave_id=ID, since_unix_s=0, now_unix_s=now, hold=None, approved="", override="")
    assert shut.opens_unix_s == at("2026-01-03T23:00:00")


def test_windows_follow_the_clock_change() -> None:
    """On 2026-03-29 Berlin goes from 02:00 to 03:00: a window at 02:30 opens at the instant that is 03:30."""
    window = Window(("sun",), "02:30", 3600, "Europe/Berlin")
    opened, closes, _ = window_at((window,), at("2026-03-29T03:45:00"))
    assert opened is not None
    assert closes == opened + 3600
    # in autumn 02:30 comes twice: the first one counts, and the window is as long as ever
    opened, closes, _ = window_at((window,), at("2026-10-25T02:45:00"))
    assert opened == at("2026-10-25T02:30:00")
    assert closes == at("2026-10-25T02:30:00") + 3600


@given(st.floats(1e9, 2e9), st.sampled_from(["UTC", "America/New_York", "Pacific/Chatham", "Asia/Kolkata"]))
def test_a_daily_window_is_open_for_exactly_its_share_of_a_week(now: float, zone: str) -> None:
    window = Window(("mon", "tue", "wed", "thu", "fri", "sat", "sun"), "01:00", 2 * 3600, zone)
    opened, closes, opens_next = window_at((window,), now)
    if opened is None:
        assert opens_next is not None
        assert 0 < opens_next - now <= 23 * 3600 + 3600
        assert window_at((window,), opens_next)[0] == opens_next
    else:
        assert closes is not None
        assert opened <= now < closes
        assert window_at((window,), closes)[0] is None


def test_a_hold_ends_by_itself_or_never() -> None:
    assert gates(GateRules("n"), 100, hold=Hold("why")) == ["GATE_HELD"]
    assert gates(GateRules("n"), 100, hold=Hold("why", until_unix_s=101)) == ["GATE_HELD"]
    assert gates(GateRules("n"), 101, hold=Hold("why", until_unix_s=101)) == []


def test_approval_is_for_one_release() -> None:
    rules = GateRules("n", approval=True)
    assert gates(rules, 1) == ["GATE_APPROVAL_MISSING"]
    assert gates(rules, 1, approved="c" * 64) == ["GATE_APPROVAL_MISSING"]
    assert gates(rules, 1, approved=ID) == []


def test_an_override_opens_every_gate_for_one_release() -> None:
    rules = GateRules("n", approval=True, windows=(NIGHT,), stagger_s=1e6)
    now = at("2026-01-01T12:00:00")
    assert gates(rules, now, since_unix_s=now, hold=Hold("why"), override=ID) == []
    assert len(gates(rules, now, since_unix_s=now, hold=Hold("why"), override="c" * 64)) == 4


def test_turns_are_this_nodes_own_and_the_same_on_every_run() -> None:
    assert fraction("node-1", ID) == fraction("node-1", ID)
    turns = sorted(fraction(f"node-{n}", ID) for n in range(1000))
    assert turns[0] >= 0
    assert turns[-1] < 1
    assert max(b - a for a, b in pairwise(turns)) < 0.02
    assert [fraction(f"node-{n}", ID) for n in range(9)] != [fraction(f"node-{n}", "c" * 64) for n in range(9)]


def test_a_fleet_does_not_restart_at_once_and_all_get_their_turn_in_the_window() -> None:
    opened = at("2026-01-03T23:00:00")
    early = late = 0
    for number in range(200):
        rules = GateRules(f"node-{number}", windows=(NIGHT,), stagger_s=86400.0)
        early += gates(rules, opened, since_unix_s=opened - 1e6) == []
        late += gates(rules, opened + 4 * 3600 - 1, since_unix_s=opened - 1e6) == []
    assert early <= 1
    assert late >= 199


def test_a_clock_set_back_does_not_keep_a_node_waiting_for_its_turn() -> None:
    assert gates(GateRules("node-1", stagger_s=600.0), 1000.0, since_unix_s=1e6) == []


def test_the_next_look_is_when_a_gate_opens_and_not_much_later() -> None:
    assert recheck_after_s([Shut("X", "", None)], 100.0) == RECHECK_MAX_S
    assert recheck_after_s([Shut("X", "", 110.0), Shut("Y", "", 105.0)], 100.0) == 5.0
    assert recheck_after_s([Shut("X", "", 100.001)], 100.0) == 0.05
    assert recheck_after_s([Shut("X", "", 1e9)], 100.0) == RECHECK_MAX_S
