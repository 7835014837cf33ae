"""A node driver of the test, and the settings of an agent with slots for two versions."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from dcupgrade.adapters.node_process import node_name
from dcupgrade.machine.state import Release
from dcupgrade.settings.load import structure
from dcupgrade.settings.schema import Settings
from devnet.tools import free_port
from process_supervisor.data_lock import DataLock
from process_supervisor.driver import ExitStatus, LaunchSpec, NodeRecord

OLD, NEW = (Release(letter * 64, f"1.{n}.0") for n, letter in enumerate("ab"))


@dataclass
class Handle:
    record: NodeRecord
    ended: bool = False

    def exit_status(self) -> ExitStatus | None:
        return ExitStatus(signal=9) if self.ended else None

    async def wait(self) -> ExitStatus:
        return ExitStatus(signal=9)


@dataclass
class Driver:
    """Nodes by name. `answers` holds a start back as a slow engine does; `left` is what dead nodes left behind."""

    nodes: dict[str, Handle] = field(default_factory=dict)
    left: dict[str, DataLock] = field(default_factory=dict)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    argv: tuple[str, ...] = ()

    def run(self, release: Release, pid: int = 0) -> Handle:
        name = node_name(release.enclave_id)
        record = NodeRecord(kind="process", name=name, started_unix_s=0.0, command_digest="", pid=pid)
        self.nodes[name] = Handle(record)
        return self.nodes[name]

    async def start(self, spec: LaunchSpec) -> NodeRecord:
        self.argv = spec.argv
        self.asked.set()
        await self.answers.wait()
        record = NodeRecord(kind="process", name=spec.name, started_unix_s=0.0, command_digest="")
        self.nodes[spec.name] = Handle(record)
        return record

    async def find(self, name: str) -> NodeRecord | None:
        handle = self.nodes.get(name)
        return handle.record if handle else None

    async def adopt(self, record: NodeRecord) -> Handle | None:
        handle = self.nodes[record.name]
        return handle if not handle.ended or record.name in self.left else None

    async def stop(self, handle: Handle, grace_s: float) -> ExitStatus:
        handle.ended = True
        if (lock := self.left.pop(handle.record.name, None)) is not None:
            lock.release()
        return ExitStatus(signal=15)


def settings_of(data_dir: Path) -> Settings:
    return structure(
        {
            "agent": {"state_dir": str(data_dir.parent / "state")},
            "chain": {"endpoints": ["ws://127.0.0.1:1"], "network_keys": ["00" * 31 + "02"], "finality": "single"},
            "node": {"id": "n", "data_dir": str(data_dir), "port": free_port()},
            "vault": {"start": False},
            "upgrade": {"free_space_min_bytes": 0},
        },
        environ={},
    )
