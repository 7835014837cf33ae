"""`dcupgrade node`: ends the node, and a vault that the agent started, while the agent does not run."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, closing
from pathlib import Path

import click

from dcupgrade.adapters.node_containers import open_node_driver
from dcupgrade.adapters.node_process import node_name
from dcupgrade.adapters.state_folder import lock_folders
from dcupgrade.adapters.vault_process import VAULT_NAME
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.state import State
from dcupgrade.settings import load
from dcupgrade.settings.schema import Settings
from process_supervisor.driver import NodeDriver
from process_supervisor.process_driver import ProcessDriver

from .local_agent import open_journal
from .progress import progress


@click.group()
def node() -> None:
    """End the node for maintenance of the host."""


@node.command()
@click.option("--vault", "with_vault", is_flag=True, help="End a vault that the agent started, too.")
@click.pass_obj
def stop(config_path: Path, with_vault: bool) -> None:
    """End the node: TERM, `node.stop_grace_s`, KILL. The agent must not run, or it would start the node again.

    The next start of the agent starts what is wanted. A node in a container is stopped the same way.
    """
    loaded = load.load(config_path)
    with closing(open_journal(loaded)) as journal:
        state = journal.load() or State()
    with progress("waiting for the node to end"):
        lines = asyncio.run(_stop(loaded, state, with_vault))
    click.echo("\n".join(lines))


async def _stop(loaded: Settings, state: State, with_vault: bool) -> list[str]:
    async with AsyncExitStack() as stack:
        try:
            lock_folders(loaded, stack)
        except DcupgradeError as error:
            if error.code != "AGENT_ALREADY_RUNNING":
                raise
            raise DcupgradeError(
                code=error.code,
                what="the node is not stopped",
                why="the agent runs, and would start it again",
                action="Stop the agent first: systemctl stop dcupgrade.",
            ) from error
        processes = ProcessDriver(loaded.agent.state_dir / "run")
        stack.push_async_callback(processes.close)
        driver, _ = await stack.enter_async_context(open_node_driver(loaded, processes))
        lines = []
        for release in filter(None, (state.running, state.target, state.previous)):
            ended = await _end(driver, node_name(release.enclave_id), loaded.node.stop_grace_s)
            lines += [f"node {release.version or release.enclave_id}: {ended}"] if ended else []
        if with_vault:
            ended = await _end(processes, VAULT_NAME, loaded.node.stop_grace_s)
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
