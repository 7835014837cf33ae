"""`dcupgrade history`: what happened, an upgrade a line, or each change of state."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dcupgrade.settings import load
from dcupgrade.surfaces.times import span
from dcupgrade.surfaces.upgrades import ROWS_PER_UPGRADE, upgrades

from .local_agent import open_journal
from .tables import json_option, local_time, print_table


@click.command()
@json_option
@click.option("--limit", "-n", default=50, show_default=True, type=click.IntRange(1, 10000), help="How many lines.")
@click.option("--steps", is_flag=True, help="Each change of state instead of a line for each upgrade.")
@click.option("--all", "all_events", is_flag=True, help="Every event, also those that changed no state.")
@click.pass_obj
def history(config_path: Path, as_json: bool, limit: int, steps: bool, all_events: bool) -> None:
    """Show what happened: each upgrade with its version, duration, downtime, outcome and reason; the newest first.

    With --steps or --all: the changes of state, or every event, the newest last.
    """
    journal = open_journal(load.load(config_path))
    if steps or all_events:
        _print_rows(journal.history(limit, all_events=all_events), as_json)
        return
    found = upgrades(journal.history(limit * ROWS_PER_UPGRADE), limit, time.time())
    if as_json:
        click.echo(json.dumps({"upgrades": found}, indent=2))
        return
    if not found:
        click.echo("There was no upgrade yet.")
        return
    print_table(("began", "version", "outcome", "took", "downtime", "why"), [_upgrade_row(item) for item in found])


def _upgrade_row(item: Mapping[str, Any]) -> tuple[str, ...]:
    who = f"(by {item['who']})" if item["who"] else ""
    return (
        local_time(item["began_unix_s"]),
        item["version"] or item["target"][:12] or "-",
        item["outcome"],
        span(item["seconds"]),
        "-" if item["downtime_s"] is None else span(item["downtime_s"]),
        " ".join(part for part in (item["reason"], item["detail"], who) if part),
    )


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    for before, row in zip([None, *rows], rows, strict=False):
        row["seconds_in_state"] = round(row["at_unix_s"] - before["at_unix_s"], 3) if before else None
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    lines = [
        (
            local_time(row["at_unix_s"]),
            row["version"],
            row["from"],
            row["to"],
            "" if row["seconds_in_state"] is None else span(row["seconds_in_state"]),
            _why(row),
        )
        for row in rows
    ]
    print_table(("time", "version", "from", "to", "after", "why"), lines)


def _why(row: Mapping[str, Any]) -> str:
    """Reason and detail; where the state stayed, or a person spoke, the event, and who it was."""
    event = row["event"] if row["from"] == row["to"] or row.get("who") else ""
    who = f"(by {row['who']})" if row.get("who") else ""
    return " ".join(part for part in (event, row["reason"], row["detail"], who) if part)
