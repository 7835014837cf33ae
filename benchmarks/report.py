"""What a benchmark reports: rows of a number and its target. `run.py` collects them and writes the page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

#: The file that rows are appended to, a line of JSON each; without it a benchmark only prints.
ROWS_VARIABLE = "BENCH_ROWS"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `at_most` or `at_least` is its target, in the same unit; neither where it is a peer's or has none.

    Without a value it was not measured, and the note says why.
    """

    what: str
    value: float | None
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    peer: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.value is None:
            return None
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least

    @property
    def figure(self) -> str:
        """The figure as a reader sees it: three digits that count, thousands written out."""
        if self.value is None:
            return "not measured"
        digits = f"{self.value:,.0f}" if abs(self.value) >= 1000 else f"{self.value:.3g}"
        return f"{digits} {self.unit}".strip()

    @property
    def target(self) -> str:
        """The target as a reader sees it."""
        if self.at_most is not None:
            return f"at most {self.at_most:,g} {self.unit}"
        return "" if self.at_least is None else f"at least {self.at_least:,g} {self.unit}"

    @property
    def part_of_target(self) -> float | None:
        """1 where the target is just met, less where it is met with room."""
        if self.value is None:
            return None
        if self.at_most == 0:
            return math.inf if self.value > 0 else 0.0
        if self.at_most is not None:
            return self.value / self.at_most
        return None if self.at_least is None else self.at_least / max(self.value, 1e-9)


def emit(*rows: Row) -> None:
    """Hand rows to `run.py`, if it runs this benchmark."""
    path = os.environ.get(ROWS_VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def read_rows(path: Path) -> list[Row]:
    """What `emit` wrote."""
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def missing_peers(reasons: Mapping[str, str], unit: str) -> list[Row]:
    """A row for each peer that could not be had, with the reason."""
    return [Row(name, None, unit, peer=True, note=why) for name, why in reasons.items()]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    lines = ["| what | figure | target | met |", "|---|---|---|---|"]
    for row in rows:
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        what = f"{row.what}, for comparison" if row.peer else row.what
        note = f" ({row.note})" if row.note else ""
        lines.append(f"| {what} | {row.figure}{note} | {row.target} | {met} |".replace("  ", " "))
    return "\n".join(lines)
