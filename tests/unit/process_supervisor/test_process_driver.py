"""Real children: gentle, stubborn, forking, dying at once; started, found again, stopped."""

import asyncio
import dataclasses
import errno
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from process_supervisor import process_driver as driver_module
from process_supervisor import procfs
from process_supervisor.driver import ExitStatus, LaunchSpec, NodeRecord
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.log_files import LogPolicy, tail_log
from process_supervisor.process_driver import ProcessDriver
from process_supervisor.process_handle import ProcessHandle
from process_supervisor.procfs import process_facts, session_members
from tests.doubles.disk_watch import watched_files

GENTLE = (
    "import signal,sys; signal.pthread_sigmask(0, [15]); print('up', flush=True); signal.sigwait([15]); sys.exit(3)"
)
STUBBORN = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
# A stubborn grandchild in a process group of its own, which outlives its gentle parent.
FORKING = """
import os, signal, time
if os.fork() == 0:
    os.setpgid(0, 0)
    signal.signal(15, signal.SIG_IGN)
    print('child', flush=True)
    time.sleep(600)
time.sleep(0.05)
print('up', flush=True)
time.sleep(600)
"""
ORPHANING = "import os,time\nif os.fork() == 0:\n    print('up', flush=True); time.sleep(600)\ntime.sleep(0.05)"
Make = Callable[..., LaunchSpec]


@pytest.fixture
def spec(tmp_path: Path) -> Make:
    def make(code: str, name: str = "node", **env: str) -> LaunchSpec:
        return LaunchSpec(
            name=name, argv=(sys.executable, "-I", "-c", code), env=env, cwd=tmp_path, log_path=tmp_path / "logs" / name
        )

    return make


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[ProcessDriver]:
    made = ProcessDriver(tmp_path / "run", LogPolicy(size_bytes_max=1000, kept=2))
    yield made
    for path in (tmp_path / "run").glob("*.json"):
        record = NodeRecord.from_json(path.read_text())
        handle = await made.adopt(record)
        if handle is not None:
            await made.stop(handle, 0)
    await made.close()


async def up(spec: LaunchSpec, word: str = "up") -> None:
    async with asyncio.timeout(20):
        while word not in tail_log(spec.log_path, 10):  # noqa: ASYNC110  (a file tells no event)
            await asyncio.sleep(0.01)


async def running(driver: ProcessDriver, spec: LaunchSpec) -> tuple[NodeRecord, ProcessHandle]:
    record = await driver.start(spec)
    await up(spec)
    handle = await driver.adopt(record)
    assert handle is not None
    return record, handle


async def test_a_gentle_node_ends_with_its_code(driver: ProcessDriver, spec: Make) -> None:
    record, handle = await running(driver, spec(GENTLE))
    facts = process_facts(record.pid)
    assert facts is not None
    assert (facts.session, facts.group) == (record.pid, record.pid)
    assert os.readlink(f"/proc/{record.pid}/fd/0") == os.devnull
    assert handle.exit_status() is None
    assert await driver.stop(handle, 20) == ExitStatus(code=3)
    assert await driver.adopt(record) is None
    assert await driver.stop(handle, 20) == ExitStatus(code=3)


async def test_a_stubborn_node_is_killed_after_the_grace(driver: ProcessDriver, spec: Make) -> None:
    _, handle = await running(driver, spec(STUBBORN))
    assert await driver.stop(handle, 0.05) == ExitStatus(signal=signal.SIGKILL, killed=True)


async def test_a_stopped_process_gets_its_term(driver: ProcessDriver, spec: Make) -> None:
    record, handle = await running(driver, spec(GENTLE))
    os.kill(record.pid, signal.SIGSTOP)
    assert await driver.stop(handle, 20) == ExitStatus(code=3)


async def test_grandchildren_go_too(driver: ProcessDriver, spec: Make) -> None:
    record, handle = await running(driver, spec(FORKING))
    assert len(session_members(record.pid)) == 2
    status = await driver.stop(handle, 0.2)
    assert status.signal == signal.SIGTERM
    assert session_members(record.pid) == []


