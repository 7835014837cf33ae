"""The command line. Heavy modules are imported by the commands that need them: ``--help`` stays quick."""

import contextlib
import difflib
import importlib
import io
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from dcupgrade import __version__
from dcupgrade.errors import why_of
from dcupgrade.settings import load
from dcupgrade.settings.profiles import PROFILES, Pinned, filled_policy

OPERATOR = "dcupgrade.commands.operator"
LAZY: dict[str, tuple[str, str, str]] = {
    "adopt": ("dcupgrade.commands.adopt", "adopt", "Take over a node that runs already."),
    "approve": (OPERATOR, "approve", "Approve the release on the chain."),
    "cancel": (OPERATOR, "cancel", "Withdraw an operator command that waits."),
    "chain": ("dcupgrade.commands.chain", "chain", "Look at the chain: releases, and the checkpoint to pin."),
    "check": ("dcupgrade.commands.check", "check", "Examine host, chain, vault and node: the doctor."),
    "diagram": (OPERATOR, "diagram", "Print the upgrade machine as a Mermaid diagram."),
    "fleet": ("dcupgrade.commands.fleet", "fleet", "Look at the fleet, stop it, let it continue."),
    "history": ("dcupgrade.commands.history", "history", "Show what happened: upgrades, outcomes, durations, reasons."),
    "hold": (OPERATOR, "hold", "Start no upgrade until `unhold`, or for some hours."),
    "init": ("dcupgrade.commands.init", "init", "Write a settings file, make folders and tokens, check the result."),
    "list": ("dcupgrade.commands.list_nodes", "list_nodes", "List the nodes of this host and what they share wrongly."),
    "node": ("dcupgrade.commands.node", "node", "Stop, start or restart the node."),
    "override": (OPERATOR, "override", "Open all gates for one release, in an emergency."),
    "plan": ("dcupgrade.commands.status", "plan", "Tell what would be done now, and why not yet."),
    "release": ("dcupgrade.commands.release", "release", "Build, sign, verify, publish and revoke (release managers)."),
    "resume": (OPERATOR, "resume", "Leave a halted condition after its cause is fixed."),
    "retry": (OPERATOR, "retry", "Lift a quarantine and try the release again."),
    "revert": (OPERATOR, "revert", "Go back to the previous version."),
    "status": ("dcupgrade.commands.status", "status", "Show whether all is well, what runs, and what needs a person."),
    "unhold": (OPERATOR, "unhold", "Lift the hold."),
}
"""Commands that are imported when they are asked for: module, attribute, one line of help."""


