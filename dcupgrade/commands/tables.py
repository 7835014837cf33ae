"""How commands print: rows in columns, times with their zone. What is printed is never obeyed by a terminal."""

import shutil
import sys
import textwrap
import time
from collections.abc import Sequence

import click

from dcupgrade.printable import one_line

GAP = "  "
LAST_COLUMN_MIN = 20
"""Characters that the last column keeps on a terminal that is too narrow for all."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; its schema is docs/schemas/.")


def local_time(unix_s: float) -> str:
    """A time for a reader: local, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(unix_s))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows in columns; on a terminal the last one is folded. A header of empty texts is not printed."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    terminal = sys.stdout.isatty()
    lines = [list(header), *rows] if any(header) else rows
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(len(header))]
    indent = sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
    room = max(LAST_COLUMN_MIN, shutil.get_terminal_size().columns - indent) if terminal else sys.maxsize
    for line in lines:
        *cells, last = [cell.ljust(width) for cell, width in zip(line[:-1], widths[:-1], strict=True)] + [line[-1]]
        folded = _folded(last, room)
        if terminal and cells:
            cells[0] = click.style(cells[0], bold=True)
        click.echo(GAP.join([*cells, folded[0]]).rstrip())
        for rest in folded[1:]:
            click.echo(" " * indent + rest)


def _folded(text: str, room: int) -> list[str]:
    """The text in lines of at most `room` characters. Long words are broken: a cut enclave id would be of no use."""
    return textwrap.wrap(text, room, break_on_hyphens=False) or [""]
