"""Checks of the host before an upgrade begins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from dcupgrade.machine.gates import Shut
from dcupgrade.machine.state import Release
from dcupgrade.settings.schema import Settings
from dcupgrade.upgrade.ports import NodeHttpPort, SlotsPort
from process_supervisor import data_lock
from process_supervisor import host as probe
from process_supervisor.driver import NodeDriver
from process_supervisor.procfs import process_facts

from .node_containers import NodeContainers
from .node_process import folder_names, living


class Preflight:
    """The host port. `sealed_copies` returns whether the vault holds keys of an earlier node."""

    def __init__(
        self,
        settings: Settings,
        driver: NodeDriver,
        slots: SlotsPort,
        node_http: NodeHttpPort,
        *,
        first_install_allowed: bool,
        sealed_copies: Callable[[], Any],
        containers: NodeContainers | None = None,
    ) -> None:
        self._settings, self._driver, self._slots, self._node_http = settings, driver, slots, node_http
        self._first_install_allowed, self._sealed_copies = first_install_allowed, sealed_copies
        self._containers = containers

    async def preflight(self, target: Release, source_id: str, first_install: bool) -> list[Shut]:
        """Checks of the host before an upgrade begins."""
        settings, found = self._settings, []
        free = await asyncio.to_thread(probe.free_bytes, settings.agent.state_dir)
        if free < settings.upgrade.free_space_min_bytes:
            found.append(Shut("GATE_PREFLIGHT", f"only {free} bytes are free in {settings.agent.state_dir}"))
        if others := await asyncio.to_thread(probe.other_manager_processes):
            found.append(Shut("OTHER_MANAGER_RUNNING", ", ".join(others)))
        if not await self._slots.slot_is_good(target.enclave_id):
            found.append(Shut("GATE_PREFLIGHT", "the staged files were changed; they are fetched anew"))
            await self._slots.stage(target, lambda _: None)
        if self._containers is not None:
            found += await self._containers.findings(target.enclave_id, first_install=first_install)
        if first_install:
            found += await self._first_install_findings()
        elif await living(self._driver, source_id) is not None:
            health = await self._node_http.health(source_id)
            # a node that waits for keys is accepted: collecting then finds out whether the vault has any
            if health.status not in ("serving", "waiting_for_keys"):
                found.append(Shut("NODE_NOT_READY", f"the running version is {health.status}"))
        return found + await self._lock_findings(source_id)

    async def _lock_findings(self, source_id: str) -> list[Shut]:
        """Report another program that holds the data. Otherwise it would be found only after the old node's stop."""
        holder = await asyncio.to_thread(data_lock.data_lock_holder, self._settings.node.data_dir)
        if holder is None:
            return []
        handle = await living(self._driver, source_id) if source_id else None
        if handle is not None:
            record = handle.record
            # the holder can be identified only for our own processes; a container's process looks like any other
            facts = None
            if holder.pid is not None and record.kind == "process":
                facts = await asyncio.to_thread(process_facts, holder.pid)
            if facts is None or facts.session == record.pid:
                return []
        return [Shut("DATA_LOCKED", f"{holder} works on {self._settings.node.data_dir}")]

    async def _first_install_findings(self) -> list[Shut]:
        port = self._settings.node.port
        if not probe.port_is_free(port):
            why = f"something listens on port {port}; if it is the node, stop the agent and `dcupgrade adopt` it"
            return [Shut("FIRST_INSTALL_REFUSED", why)]
        if not self._first_install_allowed:
            return [Shut("FIRST_INSTALL_REFUSED", "nothing runs here; allow it with `watch --first-install`")]
        data_dir = self._settings.node.data_dir
        found = await asyncio.to_thread(folder_names, data_dir)
        names = sorted(name for name in found if not name.startswith("."))
        if names:
            return [Shut("FIRST_INSTALL_REFUSED", f"{data_dir} is not empty ({', '.join(names[:3])})")]
        if await self._sealed_copies():
            return [Shut("FIRST_INSTALL_REFUSED", "the vault holds sealed keys of an earlier node")]
        return []
