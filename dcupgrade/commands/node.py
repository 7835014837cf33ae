"""`dcupgrade node`: stop the node, start it, or start it again, by the rules that the machine and its journal set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import click

from dcupgrade.adapters.node_containers import open_node_driver
from dcupgrade.adapters.node_http import NodeHttp
from dcupgrade.adapters.node_process import NodeProcesses, node_name
from dcupgrade.adapters.node_slots import NodeSlots
from dcupgrade.adapters.state_folder import lock_folders
from dcupgrade.adapters.vault_process import VAULT_NAME
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.operator_commands import refusal_of_restart
from dcupgrade.machine.state import Release, State
from dcupgrade.settings import load
from dcupgrade.settings.schema import Settings
from process_supervisor.driver import NodeDriver, NodeRecord
from process_supervisor.process_driver import ProcessDriver

from .local_agent import open_journal, require_own_folder
from .operator import queue, tell_outcome, who_asks
from .progress import progress

LOOK_S = 0.2


@click.group()
def node() -> None:
    """Stop, start or restart the node, for maintenance of the host."""


@node.command()
@click.option("--vault", "with_vault", is_flag=True, help="End a vault that the agent started, too.")
@click.pass_obj
def stop(config_path: Path, with_vault: bool) -> None:
    """End the node: TERM, `node.stop_grace_s`, KILL. The agent must not run, or it would start the node again.

    The next start of the agent starts what is wanted. A node in a container is stopped the same way.
    """
    loaded = load.load(config_path)
    with progress("waiting for the node to end"):
        lines = asyncio.run(_stop(loaded, _state(loaded), with_vault))
    click.echo("\n".join(lines))


@node.command()
@click.pass_obj
def start(config_path: Path) -> None:
    """Start the version that the journal names, without the agent, and wait until it serves.

    Refused while the agent runs (it keeps the node up), and where an upgrade is under way (only the agent ends it). The
    vault is not started: a node that has sealed its keys does not need it. Run this as the agent's user.
    """
    loaded = load.load(config_path)
    require_own_folder(loaded.agent.state_dir, "dcupgrade node start")
    with progress("waiting for the node to serve"):
        told = asyncio.run(_start(loaded))
    click.echo(told)


@node.command()
@click.option("--reason", "-r", default="", help="Why; goes into the history where the agent runs.")
@click.pass_obj
def restart(config_path: Path, reason: str) -> None:
    """Stop the node and start the same version again; wait until it serves.

    The running agent does it where there is one. It is refused in the part of an upgrade that stops and starts nodes
    itself, and where the version's files are damaged, so that it could not be started again.
    """
    loaded = load.load(config_path)
    with progress("waiting for the node to serve again"):
        told = asyncio.run(_restart(loaded, reason))
    click.echo(told)


def _state(loaded: Settings) -> State:
    with closing(open_journal(loaded)) as journal:
        return journal.load() or State()


def _named(release: Release) -> str:
    return release.version or release.enclave_id


def _startable(state: State) -> Release:
    """The version that may be started now. Raises NODE_NOT_KEPT."""
    refused = refusal_of_restart(state)
    if refused is not None or state.running is None:
        raise DcupgradeError(
            code="NODE_NOT_KEPT",
            what="the node is not started",
            why=refused.text if refused else "no node is installed",
            action="`dcupgrade status` tells what is being done; the agent carries it on: systemctl start dcupgrade.",
        )
    return state.running


@dataclass(frozen=True, slots=True)
class _Host:
    """What works on the node, with the drivers of nodes and of the vault."""

    driver: NodeDriver
    processes: NodeProcesses
    slots: NodeSlots
    vault_driver: ProcessDriver
    session: aiohttp.ClientSession


@asynccontextmanager
async def _host(loaded: Settings) -> AsyncIterator[_Host]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        of_vault = ProcessDriver(loaded.agent.state_dir / "run")
        stack.push_async_callback(of_vault.close)
        driver, containers = await stack.enter_async_context(open_node_driver(loaded, of_vault))
        processes, slots = NodeProcesses(loaded, driver, containers), NodeSlots(loaded, driver, containers)
        yield _Host(driver, processes, slots, of_vault, session)


def _lock(loaded: Settings, stack: AsyncExitStack, what: str, why: str) -> None:
    """Keep the agent away meanwhile. Raises AGENT_ALREADY_RUNNING, with `what` failed and `why`."""
    try:
        lock_folders(loaded, stack)
    except DcupgradeError as error:
        if error.code != "AGENT_ALREADY_RUNNING":
            raise
        action = "Stop the agent first: systemctl stop dcupgrade."
        raise DcupgradeError(code=error.code, what=what, why=why, action=action) from error


async def _stop(loaded: Settings, state: State, with_vault: bool) -> list[str]:
    async with AsyncExitStack() as stack:
        _lock(loaded, stack, "the node is not stopped", "the agent runs, and would start it again")
        host = await stack.enter_async_context(_host(loaded))
        lines = []
        for release in filter(None, (state.running, state.target, state.previous)):
            ended = await _end(host.driver, node_name(release.enclave_id), loaded.node.stop_grace_s)
            lines += [f"node {_named(release)}: {ended}"] if ended else []
        if with_vault:
            ended = await _end(host.vault_driver, VAULT_NAME, loaded.node.stop_grace_s)
            lines += [f"vault: {ended}"] if ended else []
        return lines or ["no node runs"]


async def _end(driver: NodeDriver, name: str, grace_s: float) -> str:
    """Stop what the driver knows by this name; how that went, empty where it does not run."""
    record = await driver.find(name)
    handle = await driver.adopt(record) if record is not None else None
    if handle is None or handle.exit_status() is not None:
        return ""
    status = await driver.stop(handle, grace_s)
    return "killed after its grace time" if status.killed else "ended"


async def _start(loaded: Settings) -> str:
    async with AsyncExitStack() as stack:
        _lock(loaded, stack, "the node is not started", "the agent runs, and keeps it up; see `dcupgrade status`")
        release = _startable(_state(loaded))  # only now: an agent that just ended may have gone further
        host = await stack.enter_async_context(_host(loaded))
        if await host.processes.is_alive(release.enclave_id):
            return f"node {_named(release)}: runs already as {host.processes.runs_as(release.enclave_id)}"
        return await _launch(loaded, host, release)


async def _launch(loaded: Settings, host: _Host, release: Release) -> str:
    await _require_files(host, release)
    await host.processes.start(release, first_install=False)
    return await _until_serving(loaded, host, release)


async def _require_files(host: _Host, release: Release) -> None:
    if not await host.slots.slot_is_good(release.enclave_id):
        raise DcupgradeError(
            code="SOURCE_SLOT_DAMAGED",
            what=f"files of {_named(release)}",
            why="they are missing or were changed",
            action="The agent fetches and verifies them again: systemctl start dcupgrade.",
        )


async def _restart(loaded: Settings, reason: str) -> str:
    async with AsyncExitStack() as stack:
        try:
            lock_folders(loaded, stack)
        except DcupgradeError as error:
            if error.code != "AGENT_ALREADY_RUNNING":
                raise
            return await _restart_by_agent(loaded, _startable(_state(loaded)), reason)
        require_own_folder(loaded.agent.state_dir, "dcupgrade node restart")
        release = _startable(_state(loaded))
        host = await stack.enter_async_context(_host(loaded))
        await _require_files(host, release)
        await host.processes.stop(release.enclave_id)
        return await _launch(loaded, host, release)


async def _restart_by_agent(loaded: Settings, release: Release, reason: str) -> str:
    """Have the agent restart its node, and wait for the new process. Raises the code of a refusal."""
    async with _host(loaded) as host:
        before = await host.driver.find(node_name(release.enclave_id))
        with closing(open_journal(loaded)) as journal:
            number = queue(journal, "restart", who_asks(), {"reason": reason})
            tell_outcome("restart", journal, number)
        return await _until_serving(loaded, host, release, before)


async def _until_serving(loaded: Settings, host: _Host, release: Release, before: NodeRecord | None = None) -> str:
    """Wait until the version serves, from another process than `before`. Raises NODE_NOT_READY."""
    node_http = NodeHttp(loaded, host.session)
    patience_s = loaded.node.stop_grace_s + loaded.node.ready_deadline_s
    last = "its process has not started"
    try:
        async with asyncio.timeout(patience_s):
            while True:
                if await host.driver.find(node_name(release.enclave_id)) != before:
                    if not await host.processes.is_alive(release.enclave_id):
                        last = "its process ended"
                    else:
                        health = await node_http.health(release.enclave_id)
                        if health.status == "serving":
                            return f"node {_named(release)}: serves, as {host.processes.runs_as(release.enclave_id)}"
                        last = f"{health.status} {health.detail}".strip()
                await asyncio.sleep(LOOK_S)
    except TimeoutError as error:
        raise DcupgradeError(
            code="NODE_NOT_READY",
            what=f"node {_named(release)}",
            why=f"it does not serve after {patience_s:.0f} s: {last}",
            action=f"It is left as it is. Its log is in {loaded.agent.state_dir / 'logs'}.",
        ) from error
