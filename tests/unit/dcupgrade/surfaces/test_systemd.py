"""What systemd is notified of."""

import asyncio

import pytest

from dcupgrade.machine.state import Name, Release, State
from dcupgrade.surfaces.systemd import PERIOD_S_MAX, keep_telling, period_s, status_line

OLD, NEW = (Release(letter * 64, f"1.{n}.0", added_height=n + 1) for n, letter in enumerate("ab"))


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (State(Name.IDLE), "idle; no node yet"),
        (State(Name.IDLE, running=OLD), "idle; running 1.0.0 aaaaaaaa"),
        (State(Name.STAGING, running=OLD, target=NEW), "staging 1.1.0 bbbbbbbb; running 1.0.0 aaaaaaaa"),
        (
            State(Name.HALTED, running=OLD, target=NEW, halted="NO_KEYS_ANYWHERE"),
            "halted: NO_KEYS_ANYWHERE 1.1.0 bbbbbbbb; running 1.0.0 aaaaaaaa",
        ),
        (State(Name.IDLE, running=Release("c" * 64, "1\nMAINPID=1")), r"idle; running 1\nMAINPID=1 cccccccc"),
    ],
)
def test_the_status_line_names_state_and_versions(state: State, line: str) -> None:
    assert status_line(state) == line


@pytest.mark.parametrize(
    ("usec", "period"), [("", PERIOD_S_MAX), ("0", PERIOD_S_MAX), ("x", PERIOD_S_MAX), ("60000000", 2), ("3000000", 1)]
)
def test_the_watchdog_is_fed_in_time(usec: str, period: float) -> None:
    assert period_s({"WATCHDOG_USEC": usec}) == period


async def test_each_word_feeds_the_watchdog_and_tells_the_state_of_now() -> None:
    class Heard(list[str]):
        notify = list.append

    heard, states = Heard(), iter([State(Name.IDLE), State(Name.IDLE, running=OLD)])
    with pytest.raises(RuntimeError):  # the states are used up
        await asyncio.wait_for(keep_telling(heard, lambda: next(states), 0), 30)
    assert heard == ["STATUS=idle; no node yet\nWATCHDOG=1", "STATUS=idle; running 1.0.0 aaaaaaaa\nWATCHDOG=1"]
