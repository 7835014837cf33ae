"""The command line as a user types it."""

from pathlib import Path

from click.testing import CliRunner

from dcupgrade.commands import main as cli
from dcupgrade.machine.state import Release

KEY = "bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"
NEW = Release("b" * 64, "1.1.0 [red]", added_height=9)


def run(config: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output, errors included."""
    done = CliRunner().invoke(cli.cli, ["--config", str(config), *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return 1, str(done.exception)
    return done.exit_code, done.output
