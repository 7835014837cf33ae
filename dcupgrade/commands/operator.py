"""The operator's commands: they read the journal, ask the running agent over loopback, and queue an operator's word.

A word (hold, approve, …) is written into the journal, where the agent takes it up; it is not lost when the agent is
down, and history tells who said it and why.
"""

import getpass
import http.client
import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from dcupgrade.adapters.journal import Journal
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.operator_commands import require_valid
from dcupgrade.printable import one_line
from dcupgrade.settings import load
from dcupgrade.settings import schema as settings

ANSWER_WAIT_S = 5.0
HOLD_HOURS_MAX = 87600.0
ANY_HOST = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where one listens, not what one binds
TROUBLE = {"retry": "tried again", "journal_failed": "journal", "chain_lost": "chain lost"}
"""Notes of the agent about what fails for now, and how `status` names them."""
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; its schema is docs/schemas/.")


def journal_path(loaded: settings.Settings) -> Path:
    """Where the agent keeps its journal."""
    return loaded.agent.state_dir / "journal.sqlite3"


def open_journal(loaded: settings.Settings) -> Journal:
    """The journal of this agent; raises DcupgradeError NO_JOURNAL, JOURNAL_UNREADABLE, JOURNAL_CORRUPT or _TOO_NEW."""
    path = journal_path(loaded)
    try:
        there = path.exists()
    except OSError as error:
        raise DcupgradeError(
            code="JOURNAL_UNREADABLE",
            what=f"journal {path}",
            why=str(error),
            action="Run this as the agent's user or as root.",
        ) from error
    if not there:
        raise DcupgradeError(
            code="NO_JOURNAL",
            what=f"journal {path}",
            why="there is none",
            action="Start `dcupgrade watch` once, or name the right settings file with --config.",
        )
    return Journal(path)


