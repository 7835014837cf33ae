"""The container driver's decisions, over a stand-in for the engine; the real one is in tests/e2e."""

import asyncio
from pathlib import Path

import aiodocker
import aiohttp
import pytest

from process_supervisor import container_driver as module
from process_supervisor.container_driver import ContainerDriver, ContainerFacts, ContainerHandle
from process_supervisor.driver import ExitStatus, NodeRecord
from process_supervisor.engine_client import engine_errors
from process_supervisor.errors import ProcessSupervisorError
from process_supervisor.process_driver import ProcessDriver

RECORD = NodeRecord(kind="container", name="n", started_unix_s=0, command_digest="", container_id="c", image_id="i")


def facts(*, running: bool, code: int = 0) -> ContainerFacts:
    return ContainerFacts("c", "i", "n", {}, running, code, "2026-01-02T03:04:05.678Z", "")


class ScriptedDriver(ContainerDriver):
    """Answers `inspect` from a script; an error in it is raised."""

    def __init__(self, script: list[ContainerFacts | str | None]) -> None:
        self._script = script
        self._handles = {}

    async def inspect(self, container: str) -> ContainerFacts | None:
        step = self._script.pop(0)
        if isinstance(step, str):
            raise ProcessSupervisorError(code=step, what="x", why="y")
        return step

    async def wait_stopped(self, container_id: str) -> None:
        if self._script and self._script[0] == "broken wait":
            raise ProcessSupervisorError(code=str(self._script.pop(0)), what="x", why="y")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0)


async def test_a_watch_outlives_an_engine_that_is_away() -> None:
    away = "CONTAINER_ENGINE_UNREACHABLE"
    driver = ScriptedDriver(
        [facts(running=True), "broken wait", away, away, facts(running=True), facts(running=False, code=5)]
    )
    assert await ContainerHandle(RECORD, driver).wait() == ExitStatus(code=5)


@pytest.mark.parametrize(
    ("code", "status"), [(0, ExitStatus(code=0)), (137, ExitStatus(signal=9)), (255, ExitStatus(code=255))]
)
async def test_exit_codes_tell_signals(code: int, status: ExitStatus) -> None:
    assert await ContainerHandle(RECORD, ScriptedDriver([facts(running=False, code=code)])).wait() == status


async def test_a_removed_container_has_ended() -> None:
    assert await ContainerHandle(RECORD, ScriptedDriver([None])).wait() == ExitStatus()


async def test_a_watch_that_is_let_go_ends_quietly() -> None:
    handle = ContainerHandle(RECORD, ScriptedDriver(["x"] * 1000))
    await asyncio.sleep(0)
    await handle.close()
    assert handle.exit_status() is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (aiodocker.DockerError(900, "no"), "CONTAINER_ENGINE_UNREACHABLE"),
        (aiodocker.DockerError(500, "no"), "CONTAINER_ENGINE_ERROR"),
        (aiohttp.ClientError("no"), "CONTAINER_ENGINE_UNREACHABLE"),
        (TimeoutError(), "CONTAINER_ENGINE_UNREACHABLE"),
        (ConnectionResetError(), "CONTAINER_ENGINE_UNREACHABLE"),
    ],
)
def test_the_clients_errors_get_codes(error: Exception, code: str) -> None:
    with pytest.raises(ProcessSupervisorError) as caught, engine_errors("x"):
        raise error
    assert (caught.value.code, caught.value.kind) == (code, "transient")


def test_times_of_the_engine() -> None:
    assert module._unix_s("1970-01-01T00:01:00.123456789Z") == 60.0
    assert module._unix_s("0001-01-01T00:00:00Z") == 0.0
    assert module._unix_s("nonsense") == 0.0


async def test_handles_of_another_driver_are_refused(tmp_path: Path) -> None:
    handle = ContainerHandle(RECORD, ScriptedDriver([None]))
    with pytest.raises(TypeError):
        await ProcessDriver(tmp_path).stop(handle, 0)
    await handle.wait()
