"""Nodes in containers: the driver, the images, and the template that every version's container is made from.

With `node.command` the release's files are mounted into the container and started by it. Without, a release is an image
that runs by itself: its container is made from the template that `dcupgrade adopt` stored, else from the settings.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import importlib
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.gates import Shut
from dcupgrade.settings.schema import Settings
from process_supervisor import container_host
from process_supervisor import host as probe
from process_supervisor.container_template import (
    ContainerOptions,
    ContainerTemplate,
    Mount,
    mounts_of,
    parse_mount,
)
from process_supervisor.driver import ContainerSpec, LaunchSpec, NodeDriver
from process_supervisor.slots import STAGE_FILE, StageFacts, write_file

if TYPE_CHECKING:
    from process_supervisor.container_driver import ContainerDriver
    from process_supervisor.container_images import ImageStore

PYTHON_IN_IMAGE = "python3"
TEMPLATE_FILE = "container-template.json"


@asynccontextmanager
async def open_node_driver(
    settings: Settings, processes: NodeDriver
) -> AsyncIterator[tuple[NodeDriver, NodeContainers | None]]:
    """Open the driver for nodes that the settings name; for containers, also return the facts about them."""
    if settings.node.driver == "process":
        yield processes, None
        return
    # the Engine API's library is large, and most agents run processes; a thread reads it from the disk
    await asyncio.to_thread(importlib.import_module, "process_supervisor.container_images")
    from process_supervisor.container_driver import ContainerDriver
    from process_supervisor.container_images import ImageStore
    from process_supervisor.engine_client import engine
    from process_supervisor.registry_credentials import default_config

    async with engine(settings.container.engine) as docker:
        ours = await asyncio.to_thread(owner, settings)
        notes = settings.agent.state_dir / "run"
        driver = ContainerDriver(docker, owner=ours, notes=notes)
        images = ImageStore(docker, settings.container.registry_config or default_config(), notes)
        try:
            yield driver, NodeContainers(settings, driver, images)
        finally:
            await driver.close()


def owner(settings: Settings) -> str:
    """Return the label that marks this agent's containers: from its node's id and data folder. Blocking."""
    about = f"{settings.node.id}\0{settings.node.data_dir.resolve()}"
    readable = re.sub(r"[^a-z0-9]+", "-", settings.node.id.lower()).strip("-")[:30]
    return f"{readable or 'node'}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"


class NodeContainers:
    """The containers of one agent's node."""

    def __init__(self, settings: Settings, driver: ContainerDriver, images: ImageStore) -> None:
        self._settings = settings
        self.driver, self.images = driver, images
        self.template_path = settings.agent.state_dir / TEMPLATE_FILE
        self._programs: dict[tuple[str, str], str] = {}

    def slot(self, enclave_id: str) -> Path:
        """Return the folder with a version's files."""
        return self._settings.agent.state_dir / "slots" / enclave_id

    def facts(self, enclave_id: str) -> StageFacts:
        """Return the facts that were stored when the version was staged. Blocking; raises OSError, ValueError."""
        return StageFacts.from_json((self.slot(enclave_id) / STAGE_FILE).read_bytes())

    @property
    def images_run_themselves(self) -> bool:
        """Whether a release is an image that needs no command of ours."""
        return not self._settings.node.command

    # --- the template ------------------------------------------------------------------------------------------------

    def template(self) -> ContainerTemplate:
        """Return the template for images that run by themselves. Blocking; raises CONTAINER_TEMPLATE_UNREADABLE."""
        try:
            text = self.template_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return self._options().template()
        except OSError as error:
            raise _unreadable(self.template_path, str(error)) from error
        try:
            return ContainerTemplate.from_json(text)
        except ValueError as error:
            raise _unreadable(self.template_path, str(error)) from error

    def store(self, template: ContainerTemplate) -> None:
        """Store a template for every later version."""
        write_file(self.template_path, template.to_json().encode())

    def _options(self) -> ContainerOptions:
        given = self._settings.container
        return ContainerOptions(
            name=given.name,
            network=given.network,
            entrypoint=given.entrypoint,
            command=given.command,
            environment=given.environment,
            user=given.user,
            mounts=tuple(map(parse_mount, given.mounts)),
            devices=given.devices,
            capabilities=given.capabilities,
            read_only_root=given.read_only_root,
            confined=given.confined,
            labels=given.labels,
            ulimits=given.ulimits,
            log_driver=given.log_driver,
            log_options=given.log_options,
            stop_signal=given.stop_signal,
        )

    def launch(self, spec: LaunchSpec, slot: Path) -> LaunchSpec:
        """Convert the launch of a process to that of a container. Blocking; raises CONTAINER_TEMPLATE_UNREADABLE."""
        facts = self.facts(slot.name)
        template = self.template() if self.images_run_themselves else self._with_command(spec, slot)
        data_dir = self._settings.node.data_dir.resolve()
        writable = [item for item in mounts_of(template.host) if not item.read_only]
        exclusive = {item.source for item in writable if item.kind == "volume" or data_dir.is_relative_to(item.source)}
        image = facts.image_id or self._settings.container.image
        return dataclasses.replace(
            spec, container=ContainerSpec(image=image, template=template, exclusive=frozenset(exclusive))
        )

    def _with_command(self, spec: LaunchSpec, slot: Path) -> ContainerTemplate:
        """Mount every folder under its path on the host; only the slot is read-only."""
        data_dir, cpu_dir = str(self._settings.node.data_dir.resolve()), str(self._settings.cpu_dir.resolve())
        cpu = self._settings.container.cpu_volume or cpu_dir
        own = (
            Mount("bind", data_dir, data_dir),
            Mount("bind" if cpu.startswith("/") else "volume", cpu, cpu_dir),
            Mount("bind", str(slot.resolve()), str(slot.resolve()), read_only=True),
        )
        options = self._options()
        return dataclasses.replace(
            options,
            entrypoint=spec.argv[:1],
            command=spec.argv[1:],
            working_dir=str(spec.cwd),
            user=options.user or f"{os.getuid()}:{os.getgid()}",
            environment=("PYTHONSAFEPATH=1", *options.environment),
            mounts=(*own, *options.mounts),
        ).template()

    # --- before the node that serves is stopped ----------------------------------------------------------------------

    async def findings(self, target_id: str, *, first_install: bool) -> list[Shut]:
        """Return what the host, the engine or the staged image lacks for the next version's container."""
        found = await self.host_findings(first_install=first_install)
        if not self.images_run_themselves:
            return found
        template = await asyncio.to_thread(self.template)
        image_id = (await asyncio.to_thread(self.facts, target_id)).image_id
        if image_id and (why := await self._missing_program(image_id, template)):
            found.append(Shut("CONTAINER_PROGRAM_MISSING", why))
        return found

    async def host_findings(self, *, first_install: bool) -> list[Shut]:
        """Return what the host and the engine lack for a container of the template, whatever its image."""
        running, own_id = await self.driver.running_containers(), await asyncio.to_thread(probe.own_container_id)
        managers = probe.other_manager_containers(running, own_id)
        found = [Shut("OTHER_MANAGER_RUNNING", ", ".join(managers))] if managers else []
        if not self.images_run_themselves:
            return found
        template = await asyncio.to_thread(self.template)
        # if the agent runs in a container of this engine, it does not see the host's files
        if all(item.get("Id") != own_id for item in running):
            lacks = await asyncio.to_thread(lambda: list(container_host.missing_of_host(template)))
            found += [Shut(code, why) for code, why in lacks]
        missing = await self.images.missing_volumes(template)
        if missing and not first_install:
            found.append(Shut("CONTAINER_MOUNT_MISSING", f"the engine has no volume {', '.join(missing)}"))
        return found

    async def other_managers(self) -> list[str]:
        """Running containers of other managers on this engine."""
        own_id = await asyncio.to_thread(probe.own_container_id)
        return probe.other_manager_containers(await self.driver.running_containers(), own_id)

    async def _missing_program(self, image_id: str, template: ContainerTemplate) -> str:
        """Return what of the program is missing. Checked once per image and template, as it needs a container."""
        key = (image_id, template.to_json())
        if key not in self._programs:
            self._programs = {key: await self.images.missing_program(image_id, template.config)}
        return self._programs[key]


def _unreadable(path: Path, why: str) -> DcupgradeError:
    return DcupgradeError(
        code="CONTAINER_TEMPLATE_UNREADABLE",
        what=f"template {path}",
        why=why,
        action="Correct it, or move it aside and `dcupgrade adopt` the container again.",
    )
