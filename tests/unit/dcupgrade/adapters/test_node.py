"""The nodes port over a driver of the test: never two versions on one data folder, whatever is left or cut short."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from dcupgrade.adapters.node import Nodes, node_name
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.state import Release
from dcupgrade.settings.load import structure
from dcupgrade.upgrade.ports import NodeHealth
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


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for release in (OLD, NEW):
        (tmp_path / "state" / "slots" / release.enclave_id).mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def lock(data_dir: Path) -> Iterator[DataLock]:
    with DataLock(data_dir, "somebody") as held:
        yield held


def port_over(driver: Driver, data_dir: Path) -> Nodes:
    settings = structure(
        {
            "agent": {"state_dir": str(data_dir.parent / "state")},
            "chain": {"endpoints": ["ws://127.0.0.1:1"], "network_keys": ["00" * 31 + "02"], "finality": "single"},
            "node": {"id": "n", "data_dir": str(data_dir), "port": free_port()},
            "vault": {"start": False},
            "upgrade": {"free_space_min_bytes": 0},
        },
        environ={},
    )
    return Nodes(
        settings,
        cast(Any, driver),
        cast(aiohttp.ClientSession, None),
        first_install_allowed=False,
        sealed_copies=lambda: None,
    )


async def test_children_that_a_dead_node_left_do_not_keep_it_from_being_started_again(
    data_dir: Path, lock: DataLock
) -> None:
    driver = Driver()
    driver.run(OLD).ended = True
    driver.left[node_name(OLD.enclave_id)] = lock
    driver.answers.set()
    nodes = port_over(driver, data_dir)
    assert not await nodes.is_alive(OLD.enclave_id)
    await nodes.start(OLD, first_install=False)
    assert await nodes.is_alive(OLD.enclave_id)
    assert driver.left == {}


async def test_no_node_is_started_on_data_that_a_stranger_holds(data_dir: Path, lock: DataLock) -> None:
    driver = Driver()
    driver.answers.set()
    nodes = port_over(driver, data_dir)
    with pytest.raises(DcupgradeError, match=r"DATA_LOCKED.*works on it"):
        await nodes.start(NEW, first_install=False)
    assert not driver.asked.is_set()
    lock.release()
    await nodes.start(NEW, first_install=False)
    assert await nodes.is_alive(NEW.enclave_id)


async def test_a_start_that_is_cut_short_is_found_by_the_stop_after_it(data_dir: Path) -> None:
    """A container engine finishes what it was asked for, whether anybody waits for its answer or not."""
    driver = Driver()
    nodes = port_over(driver, data_dir)
    launch = asyncio.ensure_future(nodes.start(NEW, first_install=False))
    await driver.asked.wait()
    launch.cancel()
    stop = asyncio.ensure_future(nodes.stop(NEW.enclave_id))
    await asyncio.sleep(0)
    driver.answers.set()
    with pytest.raises(asyncio.CancelledError):
        await launch
    await stop
    assert not await nodes.is_alive(NEW.enclave_id)
    assert driver.nodes[node_name(NEW.enclave_id)].ended


async def test_a_version_that_never_ran_counts_as_stopped_beside_one_that_would_not_stop(
    data_dir: Path, lock: DataLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way back from a stop that failed: the old node still has data and port, and goes on with them."""
    monkeypatch.setattr("dcupgrade.adapters.node.UNLOCK_TIMEOUT_S", 0.0)
    driver = Driver()
    driver.run(OLD)
    nodes = port_over(driver, data_dir)
    await nodes.stop(NEW.enclave_id)
    with pytest.raises(DcupgradeError, match="ANOTHER_NODE_RUNS"):
        await nodes.start(NEW, first_install=False)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("whose", ["the node's", "a stranger's", "nobody's"])
async def test_data_that_a_stranger_holds_keeps_the_gates_shut(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, running: bool, whose: str
) -> None:
    driver = Driver()
    node = driver.run(OLD, pid=os.getsid(0) if whose == "the node's" else 1)
    node.ended = not running
    nodes = port_over(driver, data_dir)

    async def good(_: str) -> bool:
        return True

    async def serving(enclave_id: str) -> NodeHealth:
        return NodeHealth("serving", enclave_id)

    monkeypatch.setattr(nodes, "slot_is_good", good)
    monkeypatch.setattr(nodes, "health", serving)
    held = DataLock(data_dir, "somebody")
    if whose != "nobody's":
        held.acquire()
    try:
        codes = [item.code for item in await nodes.preflight(NEW, OLD.enclave_id, False)]
    finally:
        held.release()
    strange = whose == "a stranger's" or (whose == "the node's" and not running)
    assert codes == (["DATA_LOCKED"] if strange else [])


@pytest.mark.parametrize(("booted_unix_s", "rebooted"), [(200.0, True), (100.0, False)])
async def test_a_container_that_ended_with_the_machine_did_not_end_by_itself(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, booted_unix_s: float, rebooted: bool
) -> None:
    """The engine keeps what was there before the machine was restarted, and does not start it again."""
    driver = Driver()
    name = node_name(NEW.enclave_id)
    driver.nodes[name] = Handle(
        NodeRecord(kind="container", name=name, started_unix_s=150.0, command_digest=""), ended=True
    )
    monkeypatch.setattr("dcupgrade.adapters.node._booted_unix_s", lambda: booted_unix_s)
    assert (await port_over(driver, data_dir).wait_exit(NEW.enclave_id)).rebooted is rebooted


@pytest.mark.parametrize(
    ("first_install", "marked", "may"), [(True, False, True), (True, True, False), (False, False, False)]
)
async def test_no_node_may_make_keys_beside_the_marker_of_a_key_set(
    data_dir: Path, first_install: bool, marked: bool, may: bool
) -> None:
    driver = Driver()
    driver.answers.set()
    if marked:
        (data_dir / "keyset.json").write_text('{"key_set_id": "k"}')
    await port_over(driver, data_dir).start(NEW, first_install=first_install)
    assert ("--first-install" in driver.argv) is may
