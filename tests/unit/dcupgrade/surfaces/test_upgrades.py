"""The history by upgrades."""

from __future__ import annotations

from typing import Any

import pytest

from dcupgrade.surfaces.times import span
from dcupgrade.surfaces.upgrades import upgrades

FORTH = ("staging", "staged", "collecting", "sealed", "stopping", "launching", "delivering", "probation")


def rows(*path: str, at: float = 0.0, version: str = "1.1.0", reason: str = "") -> list[dict[str, Any]]:
    """Changes of state from idle along the path, one a second; `reason` from the last one but one on."""
    found = []
    for number, (one, two) in enumerate(zip(("idle", *path), path, strict=False)):
        told = reason if two in ("abandoned", "reverting", "reverted", "halted") else ""
        found.append(
            {
                **{"seq": number, "at_unix_s": at + number, "from": one, "to": two, "event": "x", "reason": told},
                **{"detail": "", "running": "", "target": "" if two == "idle" else "b" * 64},
                "version": "" if two == "idle" else version,
            }
        )
    return found


def test_a_committed_upgrade_has_its_version_duration_and_downtime() -> None:
    [found] = upgrades(rows(*FORTH, "committed", "idle"), 5, 100.0)
    assert (found["version"], found["outcome"], found["seconds"], found["downtime_s"]) == ("1.1.0", "committed", 9, 3)
    assert [step["state"] for step in found["steps"]] == [*FORTH, "committed"]
    assert (found["began_unix_s"], found["ended_unix_s"]) == (0, 9)


def test_a_reverted_upgrade_counts_both_outages_and_tells_why() -> None:
    [found] = upgrades(rows(*FORTH, "reverting", "reverted", "idle", reason="CANARY_FAILED"), 5, 100.0)
    assert (found["outcome"], found["reason"], found["downtime_s"]) == ("reverted", "CANARY_FAILED", 4)


def test_an_abandoned_upgrade_stopped_nothing() -> None:
    [found] = upgrades(rows("staging", "abandoned", "idle", reason="DOWNLOAD_TRUNCATED"), 5, 100.0)
    assert (found["outcome"], found["downtime_s"]) == ("abandoned", None)


def test_a_reason_ends_with_the_upgrade_that_it_explains() -> None:
    again = rows("staging", "abandoned", "idle", reason="A") + rows(*FORTH, "committed", "idle", at=50.0)
    newest, older = upgrades(again, 5, 100.0)
    assert (newest["reason"], older["reason"]) == ("", "A")


def test_an_upgrade_under_way_lasts_until_now() -> None:
    [found] = upgrades(rows("staging", "staged"), 5, 100.0)
    assert (found["outcome"], found["ended_unix_s"], found["seconds"]) == ("under way", None, 100.0)
    assert found["steps"][-1]["seconds"] == 99.0


def test_a_revert_by_hand_is_an_entry_of_its_own() -> None:
    by_hand = rows("reverting", "reverted", "idle", at=20.0, reason="OPERATOR_REVERT")
    by_hand[0]["who"] = "eve"
    newest, older = upgrades(rows(*FORTH, "committed", "idle") + by_hand, 5, 100.0)
    assert (newest["outcome"], newest["who"], newest["downtime_s"]) == ("reverted", "eve", 1)
    assert older["outcome"] == "committed"


def test_a_halted_upgrade_is_halted_until_it_goes_on() -> None:
    halted = rows(*FORTH, "reverting", "halted", reason="DATA_LOCKED")
    assert upgrades(halted, 5, 100.0)[0]["outcome"] == "halted"
    gone_on = rows(*FORTH, "reverting", "halted", "reverting", "reverted", "idle", reason="DATA_LOCKED")
    assert upgrades(gone_on, 5, 100.0)[0]["outcome"] == "reverted"


def test_what_began_before_the_rows_is_left_out_and_the_limit_is_kept() -> None:
    cut = rows(*FORTH, "committed", "idle")[4:]
    whole = [row for at in (20.0, 40.0, 60.0) for row in rows("staging", "abandoned", "idle", at=at)]
    assert [one["began_unix_s"] for one in upgrades(cut + whole, 2, 100.0)] == [60.0, 40.0]
    assert len(upgrades(cut + whole, 9, 100.0)) == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (0.44, "0.4 s"), (42, "42 s"), (185, "3 min 5 s"), (3600, "1 h"), (86399, "23 h 59 min"),
     (273_600, "3 d 4 h"), (59.7, "1 min")],
)  # fmt: skip
def test_durations_read_well(seconds: float, text: str) -> None:
    assert span(seconds) == text
