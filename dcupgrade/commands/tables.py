"""How commands print: rows in columns, times with their zone. What is printed is never obeyed by a terminal."""

import sys
import time
from collections.abc import Sequence

import click

from dcupgrade.printable import one_line

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; its schema is docs/schemas/.")


def local_time(unix_s: float) -> str:
    """A time for a reader: local, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(unix_s))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows in columns: with colours on a terminal, plain in a pipe. A header of empty texts is not printed."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*header, show_header=any(header), box=None, pad_edge=False)
        for column in table.columns:
            column.overflow = "fold"  # an enclave id or a code that is cut off is of no use
        for row in rows:
            table.add_row(Text(row[0], style="bold"), *map(Text, row[1:]))
        Console().print(table)
        return
    lines = [list(header), *rows] if any(header) else rows
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(len(header))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
