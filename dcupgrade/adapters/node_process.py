"""Processes or containers of node versions, over the process supervisor's driver. One version runs at a time."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.stages import RunningNode
from dcupgrade.machine.state import Release
from dcupgrade.settings.schema import Settings
from dcupgrade.upgrade.ports import NodeExit
from keyvault.errors import KeyvaultError
from keyvault.handover.messages import strict_json
from process_supervisor import data_lock
from process_supervisor import host as probe
from process_supervisor.driver import LaunchSpec, NodeDriver, NodeHandle, NodeRecord
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.plain_file import read_plain
from process_supervisor.procfs import ProcessFacts, boot_id, session_members
from process_supervisor.threads import in_thread

from .node_containers import PYTHON_IN_IMAGE, NodeContainers

UNLOCK_TIMEOUT_S = 10.0
PORT_WAIT_STEPS = 100
"""Of 50 ms each."""
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "SSL_CERT_FILE")
CHILD_FOLDER = Path("/")
"""Where nodes and the vault work: a folder that nobody but root can plant modules in."""
KEY_SET_MARKER = "keyset.json"
MARKER_BYTES_MAX = 4096
T = TypeVar("T")
log = logging.getLogger("dcupgrade")


class NodeProcesses:
    """The processes port. Each version has its own name at the driver."""

    def __init__(self, settings: Settings, driver: NodeDriver, containers: NodeContainers | None = None) -> None:
        self._settings, self._driver, self._containers = settings, driver, containers
        self._lock = asyncio.Lock()
        self._slots = settings.agent.state_dir / "slots"
        self._seen: tuple[str, str] = ("", "")

    def runs_as(self, enclave_id: str) -> str:
        """`pid 123` or `container 0123456789ab`, as of the last check; empty if the version was not alive."""
        seen_id, text = self._seen
        return text if seen_id == enclave_id else ""

    async def start(self, release: Release, *, first_install: bool) -> RunningNode:
        """Start a version, or find it running. Raises DATA_LOCKED, PORT_TAKEN, ANOTHER_NODE_RUNS, NODE_START_FAILED."""
        async with self._lock:
            record = await self._driver.find(node_name(release.enclave_id))
            handle = await self._driver.adopt(record) if record is not None else None
            if handle is not None:
                if handle.exit_status() is None:
                    return RunningNode(release.enclave_id)
                # the main process is dead, but its children may still hold the data and the port
                await self._driver.stop(handle, 0.0)
            for name in await self._living_names():
                raise DcupgradeError(
                    code="ANOTHER_NODE_RUNS",
                    what=f"start of {release.enclave_id}",
                    why=f"{name} still runs on the same data",
                    kind="transient",
                )
            await in_thread(_require_unlocked, self._settings.node.data_dir)
            await asyncio.to_thread(probe.require_ports_free, [self._settings.node.port])
            spec = await asyncio.to_thread(self._spec, release, first_install)
            await _to_the_end(self._driver.start(spec))
            return RunningNode(release.enclave_id)

    async def is_alive(self, enclave_id: str) -> bool:
        """Whether the version's process lives."""
        handle = await living(self._driver, enclave_id)
        self._seen = (enclave_id, _runs_as(handle.record)) if handle is not None else ("", "")
        return handle is not None

    async def wait_exit(self, enclave_id: str) -> NodeExit:
        """Return when the version's process is gone."""
        record = await self._driver.find(node_name(enclave_id))
        if record is None:
            return NodeExit("it was never started")
        if record.kind == "process" and record.boot_id != await in_thread(boot_id):
            return NodeExit("the machine was restarted", rebooted=True)
        handle = await self._driver.adopt(record)
        if handle is None and record.kind == "container" and record.started_unix_s < _booted_unix_s():
            return NodeExit("the machine was restarted", rebooted=True)
        if handle is None:
            return NodeExit("its process is gone")
        return NodeExit(f"it {await handle.wait()}; log: {record.log_path}")

    async def why_silent(self, enclave_id: str) -> str:
        """Whether the version's process is stopped, traced or hangs in the kernel, or its container is paused."""
        record = await self._driver.find(node_name(enclave_id))
        if record is None:
            return ""
        if record.kind == "container":
            facts = await self._containers.driver.inspect(record.container_id) if self._containers else None
            return f"its container is paused: docker unpause {facts.name}" if facts and facts.paused else ""
        return condition_of(await in_thread(session_members, record.pid))

    async def stop(self, enclave_id: str) -> None:
        """Stop a version and wait until data and port are free.

        Raises NODE_STOP_FAILED, and DATA_LOCKED if its process is gone but another one holds the data. The stop does
        not fail if another program has taken the port in between.
        """
        async with self._lock:
            record = await self._driver.find(node_name(enclave_id))
            handle = await self._driver.adopt(record) if record is not None else None
            if handle is not None:
                await self._driver.stop(handle, self._settings.node.stop_grace_s)
            if await self._living_names():
                return  # another of our versions uses data and port; `start` handles that
            try:
                await data_lock.wait_data_unlocked(self._settings.node.data_dir, UNLOCK_TIMEOUT_S)
            except ProcessSupervisorError as error:
                raise _locked(error) from error
            for _ in range(PORT_WAIT_STEPS):
                if probe.port_is_free(self._settings.node.port):
                    return
                await asyncio.sleep(0.05)
            # the listener is not the stopped version: the next start waits for the port and names its owner
            log.warning("port %d is taken after the stop of %s", self._settings.node.port, enclave_id)

    async def key_set_id(self) -> str:
        """The marker's key-set id in the data folder."""
        return await asyncio.to_thread(key_set_id_of, self._settings.node.data_dir)

    async def _living_names(self) -> list[str]:
        """Driver names of the versions here that run."""
        ids = sorted(name for name in await asyncio.to_thread(folder_names, self._slots) if len(name) == 64)
        return [node_name(item) for item in ids if await living(self._driver, item) is not None]

    def _spec(self, release: Release, first_install: bool) -> LaunchSpec:
        """How the version is started. Blocking."""
        settings = self._settings
        slot = self._slots / release.enclave_id
        # once a key set exists, the node must unseal it and never creates another one
        fresh = first_install and not (settings.node.data_dir / KEY_SET_MARKER).exists()
        values = {
            "python": sys.executable if settings.node.driver == "process" else PYTHON_IN_IMAGE,
            "cpu_dir": str(settings.cpu_dir.resolve()),
            "slot": str(slot.resolve()),
            "data_dir": str(settings.node.data_dir.resolve()),
            "port": str(settings.node.port),
            "vault_url": settings.vault.url,
            "enclave_id": release.enclave_id,
            "network_signature_file": str(slot.resolve() / "network.sig"),
            "first_install_flag": "--first-install" if fresh else "",
        }
        argv = tuple(text for item in settings.node.command if (text := item.format_map(values)))
        spec = LaunchSpec(
            name=node_name(release.enclave_id),
            argv=argv,
            env=child_environment(),
            cwd=CHILD_FOLDER,
            log_path=settings.agent.state_dir / "logs" / f"{node_name(release.enclave_id)}.log",
        )
        return spec if self._containers is None else self._containers.launch(spec, slot)