async def test_what_a_dead_node_left_behind_is_found_and_cleared(driver: ProcessDriver, spec: Make) -> None:
    orphaning = spec(ORPHANING)
    record = await driver.start(orphaning)
    await up(orphaning)
    handle = await driver.adopt(record)
    assert handle is not None
    assert await handle.wait() == ExitStatus(code=0)
    with pytest.raises(ProcessSupervisorError) as caught:
        await driver.remove("node")
    assert caught.value.code == "NODE_ALREADY_RUNNING"
    other = ProcessDriver(driver._run_dir)
    remains = await other.adopt(record)
    assert remains is not None
    assert remains.exit_status() == ExitStatus()
    again = await other.start(orphaning)
    assert {item.session for item in session_members(record.pid)} == set()
    found = await other.adopt(again)
    assert found is not None
    await other.stop(found, 0)
    await other.close()


async def test_a_node_that_exits_at_once(driver: ProcessDriver, spec: Make) -> None:
    record = await driver.start(spec("raise SystemExit(7)"))
    handle = await driver.adopt(record)
    assert handle is None or await handle.wait() == ExitStatus(code=7)
    await driver.tend()
    await driver.remove("node")
    assert await driver.find("node") is None
    await driver.remove("node")


async def test_the_logs_of_a_removed_node_go_and_stay_away(driver: ProcessDriver, spec: Make) -> None:
    made = spec(GENTLE)
    _, handle = await running(driver, made)
    made.log_path.with_name("node.1").write_text("older")
    await driver.stop(handle, 20)
    await driver.remove("node")
    await driver.tend()
    assert list(made.log_path.parent.iterdir()) == []


async def test_starting_twice_starts_once(driver: ProcessDriver, spec: Make) -> None:
    record, _ = await running(driver, spec(GENTLE))
    assert await driver.start(spec(GENTLE)) == record
    with pytest.raises(ProcessSupervisorError) as caught:
        await driver.start(spec(STUBBORN))
    assert (caught.value.code, caught.value.kind) == ("NODE_ALREADY_RUNNING", "invariant")


async def test_another_agent_finds_and_stops_the_node(driver: ProcessDriver, spec: Make, tmp_path: Path) -> None:
    record, handle = await running(driver, spec(GENTLE))
    other = ProcessDriver(tmp_path / "run")
    found = await other.find("node")
    assert found == record
    adopted = await other.adopt(record)
    assert adopted is not None
    assert adopted is not handle
    waiting = asyncio.create_task(adopted.wait())
    # Only one of them can reap it; the other one is told by the kernel, where that is new enough.
    assert {await driver.stop(handle, 20), await waiting} <= {ExitStatus(code=3), ExitStatus()}
    assert await other.adopt(record) is None
    await other.close()


