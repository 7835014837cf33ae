"""The vault's process: started, looked at and started again by the agent."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from dcupgrade.errors import failure_of
from dcupgrade.settings.schema import Settings
from process_supervisor.driver import LaunchSpec
from process_supervisor.process_driver import ProcessDriver

from .node_process import KEPT_ENVIRONMENT
from .vault import Vault

log = logging.getLogger("dcupgrade")

VAULT_NAME = "vault"
VAULT_LOOK_S = 15.0
VAULT_STOP_GRACE_S = 5.0
VAULT_STEADY_S = 10.0
VAULT_PAUSE_S_MAX = 2.0
"""A vault that is down keeps a new node waiting for its keys: the pause before its restart stays short."""


def vault_spec(settings: Settings) -> LaunchSpec:
    """How the vault is started: the settings' command, else `python -m keyvault serve` with the settings' files."""
    vault = settings.vault
    listen = vault.url.removeprefix("http://").rstrip("/")
    argv = vault.command or (
        *(sys.executable, "-m", "keyvault", "serve", "--listen", listen, "--store", str(settings.store_dir.resolve())),
        *("--token-file", str(settings.token_file.resolve()), "--auth-file", _path(vault.auth_file)),
        *("--cpu", str(settings.cpu_dir.resolve()), "--image", _path(vault.image)),
        *("--sigstruct", _path(vault.sigstruct)),
    )
    return LaunchSpec(
        name=VAULT_NAME,
        argv=tuple(argv),
        env={name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
        cwd=settings.agent.state_dir,
        log_path=settings.agent.state_dir / "logs" / "vault.log",
    )


def _path(path: Path | None) -> str:
    return "" if path is None else str(path.resolve())


async def look_at_vault(vault: Vault) -> None:
    """Ask the vault now and then what it is and holds, for status page and metrics."""
    told = ""
    while True:
        problem = ""
        try:
            await vault.status()
        except Exception as error:
            problem = failure_of(error).detail
            if problem != told and vault.last:
                log.warning("the vault: %s", problem)
        told = problem
        await asyncio.sleep(VAULT_LOOK_S if vault.last else 1.0)


async def keep_vault(settings: Settings, driver: ProcessDriver) -> None:
    """Keep the vault's process up; it is found again after the agent's restart."""
    tries = 0
    while True:
        try:
            record = await driver.start(vault_spec(settings))
            handle = await driver.adopt(record)
            if handle is not None:
                began = asyncio.get_running_loop().time()
                ended = await handle.wait()
                tries = 0 if asyncio.get_running_loop().time() - began > VAULT_STEADY_S else tries
                log.error("VAULT_START_FAILED: the vault ended with %s; log: %s", ended, record.log_path)
        except Exception as error:
            failure = failure_of(error)
            if failure.code == "NODE_ALREADY_RUNNING":
                await _stop_by_name(driver, VAULT_NAME)  # it was started with other settings
                continue
            log.error("VAULT_START_FAILED: %s", failure.detail)
        tries += 1
        await asyncio.sleep(min(VAULT_PAUSE_S_MAX, 0.1 * 2.0 ** min(tries, 10)))


async def _stop_by_name(driver: ProcessDriver, name: str) -> None:
    record = await driver.find(name)
    handle = await driver.adopt(record) if record is not None else None
    if handle is not None:
        await driver.stop(handle, VAULT_STOP_GRACE_S)
