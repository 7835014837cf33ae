"""`dcupgrade status` and `plan`: is all well, who is needed, what would be done next."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from dcupgrade.errors import DcupgradeError
from dcupgrade.printable import one_line
from dcupgrade.settings import load
from dcupgrade.surfaces.overview import EXIT_CODES, overview

from .explain import meaning_and_remedy
from .local_agent import ask_agent, open_journal
from .tables import json_option, local_time, print_table


@click.command()
@json_option
@click.option("--exit-code", is_flag=True, help="Exit with 3 where something needs attention, 4 where no node serves.")
@click.pass_obj
def status(config_path: Path, as_json: bool, exit_code: bool) -> None:
    """Show whether node, vault and chain are well, what runs, what is being done, and what needs a person.

    With --exit-code: 0 all is well, or an upgrade is under way; 3 something needs attention; 4 the node is down, the
    machine is halted, or the agent does not run.
    """
    loaded = load.load(config_path)
    live = ask_agent(loaded, "/api/v1/status")
    written = 0.0
    if live is not None and isinstance(live.get("state"), dict):
        facts = {**live, "agent": "running"}
    else:
        journal = open_journal(loaded)
        stored = journal.load()
        facts = {"agent": "not running", "state": stored.to_json() if stored else None, "now_unix_s": time.time()}
        facts["commands"] = [command.to_json() for command in journal.commands()]
        written = max((row["at_unix_s"] for row in journal.history(1, all_events=True)), default=0.0)
    facts.setdefault("overview", overview(facts, None, meaning_and_remedy))
    if as_json:
        click.echo(json.dumps(facts, indent=2, sort_keys=True))
    else:
        _print(facts, written)
    if exit_code:
        sys.exit(EXIT_CODES[facts["overview"]["level"]])


def _print(facts: Mapping[str, Any], written_unix_s: float) -> None:
    """The headline, then the answers; `written_unix_s` is when the journal was written last, 0 for live facts."""
    told = facts["overview"]
    click.echo(one_line(told["headline"]))
    if written_unix_s:
        click.echo(f"What follows is from the journal, last written {local_time(written_unix_s)}.")
    click.echo()
    print_table(("", ""), list(_rows(told)))


def _rows(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for need in told["attention"]:
        yield ("needs you", f"{need['code']}: {need['detail'] or need['what']}")
        yield ("", need["what"])
        yield ("  do", need["remedy"])
    for command in told["queued"]:
        yield ("queued", f"{command['text']} (`dcupgrade cancel {command['id']}`)")
    for card in told["cards"]:
        yield (card["name"], card["headline"])
        yield from ((f"  {name}", text) for name, text in card["facts"])


@click.command()
@json_option
@click.pass_obj
def plan(config_path: Path, as_json: bool) -> None:
    """Tell what would be done with the release on the chain now, which gates are open or shut, and why."""
    loaded = load.load(config_path)
    facts = ask_agent(loaded, "/api/v1/plan", timeout_s=10.0)
    if facts is None:
        raise DcupgradeError(
            code="AGENT_NOT_RUNNING",
            what="plan",
            why=f"no agent answers on {loaded.agent.http_listen}",
            action="Start `dcupgrade watch`: the plan needs its view of the chain.",
            kind="transient",
        )
    if as_json:
        click.echo(json.dumps(facts, indent=2, sort_keys=True))
        return
    for line in facts.get("lines", []):
        click.echo(one_line(line))
