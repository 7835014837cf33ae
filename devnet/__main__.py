"""`python -m devnet`: each command is in the module that does its work, which is imported when it is needed."""

import importlib

import click

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("devnet.up", "Start a dev chain and keep it until interrupted."),
    "node-build": ("devnet.up", "Build the Substrate node, or say where it is built already."),
    "kube-build": ("devnet.kube_tools", "Build kube-apiserver, kubectl and helm, or say where they are."),
    "demo": ("devnet.demo", "Run the whole upgrade trial."),
    "compose-trial": ("devnet.docker.trial", "Run the whole upgrade trial in containers."),
}


class LazyGroup(click.Group):
    """A group whose commands are named in COMMANDS: name -> (module, help). `-` in a name is `_` in the module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, without importing anything."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command from its module and return it."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, so that help imports nothing either."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup)
def main() -> None:
    """DCUpgrade's development network."""


if __name__ == "__main__":
    main(prog_name="python -m devnet")
