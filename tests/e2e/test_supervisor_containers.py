"""The container driver with a private, real Docker engine."""

import asyncio
import dataclasses
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiodocker
import pytest

from devnet.docker.engine import BASE_IMAGE, PrivateEngine
from process_supervisor.container_driver import ContainerDriver
from process_supervisor.container_template import ContainerOptions, Mount
from process_supervisor.data_lock import data_lock_holder
from process_supervisor.driver import ContainerSpec, ExitStatus, LaunchSpec, NodeRecord
from process_supervisor.engine_client import engine
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.host import other_manager_containers
from process_supervisor.log_files import LogPolicy

pytestmark = [pytest.mark.e2e, pytest.mark.compose]
GENTLE = (
    "import signal,sys; signal.pthread_sigmask(0, [15]); print('up', flush=True); signal.sigwait([15]); sys.exit(3)"
)
STUBBORN = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
Make = Callable[..., LaunchSpec]


@pytest.fixture
async def docker(private_engine: PrivateEngine) -> AsyncIterator[aiodocker.Docker]:
    async with engine(private_engine.url) as client:
        yield client
    private_engine.remove_containers()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture
async def driver(docker: aiodocker.Docker, notes: Path) -> AsyncIterator[ContainerDriver]:
    made = ContainerDriver(docker, owner="me", notes=notes, log_policy=LogPolicy(size_bytes_max=20_000, kept=1))
    yield made
    await made.close()


@pytest.fixture
def spec(tmp_path: Path) -> Make:
    data = tmp_path / "data"
    data.mkdir(mode=0o777)
    data.chmod(0o777)

    def make(code: str, name: str = "node", image: str = BASE_IMAGE, **change: object) -> LaunchSpec:
        options = ContainerOptions(
            entrypoint=("python3",),
            command=("-I", "-c", code),
            environment=("MARK=x",),
            working_dir="/",
            mounts=(Mount("bind", str(data), "/data"),),
            user="65534:65534",
            confined=True,
            read_only_root=True,
        )
        template = dataclasses.replace(options, **change).template()  # type: ignore[arg-type]
        container = ContainerSpec(image=image, template=template, exclusive=frozenset({str(data)}))
        return LaunchSpec(name=name, argv=(), env={}, cwd=Path("/"), log_path=tmp_path / "unused", container=container)

    return make


async def up(driver: ContainerDriver, name: str = "node") -> None:
    async with asyncio.timeout(90):
        while "up" not in await driver.logs(name, 5):  # noqa: ASYNC110  (the engine tells no such event)
            await asyncio.sleep(0.05)


async def started(driver: ContainerDriver, made: LaunchSpec) -> NodeRecord:
    record = await driver.start(made)
    await up(driver, made.name)
    return record


async def test_a_node_starts_is_found_again_and_stops(driver: ContainerDriver, spec: Make) -> None:
    record = await started(driver, spec(GENTLE))
    assert await driver.start(spec(GENTLE)) == record
    assert await driver.find("node") == record
    assert NodeRecord.from_json(record.to_json()) == record
    handle = await driver.adopt(record)
    assert handle is not None
    assert handle.exit_status() is None
    assert await driver.stop(handle, 30) == ExitStatus(code=3)
    assert await driver.adopt(record) is None
    assert await driver.stop(handle, 30) == ExitStatus(code=3)
    assert await driver.find("node") is not None
    await driver.tend()
    for _ in range(2):
        await driver.remove("node")
        assert await driver.find("node") is None
    assert await driver.stop(handle, 30) == ExitStatus(code=3)


async def test_a_stubborn_node_is_killed_after_the_grace(driver: ContainerDriver, spec: Make) -> None:
    handle = await driver.adopt(await started(driver, spec(STUBBORN)))
    assert handle is not None
    assert await driver.stop(handle, 0.2) == ExitStatus(signal=signal.SIGKILL, killed=True)


