"""`dcupgrade list`: the nodes of this host, one for each settings file, and what two of them must not share."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from dcupgrade.settings import load
from dcupgrade.settings.errors import SettingsError
from dcupgrade.settings.schema import Settings

from .local_agent import agent_address, ask_agent, running_version
from .tables import json_option, print_table


@dataclass(frozen=True, slots=True)
class Listed:
    """One settings file. `problems` says what is wrong in it, and what another file has too."""

    name: str
    node_id: str = ""
    port: int = 0
    vault: str = ""
    page: str = ""
    version: str = ""
    agent: str = ""
    problems: tuple[str, ...] = ()


@click.command("list")
@json_option
@click.pass_obj
def list_nodes(config_path: Path, as_json: bool) -> None:
    """List the nodes of this host: a settings file each, in the folder of --config.

    Exit code 3 where files cannot be read, or two nodes share a folder, a port or a name.
    """
    found = look(config_path.parent)
    if as_json:
        click.echo(json.dumps([asdict(item) for item in found], indent=2))
    elif not found:
        click.echo(f"There is no settings file in {config_path.parent}.")
    else:
        header = ("name", "node", "port", "vault", "page", "runs", "agent")
        rows = [
            (item.name, item.node_id, str(item.port or ""), item.vault, item.page, item.version, item.agent)
            for item in found
        ]
        print_table(header, rows)
        for item in found:
            for problem in item.problems:
                click.echo(f"{item.name}: {problem}")
    if any(item.problems for item in found):
        sys.exit(3)


def look(folder: Path) -> list[Listed]:
    """The nodes whose settings lie in a folder, by name."""
    read: dict[str, Settings] = {}
    found: list[Listed] = []
    for path in sorted(folder.glob("*.toml")):
        try:
            # without the environment, which would give every file the same values
            read[path.stem] = load.load(path, {})
        except SettingsError as error:
            found.append(Listed(path.stem, problems=tuple(error.mistakes)))
    shared = clashes(read)
    for name, settings in read.items():
        page = settings.agent.http_listen
        found.append(
            Listed(
                name,
                settings.node.id,
                settings.node.port,
                settings.vault.url,
                page if page == "off" else agent_address(page),
                running_version(settings),
                "runs" if ask_agent(settings, "/api/v1/status") is not None else "does not answer",
                shared.get(name, ()),
            )
        )
    return sorted(found, key=lambda item: item.name)


def clashes(nodes: Mapping[str, Settings]) -> dict[str, tuple[str, ...]]:
    """What each node must have for itself and another one has too, by name."""
    owners: dict[tuple[str, str], list[str]] = {}
    for name, settings in nodes.items():
        for use in _own(settings):
            owners.setdefault(use, []).append(name)
    found: dict[str, tuple[str, ...]] = {}
    for (what, value), names in owners.items():
        for name in names if len(names) > 1 else ():
            others = ", ".join(other for other in names if other != name)
            found[name] = (*found.get(name, ()), f"{what} {value} is also used by {others}")
    return found


def _own(settings: Settings) -> set[tuple[str, str]]:
    """What a node must not share: names, folders, and ports of this host, whatever they are for."""
    ports = [str(settings.node.port), str(urlsplit(settings.vault.url).port or 80)]
    if settings.agent.http_listen != "off":
        ports.append(settings.agent.http_listen.rpartition(":")[2])
    folders = (settings.agent.state_dir, settings.node.data_dir, settings.store_dir)
    uses = {("node.id", settings.node.id), *(("port", port) for port in ports)}
    uses |= {("folder", str(folder.resolve())) for folder in folders}
    uses.add(("token", str(settings.token_file.resolve())))
    if settings.node.driver == "container" and settings.container.name:
        uses.add(("container.name", settings.container.name))
    return uses
