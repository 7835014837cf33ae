"""`dcupgrade chain`: what the chain lists, and the checkpoint to pin."""

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from dcupgrade.settings import load
from dcupgrade.settings import schema as settings

FIRST_VIEW_S = 60.0


@click.group()
def chain() -> None:
    """Look at the chain: releases, and the checkpoint to pin."""


@chain.command()
@click.option("--url", "urls", multiple=True, help="Endpoint to ask instead of those in the settings; repeatable.")
@click.pass_obj
def checkpoint(config_path: Path, urls: tuple[str, ...]) -> None:
    """Print a checkpoint (genesis, block, GRANDPA set) on which all endpoints agree, as JSON to pin.

    It is the endpoints' word: compare it with what others see before you pin it in chain.checkpoint_file and measure it
    into a vault.
    """
    from chain_watcher.watch.operator_queries import find_checkpoint

    ca_file = None
    if not urls:
        loaded = load.load(config_path)
        urls, ca_file = loaded.chain.endpoints, loaded.chain.ca_file
    answer = asyncio.run(find_checkpoint(urls, ca_file=str(ca_file) if ca_file else None))
    click.echo(json.dumps({"genesis_hash": answer.genesis_hash, **answer.checkpoint.to_json()}, indent=2))
    click.echo(f"block {answer.block_hash}, agreed by {len(answer.endpoints)}: {', '.join(answer.endpoints)}", err=True)


@chain.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def releases(config_path: Path, as_json: bool) -> None:
    """List every release on the chain: height, signatures, which is the newest and which is to be run."""
    facts = asyncio.run(_releases(load.load(config_path)))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    unproven = " (read WITHOUT proofs)" if facts["unproven_reads"] else ""
    click.echo(f"block {facts['block_number']} {facts['block_hash']}, finality {facts['finality']}{unproven}")
    for row in facts["releases"]:
        marks = [name for name in ("program", "newest") if row[name]]
        state = f"REFUSED: {row['refused']}" if row["refused"] else f"signed ({row['signatures']})"
        click.echo(f"{row['added_height']:>10}  {row['enclave_id']}  {state}{''.join(f'  [{mark}]' for mark in marks)}")
    for code in facts["refused_entries"]:
        click.echo(f"an entry was refused: {code}")


async def _releases(loaded: settings.Settings) -> Any:
    from attestation.network import NetworkKeys
    from chain_watcher.watch.operator_queries import first_view, release_facts
    from dcupgrade.adapters.chain import watcher_config

    verify = NetworkKeys.parse(loaded.chain.network_keys, loaded.chain.threshold).verify
    async with first_view(watcher_config(loaded), verify, FIRST_VIEW_S) as (watcher, view):
        return release_facts(view, watcher.state, verify)
