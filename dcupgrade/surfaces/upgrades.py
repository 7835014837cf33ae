"""The history as a list of upgrades: version, time, duration, downtime, outcome and reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

ENDS = {"committed": "committed", "reverted": "reverted", "abandoned": "abandoned", "halted": "halted"}
"""States that decide an upgrade's outcome. The last one counts: a committed version may be reverted by hand."""
ROWS_PER_UPGRADE = 24
"""Changes of state to read for each upgrade that is wanted: twice the longest path without repetitions."""


def upgrades(rows: Sequence[Row], limit: int, now_unix_s: float) -> list[dict[str, Any]]:
    """Return upgrades, newest first, from changes of state (oldest first, as the journal's history returns them).

    Each has `target` and `version`, `began_unix_s`, `ended_unix_s` (None while it is under way), `seconds`,
    `downtime_s` (None where no node was stopped), `outcome` ("committed", "reverted", "abandoned", "halted" or
    "under way"), `reason`, `detail`, `who`, and `steps`: [{"state", "at_unix_s", "seconds", "reason", "detail"}].
    An upgrade whose beginning is not among the rows is left out.
    """
    groups: list[list[Row]] = []
    for row in rows:
        if row["from"] == "idle":
            groups.append([row])
        elif groups:
            groups[-1].append(row)
    return [_upgrade(group, now_unix_s) for group in reversed(groups[-limit:])]


def _upgrade(group: Sequence[Row], now_unix_s: float) -> dict[str, Any]:
    first, last = group[0], group[-1]
    over = last["to"] == "idle"
    outcomes = [ENDS[row["to"]] for row in group if row["to"] in ENDS]
    ended = last["at_unix_s"] if over else None
    told = next((row for row in group if row["reason"]), {})
    return {
        "target": next((row["target"] for row in group if row["target"]), ""),
        "version": next((row["version"] for row in group if row.get("version")), ""),
        "began_unix_s": first["at_unix_s"],
        "ended_unix_s": ended,
        "seconds": round((ended or now_unix_s) - first["at_unix_s"], 3),
        "downtime_s": _downtime(group, now_unix_s),
        "outcome": outcomes[-1] if outcomes and (over or last["to"] == "halted") else "under way",
        "reason": told.get("reason", ""),
        "detail": told.get("detail", ""),
        "who": next((row["who"] for row in group if row.get("who")), ""),
        "steps": _steps(group, now_unix_s),
    }


def _steps(group: Sequence[Row], now_unix_s: float) -> list[dict[str, Any]]:
    ends = [*(row["at_unix_s"] for row in group[1:]), now_unix_s]
    return [
        {
            "state": row["to"],
            "at_unix_s": row["at_unix_s"],
            "seconds": round(end - row["at_unix_s"], 3),
            "reason": row["reason"],
            "detail": row["detail"],
        }
        for row, end in zip(group, ends, strict=True)
        if row["to"] not in ("idle", "")  # a damaged row has no state
    ]


def _downtime(group: Sequence[Row], now_unix_s: float) -> float | None:
    """Return the total time without a serving node: from each stop to the next probation, or to the revert's end."""
    total, stopped_at, was_down = 0.0, None, False
    for row in group:
        if row["to"] in ("stopping", "reverting") and stopped_at is None:
            stopped_at, was_down = row["at_unix_s"], True
        elif row["to"] in ("probation", "reverted") and stopped_at is not None:
            total, stopped_at = total + row["at_unix_s"] - stopped_at, None
    if stopped_at is not None:
        total += now_unix_s - stopped_at
    return round(total, 3) if was_down else None


FORWARD = ("staging", "staged", "collecting", "sealed", "stopping", "launching", "delivering", "probation", "committed")
"""The straight path of an upgrade."""
INSTALL = ("staging", "staged", "launching", "delivering", "probation", "committed")
"""The straight path of a first install: there is no old version."""
LABELS = {
    "staging": "Download",
    "staged": "Gates",
    "collecting": "Collect keys",
    "sealed": "Permit",
    "stopping": "Stop old",
    "launching": "Start new",
    "delivering": "Hand over keys",
    "probation": "Probation",
    "committed": "Commit",
    "abandoned": "Given up",
    "reverting": "Go back",
    "reverted": "Old serves",
    "halted": "Halted",
}
"""Each state as a step that people read."""


def path(upgrade: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one upgrade's steps: [{"state", "label", "mark", "seconds"}], `mark` "done", "now", "todo" or "failed".

    An upgrade that was abandoned, reverted or halted shows the steps it completed, and the steps after the failure.
    """
    spent: dict[str, float] = {}
    for step in upgrade["steps"]:
        spent[step["state"]] = spent.get(step["state"], 0.0) + step["seconds"]
    last = upgrade["steps"][-1]["state"] if upgrade["steps"] else ""
    under_way = upgrade["ended_unix_s"] is None
    straight = INSTALL if "launching" in spent and "stopping" not in spent else FORWARD
    left = [state for state in spent if state not in FORWARD]
    shown = [state for state in straight if state in spent or not left] + left
    return [
        {
            "state": state,
            "label": LABELS.get(state, state),
            "mark": _mark(state, state in spent, under_way and state == last),
            "seconds": spent.get(state),
        }
        for state in shown
    ]


def _mark(state: str, reached: bool, present: bool) -> str:
    if not reached:
        return "todo"
    if state not in FORWARD:
        return "failed"
    return "now" if present else "done"