DETACHED = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [15])
os.write(1, str(os.getpid()).encode())
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
signal.sigwait([15])
sys.exit(3)
"""


async def test_a_node_that_somebody_else_started_is_taken_over(
    driver: ProcessDriver, spec: Make, tmp_path: Path
) -> None:
    argv = ["setsid", "--fork", sys.executable, "-I", "-c", DETACHED]
    pid = int((await asyncio.to_thread(subprocess.run, argv, stdout=subprocess.PIPE, check=True)).stdout)
    record = await driver.take_over("node", str(pid), tmp_path)
    assert await driver.find("node") == record
    with pytest.raises(ProcessSupervisorError, match="NODE_ALREADY_RUNNING"):
        await driver.start(spec(GENTLE))
    handle = await driver.adopt(record)
    assert handle is not None
    assert handle.exit_status() is None
    await driver.tend()
    assert await driver.logs("node", 5) == []
    await driver.stop(handle, 20)
    assert session_members(pid) == []
    assert (await driver.start(spec(GENTLE))).pid != pid


async def test_what_is_not_taken_over(driver: ProcessDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid = os.getpid()
    facts = process_facts(pid)
    assert facts is not None
    leader = dataclasses.replace(facts, session=pid, terminal=0)
    cases = {
        "does not lead a session": dataclasses.replace(leader, session=1),
        "has a terminal": dataclasses.replace(leader, terminal=34816),
        "there is no process": dataclasses.replace(leader, state="Z"),
    }
    for why, seen in cases.items():
        monkeypatch.setattr(driver_module, "process_facts", lambda _, seen=seen: seen)
        with pytest.raises(ProcessSupervisorError, match=f"NODE_NOT_ADOPTABLE.*{why}"):
            await driver.take_over("node", str(pid), tmp_path)
    with pytest.raises(ProcessSupervisorError, match="NODE_NOT_ADOPTABLE"):
        await driver.take_over("node", "the node", tmp_path)
    assert await driver.find("node") is None


async def test_letting_go_leaves_the_node_running(driver: ProcessDriver, spec: Make) -> None:
    record, _ = await running(driver, spec(GENTLE))
    await driver.close()
    assert process_facts(record.pid) is not None
    handle = await driver.adopt(record)
    assert handle is not None
    assert handle.exit_status() is None
    assert await driver.stop(handle, 20) == ExitStatus(code=3)


@pytest.mark.parametrize("change", [{"start_time_ticks": 1}, {"boot_id": "another"}, {"kind": "container"}])
async def test_another_process_under_that_pid_is_left_alone(
    driver: ProcessDriver, spec: Make, change: dict[str, object], tmp_path: Path
) -> None:
    record, _ = await running(driver, spec(GENTLE))
    fake = NodeRecord(**{**dataclasses.asdict(record), **change})  # type: ignore[arg-type]
    other = ProcessDriver(tmp_path / "other")
    assert await other.adopt(fake) is None
    facts = process_facts(record.pid)
    assert facts is not None
    assert facts.alive


async def test_a_pid_of_nobody(driver: ProcessDriver) -> None:
    record = NodeRecord(
        kind="process", name="x", started_unix_s=0, command_digest="", pid=2**22 + 1, start_time_ticks=1
    )
    record = dataclasses.replace(record, boot_id=driver_module.boot_id(), pid=4_000_000)  # type: ignore[attr-defined]
    assert await driver.adopt(record) is None


async def test_a_pid_that_went_on_to_a_thread_of_another_process(driver: ProcessDriver) -> None:
    done, ids = threading.Event(), queue.SimpleQueue[int]()
    thread = threading.Thread(target=lambda: (ids.put(threading.get_native_id()), done.wait(60)))
    thread.start()
    try:
        record = NodeRecord(
            kind="process", name="x", started_unix_s=0, command_digest="", pid=ids.get(timeout=60), start_time_ticks=1
        )
        assert await driver.adopt(dataclasses.replace(record, boot_id=driver_module.boot_id())) is None  # type: ignore[attr-defined]
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("damage", ["", "\udcff\udcfe", "{}", "[" * 10_000, "folder", "pipe", "sparse"])
async def test_a_damaged_record_is_named(driver: ProcessDriver, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "run" / "node.json"
    path.parent.mkdir()
    if damage == "folder":
        path.mkdir()
    elif damage == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(damage.encode("utf-8", "surrogateescape"))
        os.truncate(path, 3 << 30 if damage == "sparse" else path.stat().st_size)
    with pytest.raises(ProcessSupervisorError) as caught:
        await driver.find("node")
    assert (caught.value.code, caught.value.what) == ("NODE_RECORD_INVALID", str(path))
    path.rmdir() if damage == "folder" else path.unlink()


async def test_without_descriptors_a_node_is_not_taken_for_dead(
    driver: ProcessDriver, spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, handle = await running(driver, spec(GENTLE))
    other = ProcessDriver(tmp_path / "run")

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(driver_module, "open_pidfd", none_left)
        with pytest.raises(ProcessSupervisorError, match=r"NODE_NOT_WATCHED.*Too many open files") as caught:
            await other.adopt(record)
        assert caught.value.kind == "transient"
        assert await driver.adopt(record) is handle, "one that is watched already needs no descriptor"
    with monkeypatch.context() as patch:
        patch.setattr(driver_module.os, "open", none_left)  # type: ignore[attr-defined]
        with pytest.raises(ProcessSupervisorError, match="NODE_NOT_WATCHED"):
            await other.find("node")
    assert await other.adopt(record) is not None
    await other.close()


async def test_many_former_versions_cost_one_look_at_the_processes(
    driver: ProcessDriver, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = []
    for number in range(5):
        handle = await driver.adopt(await driver.start(spec("", name=f"node-{number}")))
        if handle is not None:
            await handle.wait()
        found = await driver.find(f"node-{number}")
        assert found is not None
        records.append(found)
    real, looks = driver_module.living_sessions, 0  # type: ignore[attr-defined]

    def living_sessions() -> procfs.Sessions:
        nonlocal looks
        looks += 1
        assert threading.current_thread() is not threading.main_thread(), "the loop does not wait for it"
        return real()

    monkeypatch.setattr(driver_module, "living_sessions", living_sessions)
    other = ProcessDriver(driver._run_dir)
    for _ in range(3):
        assert [await other.adopt(record) for record in records] == [None] * 5
    assert looks == 1


async def test_how_a_node_ended_that_a_former_agent_started(driver: ProcessDriver, spec: Make, tmp_path: Path) -> None:
    code = """
