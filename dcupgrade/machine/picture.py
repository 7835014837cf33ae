"""The upgrade machine as a picture, drawn from its table: for the status page and for the documentation. Pure."""

from __future__ import annotations

from html import escape

from .state import Name
from .table import TABLE

PLACES: dict[Name, tuple[int, int]] = {
    Name.IDLE: (80, 60),
    Name.STAGING: (220, 60),
    Name.STAGED: (360, 60),
    Name.COLLECTING: (500, 60),
    Name.SEALED: (640, 60),
    Name.STOPPING: (780, 60),
    Name.ABANDONED: (220, 180),
    Name.COMMITTED: (360, 180),
    Name.PROBATION: (500, 180),
    Name.DELIVERING: (640, 180),
    Name.LAUNCHING: (780, 180),
    Name.REVERTED: (360, 300),
    Name.REVERTING: (640, 300),
    Name.HALTED: (500, 380),
}
"""Centres of the states' boxes. The straight path runs along the top and back along the middle; trouble is below."""
HALF_WIDTH, HALF_HEIGHT, GAP = 52, 18, 2

STYLE = (
    "svg{background:#f3f5f8}rect{fill:#fff;stroke:#566072}path{fill:none;stroke:#9aa5b5;stroke-width:1.5}"
    "marker path{fill:#9aa5b5;stroke:none}text{font:13px sans-serif;text-anchor:middle;dominant-baseline:middle}"
)


def machine_svg(*, styled: bool = True) -> str:
    """An SVG with a group `data-state` for each state and an arrow for each pair of states that the table joins.

    `styled` False leaves colours to the page's style sheet.
    """
    arrows: dict[tuple[str, str], list[str]] = {}
    for edge in edges():
        if edge["from"] != edge["to"]:
            arrows.setdefault((edge["from"], edge["to"]), []).append(edge["on"])
    names = ", ".join(name.value for name in Name)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 870 430" role="img" '
        f'aria-label="Upgrade machine: {names}">',
        f"<style>{STYLE}</style>" if styled else "",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        *(_arrow(Name(a), Name(b), dict.fromkeys(labels)) for (a, b), labels in arrows.items()),
        *(_box(name) for name in Name),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _box(name: Name) -> str:
    x, y = PLACES[name]
    frame = f'x="{x - HALF_WIDTH}" y="{y - HALF_HEIGHT}" width="{2 * HALF_WIDTH}" height="{2 * HALF_HEIGHT}" rx="8"'
    return f'<g data-state="{name.value}"><rect {frame}/><text x="{x}" y="{y}">{name.value}</text></g>'


def _arrow(start: Name, end: Name, labels: dict[str, None]) -> str:
    (x1, y1), (x2, y2) = PLACES[start], PLACES[end]
    dx, dy = x2 - x1, y2 - y1
    reach = min((HALF_WIDTH + GAP) / abs(dx) if dx else 9.0, (HALF_HEIGHT + GAP) / abs(dy) if dy else 9.0)
    sx, sy, ex, ey = x1 + dx * reach, y1 + dy * reach, x2 - dx * reach, y2 - dy * reach
    bend = 34 if abs(dx) > 150 and dy == 0 else 0
    cx, cy = (sx + ex) / 2 - dy * 0.06, (sy + ey) / 2 + dx * 0.06 + bend
    title = escape(f"{start.value} to {end.value}: {', '.join(labels)}")
    path = f"M{sx:.1f} {sy:.1f} Q{cx:.1f} {cy:.1f} {ex:.1f} {ey:.1f}"
    return f'<path d="{path}" marker-end="url(#tip)"><title>{title}</title></path>'


def mermaid(lit: Name | None = None) -> str:
    """The table as a Mermaid state diagram; rows that stay in their state are left out, `lit` is highlighted."""
    edges: dict[tuple[str, str], list[str]] = {}
    for row in TABLE:
        if row.source is not row.target:
            edges.setdefault((row.source.value, row.target.value), []).append(row.label)
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    lines += [f"    {a} --> {b}: {', '.join(dict.fromkeys(labels))}" for (a, b), labels in edges.items()]
    if lit is not None:
        lines += ["    classDef lit fill:#2f6f4f,color:#fff", f"    class {lit.value} lit"]
    return "\n".join(lines) + "\n"


def edges() -> list[dict[str, str]]:
    """The table as plain rows for drawing: from, to, on (event and guard)."""
    return [{"from": row.source.value, "to": row.target.value, "on": row.label} for row in TABLE]