def child_environment() -> dict[str, str]:
    """Return the environment of nodes and the vault. It prevents imports of modules from their working folder."""
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    return {**kept, "PYTHONSAFEPATH": "1"}


def node_name(enclave_id: str) -> str:
    """The name by which the driver knows a version."""
    return f"node-{enclave_id[:20]}" if enclave_id else f"node-{hashlib.sha256(b'').hexdigest()[:20]}"


def condition_of(members: list[ProcessFacts]) -> str:
    """Return why the kernel does not run these processes; "" if they could run."""
    by_state = {state: " ".join(str(one.pid) for one in members if one.state == state) for state in "TtD"}
    if by_state["T"]:
        return f"stopped by a signal, as by kill -STOP; `kill -CONT {by_state['T']}` lets it continue"
    if by_state["t"]:
        return f"held by a debugger: pid {by_state['t']}"
    if by_state["D"]:
        return f"waits in the kernel, as for a disk: pid {by_state['D']}"
    return ""


def _runs_as(record: NodeRecord) -> str:
    return f"pid {record.pid}" if record.kind == "process" else f"container {record.container_id[:12]}"


async def living(driver: NodeDriver, enclave_id: str) -> NodeHandle | None:
    """The version's process, if it lives."""
    record = await driver.find(node_name(enclave_id))
    handle = await driver.adopt(record) if record is not None else None
    return handle if handle is not None and handle.exit_status() is None else None


def folder_names(folder: Path) -> list[str]:
    """Return the names in a folder; none if there is no folder. Blocking."""
    return os.listdir(folder) if folder.is_dir() else []


def key_set_id_of(data_dir: Path) -> str:
    """The key-set id in the data folder's marker; "" when there is none. Blocking."""
    try:
        content = read_plain(data_dir / KEY_SET_MARKER, MARKER_BYTES_MAX)
        return str(strict_json(content, MARKER_BYTES_MAX, KEY_SET_MARKER).get("key_set_id", ""))
    except (OSError, KeyvaultError):
        return ""


def _booted_unix_s() -> float:
    """When this machine was started, by the wall clock; time asleep counts."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even when cancelled meanwhile.

    A request to a container engine cannot be withdrawn. Its result must be visible before the node is stopped next.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


def _require_unlocked(data_dir: Path) -> None:
    """Create the data folder if it is missing. Raises DATA_LOCKED while another program works on it. Blocking."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    holder = data_lock.data_lock_holder(data_dir)
    if holder is not None:
        raise DcupgradeError(
            code="DATA_LOCKED",
            what=f"data folder {data_dir}",
            why=f"{holder} works on it",
            action="Let that process end; never delete the lock file.",
            kind="transient",
        )


def _locked(error: ProcessSupervisorError) -> DcupgradeError:
    return DcupgradeError(
        code="DATA_LOCKED", what=error.what, why=error.why, action=f"{error.action}.", kind="transient"
    )
