"""`dcupgrade init`: from an installed program to a settings file that works, with folders and tokens, and a check."""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dcupgrade.adapters.state_folder import read_or_draw_token
from dcupgrade.errors import DcupgradeError, why_of
from dcupgrade.settings import load
from dcupgrade.settings.schema import Settings

from .check import examine, print_findings
from .progress import progress

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_SIMULATED_HELP = "Development: simulated TEE, one endpoint believed without proofs, releases from private addresses."


@click.command()
@click.option("--endpoint", "endpoints", multiple=True, help="WebSocket URL of a node of the chain; repeatable.")
@click.option("--network-key", "network_keys", multiple=True, help="Public key of the network; repeatable.")
@click.option(
    "--threshold", type=click.IntRange(1), default=1, show_default=True, help="How many keys must have signed."
)
@click.option("--node-id", default=socket.gethostname, show_default="host name", help="Name of this node in the fleet.")
@click.option("--data-dir", type=_FOLDER, help="Folder with the node's data.")
@click.option("--state-dir", type=_FOLDER, default=Path("/var/lib/dcupgrade"), show_default=True)
@click.option("--node-port", type=click.IntRange(1, 65535), default=6667, show_default=True)
@click.option("--http-listen", default="127.0.0.1:6680", show_default=True, help="Address of the status page.")
@click.option("--vault-url", default="http://127.0.0.1:6666", show_default=True)
@click.option("--vault-dir", type=_FOLDER, help="Folder with vault.pyz, vault.sig and vault.auth: the agent starts it.")
@click.option("--vault-token-file", type=_FILE, help="Token of a vault that is a service of its own.")
@click.option("--simulated", is_flag=True, help=_SIMULATED_HELP)
@click.pass_obj
def init(config_path: Path, /, **given: Any) -> None:
    """Write a settings file, make the folders and tokens that it names, and check the result.

    What is not given is asked for on a terminal. Genesis hash and checkpoint are read from the endpoints, which have to
    agree: compare them with what others see. An existing settings file is never changed.
    """
    if config_path.exists():
        raise DcupgradeError(
            code="SETTINGS_EXIST",
            what=f"settings file {config_path}",
            why="it is there already",
            action="Edit it, or name another one with --config.",
        )
    answers = _with_answers(given)
    with progress("reading genesis hash and checkpoint from the chain"):
        chain = asyncio.run(_pinned(answers["endpoints"], with_checkpoint=not answers["simulated"]))
    checkpoint_file = config_path.absolute().with_name("checkpoint.json")
    sections = _sections(answers, chain["genesis_hash"], checkpoint_file)
    settings = load.structure(sections, environ={}, path=str(config_path))
    _write(config_path, to_toml(sections), 0o640)
    if not answers["simulated"]:
        _write(checkpoint_file, json.dumps(chain, indent=2) + "\n", 0o644)
    _make_folders(settings)
    click.echo(f"wrote {config_path}; genesis {chain['genesis_hash']}")
    with progress("examining host, chain, vault and node"):
        findings = asyncio.run(examine(settings))
    print_findings(findings)
    click.echo(f"next: dcupgrade --config {config_path} watch --first-install   (on an empty host), or adopt")
    sys.exit(any(finding.grade == "fault" for finding in findings))


def _with_answers(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with what is missing asked for; raises INIT_ANSWER_MISSING where nobody can be asked."""
    answers = dict(given)
    for name, question in (
        ("endpoints", "WebSocket URL of a node of the chain (several: separated by spaces)"),
        ("network_keys", "Public key of the network (several: separated by spaces)"),
        ("data_dir", "Folder with the node's data"),
    ):
        if not answers[name]:
            answer = _ask(name, question)
            answers[name] = Path(answer) if name == "data_dir" else tuple(answer.split())
    if answers["vault_dir"] is None and answers["vault_token_file"] is None:
        answers["vault_dir"] = Path(_ask("vault_dir", "Folder with vault.pyz, vault.sig and vault.auth"))
    return answers


def _ask(name: str, question: str) -> str:
    if not sys.stdin.isatty():
        flag = {"endpoints": "endpoint", "network_keys": "network-key"}.get(name, name.replace("_", "-"))
        raise DcupgradeError(
            code="INIT_ANSWER_MISSING",
            what="dcupgrade init",
            why=f"--{flag} is missing, and there is no terminal to ask on",
            action="Give it, or run the command on a terminal.",
        )
    return str(click.prompt(question))


async def _pinned(urls: tuple[str, ...], *, with_checkpoint: bool) -> dict[str, Any]:
    """Genesis hash, and checkpoint if asked for, on which all endpoints agree, in the form of a checkpoint file."""
    from chain_watcher.watch.operator_queries import find_checkpoint, find_genesis

    if not with_checkpoint:
        return {"genesis_hash": await find_genesis(urls)}
    answer = await find_checkpoint(urls)
    return {"genesis_hash": answer.genesis_hash, **answer.checkpoint.to_json()}


def _sections(answers: Mapping[str, Any], genesis_hash: str, checkpoint_file: Path) -> dict[str, dict[str, Any]]:
    chain: dict[str, Any] = {
        "endpoints": list(answers["endpoints"]),
        "network_keys": list(answers["network_keys"]),
        "threshold": answers["threshold"],
        "genesis_hash": genesis_hash,
    }
    vault: dict[str, Any] = {"url": answers["vault_url"]}
    download: dict[str, dict[str, Any]] = {}
    if answers["simulated"]:
        chain |= {"finality": "single", "unsafe_unproven_reads": True}
        vault["unsafe_simulated_tee"] = True
        download = {"download": {"private_addresses": True}}  # a development network serves releases on its own host
    else:
        chain["checkpoint_file"] = str(checkpoint_file)
    if answers["vault_token_file"] is not None:
        vault |= {"start": False, "token_file": str(answers["vault_token_file"].absolute())}
    else:
        folder = answers["vault_dir"].absolute()
        vault |= {"image": str(folder / "vault.pyz"), "sigstruct": str(folder / "vault.sig")}
        vault["auth_file"] = str(folder / "vault.auth")
    return {
        "agent": {"state_dir": str(answers["state_dir"].absolute()), "http_listen": answers["http_listen"]},
        "chain": chain,
        "node": {
            "id": answers["node_id"],
            "data_dir": str(answers["data_dir"].absolute()),
            "port": answers["node_port"],
        },
        "vault": vault,
        **download,
    }


def to_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of text, numbers, booleans and lists, which JSON and TOML spell alike."""
    lines = ["# Made by `dcupgrade init`. Every other key and its default: `dcupgrade config example`.", ""]
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _make_folders(settings: Settings) -> None:
    """The folders, closed to others, and the tokens in them."""
    try:
        for folder in (settings.agent.state_dir, settings.node.data_dir, settings.store_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DcupgradeError(
            code="AGENT_STATE_UNUSABLE",
            what=f"folder {error.filename}",
            why=why_of(error),
            action="Create it for the agent's user, or run this as that user or as root.",
        ) from error
    read_or_draw_token(settings.agent.state_dir / "operator.token")
    if settings.vault.start:
        read_or_draw_token(settings.token_file)


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file that was not there; nothing is left of it when that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise DcupgradeError(
            code="SETTINGS_EXIST" if isinstance(error, FileExistsError) else "AGENT_STATE_UNUSABLE",
            what=f"file {path}",
            why=why_of(error),
            action="Name another settings file with --config, or run this as root.",
        ) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
