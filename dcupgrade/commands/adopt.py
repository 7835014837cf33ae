"""`dcupgrade adopt`: take over a node that runs already and that this agent did not start, without touching it.

The agent needs two things of it: its release in a slot, so that it can start it again on a revert, and a handle of the
running process or container. Whether it is what it says is found out by the vault, when it attests the node.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import click

from attestation.network import NetworkKeys
from chain_watcher.watch.operator_queries import first_view
from dcupgrade.adapters.chain import release_of, watcher_config
from dcupgrade.adapters.journal import Journal
from dcupgrade.adapters.node_containers import NodeContainers, open_node_driver
from dcupgrade.adapters.node_http import NodeHttp
from dcupgrade.adapters.node_process import key_set_id_of, living, node_name
from dcupgrade.adapters.node_slots import NodeSlots
from dcupgrade.adapters.state_folder import lock_folders
from dcupgrade.machine.state import Release
from dcupgrade.printable import one_line
from dcupgrade.settings.load import load
from dcupgrade.settings.schema import Settings
from dcupgrade.upgrade.orchestrator import has_no_node
from dcupgrade.upgrade.ports import NodeHealth
from process_supervisor.driver import NodeDriver, not_adoptable
from process_supervisor.host import other_manager_processes
from process_supervisor.process_driver import ProcessDriver
from process_supervisor.procfs import listener_of, process_facts, unit_of

from .chain import CONNECT_S, FIRST_VIEW_S
from .local_agent import require_own_folder


@click.command()
@click.option("--container", help="Name or id of its container, where node.driver is `container`.")
@click.option("--show", is_flag=True, help="Print the container's settings that later versions get, and stop.")
@click.option("--from", "source", help="Its release: URL, file:///path or image. Default: what the chain names for it.")
@click.pass_obj
def adopt(config_path: Path, container: str | None, show: bool, source: str | None) -> None:
    """Take over a node that runs already; it is neither stopped nor restarted.

    Of a container whose image runs by itself (an empty node.command), the settings are read, printed and stored: every
    later version gets them. They are those that did not come from its image.

    The settings' node.port and node.data_dir must be those of that node. Run this as the agent's user while the agent
    is stopped, then start `dcupgrade watch`.
    """
    loaded = load(config_path)
    require_own_folder(loaded.agent.state_dir, "dcupgrade adopt")
    container = container or loaded.container.name or None
    if show:
        asyncio.run(_show(loaded, container))
        return
    release = asyncio.run(_adopt(loaded, container, source))
    named = one_line(f"{release.version or '?'} {release.enclave_id}")
    click.echo(f"{named} is this agent's node now. Start `dcupgrade watch`.")


@dataclass(frozen=True, slots=True)
class _Host:
    driver: NodeDriver
    slots: NodeSlots
    node_http: NodeHttp
    containers: NodeContainers | None


@contextlib.asynccontextmanager
async def _host(loaded: Settings) -> AsyncIterator[_Host]:
    async with AsyncExitStack() as stack:
        lock_folders(loaded, stack)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        processes = ProcessDriver(loaded.agent.state_dir / "run")
        stack.push_async_callback(processes.close)
        driver, containers = await stack.enter_async_context(open_node_driver(loaded, processes))
        yield _Host(driver, NodeSlots(loaded, driver, containers), NodeHttp(loaded, session), containers)


async def _show(loaded: Settings, container: str | None) -> None:
    async with _host(loaded) as host:
        click.echo((await _containers(host).driver.template(container or "")).to_json(), nl=False)


def _containers(host: _Host) -> NodeContainers:
    if host.containers is None:
        why = "node.driver is `process`"
        raise not_adoptable("the node's container", why, "Set node.driver = `container`")
    return host.containers


async def _adopt(loaded: Settings, container: str | None, source: str | None) -> Release:
    async with _host(loaded) as host:
        running = await host.node_http.health("")
        if not running.enclave_id or running.status not in ("serving", "waiting_for_keys"):
            why = f"nothing at {host.node_http.url} says that it serves ({running.status}{_detail(running)})"
            raise not_adoptable("the node", why, "Start it, or correct node.port and node.protocol")
        _need_free_journal(loaded, running.enclave_id)
        marked = key_set_id_of(loaded.node.data_dir)
        if running.key_set_id and marked != running.key_set_id:
            why = f"{loaded.node.data_dir} is not the folder that this node works on: its key set is {marked or 'none'}"
            raise not_adoptable("the node", why, "Correct node.data_dir")
        image_id = await _image_id(host, container) if source is None else ""
        release = await _release(loaded, running, source, here=bool(image_id))
        await host.slots.stage(release, lambda _: None, allow_file_urls=source is not None, image_id=image_id)
        name = node_name(release.enclave_id)
        if await living(host.driver, release.enclave_id) is None:
            by_container = loaded.node.driver == "container"
            found = container or "" if by_container else str(_leader_of(loaded.node.port))
            if host.containers is not None and host.containers.images_run_themselves:
                await _store_template(host.containers, found)
            await host.driver.take_over(name, found, loaded.node.data_dir)
            await _warn_of_its_manager(host, found)
        known = await host.slots.discover()
        if known is None or known.enclave_id != release.enclave_id:
            raise not_adoptable(name, "it is not found again after it was taken over", "See the log")
        return known


async def _image_id(host: _Host, container: str | None) -> str:
    """The image of a container that runs by itself: the release is at the engine already. "" for other nodes."""
    if host.containers is None or not host.containers.images_run_themselves:
        return ""
    facts = await host.containers.driver.inspect(container) if container else None
    if facts is None:
        raise not_adoptable("the node", f"there is no container {container!r}", "Name it: --container NAME")
    return facts.image_id


async def _store_template(containers: NodeContainers, container: str) -> None:
    """Keep the container's settings for every later version. What an operator has corrected there stays."""
    template = await containers.driver.template(container)
    if not containers.template_path.exists():
        containers.store(template)
    click.echo(f"Every later version gets these settings, from {containers.template_path} (correct them there):")
    click.echo(containers.template().to_json(), nl=False)


