"""`dcupgrade fleet`: who upgrades, and a stop for all."""

from __future__ import annotations

import asyncio
import getpass
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import click

from dcupgrade.adapters.fleet import FleetEngine
from dcupgrade.adapters.fleet_etcd import EtcdFleet
from dcupgrade.adapters.fleet_open import open_engine
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.fleet import Fleet, Halt, Member, Outcome, summary
from dcupgrade.printable import one_line
from dcupgrade.settings import load

from .tables import print_table

T = TypeVar("T")


def _with_engine(config_path: Path, work: Callable[[FleetEngine], Awaitable[T]]) -> T:
    async def run() -> T:
        engine = open_engine(load.load(config_path))
        if engine is None:
            raise DcupgradeError(
                code="FLEET_UNREACHABLE",
                what="this node's fleet",
                why="fleet.engine is `none`: the node belongs to no fleet",
                action="Name the engine in [fleet] of the settings.",
            )
        try:
            return await work(engine)
        finally:
            await engine.aclose()

    return asyncio.run(run())


@click.group()
def fleet() -> None:
    """Look at the fleet, stop it, let it continue."""


@fleet.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(config_path: Path, as_json: bool) -> None:
    """Show the slots and their holders, the stop, who waits, which versions run, and how the last upgrades ended."""

    async def read(engine: FleetEngine) -> tuple[Fleet, tuple[Member, ...]]:
        return await engine.read(), await engine.members()

    found, members = _with_engine(config_path, read)
    shown = summary(found, members)
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    if found.halt is not None:
        click.echo(f"HALTED by {found.halt.who or 'an operator'} at {_at(found.halt.at_unix_s)}: {found.halt.why}")
    rows = [
        (str(number), *(("free", "", "") if slot is None else (slot.holder, slot.version, _at(slot.since_unix_s))))
        for number, slot in enumerate(found.slots)
    ]
    print_table(("slot", "holder", "version", "since"), rows)
    if shown["waiting"]:
        click.echo(f"\nwait for a slot: {', '.join(map(one_line, shown['waiting']))}")
    if shown["versions"]:
        click.echo("")
        print_table(("version", "nodes"), [(version, str(count)) for version, count in shown["versions"].items()])
    if found.outcomes:
        click.echo("")
        ended = [(_at(item.at_unix_s), item.node, item.version, item.outcome) for item in found.newest()]
        print_table(("ended", "node", "version", "outcome"), ended)


@fleet.command()
@click.option("--reason", required=True, help="Why; everybody who asks is shown it.")
@click.pass_obj
def halt(config_path: Path, reason: str) -> None:
    """Stop the fleet: no node begins an upgrade. What is under way runs to its end."""
    _with_engine(config_path, lambda engine: engine.set_halt(Halt(getpass.getuser(), reason, time.time())))
    click.echo("The fleet is halted. Upgrades under way run to their end.")


@fleet.command()
@click.pass_obj
def resume(config_path: Path) -> None:
    """Let the fleet continue; reverts are counted anew."""
    _with_engine(config_path, lambda engine: engine.set_halt(None))
    click.echo("The fleet may continue.")


@fleet.command()
@click.argument("node")
@click.pass_obj
def release(config_path: Path, node: str) -> None:
    """Free the slot of NODE, whose agent died in the middle of an upgrade. Look at that host first."""

    async def free(engine: FleetEngine) -> bool:
        found = await engine.read()
        number = found.slot_of(node)
        slot = found.slots[number] if number is not None else None
        if number is None or slot is None:
            return False
        ended = Outcome(node, slot.enclave_id, slot.version, "reverted", time.time())
        await engine.clear(number, node, ended)
        return True

    freed = _with_engine(config_path, free)
    click.echo(f"The slot of {node} is free; its upgrade counts as reverted." if freed else f"{node} holds no slot.")


@fleet.command()
@click.argument("slots", type=click.IntRange(0, 10_000))
@click.pass_obj
def limit(config_path: Path, slots: int) -> None:
    """Let SLOTS nodes upgrade at once (etcd; with Kubernetes the number of slot Leases is the limit)."""

    async def set_limit(engine: FleetEngine) -> None:
        if not isinstance(engine, EtcdFleet):
            raise click.UsageError("with Kubernetes, the number of Leases NAME-slot-0, NAME-slot-1, … is the limit")
        await engine.set_limit(slots)

    _with_engine(config_path, set_limit)
    click.echo(f"{slots} node{'s' * (slots != 1)} may upgrade at once.")


def _at(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if unix_s else ""