class LazyGroup(click.Group):
    """A group whose larger subcommands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, lazy ones included."""
        return sorted({*super().list_commands(ctx), *LAZY})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported if need be; it takes --config as the program itself does."""
        command = super().get_command(ctx, cmd_name)
        if cmd_name in LAZY:
            module, attribute, _ = LAZY[cmd_name]
            command = getattr(importlib.import_module(module), attribute)
        return command and _accepting_config(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant; a misspelt one is answered with those that are near, lazy ones included."""
        name = args[0]
        if not name.startswith("-") and not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx))
            meant = f" Did you mean {' or '.join(near)}?" if near else " `dcupgrade --help` lists all."
            raise click.UsageError(f"No such command {name!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing the lazy ones."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.commands.get(name)
            rows.append((name, command.get_short_help_str(80) if command else LAZY[name][2]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _accepting_config(command: click.Command) -> click.Command:
    """The command, and those below it, with --config also after its name: people put it there."""
    if not any(parameter.name == "config_after" for parameter in command.params):
        command.params.append(
            click.Option(
                ["--config", "-c", "config_after"],
                type=CONFIG_TYPE,
                expose_value=False,
                hidden=True,
                callback=_use_config,
            )
        )
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        _accepting_config(inner)
    return command


def _use_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        ctx.obj = path


CONFIG_TYPE = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "-c",
    "config_path",
    type=CONFIG_TYPE,
    envvar="DCUPGRADE_CONFIG",
    default=Path("/etc/dcupgrade/dcupgrade.toml"),
    show_default=True,
    help="Settings file; the option may also stand after the command.",
)
@click.version_option(__version__, "--version", "-V", prog_name="dcupgrade")
@click.pass_context
def cli(ctx: click.Context, config_path: Path) -> None:
    """Carry the application keys of a TEE storage node from one signed version to the next.

    Operators run `dcupgrade watch` as a service and look with `status`, `plan` and `history`. Release managers use
    `release`. `explain CODE` tells what an error code means and what to do.
    """
    ctx.obj = config_path


def _settings(ctx: click.Context) -> Any:

    return load.load(ctx.obj)


@cli.command()
@click.option(
    "--first-install", is_flag=True, help="Nothing runs here yet: install the release on the chain without keys."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check the settings and the files they name, say what would be watched; start nothing.",
)
@click.pass_context
def watch(ctx: click.Context, first_install: bool, dry_run: bool) -> None:
    """Watch the chain and upgrade the node: the service itself."""
    loaded = _settings(ctx)
    if dry_run:
        from dcupgrade.adapters import chain
        from dcupgrade.settings.folders import require_files
        from dcupgrade.surfaces import webhooks

        require_files(loaded, ctx.obj)
        chain.watcher_config(loaded).require_consistent()
        for receiver in loaded.webhooks:
            webhooks.secret_of(receiver)
        click.echo(f"Settings are good. Would watch {', '.join(loaded.chain.endpoints)} for node {loaded.node.id}.")
        return
    from dcupgrade import service

    sys.exit(service.run(loaded, first_install=first_install))


@cli.command()
def version() -> None:
    """Print the version of this program, and of the Python that runs it."""
    click.echo(f"dcupgrade {__version__} (Python {platform.python_version()}, {Path(__file__).resolve().parents[1]})")


@cli.command()
@click.argument("code")
def explain(code: str) -> None:
    """Tell what an error CODE means and what to do about it."""
    from . import explain as codes

    click.echo(codes.explanation(code))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script: `eval "$(dcupgrade completion bash)"`."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is not None:
        click.echo(made(cli, {}, "dcupgrade", "_DCUPGRADE_COMPLETE").source())


@cli.group()
def config() -> None:
    """Show, check or make a settings file."""


@config.command("validate")
@click.pass_obj
def config_validate(path: Path) -> None:
    """Check the settings file and the files it names; every mistake is listed."""
    from dcupgrade.settings.folders import require_files

    require_files(load.load(path), path)
    click.echo(f"{path}: good")


@config.command("show")
@click.pass_context
def config_show(ctx: click.Context) -> None:
    """Print the settings in force, defaults and environment included, as JSON."""
    import attrs

    click.echo(json.dumps(attrs.asdict(_settings(ctx)), default=str, indent=2))


@config.command("example")
@click.option("--profile", type=click.Choice(list(PROFILES)), help="Fill it in for a host of this kind.")
@click.option("--policy", is_flag=True, help="Print the measured policy of that profile's vault instead.")
@click.option("--network-key", "network_keys", multiple=True, help="Public key of the network; repeatable.")
@click.option("--checkpoint", type=click.File(), help="What `dcupgrade chain checkpoint` printed, to be pinned.")
def config_example(profile: str | None, policy: bool, network_keys: tuple[str, ...], checkpoint: TextIO | None) -> None:
    """Print a commented settings file with every key and its default.

    With --profile it is complete for a host of that kind: `dcnet-container` (a node of the DC network in its
    container), `gramine-process` (a node as a process, under Gramine), `reference` (development). With --policy the
    `policy.json` that its vault is built with is printed; network keys and checkpoint go into both.
    """
    from dcupgrade.settings import reference as settings_reference

    if profile is None and (policy or network_keys or checkpoint):
        raise click.UsageError("--policy, --network-key and --checkpoint need --profile.")
    pinned = Pinned(network_keys, _checkpoint(checkpoint) if checkpoint is not None else None)
    if policy and profile:
        click.echo(json.dumps(filled_policy(profile, pinned), indent=2, ensure_ascii=False))
    else:
        click.echo(settings_reference.example_toml(profile or "", pinned))


def _checkpoint(file: TextIO) -> dict[str, Any]:
    """The checkpoint in a file. Raises CHECKPOINT_INVALID."""
    from chain_watcher.proof.grandpa import Checkpoint

    try:
        found = json.load(file)
    except (ValueError, RecursionError):
        found = None
    Checkpoint.from_json(found)
    return dict(found)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Any error becomes one message on standard error and exit code 1; no traceback reaches an operator.

    Whoever looks for a fault of the program sees it with DCUPGRADE_TRACEBACK=1 in the environment.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("DCUPGRADE_TRACEBACK"):
            raise
        from dcupgrade.printable import lines

        known = isinstance(getattr(error, "code", None), str)
        click.echo(lines(f"error: {error if known else _unexpected(error)}"), err=True)
        sys.exit(1)


def _unexpected(error: Exception) -> str:
    if isinstance(error, OSError):
        about = f"{error.filename}: " if error.filename else ""
        text = f"UNEXPECTED: {about}{why_of(error)}."
        return f"{text} Run this as the agent's user or as root." if isinstance(error, PermissionError) else text
    text = f"UNEXPECTED: {type(error).__name__}: {error}."
    return f"{text} With DCUPGRADE_TRACEBACK=1 in the environment it shows where; please report that."


def main() -> None:
    """Entry point of ``dcupgrade`` and ``python -m dcupgrade``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the locale may have no letter for what is printed
    with plain_errors():
        cli(prog_name="dcupgrade")