def _detail(health: NodeHealth) -> str:
    return f": {health.detail}" if health.detail else ""


def _need_free_journal(loaded: Settings, enclave_id: str) -> None:
    path = loaded.agent.state_dir / "journal.sqlite3"
    if not path.exists():
        return
    with contextlib.closing(Journal(path)) as journal:
        state = journal.load()
    if state is not None and state.running is not None and state.running.enclave_id != enclave_id:
        why = f"the journal says that {state.running.enclave_id} is this agent's node"
        raise not_adoptable(enclave_id, why, "One agent has one node: `dcupgrade status` tells about it")
    if state is not None and state.running is None and not has_no_node(state):
        why = f"the journal says that a first install is in state {state.name.value} {state.halted}".rstrip()
        raise not_adoptable(enclave_id, why, "End that first: `dcupgrade status` and `explain` tell how")


async def _release(loaded: Settings, running: NodeHealth, source: str | None, *, here: bool) -> Release:
    """The running version as the chain knows it: its signatures, and where its files may be had unless they are here.

    Raises NODE_NOT_ADOPTABLE.
    """
    verify = NetworkKeys.parse(loaded.chain.network_keys, loaded.chain.threshold).verify
    async with first_view(watcher_config(loaded), verify, FIRST_VIEW_S, CONNECT_S) as (watcher, view):
        if source is None and view.program is not None and view.program.enclave_id == running.enclave_id:
            return release_of(view.program)
        entries = watcher.state.entries if watcher.state is not None else ()
    signatures = tuple(one.signature for one in entries if one.enclave_id == running.enclave_id and one.signature)
    if not signatures:
        why = f"the chain does not list {running.enclave_id}, which the node says it is"
        raise not_adoptable("the node", why, "Compare `dcupgrade chain releases`; the network may have revoked it")
    verify(running.enclave_id, signatures)
    if source is None and not here:
        why = "the chain names another version now, so it does not tell where the running one's files are"
        raise not_adoptable(running.enclave_id, why, "Name its archive or image: --from URL")
    return Release(running.enclave_id, version=running.version, origin_url=source or "", signatures=signatures)


def _leader_of(port: int) -> int:
    """The main process of the session that listens on a port: what a service manager started."""
    pid = listener_of(port)
    facts = process_facts(pid) if pid is not None else None
    if facts is None:
        why = f"no process of this user listens on port {port}"
        raise not_adoptable(
            "the node", why, "Run agent and node as one user; a container needs node.driver = container"
        )
    return facts.session


async def _warn_of_its_manager(host: _Host, found: str) -> None:
    managers = other_manager_processes()
    if host.containers is not None:
        managers += await host.containers.other_managers()
    if managers:
        click.echo(f"warning: {', '.join(managers)} runs here too: no upgrade begins before it is stopped", err=True)
    unit = unit_of(int(found)) if found.isdecimal() else ""
    if unit:
        click.echo(
            f"warning: process {found} belongs to {unit}. Keep systemd from starting it again when the agent stops it:"
            f" systemctl disable {unit}, with Restart=no",
            err=True,
        )
