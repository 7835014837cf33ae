"""The operator's commands that act: each is queued in the journal, where the agent takes it up.

A command is not lost when the agent is down, and the history tells who gave it and why.
"""

import getpass
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from dcupgrade.adapters.journal import Journal
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.operator_commands import require_valid
from dcupgrade.settings import load

from .local_agent import ask_agent, open_journal

ANSWER_WAIT_S = 5.0
HOLD_HOURS_MAX = 87600.0


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
retry = _word(
    "retry",
    "Release the release on the chain (or ENCLAVE_ID only) from quarantine, and try it again at once.",
    _id,
)
resume = _word("resume", "Leave a halted condition after its cause is mended (see `explain`).")
revert = _word("revert", "Go back to the previous version, by the same rules as an automatic revert.")


@click.command()
@click.pass_obj
def diagram(_: Path) -> None:
    """Print the upgrade machine as a Mermaid diagram, drawn from its table."""
    from dcupgrade.machine.picture import mermaid

    click.echo(mermaid())
