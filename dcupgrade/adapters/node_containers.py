"""What differs where nodes run as containers: the driver, the store of images, the launch of a release."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dcupgrade.settings.schema import Settings
from process_supervisor import host as probe
from process_supervisor.driver import LaunchSpec, NodeDriver
from process_supervisor.slots import STAGE_FILE, StageFacts

if TYPE_CHECKING:
    from process_supervisor.container_images import ImageStore

PYTHON_IN_IMAGE = "python3"


@asynccontextmanager
async def open_node_driver(
    settings: Settings, processes: NodeDriver
) -> AsyncIterator[tuple[NodeDriver, ImageStore | None]]:
    """The driver that the settings name for nodes, and with containers the engine's store of images."""
    if settings.node.driver == "process":
        yield processes, None
        return
    # the Engine API's library is large, and most agents run processes
    from process_supervisor.container_driver import ContainerDriver, engine
    from process_supervisor.container_images import ImageStore

    async with engine(settings.node.container_engine) as docker:
        driver = ContainerDriver(docker, network=settings.node.container_network)
        try:
            yield driver, ImageStore(docker)
        finally:
            await driver.close()


async def other_managers(driver: NodeDriver) -> list[str]:
    """Containers of other managers on the engine that runs our nodes."""
    from process_supervisor.container_driver import ContainerDriver

    if not isinstance(driver, ContainerDriver):
        return []
    return probe.other_manager_containers(await driver.other_containers())


def in_container(settings: Settings, spec: LaunchSpec, slot: Path) -> LaunchSpec:
    """The same launch in a container: every folder under the path that it has on the host, only the slot read-only.

    A release that came as an image runs in that image, one that came as an archive in `node.container_image`.
    """
    facts = StageFacts.from_json((slot / STAGE_FILE).read_bytes())
    data_dir, cpu_dir = str(settings.node.data_dir.resolve()), str(settings.cpu_dir.resolve())
    cpu = settings.node.container_cpu_volume or cpu_dir
    return dataclasses.replace(
        spec,
        env={"PYTHONSAFEPATH": "1"},
        image=facts.image_id or settings.node.container_image,
        mounts={data_dir: data_dir, cpu: cpu_dir, str(slot.resolve()): str(slot.resolve())},
        writable=frozenset({data_dir, cpu}),
        user=settings.node.container_image_user or f"{os.getuid()}:{os.getgid()}",
    )
