"""Simulated nodes: processes that boot, ask for keys, serve and die, and the nodes port over them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.gates import Shut
from dcupgrade.machine.stages import RunningNode, StagedRelease
from dcupgrade.machine.state import Release
from dcupgrade.upgrade.ports import NodeExit, NodeHealth, Progress
from keyvault.errors import KeyvaultError

from .loop import detached

if TYPE_CHECKING:
    from .world import Published, SimulatedWorld


ATTEMPTS = 3
"""Tries of one download."""
WRONG_CONTENT = "STAGING_ENCLAVE_ID_MISMATCH"


class Node:
    """A node's process."""

    def __init__(self, world: SimulatedWorld, release: Published, first_install: bool) -> None:
        self.world, self.release, self.first_install = world, release, first_install
        self.phase = "starting"
        self.key = ""
        self.committed = False
        self.boot = world.boot
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.task = asyncio.ensure_future(self._live())

    def kill(self, how: str) -> None:
        """End the process."""
        if not self.ended.done():
            self.ended.set_result(how)
            self.phase = "gone"
            self.task.cancel()

    async def _live(self) -> None:
        try:
            await self._boot()
        except DcupgradeError:
            self.kill("disk full")

    async def _boot(self) -> None:
        world, trait = self.world, self.release.trait
        await asyncio.sleep(world.rng.uniform(0.1, 0.6))
        if trait == "dies":
            self.kill("exit code 1")
        if trait in ("dies", "mute"):
            return
        sealed = f"node/{self.release.enclave_id}"
        key = world.disk.read(sealed)
        marker = world.disk.read("node/keyset")
        if key is None and marker is None and self.first_install:
            key = f"{world.rng.getrandbits(64):064x}"
            world.disk.write(sealed, key)
            world.disk.write("node/keyset", key)
        while key is None:
            self.phase = "waiting_for_keys"
            key = await self._ask(sealed)
            if key is None:
                await asyncio.sleep(0.5)
        self.key = key
        self.phase = "serving"
        world.data_key = world.data_key or key
        if trait == "frail":
            await asyncio.sleep(world.rng.uniform(0.1, 1.5))
            self.kill("signal 11")

    async def _ask(self, sealed: str) -> str | None:
        world = self.world
        enclave_id = self.release.enclave_id
        try:
            key = world.vault.hand_over(enclave_id)
            await world.network()
            world.vault.progress(enclave_id, key, "received")
            if self.release.trait == "hungry" and world.once(f"hungry {enclave_id}"):
                self.kill("signal 9")
                await asyncio.sleep(60)
            world.disk.write(sealed, key)
            if world.disk.read(sealed) != key:
                return None
            await world.network()
            world.vault.progress(enclave_id, key, "durable")
        except KeyvaultError:
            return world.disk.read(sealed)  # type: ignore[no-any-return]
        return key


