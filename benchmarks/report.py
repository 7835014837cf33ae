"""What a benchmark reports: rows of a number and its target. `run.py` collects them and writes table and plots."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

#: The file that rows are appended to, a line of JSON each; without it a benchmark only prints.
ROWS_VARIABLE = "BENCH_ROWS"
WIDTH, LABEL, BAR, LINE = 860, 400, 300, 24


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `at_most` or `at_least` is its target, in the same unit; neither where it is a peer's or has none."""

    what: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    peer: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least

    @property
    def target(self) -> str:
        """The target as a reader sees it."""
        if self.at_most is not None:
            return f"at most {self.at_most:g} {self.unit}"
        return "" if self.at_least is None else f"at least {self.at_least:g} {self.unit}"

    @property
    def part_of_target(self) -> float | None:
        """1 where the target is just met, less where it is met with room."""
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


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    lines = ["| what | figure | target | met |", "|---|---|---|---|"]
    for row in rows:
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        what = f"{row.what}, for comparison" if row.peer else row.what
        note = f" ({row.note})" if row.note else ""
        lines.append(f"| {what} | {row.value:.3g} {row.unit}{note} | {row.target} | {met} |".replace("  ", " "))
    return "\n".join(lines)


def bars(title: str, rows: Sequence[tuple[str, float, str, str]], line_at: float | None = None) -> str:
    """An SVG of horizontal bars: label, length, text behind it, and class (`ours`, `peer`, `missed`)."""
    most = max([line_at or 0.0, *(length for _, length, _, _ in rows)]) or 1.0
    height = LINE * len(rows) + 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="{escape(title)}">',
        "<style>svg{background:#fff}text{font:13px sans-serif;fill:#333}.ours{fill:#2f6fab}.peer{fill:#b9c4cf}"
        ".missed{fill:#c0504d}line{stroke:#333;stroke-dasharray:4 3}</style>",
        f'<text x="12" y="22" style="font-weight:bold">{escape(title)}</text>',
    ]
    for number, (label, length, text, kind) in enumerate(rows):
        y, wide = 36 + number * LINE, max(1.0, BAR * length / most)
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{kind}" x="{LABEL}" y="{y + 2}" width="{wide:.1f}" height="{LINE - 8}"/>',
            f'<text x="{LABEL + wide + 6:.1f}" y="{y + 14}">{escape(text)}</text>',
        ]
    if line_at is not None:
        x = LABEL + BAR * line_at / most
        parts.append(f'<line x1="{x:.1f}" y1="32" x2="{x:.1f}" y2="{height - 16}"/>')
    return "\n".join([*parts, "</svg>", ""])


def summary_plot(rows: Sequence[Row]) -> str:
    """Every figure that has a target, as a part of it; the line is the target."""
    shown = [(row, row.part_of_target) for row in rows if row.part_of_target is not None]
    return bars(
        "Figures as a part of their targets; the line is the target, shorter is better",
        [
            (row.what, min(part, 3.0), f"{row.value:.3g} {row.unit}", "ours" if row.met else "missed")
            for row, part in shown
            if part is not None
        ],
        1.0,
    )


def unit_plots(title: str, rows: Sequence[Row]) -> dict[str, str]:
    """One plot for each unit of a benchmark that has peers: file name and SVG."""
    plots = {}
    for unit in dict.fromkeys(row.unit for row in rows):
        same = [row for row in rows if row.unit == unit]
        if any(row.peer for row in same):
            kinds = [(row, "peer" if row.peer else "missed" if row.met is False else "ours") for row in same]
            drawn = [(row.what, row.value, f"{row.value:.3g} {unit}", kind) for row, kind in kinds]
            plots[f"{title.split(',')[0].replace(' ', '-')}.svg"] = bars(f"{title}, {unit}", drawn)
    return plots
