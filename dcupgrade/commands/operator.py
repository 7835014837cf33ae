"""The operator's commands that act: each is queued in the journal, where the agent takes it up.

A command is not lost when the agent is down, and the history tells who gave it and why.
"""

import getpass
import os
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
from .tables import local_time

ANSWER_WAIT_S = 5.0
HOLD_HOURS_MAX = 87600.0


def _command(name: str, teach: str, *options: Callable[[Any], Any]) -> click.Command:
    """A command that queues the operator command `name` in the journal, and says what came of it."""

    @click.option("--reason", "-r", default="", help="Why; goes into the history.")
    @click.pass_obj
    def command(config_path: Path, /, reason: str, **arguments: Any) -> None:
        loaded = load.load(config_path)
        journal = open_journal(loaded)
        if "enclave_id" in arguments:
            arguments["enclave_id"] = arguments["enclave_id"] or _offered(journal)
        number = queue(journal, name, who_asks(), {"reason": reason, **_plain(arguments)})
        if ask_agent(loaded, "/healthz") is None:
            click.echo(f"{name}: queued as command {number}; {_while_down(journal, number)}")
            return
        click.echo(f"{name}: {tell_outcome(name, journal, number)}.")

    made: Any = command
    for option in options:
        made = option(made)
    return click.command(name, help=teach)(made)


def _while_down(journal: Journal, number: int) -> str:
    """What becomes of a command that nobody takes up now."""
    [expires] = [command.expires_unix_s for command in journal.commands() if command.id == number] or [None]
    until = f" until {local_time(expires)}" if expires else ""
    return (
        f"the agent does not run, or serves no HTTP. It takes this up when it runs{until}. "
        f"`dcupgrade cancel {number}` withdraws it."
    )


def queue(journal: Journal, name: str, who: str, arguments: Mapping[str, Any]) -> int:
    """Queue an operator command; returns its number. Raises UsageError for one that means nothing."""
    try:
        return journal.enqueue(name, who, require_valid(name, who, arguments))
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def tell_outcome(name: str, journal: Journal, number: int) -> str:
    """Wait briefly for what came of a command. Raises DcupgradeError with the code of a refusal."""
    deadline = time.monotonic() + ANSWER_WAIT_S
    while (outcome := journal.outcome(number)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if outcome is None:
        raise DcupgradeError(
            code="COMMAND_WAITS",
            what=f"{name}, command {number}",
            why=f"the agent did not take it up within {ANSWER_WAIT_S:.0f} s",
            action=f"It still waits: see `dcupgrade status`, or withdraw it with `dcupgrade cancel {number}`.",
            kind="transient",
        )
    if not outcome.accepted:
        code = outcome.code or "COMMAND_INVALID"
        action = f"See `dcupgrade explain {code}`."
        raise DcupgradeError(code=code, what=name, why=outcome.text or "refused", action=action)
    return outcome.text


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


def who_asks() -> str:
    """Who gives a command, for the history."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user that has no name
        return f"uid {os.getuid()}"


_id = click.argument("enclave_id", default="")
hold = _command(
    "hold",
    "Start no upgrade until `unhold`, or for --hours. An upgrade that has not yet stopped the node waits too.",
    click.option(
        "--hours",
        type=click.FloatRange(min=0, min_open=True, max=HOLD_HOURS_MAX),
        help="End by itself after this many hours.",
    ),
)
unhold = _command("unhold", "Lift the hold.")
approve = _command(
    "approve",
    "Approve the release on the chain (or ENCLAVE_ID only), where settings ask for it; lifts no quarantine.",
    _id,
)
override = _command(
    "override",
    "Open all gates but the host's preflight for ENCLAVE_ID (else the release on the chain), in an emergency; who "
    "and why is journalled.",
    _id,
)
retry = _command(
    "retry",
    "Lift the quarantine of the release on the chain (or of ENCLAVE_ID only), and try it again at once.",
    _id,
)
resume = _command("resume", "Leave a halted condition after its cause is fixed (see `explain`).")
revert = _command("revert", "Go back to the previous version, by the same rules as an automatic revert.")


@click.command()
@click.argument("number", type=click.IntRange(1))
@click.pass_obj
def cancel(config_path: Path, number: int) -> None:
    """Withdraw the operator command NUMBER that waits; `status` lists those that do."""
    journal = open_journal(load.load(config_path))
    if journal.cancel(number, who_asks()):
        click.echo(f"command {number} is withdrawn.")
        return
    outcome = journal.outcome(number)
    raise DcupgradeError(
        code="COMMAND_NOT_WAITING",
        what=f"command {number}",
        why=f"it does not wait any more: {outcome.text}" if outcome else "there is none of that number",
        action="`dcupgrade status` lists what waits.",
    )


@click.command()
@click.pass_obj
def diagram(_: Path) -> None:
    """Print the upgrade machine as a Mermaid diagram, drawn from its table."""
    from dcupgrade.machine.picture import mermaid

    click.echo(mermaid())
