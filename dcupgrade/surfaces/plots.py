"""Plots as inline SVG. Pure."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .times import span

WIDTH, HEIGHT, MARGIN = 600, 120, 16
BARS_MAX = 30


def downtime_svg(upgrades: Sequence[Mapping[str, Any]]) -> str:
    """Draw a bar for each upgrade that stopped a node, the oldest on the left; "" if there are none."""
    stopped = [one for one in reversed(upgrades) if one["downtime_s"] is not None][-BARS_MAX:]
    if not stopped:
        return ""
    most = max([0.1, *(one["downtime_s"] for one in stopped)])
    wide = (WIDTH - 2 * MARGIN) / len(stopped)
    bars = "".join(_bar(one, MARGIN + number * wide, wide, most) for number, one in enumerate(stopped))
    upgrades_told = f"{len(stopped)} upgrades" if len(stopped) > 1 else "upgrade"
    label = f"Downtime of the last {upgrades_told}, at most {span(most)}"
    return (
        f'<figure><figcaption>{escape(label)}</figcaption><svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}"><line x1="{MARGIN}" y1="{HEIGHT - MARGIN}" x2="{WIDTH - MARGIN}" '
        f'y2="{HEIGHT - MARGIN}"/>{bars}</svg></figure>'
    )


def _bar(upgrade: Mapping[str, Any], x: float, wide: float, most: float) -> str:
    high = max(1.0, (HEIGHT - 2 * MARGIN) * upgrade["downtime_s"] / most)
    name = escape(str(upgrade["version"] or upgrade["target"][:12]))
    title = f"{name}: {span(upgrade['downtime_s'])}, {escape(upgrade['outcome'])}"
    return (
        f'<rect data-outcome="{escape(upgrade["outcome"])}" x="{x + wide * 0.1:.1f}" y="{HEIGHT - MARGIN - high:.1f}" '
        f'width="{min(wide * 0.8, 40):.1f}" height="{high:.1f}"><title>{title}</title></rect>'
    )
