"""The plots of the page, as SVG: horizontal bars, readable at the width of a README, on light and dark ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from .report import Row

WIDTH, SIDE, TEXT_WIDTH, LINE = 880, 16, 430, 24
BAR_FROM, BAR_TO = SIDE + TEXT_WIDTH + 12, WIDTH - 150
LABEL_CHARACTERS = 62
FULL = 1.5
"""The part of its target at which a bar in the summary ends; longer ones are cut and marked."""
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2933}.head{font-size:15px;font-weight:600}"
    ".group{font-weight:600}.quiet{fill:#5b6875}.figure{font-variant-numeric:tabular-nums}"
    ".ours{fill:#2f7fc1}.peer{fill:#9aa7b4}.missed{fill:#cf4b3f}.track{fill:#e6ebf0}"
    ".target{stroke:#1f2933;stroke-width:1.5;stroke-dasharray:5 3}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.quiet{fill:#9aa7b4}.track{fill:#2a333d}"
    ".peer{fill:#6b7885}.target{stroke:#e6edf3}}"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its label, its length, the text behind it, and its class (`ours`, `peer` or `missed`)."""

    label: str
    length: float
    text: str
    kind: str


def shortened(text: str) -> str:
    """A label that fits, without marks of Markdown, cut in the middle: both ends tell figures apart."""
    text = text.replace("`", "")
    if len(text) <= LABEL_CHARACTERS:
        return text
    half = (LABEL_CHARACTERS - 1) // 2
    return f"{text[:half].rstrip()}…{text[-half:].lstrip()}"


def chart(title: str, groups: Mapping[str, Sequence[Bar]], full: float, target: float | None = None) -> str:
    """An SVG of bars under the names of their groups; `full` is the length that fills the width."""
    parts, y = [f'<text class="head" x="{SIDE}" y="28">{escape(title)}</text>'], 44
    top = y
    for name, bars in groups.items():
        if name:
            y += LINE
            parts.append(f'<text class="group" x="{SIDE}" y="{y + 1}">{escape(name)}</text>')
            y += 8
        for bar in bars:
            parts += _bar(bar, y, full)
            y += LINE
        y += 4
    if target is not None:
        x = BAR_FROM + (BAR_TO - BAR_FROM) * target / full
        parts.append(f'<line class="target" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{y + 2}"/>')
        parts.append(f'<text class="quiet" x="{x:.1f}" y="{y + 18}" text-anchor="middle">100 % of the target</text>')
        y += 24
    box = f'viewBox="0 0 {WIDTH} {y + 8}" role="img" aria-label="{escape(title)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def _bar(bar: Bar, y: int, full: float) -> list[str]:
    room = BAR_TO - BAR_FROM
    wide = max(2.0, room * min(bar.length, full) / full)
    cut = bar.length > full
    middle = y + 16
    shapes = [
        f'<text x="{BAR_FROM - 10}" y="{middle}" text-anchor="end">{escape(shortened(bar.label))}</text>',
        f'<rect class="track" x="{BAR_FROM}" y="{y + 4}" width="{room}" height="{LINE - 8}" rx="2"/>',
        f'<rect class="{bar.kind}" x="{BAR_FROM}" y="{y + 4}" width="{wide:.1f}" height="{LINE - 8}" rx="2"/>',
    ]
    text = f"{'▸ ' if cut else ''}{bar.text}"
    return [*shapes, f'<text class="figure" x="{BAR_TO + 8}" y="{middle}">{escape(text)}</text>']


def summary_plot(groups: Mapping[str, Sequence[Row]]) -> str:
    """Every figure that has a target, as a part of it, under the name of its benchmark."""
    drawn = {
        name: [
            Bar(row.what, part, row.figure, "ours" if row.met else "missed")
            for row in rows
            if (part := row.part_of_target) is not None
        ]
        for name, rows in groups.items()
    }
    title = "Each figure as a part of its target: shorter is better, red misses it"
    return chart(title, {name: bars for name, bars in drawn.items() if bars}, FULL, 1.0)


def unit_plots(title: str, rows: Sequence[Row]) -> dict[str, str]:
    """One plot for each unit of a benchmark that has peers: file name and SVG."""
    plots = {}
    for unit in dict.fromkeys(row.unit for row in rows):
        same = [row for row in rows if row.unit == unit and row.value is not None]
        if any(row.peer for row in same):
            bars = [
                Bar(
                    row.what,
                    row.value or 0.0,
                    row.figure,
                    "peer" if row.peer else "missed" if row.met is False else "ours",
                )
                for row in same
            ]
            most = max(bar.length for bar in bars) or 1.0
            plots[f"{_slug(unit)}.svg"] = chart(f"{title}, {unit}", {"": bars}, most)
    return plots


def _slug(unit: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in unit.replace("%", "percent")) or "count"
