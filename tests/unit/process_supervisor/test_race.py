"""Racing sources: a slow one gets a competitor, the first result wins, the others are cancelled."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from process_supervisor.race import AllFailedError, Pace, first_good


def slow_pace() -> Pace:
    return Pace(1, 0.01)


def never_slow() -> Pace:
    return Pace(0, 0.01)


class Track:
    def __init__(self) -> None:
        self.events: list[str] = []

    def source(self, name: str, outcome: Exception | str | None) -> Callable[[Pace], Awaitable[str]]:
        async def run(pace: Pace) -> str:
            self.events.append(f"{name} starts")
            try:
                if outcome is None:
                    await asyncio.Event().wait()
                if isinstance(outcome, Exception):
                    raise outcome
                return str(outcome)
            finally:
                self.events.append(f"{name} ends")

        return run


async def test_the_next_is_asked_beside_a_slow_one_which_ends_when_it_lost() -> None:
    track = Track()
    won = await first_good([track.source("a", None), track.source("b", "good")], slow_pace, lambda _: False)
    assert won == "good"
    assert track.events == ["a starts", "b starts", "b ends", "a ends"]


async def test_while_one_is_fast_no_other_is_asked() -> None:
    track = Track()
    race = asyncio.ensure_future(
        first_good([track.source("a", None), track.source("b", "good")], never_slow, lambda _: False)
    )
    await asyncio.wait([race], timeout=0.1)
    assert track.events == ["a starts"]
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert track.events == ["a starts", "a ends"]


async def test_a_failure_starts_the_next_and_all_failures_are_told() -> None:
    track = Track()
    one, two = ValueError("one"), ValueError("two")
    with pytest.raises(AllFailedError) as caught:
        await first_good([track.source("a", one), track.source("b", two)], never_slow, lambda _: False)
    assert caught.value.failures == [one, two]


async def test_after_a_fatal_failure_nobody_else_is_asked() -> None:
    track, full = Track(), OSError("full")
    with pytest.raises(AllFailedError) as caught:
        await first_good([track.source("a", full), track.source("b", "good")], never_slow, lambda error: error is full)
    assert caught.value.failures == [full]
    assert track.events == ["a starts", "a ends"]
    with pytest.raises(AllFailedError):
        await first_good([], never_slow, lambda _: False)


def test_a_pace_is_judged_by_what_came_since_the_last_look() -> None:
    pace = Pace(10, 2.0)
    pace.report(20)
    assert not pace.was_slow()
    pace.report(39)
    assert pace.was_slow()
    pace.steady()
    assert not pace.was_slow()