class Nodes:
    """The nodes port over simulated processes, slots on the simulated disk, and a data lock."""

    def __init__(self, world: SimulatedWorld) -> None:
        self.world = world
        self.processes: dict[str, Node] = {}
        self.locked_by_other = False
        self.port_taken = False
        self.downloads_fail = 0.0
        self.next_is_wrong = False
        self.wrong_given: Counter[str] = Counter()
        self.stop_hangs = False

    def living(self, enclave_id: str) -> Node | None:
        """The living process of a version."""
        node = self.processes.get(enclave_id)
        return node if node is not None and not node.ended.done() else None

    def all_living(self) -> list[Node]:
        """Every living process."""
        return [node for node in self.processes.values() if not node.ended.done()]

    async def stage(self, release: Release, progress: Progress) -> StagedRelease:
        if self.world.disk.read(f"slot/{release.enclave_id}") is not None:
            return StagedRelease(release.enclave_id)
        await asyncio.sleep(self.world.rng.uniform(0.05, 0.5))
        if self.world.rng.random() < self.downloads_fail:
            raise DcupgradeError(code="DOWNLOAD_TRUNCATED", what="download", why="cut off", kind="transient")
        if self.next_is_wrong:
            self.next_is_wrong = False
            self.wrong_given[release.enclave_id] += 1
            raise DcupgradeError(code=WRONG_CONTENT, what="staging", why="another build", kind="rejected")
        progress({"done_bytes": 1})
        self.world.disk.write(f"slot/{release.enclave_id}", "verified")
        return StagedRelease(release.enclave_id)

    async def fetch_early(self, release: Release) -> None:
        await self.stage(release, lambda _: None)

    async def discover(self) -> Release | None:
        return None

    async def preflight(self, target: Release, source_id: str, first_install: bool) -> list[Shut]:
        if first_install and self.world.disk.read("node/keyset"):
            return [Shut("FIRST_INSTALL_REFUSED", "the data folder is not empty")]
        return [Shut("PORT_TAKEN", "in use")] if self.port_taken else []

    async def start(self, release: Release, *, first_install: bool) -> RunningNode:
        if self.living(release.enclave_id):
            return RunningNode(release.enclave_id)
        if self.locked_by_other:
            raise DcupgradeError(code="DATA_LOCKED", what="start", why="another process", kind="transient")
        if self.port_taken:
            raise DcupgradeError(code="PORT_TAKEN", what="start", why="another process", kind="transient")
        if self.all_living():
            self.world.violate(f"2: {release.version} is started while {self.all_living()[0].release.version} runs")
        self.world.judge_start(release.enclave_id)
        published = self.world.chain.releases[release.enclave_id]
        self.processes[release.enclave_id] = Node(self.world, published, first_install)
        return RunningNode(release.enclave_id)

    async def is_alive(self, enclave_id: str) -> bool:
        return self.living(enclave_id) is not None

    async def wait_exit(self, enclave_id: str) -> NodeExit:
        node = self.processes.get(enclave_id)
        if node is None:
            return NodeExit("it was never started")
        how = await asyncio.shield(node.ended)
        return NodeExit(how, rebooted=node.boot != self.world.boot)

    async def why_silent(self, _: str) -> str:
        return ""

    async def stop(self, enclave_id: str) -> None:
        await detached(self._stop(enclave_id))

    async def _stop(self, enclave_id: str) -> None:
        node = self.living(enclave_id)
        if node is not None:
            self.world.judge_stop(node)
            await asyncio.sleep(self.world.rng.uniform(0.01, 0.3))
            if self.stop_hangs:
                raise DcupgradeError(code="NODE_STOP_FAILED", what="stop", why="hangs", kind="invariant")
            if self.living(enclave_id) is node:  # else another stop of the same node has ended it already
                node.kill("signal 15")
                owner = self.world.told_commit[-1:] == [enclave_id]
                self.world.stopped_for_upgrade = owner and not self.world.by_hand and not self.world.restart_asked
        if self.locked_by_other:
            raise DcupgradeError(code="DATA_LOCKED", what="stop", why="another process", kind="transient")

    async def health(self, enclave_id: str) -> NodeHealth:
        for node in self.all_living():
            if self.living(enclave_id) is not node:
                return NodeHealth(node.phase, node.release.enclave_id)
            canary = None
            if node.phase == "serving":
                canary = node.key == self.world.data_key and node.release.trait != "blind"
            return NodeHealth(node.phase, enclave_id, canary=canary, committed=node.committed, key_set_id=node.key)
        return NodeHealth("silent")

    async def commit(self, enclave_id: str) -> None:
        node = self.living(enclave_id)
        if node is None or node.phase != "serving":
            raise DcupgradeError(code="COMMIT_NOT_ACKNOWLEDGED", what="commit", why="no answer", kind="transient")
        self.world.judge_commit(node)
        node.committed = True
        self.world.told_commit.append(enclave_id)

    async def key_set_id(self) -> str:
        return str(self.world.disk.read("node/keyset") or "")

    async def slot_is_good(self, enclave_id: str) -> bool:
        return self.world.disk.read(f"slot/{enclave_id}") is not None

    async def staged(self) -> list[str]:
        disk = self.world.disk
        return sorted(name[5:] for name in {*disk.safe, *disk.loose} if name.startswith("slot/"))

    async def remove_slot(self, enclave_id: str) -> None:
        self.world.judge_removal(enclave_id)
        self.world.disk.remove(f"slot/{enclave_id}")
