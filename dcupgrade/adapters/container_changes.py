"""How the next version's container differs from the running one, for `plan`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dcupgrade.errors import failure_of
from dcupgrade.machine.state import Name, State
from process_supervisor.container_template import differences

from .node_containers import NodeContainers
from .node_process import node_name

log = logging.getLogger("dcupgrade")

CHECK_EVERY_S = 2.0


class ContainerChanges:
    """Compares the two once a version is staged, and keeps the result. `state` returns the machine's state."""

    def __init__(self, containers: NodeContainers, state: Callable[[], State]) -> None:
        self._containers, self._state = containers, state
        self._found: tuple[str, list[str]] = ("", [])

    def of(self, target_id: str) -> list[str]:
        """Return one line for each setting that will change; [] before the version is staged."""
        return self._found[1] if self._found[0] == target_id else []

    async def look(self) -> None:
        """Compare whenever another version is staged. Never returns."""
        compared = ("", "")
        while True:
            now = self._state()
            pair = (now.running.enclave_id if now.running else "", now.target.enclave_id if now.target else "")
            if all(pair) and pair != compared and now.name is Name.STAGED:
                try:
                    self._found = (pair[1], await self.compare(*pair))
                    compared = pair
                except Exception as error:
                    log.warning("the next container cannot be compared: %s", failure_of(error).detail)
            await asyncio.sleep(CHECK_EVERY_S)

    async def compare(self, running_id: str, target_id: str) -> list[str]:
        """The lines for a staged version. Raises CONTAINER_*, OSError, ValueError."""
        containers = self._containers
        record = await containers.driver.find(node_name(running_id))
        facts = await asyncio.to_thread(containers.facts, target_id)
        shown = await containers.driver.show(record.container_id) if record is not None else None
        image = await containers.images.inspect(facts.image_id) if facts.image_id else None
        if shown is None or image is None or not containers.images_run_themselves:
            return []
        return differences(shown, await asyncio.to_thread(containers.template), image, facts.source)
