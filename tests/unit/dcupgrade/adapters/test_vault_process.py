"""The vault's process under the agent: restarted if it ends or hangs; the cause of its end is reported."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from dcupgrade.adapters import vault_process
from dcupgrade.adapters.vault_process import VAULT_SILENT_LOOKS_MAX, how_it_ended, keep_vault, vault_spec
from dcupgrade.settings.schema import Settings
from process_supervisor.driver import ExitStatus, LaunchSpec, NodeRecord
from process_supervisor.process_driver import ProcessDriver
from tests.doubles.node_driver import settings_of


class Handle:
    def __init__(self) -> None:
        self.ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self.ended)


class FakeDriver:
    """Starts vaults that live until the test ends them; `stopped` counts those that were ended by force."""

    def __init__(self) -> None:
        self.vaults: asyncio.Queue[Handle] = asyncio.Queue()
        self.stopped = 0
        self.spec: LaunchSpec | None = None

    async def start(self, spec: LaunchSpec) -> NodeRecord:
        self.spec = spec
        return NodeRecord(kind="process", name=spec.name, started_unix_s=0.0, command_digest="", log_path="vault.log")

    async def adopt(self, _: NodeRecord) -> Handle:
        handle = Handle()
        self.vaults.put_nowait(handle)
        return handle

    async def stop(self, handle: Handle, _: float) -> ExitStatus:
        self.stopped += 1
        handle.ended.set_result(ExitStatus(signal=9, killed=True))
        return await handle.wait()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path / "data")


@contextlib.asynccontextmanager
async def kept(settings: Settings, driver: FakeDriver, answers: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
    task = asyncio.create_task(keep_vault(settings, cast(ProcessDriver, driver), answers, look_s=0.0))
    try:
        async with asyncio.timeout(30):
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_process, "VAULT_PAUSE_S_MAX", 0.0)


async def test_a_vault_that_was_killed_is_started_again_and_the_log_says_how_it_ended(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    driver = FakeDriver()

    async def answers() -> bool:
        await asyncio.sleep(0)
        return True

    async with kept(settings, driver, answers):
        (await driver.vaults.get()).ended.set_result(ExitStatus(signal=9))
        await driver.vaults.get()
    assert "VAULT_ENDED: the vault ended by signal 9; it is started again" in caplog.text
    assert driver.stopped == 0


async def test_a_vault_that_lives_but_does_not_answer_is_ended_and_started_again(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    driver = FakeDriver()
    script = [True, *[False] * (VAULT_SILENT_LOOKS_MAX - 1), True, *[False] * VAULT_SILENT_LOOKS_MAX]
    looks: list[bool] = []

    async def answers() -> bool:
        await asyncio.sleep(0)
        looks.append(script[len(looks)] if len(looks) < len(script) else True)
        return looks[-1]

    async with kept(settings, driver, answers):
        await driver.vaults.get()
        await driver.vaults.get()
    assert driver.stopped == 1
    assert looks[: len(script)] == script
    assert "VAULT_SILENT" in caplog.text


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (ExitStatus(signal=9), "by signal 9"),
        (ExitStatus(code=137), "by signal 9"),  # the enclave was killed, and its software CPU tells so
        (ExitStatus(code=1), "with exit code 1"),
        (ExitStatus(code=0), "with exit code 0"),
        (ExitStatus(), "(how is not known: an earlier agent started it)"),
    ],
)
def test_how_it_ended_is_told_in_one_way(status: ExitStatus, text: str) -> None:
    assert how_it_ended(status) == text


def test_no_folder_lends_modules_to_the_vaults_process(settings: Settings) -> None:
    spec = vault_spec(settings)
    assert spec.argv[1:4] == ("-P", "-m", "keyvault")
    assert (spec.cwd, spec.env["PYTHONSAFEPATH"]) == (Path("/"), "1")


async def test_a_port_where_nobody_answers_is_silent() -> None:
    assert not await vault_process._answers("http://127.0.0.1:1")
