"""Node processes with the test's driver: never two versions on one data folder, whatever earlier runs left."""

import asyncio
import os
import socket
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from dcupgrade.adapters.node_process import NodeProcesses, condition_of, node_name
from dcupgrade.adapters.vault_process import vault_spec
from dcupgrade.errors import DcupgradeError
from process_supervisor.data_lock import DataLock
from process_supervisor.driver import LaunchSpec, NodeRecord
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.procfs import ProcessFacts
from tests.doubles.node_driver import NEW, OLD, Driver, Handle, settings_of


def port_over(driver: Driver, data_dir: Path) -> NodeProcesses:
    return NodeProcesses(settings_of(data_dir), cast(Any, driver))


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
    """A container engine completes a request even if no client waits for the answer."""
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
    """The way back from a stop that failed: the old node still has data and port, and continues with them."""
    monkeypatch.setattr("dcupgrade.adapters.node_process.UNLOCK_TIMEOUT_S", 0.0)
    driver = Driver()
    driver.run(OLD)
    nodes = port_over(driver, data_dir)
    await nodes.stop(NEW.enclave_id)
    with pytest.raises(DcupgradeError, match="ANOTHER_NODE_RUNS"):
        await nodes.start(NEW, first_install=False)


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
    monkeypatch.setattr("dcupgrade.adapters.node_process._booted_unix_s", lambda: booted_unix_s)
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


async def test_a_port_that_another_program_took_is_no_failure_of_the_stop(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case B4: it halted the way back, and there was no retry."""
    monkeypatch.setattr("dcupgrade.adapters.node_process.PORT_WAIT_STEPS", 1)
    driver = Driver()
    driver.run(NEW)
    driver.answers.set()
    settings = settings_of(data_dir)
    nodes = NodeProcesses(settings, cast(Any, driver))
    with socket.create_server(("127.0.0.1", settings.node.port)):
        await nodes.stop(NEW.enclave_id)
        assert not await nodes.is_alive(NEW.enclave_id)
        with pytest.raises(ProcessSupervisorError, match="PORT_TAKEN"):
            await nodes.start(OLD, first_install=False)
    await nodes.start(OLD, first_install=False)
    assert await nodes.is_alive(OLD.enclave_id)


@pytest.mark.parametrize("child", ["node", "vault"])
async def test_a_module_planted_in_the_data_folder_is_not_imported(data_dir: Path, child: str) -> None:
    settings = settings_of(data_dir)
    spec = vault_spec(settings) if child == "vault" else port_over(Driver(), data_dir)._spec(NEW, first_install=False)
    settings.agent.state_dir.mkdir(parents=True, exist_ok=True)
    stolen = data_dir / "stolen"
    for folder in (data_dir, settings.agent.state_dir):
        (folder / "argparse.py").write_text(f"open({str(stolen)!r}, 'w').close()\nraise SystemExit(9)\n")

    def run(spec: LaunchSpec, argv: tuple[str, ...], cwd: Path, env: dict[str, str]) -> int:
        return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, check=False, timeout=60).returncode

    assert await asyncio.to_thread(run, spec, spec.argv, spec.cwd, dict(spec.env)) != 9
    assert not stolen.exists()
    # The control: it is imported where nothing keeps it out.
    unsafe = tuple(item for item in spec.argv if item != "-P")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    assert await asyncio.to_thread(run, spec, unsafe, data_dir, env) == 9
    assert stolen.exists()


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ("ST", "stopped by a signal, as by kill -STOP; `kill -CONT 11` lets it continue"),
        ("St", "held by a debugger: pid 11"),
        ("D", "waits in the kernel, as for a disk: pid 10"),
        ("SR", ""),
        ("", ""),
    ],
)
def test_what_keeps_a_process_from_answering_is_told(states: str, told: str) -> None:
    assert condition_of([ProcessFacts(10 + at, state, 10, 10, 1) for at, state in enumerate(states)]) == told
