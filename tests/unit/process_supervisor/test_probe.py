"""Probes of the host and of a node."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from aiohttp import web

from devnet.tools import free_port
from process_supervisor import data_lock, host
from process_supervisor.data_lock import DataLock, data_lock_holder, wait_data_unlocked
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.host import (
    OTHER_MANAGERS,
    free_bytes,
    other_manager_containers,
    other_manager_processes,
    port_is_free,
    require_ports_free,
)
from process_supervisor.http_probe import probe
from tests.doubles.faulty_server import FaultyServer


async def test_probes(server: FaultyServer) -> None:
    server.content = b"abc"
    result = await probe(server.url, 5)
    assert (result.ok, result.status, result.body, result.error) == (True, 200, b"abc", None)
    server.behave = lambda _: web.Response(status=503, body=b"starting")
    result = await probe(server.url, 5)
    assert (result.ok, result.status, result.body) == (False, 503, b"starting")
    server.behave = lambda _: web.Response(status=302, headers={"Location": "/"})
    assert (await probe(server.url, 5)).status == 302
    server.behave = lambda _: web.Response(body=bytes(70_000))
    assert "exceeds" in str((await probe(server.url, 5)).error)
    for url in ("http://127.0.0.1:1/", "nonsense"):
        result = await probe(url, 5)
        assert not result.ok
        assert result.error


async def test_a_silent_node_fails_its_probe_by_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = await probe(f"http://127.0.0.1:{silent.getsockname()[1]}/", 0.02)
    assert result.error == "no answer within 0.02 s"


def test_ports() -> None:
    port = free_port()  # reserved: one that the kernel chose could be somebody else's as soon as it is let go
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
        with pytest.raises(ProcessSupervisorError) as caught:
            require_ports_free([port])
        assert caught.value.code == "PORT_TAKEN"
        assert f"pid {os.getpid()} (" in caught.value.why, "the owner is named"
    assert port_is_free(port)
    require_ports_free([port])
    with pytest.raises(OSError, match="Cannot assign"):
        port_is_free(port, "192.0.2.1")


def test_free_space_of_a_folder_that_is_not_yet_there(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_the_data_lock_names_its_holder(tmp_path: Path) -> None:
    assert data_lock_holder(tmp_path) is None
    with DataLock(tmp_path, "agent of node 7") as lock:
        lock.acquire()
        holder = data_lock_holder(tmp_path)
        assert holder is not None
        assert holder.pid == os.getpid()
        assert "python" in holder.command
        with pytest.raises(ProcessSupervisorError) as caught:
            DataLock(tmp_path, "second").acquire()
        assert caught.value.code == "DATA_LOCK_HELD"
        assert "agent of node 7" in str(caught.value)
    lock.release()
    assert data_lock_holder(tmp_path) is None
    (tmp_path / ".lock").write_bytes(b"\xff[]")
    assert data_lock_holder(tmp_path) is None


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "socket"])
def test_what_is_no_lock_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ".lock"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    for work in (lambda: data_lock_holder(tmp_path), DataLock(tmp_path, "node").acquire):
        with pytest.raises(ProcessSupervisorError) as caught:
            work()  # type: ignore[no-untyped-call]
        assert caught.value.code == "DATA_LOCK_INVALID"
    assert not (tmp_path / "elsewhere").exists()


def test_a_huge_lock_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.touch()
    os.truncate(path, 3 << 30)
    tracemalloc.start()
    assert data_lock_holder(tmp_path) is None
    with DataLock(tmp_path, "node"):
        assert data_lock_holder(tmp_path) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_holder_that_the_kernel_hides_is_still_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "locks").write_text("1: POSIX  ADVISORY  WRITE 1 00:00:0 0 EOF\n")
    monkeypatch.setattr(data_lock, "PROC", tmp_path / "proc")
    with DataLock(tmp_path, "hidden"):
        holder = data_lock_holder(tmp_path)
    assert holder is not None
    assert str(holder) == "pid ? (unknown; hidden)"


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = "import fcntl,sys,time; f=open(sys.argv[1],'w'); fcntl.flock(f,2); print('up',flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        holder = data_lock_holder(tmp_path)
        assert holder is not None
        assert holder.pid == child.pid
        child.kill()
    assert data_lock_holder(tmp_path) is None


async def test_waiting_for_the_lock(tmp_path: Path) -> None:
    now = 0.0
    lock = DataLock(tmp_path, "old node")
    lock.acquire()

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > 1:
            lock.release()

    with pytest.raises(ProcessSupervisorError) as caught:
        await wait_data_unlocked(tmp_path, 0.5, clock=lambda: now, sleep=sleep)
    assert "old node" in str(caught.value)
    await wait_data_unlocked(tmp_path, 5, clock=lambda: now, sleep=sleep)
    assert now > 1


async def test_a_foreign_manager_is_found_by_its_executable(tmp_path: Path) -> None:
    # Under a name of this test's own: a real manager's would be found by whatever else looks on this machine just now.
    name = f"manager-{os.getpid()}"
    program = tmp_path / name
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    child = await asyncio.create_subprocess_exec(str(program), "600")
    try:
        found = other_manager_processes([*OTHER_MANAGERS, name])
        assert f"{name} (pid {child.pid})" in found
    finally:
        child.kill()
        await child.wait()


def test_the_fields_manager_is_told_from_the_calculator_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid, program, line in (
        (100, "/opt/dcnetio/bin/dc", "dc upgrade daemon"),
        (101, "/usr/bin/dc", "dc -e 1"),
        (102, "/opt/dcnetio/bin/dc (deleted)", "/opt/dcnetio/bin/dc upgrade daemon"),
        (103, "/usr/bin/sh", "sh upgrade daemon"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "exe").symlink_to(program)
        (tmp_path / str(pid) / "cmdline").write_bytes(line.replace(" ", "\0").encode() + b"\0")
    monkeypatch.setattr(host, "PROC", tmp_path)
    assert other_manager_processes() == ["dc upgrade daemon (pid 100)", "dc upgrade daemon (pid 102)"]


def test_a_process_in_a_container_knows_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "PROC", tmp_path)
    assert host.own_container_id() == ""
    (tmp_path / "self").mkdir()
    line = f"1 2 0:1 /var/lib/docker/containers/{'c' * 64}/hostname /etc/hostname rw - ext4 x rw\n"
    (tmp_path / "self" / "mountinfo").write_text(line)
    assert host.own_container_id() == "c" * 64


def test_foreign_containers_are_found_and_ours_are_not() -> None:
    listed: list[dict[str, object]] = [
        {"Id": "1" * 64, "Names": ["/dcupgrade"], "Image": "ghcr.io/dcnetio/dcupgrade:latest", "Labels": {}},
        {"Id": "2" * 64, "Names": ["/x"], "Image": "dcmanager@sha256:00", "Labels": None},
        {"Id": "3" * 64, "Names": ["/dcupgrade-node"], "Image": "dcnode:1", "Labels": {}},
        {"Id": "4" * 64, "Names": ["/dcupgrade"], "Image": "x", "Labels": {"dcupgrade.node": "a"}},
        {"Id": "5" * 64, "Names": ["/dcupgrade"], "Image": "dcupgrade:1", "Labels": {}},
        {"Id": "6" * 64, "Names": ["/vault"], "Image": "dcupgrade", "Command": "python3 -m keyvault serve --store x"},
        {"Id": "7" * 64, "Names": ["/agent"], "Image": "r/dcupgrade:2", "Command": "dcupgrade --config x watch"},
    ]
    assert other_manager_containers(listed, own_id="5" * 64) == [
        "container dcupgrade of ghcr.io/dcnetio/dcupgrade:latest",
        "container x of dcmanager@sha256:00",
    ]