import asyncio, sys
from pathlib import Path
from process_supervisor.driver import LaunchSpec
from process_supervisor.process_driver import ProcessDriver
base = Path(sys.argv[1])
spec = LaunchSpec(name='node', argv=('/bin/sleep', '600'), env={}, cwd=base, log_path=base / 'log')
print(asyncio.run(ProcessDriver(base / 'run').start(spec)).pid)
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    record = await driver.find("node")
    assert record is not None
    assert record.pid == int(out)
    handle = await driver.adopt(record)
    assert handle is not None
    os.kill(record.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        status = await handle.wait()
    assert status == ExitStatus(signal=9)


@pytest.mark.parametrize("code", [GENTLE, FORKING])
async def test_no_file_is_touched_on_the_loop(driver: ProcessDriver, spec: Make, tmp_path: Path, code: str) -> None:
    """Neither the disk with records and logs nor /proc may block the event loop."""
    other = ProcessDriver(tmp_path / "run")
    with watched_files(str(tmp_path / "run"), str(tmp_path / "logs")) as touched:
        record = await driver.start(spec(code))
        async with asyncio.timeout(20):
            while "up" not in await driver.logs("node", 10):  # noqa: ASYNC110  (a file tells no event)
                await asyncio.sleep(0.01)
        assert await other.find("node") == record
        watching = await other.adopt(record)
        assert watching is not None
        for one in (driver, other):
            await one.tend()
        handle = await driver.adopt(record)
        assert handle is not None
        await driver.stop(handle, 0.2)
        await watching.wait()
        assert await driver.adopt(record) is None
        await other.remove("node")
        await other.close()
    assert not touched, "\n".join(map(str, touched))


async def test_looking_at_a_node_twice_at_once_gives_one_handle(
    driver: ProcessDriver, spec: Make, tmp_path: Path
) -> None:
    """Two handles would take the exit status from each other."""
    record, _ = await running(driver, spec(GENTLE))
    other = ProcessDriver(tmp_path / "run")
    first, second = await asyncio.gather(other.adopt(record), other.adopt(record))
    assert first is second
    await other.close()


async def test_programs_that_cannot_start(driver: ProcessDriver, spec: Make, tmp_path: Path) -> None:
    good = spec(GENTLE)
    (tmp_path / "plain").write_text("x")
    (tmp_path / "blocked").write_text("")
    for bad in (
        dataclasses.replace(good, argv=()),
        dataclasses.replace(good, argv=("/nowhere/node",)),
        dataclasses.replace(good, argv=(str(tmp_path / "plain"),)),
        dataclasses.replace(good, cwd=tmp_path / "nowhere"),
        dataclasses.replace(good, log_path=tmp_path / "blocked" / "log"),
        dataclasses.replace(good, env={"A\0": "x"}),
    ):
        with pytest.raises(ProcessSupervisorError) as caught:
            await driver.start(bad)
        assert caught.value.code == "NODE_START_FAILED"
        assert await driver.find("node") is None


async def test_names_that_lead_elsewhere(driver: ProcessDriver, spec: Make) -> None:
    for name in ("", "../x", ".x", "a/b", "\u00e9"):
        with pytest.raises(ValueError, match="cannot name"):
            await driver.find(name)


class Crash(BaseException):
    """Stands for the end of the agent."""


async def test_no_node_runs_without_its_record(
    driver: ProcessDriver, spec: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def crash(record: NodeRecord) -> None:
        raise Crash

    monkeypatch.setattr(driver, "_write_record", crash)
    with pytest.raises(Crash):
        await driver.start(spec("open('ran', 'w')"))
    assert not (tmp_path / "ran").exists()


async def test_an_agent_killed_between_spawn_and_record_runs_nothing(tmp_path: Path) -> None:
    """A real agent process dies by SIGKILL right before, or right after, the record is written."""
    code = """
import asyncio, os, signal, sys
from pathlib import Path
from process_supervisor.driver import LaunchSpec
from process_supervisor.process_driver import ProcessDriver
base = Path(sys.argv[1])
class Doomed(ProcessDriver):
    def _write_record(self, record):
        if sys.argv[2] == 'after':
            super()._write_record(record)
        os.kill(os.getpid(), signal.SIGKILL)
spec = LaunchSpec(name='node', argv=('/bin/sh', '-c', 'echo ran > ran'), env={}, cwd=base, log_path=base / 'log')
asyncio.run(Doomed(base / 'run').start(spec))
"""
    for when in ("before", "after"):
        base = tmp_path / when
        base.mkdir()
        arguments = [sys.executable, "-c", code, str(base), when]
        process = await asyncio.create_subprocess_exec(*arguments)
        assert await process.wait() == -signal.SIGKILL
        driver = ProcessDriver(base / "run")
        record = await driver.find("node")
        assert (record is not None) == (when == "after")
        if record is not None:
            handle = await driver.adopt(record)
            if handle is not None:
                await handle.wait()
        assert not (base / "ran").exists()


async def test_the_environment_is_only_what_was_given(driver: ProcessDriver, spec: Make, tmp_path: Path) -> None:
    made = spec("import os,json; json.dump(dict(os.environ), open('env', 'w'))", A="b")
    handle = await driver.adopt(await driver.start(made))
    if handle is not None:
        await handle.wait()
    env = json.loads((tmp_path / "env").read_text())
    assert env.pop("A") == "b"
    assert set(env) <= {"PWD", "LC_CTYPE", "_", "OLDPWD", "SHLVL"}


async def test_logs_are_rotated_under_a_writing_node(driver: ProcessDriver, spec: Make) -> None:
    made = spec(
        "import sys\nfor line in range(400): print('line', line, flush=True)\nprint('up', flush=True)\nsys.stdin.read()"
    )
    made = dataclasses.replace(
        made, argv=(*made.argv[:-1], made.argv[-1].replace("sys.stdin.read()", "import time; time.sleep(600)"))
    )
    await running(driver, made)
    before = await driver.logs("node", 2)
    assert before == ["line 399", "up"]
    await driver.tend()
    assert made.log_path.stat().st_size == 0
    assert tail_log(made.log_path.with_name("node.1"), 1) == ["up"]
    assert await driver.logs("none", 5) == []