async def test_another_agent_adopts_by_container_id(
    driver: ContainerDriver, docker: aiodocker.Docker, spec: Make, notes: Path
) -> None:
    record = await started(driver, spec(GENTLE))
    await driver.close()
    other = ContainerDriver(docker, owner="me", notes=notes)
    assert await other.adopt(dataclasses.replace(record, image_id="sha256:00")) is None
    assert await other.adopt(dataclasses.replace(record, container_id="0" * 64)) is None
    assert await other.adopt(dataclasses.replace(record, kind="process")) is None
    handle = await other.adopt(NodeRecord.from_json(record.to_json()))
    assert handle is not None
    waiting = asyncio.create_task(handle.wait())
    assert await other.stop(handle, 30) == ExitStatus(code=3)
    assert await waiting == ExitStatus(code=3)
    await other.close()


async def test_a_container_that_somebody_else_runs_is_taken_over(
    driver: ContainerDriver, private_engine: PrivateEngine, spec: Make, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    run = ("run", "--detach", "--name", "somebodys", "--network", "host", "--restart", "always")
    argv = ("--volume", f"{tmp_path}:{tmp_path}", BASE_IMAGE, "python3", "-I", "-c", GENTLE)
    container_id = private_engine.docker(*run, *argv).strip()
    with pytest.raises(ProcessSupervisorError, match=r"NODE_NOT_ADOPTABLE.*has no mount of /srv/another"):
        await driver.take_over("node", "somebodys", Path("/srv/another"))
    record = await driver.take_over("node", "somebodys", data)
    assert record.container_id == container_id
    await up(driver)
    assert (await driver.take_over("node", container_id, data)).container_id == container_id
    found = await driver.find("node")
    assert found is not None
    handle = await driver.adopt(found)
    assert handle is not None
    with pytest.raises(ProcessSupervisorError, match="NODE_NOT_ADOPTABLE"):
        await driver.take_over("another", "somebody who is not there", data)
    await driver.stop(handle, 30)
    for name in (container_id, ""):
        with pytest.raises(ProcessSupervisorError, match="NODE_NOT_ADOPTABLE"):
            await driver.take_over("node", name, data)
    again = await driver.start(spec(GENTLE))
    assert again.container_id == container_id, "its own container is started again, not another one"
    with pytest.raises(ProcessSupervisorError, match="NODE_ALREADY_RUNNING"):
        await driver.remove("node")


async def test_the_previous_container_waits_and_serves_again(driver: ContainerDriver, spec: Make) -> None:
    old, new = spec(GENTLE, "node-old"), spec("raise SystemExit(7)", "node-new")
    record = await started(driver, old)
    handle = await driver.adopt(record)
    assert handle is not None
    await driver.stop(handle, 30)
    broken = await driver.adopt(await driver.start(new))
    assert broken is None or await broken.wait() == ExitStatus(code=7)
    again = await driver.start(old)
    assert again.container_id == record.container_id
    assert await driver.adopt(again) is not None
    with pytest.raises(ProcessSupervisorError) as caught:
        await driver.remove("node-old")
    assert caught.value.code == "NODE_ALREADY_RUNNING"
    await driver.remove("node-new")


async def test_another_command_under_a_running_name_is_refused(driver: ContainerDriver, spec: Make) -> None:
    await started(driver, spec(GENTLE))
    with pytest.raises(ProcessSupervisorError) as caught:
        await driver.start(spec(STUBBORN))
    assert (caught.value.code, caught.value.kind) == ("NODE_ALREADY_RUNNING", "invariant")


async def test_a_container_created_right_before_a_crash_is_used(driver: ContainerDriver, spec: Make) -> None:
    made = spec(GENTLE)
    created = await driver._create(made)
    assert await driver._create(made) == created
    assert (await driver.start(made)).container_id == created


async def test_the_engines_restart_policy_is_off_before_the_stop(
    driver: ContainerDriver, docker: aiodocker.Docker, private_engine: PrivateEngine, spec: Make, tmp_path: Path
) -> None:
    private_engine.docker(
        *("run", "--detach", "--restart", "always", "--network", "host", "--name", "dcnode"),
        *("--volume", f"{tmp_path}:/data", BASE_IMAGE, "python3", "-c", STUBBORN),
    )
    record = await driver.take_over("node-field", "dcnode", tmp_path)
    handle = await driver.adopt(record)
    assert handle is not None
    await driver.stop(handle, 0)
    shown = await docker.containers.container(record.container_id).show()
    assert shown["HostConfig"]["RestartPolicy"]["Name"] == "no"
    assert not shown["State"]["Running"]
    # Made by somebody else, it is started again as it is.
    assert (await driver.start(spec(GENTLE, "node-field"))).container_id == record.container_id


async def test_nodes_are_confined(driver: ContainerDriver, docker: aiodocker.Docker, spec: Make) -> None:
    code = """
import os, resource
def attempt(call):
    try: call(); return 'done'
    except OSError as error: return type(error).__name__
print('root', attempt(lambda: open('/etc/x', 'w')))
print('data', attempt(lambda: open('/data/x', 'w')))
print('tmp', attempt(lambda: open('/tmp/x', 'w')))
print('uid', os.getuid(), 'core', resource.getrlimit(resource.RLIMIT_CORE)[1], os.environ.get('MARK'))
print('caps', open('/proc/self/status').read().split('CapEff:')[1].split()[0])
print('up')
"""
    await started(driver, spec(code))
    lines = await driver.logs("node", 10)
    assert lines[:4] == ["root OSError", "data done", "tmp done", "uid 65534 core 0 x"]
    assert int(lines[4].split()[1], 16) == 0
    shown = await docker.containers.container((await driver._of_node("node"))[0].container_id).show()
    assert shown["HostConfig"]["LogConfig"]["Config"] == {"max-size": "20000", "max-file": "2"}


async def test_a_containers_data_lock_is_seen_from_outside(driver: ContainerDriver, spec: Make, tmp_path: Path) -> None:
    code = "import fcntl,time; f=open('/data/.lock','w'); fcntl.flock(f,2); print('up',flush=True); time.sleep(600)"
    record = await started(driver, spec(code))
    assert data_lock_holder(tmp_path / "data") is not None
    handle = await driver.adopt(record)
    assert handle is not None
    await driver.stop(handle, 0)
    assert data_lock_holder(tmp_path / "data") is None


async def test_starts_that_fail(driver: ContainerDriver, spec: Make) -> None:
    cases = {
        "NODE_START_FAILED": [
            spec(GENTLE, "a", image=""),
            spec(GENTLE, "b", entrypoint=("/nowhere/node",)),
        ],
        "CONTAINER_IMAGE_MISSING": [spec(GENTLE, "c", image="sha256:" + "0" * 64)],
        "CONTAINER_ENGINE_ERROR": [spec(GENTLE, "d", mounts=(Mount("bind", "/nowhere/data", "/data"),))],
    }
    for code, specs in cases.items():
        for made in specs:
            with pytest.raises(ProcessSupervisorError) as caught:
                await driver.start(made)
            assert caught.value.code == code
    with pytest.raises(ValueError, match="cannot name"):
        await driver.find("../x")
    assert await driver.logs("none", 5) == []


async def test_other_managers_are_seen(driver: ContainerDriver, private_engine: PrivateEngine, spec: Make) -> None:
    await started(driver, spec(GENTLE))
    assert other_manager_containers(await driver.running_containers()) == []
    private_engine.docker("run", "--detach", "--network", "host", "--name", "dcmanager", BASE_IMAGE, "sleep", "600")
    assert other_manager_containers(await driver.running_containers()) == [f"container dcmanager of {BASE_IMAGE}"]


async def test_an_engine_that_is_not_there(tmp_path: Path, spec: Make) -> None:
    async with engine(f"unix://{tmp_path}/none.sock") as client:
        away = ContainerDriver(client, owner="me", notes=tmp_path)
        for call in (
            away.find("node"),
            away.start(spec(GENTLE)),
            away.running_containers(),
            away._create(spec(GENTLE)),
        ):
            with pytest.raises(ProcessSupervisorError) as caught:
                await call
            assert (caught.value.code, caught.value.kind) == ("CONTAINER_ENGINE_UNREACHABLE", "transient")


async def test_two_agents_on_one_engine_never_touch_each_others_node(
    driver: ContainerDriver, docker: aiodocker.Docker, spec: Make, tmp_path: Path
) -> None:
    """The same version under the same name, as two nodes of one host have it (case E9)."""
    mine = await started(driver, spec(GENTLE))
    folder = tmp_path / "other"
    folder.mkdir()
    other = ContainerDriver(docker, owner="other", notes=folder)
    assert await other.find("node") is None
    with pytest.raises(ProcessSupervisorError, match=r"NODE_NOT_ADOPTABLE.*carries the labels"):
        await other.take_over("node", mine.container_id, tmp_path / "data")
    with pytest.raises(ProcessSupervisorError, match="CONTAINER_DATA_IN_USE"):
        await other.start(spec(GENTLE))
    apart = spec(GENTLE, mounts=(Mount("bind", str(folder), "/data"),))
    assert apart.container is not None
    apart = dataclasses.replace(
        apart, container=dataclasses.replace(apart.container, exclusive=frozenset({str(folder)}))
    )
    theirs = await other.start(apart)
    assert theirs.container_id != mine.container_id
    assert (await driver.find("node")) == mine
    await other.close()


async def id_of(name: str, driver: ContainerDriver) -> str | None:
    facts = await driver.inspect(name)
    return facts.container_id if facts else None


async def test_the_version_that_runs_has_the_containers_name(driver: ContainerDriver, spec: Make) -> None:
    old, new = named(spec(GENTLE, "node-old")), named(spec(STUBBORN, "node-new"))
    first = await started(driver, old)
    assert await id_of("dcstorage", driver) == first.container_id
    handle = await driver.adopt(first)
    assert handle is not None
    with pytest.raises(ProcessSupervisorError, match="CONTAINER_DATA_IN_USE"):
        await driver.start(new)
    await driver.stop(handle, 30)
    second = await started(driver, new)
    assert await id_of("dcstorage", driver) == second.container_id
    handle = await driver.adopt(second)
    assert handle is not None
    await driver.stop(handle, 0)
    assert (await driver.start(old)).container_id == first.container_id
    assert await id_of("dcstorage", driver) == first.container_id


async def test_a_strangers_container_keeps_its_name(
    driver: ContainerDriver, private_engine: PrivateEngine, spec: Make
) -> None:
    for state in ("create", "run"):
        detach = ("--detach",) if state == "run" else ()
        private_engine.docker(state, *detach, "--network", "host", "--name", "dcstorage", BASE_IMAGE, "sleep", "600")
        with pytest.raises(ProcessSupervisorError) as caught:
            await driver.start(named(spec(GENTLE)))
        assert (caught.value.code, caught.value.kind) == ("CONTAINER_NAME_TAKEN", "transient")
        private_engine.docker("rm", "--force", "dcstorage")
    await driver.start(named(spec(GENTLE)))


async def test_a_container_is_found_after_somebody_renamed_it_and_missed_after_a_removal(
    driver: ContainerDriver, private_engine: PrivateEngine, spec: Make
) -> None:
    record = await started(driver, named(spec(GENTLE)))
    private_engine.docker("rename", "dcstorage", "mine")
    assert (await driver.start(named(spec(GENTLE)))).container_id == record.container_id
    handle = await driver.adopt(record)
    assert handle is not None
    private_engine.docker("rm", "--force", "mine")
    await handle.wait()
    assert (await driver.start(named(spec(GENTLE)))).container_id != record.container_id


async def test_a_node_is_stopped_by_its_images_signal_and_with_the_patience_that_it_asks_for(
    driver: ContainerDriver, private_engine: PrivateEngine, spec: Make, tmp_path: Path
) -> None:
    """STOPSIGNAL SIGINT (case E4): the node here ends only by that one, and takes longer than the agent's grace."""
    code = "import signal,sys,time; signal.signal(15, signal.SIG_IGN)\n"
    code += "signal.pthread_sigmask(signal.SIG_BLOCK, [2]); print('up', flush=True)\n"
    code += "signal.sigwait([2]); time.sleep(1); sys.exit(5)"
    context = tmp_path / "image"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\nSTOPSIGNAL SIGINT\n")
    private_engine.docker("build", "--network", "none", "--tag", "dcupgrade-trial:stopsignal", str(context))
    try:
        made = spec(code, image="dcupgrade-trial:stopsignal")
        handle = await driver.adopt(await started(driver, made))
        assert handle is not None
        assert await driver.stop(handle, 30) == ExitStatus(code=5)
        await driver.remove("node")
        private_engine.docker(
            *("run", "--detach", "--name", "patient", "--network", "host", "--stop-timeout", "30"),
            *("--volume", f"{tmp_path}:/data", "dcupgrade-trial:stopsignal", "python3", "-c", code),
        )
        handle = await driver.adopt(await driver.take_over("node", "patient", tmp_path))
        await up(driver)
        assert handle is not None
        assert await driver.stop(handle, 0) == ExitStatus(code=5)
    finally:
        private_engine.remove_containers()
        private_engine.docker("rmi", "dcupgrade-trial:stopsignal")


async def test_the_settings_of_a_container_make_the_next_one(
    driver: ContainerDriver, docker: aiodocker.Docker, private_engine: PrivateEngine, tmp_path: Path
) -> None:
    """As the field's manager runs its node. The second container differs from the first only in its restart policy."""
    run = (
        "run",
        "--detach",
        "--name",
        "dcstorage",
        "--network",
        "host",
        "--restart",
        "always",
        "--entrypoint",
        "sleep",
    )
    logs = ("--log-driver", "json-file", "--log-opt", "max-size=100m", "--log-opt", "max-file=3")
    more = ("--device", "/dev/null:/dev/sgx/enclave", "--env", "A=b", "--ulimit", "nofile=512", "--cap-add", "SYS_NICE")
    mounts = ("--volume", "dcstorage:/opt/dcnetio/data", "--volume", f"{tmp_path}:/opt/dcnetio/etc")
    private_engine.docker(*run, *logs, *more, *mounts, BASE_IMAGE, "600")
    template = await driver.template("dcstorage")
    handle = await driver.adopt(await driver.take_over("node-old", "dcstorage", tmp_path))
    assert handle is not None
    before = await driver.show("dcstorage")
    await driver.stop(handle, 0)
    container = ContainerSpec(image=BASE_IMAGE, template=template, exclusive=frozenset({"dcstorage"}))
    made = LaunchSpec(name="node-new", argv=(), env={}, cwd=Path("/"), log_path=Path("/x"), container=container)
    record = await driver.start(made)
    after = await driver.show("dcstorage")
    assert before is not None
    assert after is not None
    assert after["Id"] == record.container_id != before["Id"]
    assert after["HostConfig"].pop("RestartPolicy")["Name"] == "no"
    del before["HostConfig"]["RestartPolicy"]
    assert {key: value or None for key, value in after["HostConfig"].items()} == {
        key: value or None for key, value in before["HostConfig"].items()
    }
    ours = ("Labels",)
    assert {key: value for key, value in after["Config"].items() if key not in ours} == {
        key: value for key, value in before["Config"].items() if key not in ours
    }
    with pytest.raises(ProcessSupervisorError, match="NODE_NOT_ADOPTABLE"):
        await driver.template("nobody")
    private_engine.remove_containers()
    private_engine.docker("volume", "rm", "dcstorage")


def named(made: LaunchSpec) -> LaunchSpec:
    """The same, in a container called dcstorage."""
    assert made.container is not None
    template = dataclasses.replace(made.container.template, name="dcstorage")
    return dataclasses.replace(made, container=dataclasses.replace(made.container, template=template))
