"""`dcupgrade chain`: what the chain lists, and the checkpoint to pin."""

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from dcupgrade.settings import load
from dcupgrade.settings import schema as settings

from .local_agent import running_release
from .progress import progress
from .tables import print_table

ProxyFor = Callable[[str], str | None]

FIRST_VIEW_S = 60.0
CONNECT_S = 10.0
"""Seconds without any connection after which the endpoints' own errors are the answer."""


@click.group()
def chain() -> None:
    """Look at the chain: releases, and the checkpoint to pin."""


@chain.command()
@click.option("--url", "urls", multiple=True, help="Endpoint to ask instead of those in the settings; repeatable.")
@click.pass_obj
def checkpoint(config_path: Path, urls: tuple[str, ...]) -> None:
    """Print a checkpoint (genesis, block, GRANDPA set) on which all endpoints agree, as JSON to pin.

    Only the endpoints say so: compare it with what others see before you pin it in chain.checkpoint_file and measure it
    into a vault.
    """
    from chain_watcher.watch.operator_queries import find_checkpoint

    urls, ca_file, proxy_for = _asked(config_path, urls)
    with progress(f"asking {len(urls)} endpoint{'s' * (len(urls) != 1)}"):
        answer = asyncio.run(find_checkpoint(urls, ca_file=ca_file, proxy_for=proxy_for))
    click.echo(json.dumps({"genesis_hash": answer.genesis_hash, **answer.checkpoint.to_json()}, indent=2))
    click.echo(f"block {answer.block_hash}, agreed by {len(answer.endpoints)}: {', '.join(answer.endpoints)}", err=True)


@chain.command()
@click.option("--url", "urls", multiple=True, help="Endpoint to ask instead of those in the settings; repeatable.")
@click.pass_obj
def genesis(config_path: Path, urls: tuple[str, ...]) -> None:
    """Print the chain's genesis hash, on which all endpoints must agree."""
    from chain_watcher.watch.operator_queries import find_genesis

    urls, ca_file, proxy_for = _asked(config_path, urls)
    click.echo(asyncio.run(find_genesis(urls, ca_file=ca_file, proxy_for=proxy_for)))


def _asked(config_path: Path, urls: tuple[str, ...]) -> tuple[tuple[str, ...], str | None, ProxyFor]:
    """The endpoints to ask, the CA that they are checked by, and their proxies: of the command line or the settings."""
    from dcupgrade.settings.derive import proxies
    from process_supervisor.proxies import Proxies

    if urls:
        return urls, None, Proxies.from_environment(os.environ).proxy_for
    loaded = load.load(config_path)
    ca_file = str(loaded.chain.ca_file) if loaded.chain.ca_file else None
    return loaded.chain.endpoints, ca_file, proxies(loaded).proxy_for


@chain.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def releases(config_path: Path, as_json: bool) -> None:
    """List every release on the chain: which is to run, which is the newest, and which runs here."""
    loaded = load.load(config_path)
    with progress("reading the chain"):
        facts = asyncio.run(_releases(loaded))
    running = running_release(loaded)
    for row in facts["releases"]:
        row["runs_here"] = running is not None and row["enclave_id"] == running.enclave_id
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    unproven = " (read WITHOUT proofs)" if facts["unproven_reads"] else ""
    click.echo(f"block {facts['block_number']} {facts['block_hash']}, finality {facts['finality']}{unproven}")
    rows = [_release_row(row, facts["program_version"]) for row in facts["releases"]]
    print_table(("height", "enclave id", "version", "signed", "marks"), rows)
    for code in facts["refused_entries"]:
        click.echo(f"an entry was refused: {code}")


def _release_row(row: Mapping[str, Any], program_version: str) -> tuple[str, ...]:
    words = {"program": "to be run", "newest": "newest", "runs_here": "runs here"}
    return (
        str(row["added_height"]),
        row["enclave_id"],
        program_version if row["program"] else "",  # the chain names a version for the one to be run only
        f"REFUSED: {row['refused']}" if row["refused"] else f"by {row['signatures']}",
        ", ".join(text for name, text in words.items() if row[name]),
    )


async def _releases(loaded: settings.Settings) -> Any:
    from attestation.network import NetworkKeys
    from chain_watcher.watch.operator_queries import first_view, release_facts
    from dcupgrade.adapters.chain import watcher_config

    verify = NetworkKeys.parse(loaded.chain.network_keys, loaded.chain.threshold).verify
    async with first_view(watcher_config(loaded), verify, FIRST_VIEW_S, CONNECT_S) as (watcher, view):
        program = view.program.version if view.program else ""
        return {**release_facts(view, watcher.state, verify), "program_version": program}