def agent_address(listen: str) -> str:
    """Host and port at which the agent is asked: its own address, or loopback where it listens on all of them."""
    host, _, port = listen.rpartition(":")
    bare = host.strip("[]")
    bare = ANY_HOST.get(bare, bare)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def ask_agent(loaded: settings.Settings, path: str, timeout_s: float = 1.0) -> dict[str, Any] | None:
    """The running agent's answer to a GET, or None where nobody answers, or something else does."""
    if loaded.agent.http_listen == "off":
        return None
    # the agent answers to this name whatever its address; a proxy of the environment has no business here
    address = agent_address(loaded.agent.http_listen)
    asked = urllib.request.Request(f"http://{address}{path}", headers={"Host": "localhost"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=timeout_s) as answer:
            decoded = json.load(answer)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return decoded if isinstance(decoded, dict) else None


@click.command()
@json_option
@click.pass_obj
def status(config_path: Path, as_json: bool) -> None:
    """Show what runs, what the machine is doing, and why it waits."""
    loaded = load.load(config_path)
    live = ask_agent(loaded, "/api/v1/status")
    written = ""
    if live is not None and isinstance(live.get("state"), dict):
        facts = {**live, "agent": "running"}
    else:
        journal = open_journal(loaded)
        stored = journal.load()
        facts = {"agent": "not running", "state": stored.to_json() if stored else None}
        written = "".join(_local(row["at_unix_s"]) for row in journal.history(1, all_events=True))
    if as_json:
        click.echo(json.dumps(facts, indent=2, sort_keys=True))
        return
    _print_status(facts, written)


def _print_status(facts: Mapping[str, Any], written: str) -> None:
    """The facts as a table; ``written`` is when the journal was written last, where they come from there."""
    state = facts.get("state") or {}
    rows = [("agent", str(facts.get("agent")) + (f"; what follows is of {written}" if written else ""))]
    rows.append(("state", str(state.get("name", "no upgrade was ever looked at"))))
    if state.get("halted"):
        rows.append(("halted", f"{state['halted']}: see `dcupgrade explain {state['halted']}`"))
    # what halted is told above already
    for alarm in facts.get("alarms") or []:
        if alarm["code"] != state.get("halted"):
            rows.append(("alarm", f"{alarm['code']}: {alarm['detail']}"))
    for name in ("running", "target", "previous"):
        release = state.get(name)
        if release:
            rows.append((name, f"{release['version'] or '?'}  {release['enclave_id']}"))
    if state.get("reason"):
        rows.append(("reason", f"{state['reason']} {state.get('detail', '')}".strip()))
    if state.get("hold"):
        until = state["hold"].get("until_unix_s")
        over = until and until <= (facts.get("now_unix_s") or time.time())
        end = f", {'ended' if over else 'until'} {_local(until)}" if until else ""
        rows.append(("hold", f"{state['hold']['reason']} (by {state['hold']['who'] or '?'}{end})"))
    progress = facts.get("progress") or {}
    for shut in progress.get("gates", {}).get("shut", []):
        rows.append(("waits", f"{shut['code']}: {shut['detail']}"))
    for name, label in TROUBLE.items():
        if name in progress:
            rows.append((label, str(progress[name].get("detail") or progress[name].get("code"))))
    for name, value in (facts.get("chain") or {}).items():
        if isinstance(value, str | int | float | bool):
            rows.append((f"chain {name}", str(value)))
        elif name == "problem" and value:
            rows.append(("chain problem", str(value["text"])))
        elif name in ("unsafe", "lying") and value:
            rows.append((f"chain {name}", ", ".join(value)))
    if facts.get("tee"):
        rows.append(("TEE", str(facts["tee"])))
    _print_table(("", ""), rows)


@click.command()
@json_option
@click.option("--limit", "-n", default=50, show_default=True, type=click.IntRange(1, 10000), help="How many rows.")
@click.option("--all", "all_events", is_flag=True, help="Every event, not only changes of state.")
@click.pass_obj
def history(config_path: Path, as_json: bool, limit: int, all_events: bool) -> None:
    """Show what happened: each change of state with its time, duration and reason."""
    rows = open_journal(load.load(config_path)).history(limit, all_events=all_events)
    for before, row in zip([None, *rows], rows, strict=False):
        row["seconds_in_state"] = round(row["at_unix_s"] - before["at_unix_s"], 3) if before else None
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    _print_table(
        ("time", "from", "to", "after", "why"),
        [
            (
                _local(row["at_unix_s"]),
                row["from"],
                row["to"],
                "" if row["seconds_in_state"] is None else f"{row['seconds_in_state']:.1f} s",
                _why(row),
            )
            for row in rows
        ],
    )


def _why(row: Mapping[str, Any]) -> str:
    """Reason and detail; where the state stayed, or a person spoke, the event, and who it was."""
    event = row["event"] if row["from"] == row["to"] or row.get("who") else ""
    who = f"(by {row['who']})" if row.get("who") else ""
    return " ".join(part for part in (event, row["reason"], row["detail"], who) if part)


def _local(unix_s: float) -> str:
    """A time for a reader: local, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(unix_s))


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows in columns: with colours on a terminal, plain in a pipe. What is in them is never obeyed by either."""
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
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(len(header))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _word(name: str, teach: str, *options: Callable[[Any], Any]) -> click.Command:
    """A command that queues the operator's word ``name`` in the journal."""

    @click.option("--reason", "-r", default="", help="Why; goes into the history.")
    @click.pass_obj
    def command(config_path: Path, /, reason: str, **arguments: Any) -> None:
        loaded = load.load(config_path)
        journal = open_journal(loaded)
        if "enclave_id" in arguments:
            arguments["enclave_id"] = arguments["enclave_id"] or _offered(journal)
        who = _who()
        try:
            told = require_valid(name, who, {"reason": reason, **_plain(arguments)})
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        number = journal.enqueue(name, who, told)
        if ask_agent(loaded, "/healthz") is None:
            click.echo(
                f"{name}: queued. The agent is not running, or serves no HTTP: it takes this up when it is there."
            )
            return
        deadline = time.monotonic() + ANSWER_WAIT_S
        while time.monotonic() < deadline:
            if journal.command_taken(number):
                click.echo(f"{name}: taken up by the agent.")
                return
            time.sleep(0.05)
        click.echo(f"{name}: queued, but not taken up within {ANSWER_WAIT_S:.0f} s. See `dcupgrade status`.", err=True)
        sys.exit(1)

    made: Any = command
    for option in options:
        made = option(made)
    return click.command(name, help=teach)(made)


def _offered(journal: Journal) -> str:
    """The id of the release on the chain, as the agent last saw it."""
    state = journal.load()
    if state is None or state.chain is None or state.chain.program is None:
        raise DcupgradeError(
            code="NO_RELEASE_SEEN",
            what="ENCLAVE_ID was left out",
            why="the agent has not seen a release on the chain yet",
            action="Name the enclave id.",
        )
    return state.chain.program.enclave_id


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    hours = arguments.get("hours")
    rest = {key: value for key, value in arguments.items() if key != "hours" and value is not None}
    return {**rest, "until_unix_s": time.time() + hours * 3600} if hours is not None else rest


def _who() -> str:
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user that has no name
        return f"uid {os.getuid()}"


_id = click.argument("enclave_id", default="")
hold = _word(
    "hold",
    "Start no upgrade until `unhold`, or for --hours. What is under way before `stopping` waits; later states go on.",
    click.option(
        "--hours", type=click.FloatRange(min=0, min_open=True, max=HOLD_HOURS_MAX), help="End by itself after so long."
    ),
)
unhold = _word("unhold", "Lift the hold.")
approve = _word(
    "approve", "Approve the release on the chain (or ENCLAVE_ID only), where settings ask for approval.", _id
)
override = _word(
    "override",
    "Open all gates but the host's preflight for ENCLAVE_ID (else the release on the chain), in an emergency; who "
    "and why is journalled.",
    _id,
)
resume = _word("resume", "Leave a halted condition after its cause is mended (see `explain`).")
revert = _word("revert", "Go back to the previous version, by the same rules as an automatic revert.")


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


@click.command()
@json_option
@click.pass_obj
def check(config_path: Path, as_json: bool) -> None:
    """Examine host, chain endpoints, vault and node. Changes nothing; exit code 1 where there is a fault."""
    import asyncio

    from . import check as doctor

    findings = asyncio.run(doctor.examine(load.load(config_path)))
    if as_json:
        click.echo(json.dumps([finding.to_json() for finding in findings], indent=2))
    else:
        for finding in findings:
            mark = {"good": "ok  ", "warning": "warn", "fault": "FAIL"}[finding.grade]
            code = f"  [{finding.code}]" if finding.code else ""
            click.echo(one_line(f"{mark}  {finding.check}: {finding.text}{code}"))
    sys.exit(any(finding.grade == "fault" for finding in findings))


@click.command()
@click.pass_obj
def diagram(_: Path) -> None:
    """Print the upgrade machine as a Mermaid diagram, drawn from its table."""
    from dcupgrade.machine.picture import mermaid

    click.echo(mermaid())
