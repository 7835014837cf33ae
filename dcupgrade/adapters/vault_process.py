"""The vault's process: the agent starts it, checks that it answers, and restarts it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from dcupgrade.errors import failure_of
from dcupgrade.settings.schema import Settings
from keyvault.client import VaultClient
from keyvault.errors import KeyvaultError
from process_supervisor.driver import ExitStatus, LaunchSpec, NodeHandle
from process_supervisor.process_driver import ProcessDriver
from process_supervisor.threads import in_thread

from .node_process import CHILD_FOLDER, child_environment

log = logging.getLogger("dcupgrade")

VAULT_NAME = "vault"
VAULT_STOP_GRACE_S = 5.0
VAULT_STEADY_S = 10.0
VAULT_LOOK_S = 15.0
VAULT_ANSWER_S_MAX = 10.0
VAULT_SILENT_LOOKS_MAX = 4
CODE_OF_SIGNALS = 128
VAULT_PAUSE_S_MAX = 2.0
"""A vault that is down keeps a new node waiting for its keys: the pause before its restart stays short."""


def vault_spec(settings: Settings) -> LaunchSpec:
    """Return how to start the vault: by the settings' command, else `python -m keyvault serve` with their files.

    Blocking: links in the paths are followed.
    """
    vault = settings.vault
    listen = vault.url.removeprefix("http://").rstrip("/")
    argv = vault.command or (
        *(sys.executable, "-P", "-m", "keyvault", "serve", "--listen", listen),
        *("--store", str(settings.store_dir.resolve())),
        *("--token-file", str(settings.token_file.resolve()), "--auth-file", _path(vault.auth_file)),
        *("--cpu", str(settings.cpu_dir.resolve()), "--image", _path(vault.image)),
        *("--sigstruct", _path(vault.sigstruct)),
    )
    return LaunchSpec(
        name=VAULT_NAME,
        argv=tuple(argv),
        env=child_environment(),
        cwd=settings.agent.state_dir if vault.command else CHILD_FOLDER,
        log_path=settings.agent.state_dir / "logs" / "vault.log",
    )


def _path(path: Path | None) -> str:
    return "" if path is None else str(path.resolve())


async def keep_vault(
    settings: Settings,
    driver: ProcessDriver,
    answers: Callable[[], Awaitable[bool]] | None = None,
    *,
    look_s: float = VAULT_LOOK_S,
) -> None:
    """Keep the vault's process running; after a restart of the agent it is found again.

    A process that is alive but fails four checks in a row, `look_s` seconds apart, is ended and started again.
    `answers` checks it once (default: by its health route).
    """
    asked = answers if answers is not None else partial(_answers, settings.vault.url)
    loop = asyncio.get_running_loop()
    tries = 0
    while True:
        try:
            record = await driver.start(await in_thread(vault_spec, settings))
            handle = await driver.adopt(record)
            if handle is not None:
                began = loop.time()
                ended = await _until_ended(driver, handle, asked, look_s)
                tries = 0 if loop.time() - began > VAULT_STEADY_S else tries
                how = how_it_ended(ended)
                log.error("VAULT_ENDED: the vault ended %s; it is started again; log: %s", how, record.log_path)
        except Exception as error:
            failure = failure_of(error)
            if failure.code == "NODE_ALREADY_RUNNING":
                await _stop_by_name(driver, VAULT_NAME)  # it was started with other settings
                continue
            log.error("VAULT_START_FAILED: %s", failure.detail)
        tries += 1
        await asyncio.sleep(min(VAULT_PAUSE_S_MAX, 0.1 * 2.0 ** min(tries, 10)))


async def _until_ended(
    driver: ProcessDriver, handle: NodeHandle, answers: Callable[[], Awaitable[bool]], look_s: float
) -> ExitStatus:
    """Wait until the process ends; end it if it is alive but does not answer."""
    ended = asyncio.ensure_future(handle.wait())
    silent_looks = 0
    try:
        while not (await asyncio.wait({ended}, timeout=look_s))[0]:
            silent_looks = 0 if await answers() else silent_looks + 1
            if silent_looks >= VAULT_SILENT_LOOKS_MAX:
                silent_looks = 0
                log.error("VAULT_SILENT: the vault's process lives but does not answer; it is ended and started again")
                await driver.stop(handle, VAULT_STOP_GRACE_S)
        return ended.result()
    finally:
        ended.cancel()


async def _answers(url: str) -> bool:
    try:
        async with asyncio.timeout(VAULT_ANSWER_S_MAX), VaultClient(url, "") as client:
            await client.health()
    except (KeyvaultError, TimeoutError):
        return False
    return True


def how_it_ended(status: ExitStatus) -> str:
    """Describe how the vault's process ended. The simulated CPU exits with 128 + n if its enclave ended by signal n."""
    number = status.signal if status.signal is not None else (status.code or 0) - CODE_OF_SIGNALS
    if number > 0:
        return f"by signal {number}"
    if status.code is not None:
        return f"with exit code {status.code}"
    return "(how is not known: an earlier agent started it)"


async def _stop_by_name(driver: ProcessDriver, name: str) -> None:
    record = await driver.find(name)
    handle = await driver.adopt(record) if record is not None else None
    if handle is not None:
        await driver.stop(handle, VAULT_STOP_GRACE_S)
