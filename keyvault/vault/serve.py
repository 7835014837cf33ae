"""The vault's program: open the store, serve the ports, until a signal ends it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.resources
import logging
import os
import re
import signal
import time
from pathlib import Path
from typing import Final

from attestation.network import decode_multibase
from attestation.tee.driver import TeeDriver
from keyvault.errors import KeyvaultError
from keyvault.handover.hpke import RealCrypto
from keyvault.handover.http_server import GuardedServer
from keyvault.store.disk import FolderDisk
from keyvault.store.sealed_store import SealedStore

from .agent_api import vault_app
from .measured_policy import FILE_NAME, VaultPolicy, parse_policy, tighten
from .vault import Vault

_SIGNATURE_CHARS: Final = 104
_SWEEP_EVERY_S: Final = 60.0
_LOCK_WAIT_S: Final = 5.0
_TOKEN: Final = re.compile(r"[\x21-\x7e]{16,512}")


def start_refused(why: str, action: str = "") -> KeyvaultError:
    """Make the error VAULT_START_REFUSED."""
    return KeyvaultError(code="VAULT_START_REFUSED", what="the vault does not start", why=why, action=action)


def read_text_file(path: Path, what: str) -> str:
    """Return a file's text. Raises VAULT_START_REFUSED where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise start_refused(f"the {what} {path} cannot be read ({type(error).__name__})") from None


def read_signatures(text: str) -> tuple[bytes, ...]:
    """Decode one or more network signatures in multibase base32; spaces and newlines are ignored."""
    joined = "".join(text.split())
    parts = [joined[at : at + _SIGNATURE_CHARS] for at in range(0, len(joined), _SIGNATURE_CHARS)]
    return tuple(decode_multibase(part) for part in parts)


def measured_policy(tighten_file: Path | None) -> VaultPolicy:
    """Return the policy inside this image, tightened by the host's file if there is one."""
    try:
        data = importlib.resources.files("keyvault").joinpath(FILE_NAME).read_bytes()
    except OSError:
        raise KeyvaultError(
            code="VAULT_POLICY_INVALID",
            what="the vault does not start",
            why="this is no vault image: it holds no measured policy",
            action="Build one with python -m keyvault build, and start it with --image and --sigstruct.",
        ) from None
    policy = parse_policy(data)
    return tighten(policy, read_text_file(tighten_file, "settings file").encode("utf-8")) if tighten_file else policy


def open_vault(args: argparse.Namespace, tee: TeeDriver) -> Vault:
    """Open the store under the measured policy and start the vault. Raises VAULT_START_REFUSED, STORE_* codes."""
    policy = measured_policy(args.tighten)
    if tee.kind == "simulated" and not policy.unsafe_simulated_tee:
        raise start_refused(
            "the TEE is simulated and the measured policy has unsafe_simulated_tee = false",
            "Run it in a real TEE; a simulated one protects nothing from its host.",
        )
    signatures = read_signatures(read_text_file(args.auth_file, "network signature file"))
    policy.network.verify(tee.target_info().enclave_id, signatures)
    try:
        disk = FolderDisk(args.store)
    except OSError as error:
        raise start_refused(
            f"the store {args.store} cannot be used ({error.strerror})", "Give it a folder that is its own."
        ) from None
    _lock(disk)
    store = SealedStore(disk, tee, os.urandom, allow_simulated=policy.unsafe_simulated_tee)
    vault = Vault(tee, policy, store, RealCrypto(), signatures)
    vault.start()
    return vault


def _lock(disk: FolderDisk) -> None:
    """Take the store; a vault that was just killed may need a moment to be gone."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            disk.lock()
            return
        except KeyvaultError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


async def serve(args: argparse.Namespace, vault: Vault, facts: dict[str, object]) -> None:
    """Serve the agent and the nodes until SIGTERM or SIGINT."""
    token = read_text_file(args.token_file, "token file").strip()
    if not _TOKEN.fullmatch(token):
        raise start_refused("the token file does not hold 16 to 512 printable characters without spaces")
    host, _, port = args.listen.rpartition(":")
    server = GuardedServer(vault_app(vault, token, facts))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        bound = await server.start(host.strip("[]"), int(port))
    except (OSError, ValueError, OverflowError) as error:
        raise start_refused(
            f"it cannot listen on {args.listen} ({error})", "Free the port or choose another."
        ) from None
    unsafe = f"; UNSAFE: {', '.join(vault.policy.unsafe())}" if vault.policy.unsafe() else ""
    log = logging.getLogger("keyvault")
    log.info("vault %s (%s TEE) listens on %s:%d%s", vault.enclave_id, vault.status()["tee"], host, bound, unsafe)
    if vault.condition is not None:
        log.error("%s", vault.condition)
    try:
        while not stop.is_set():
            try:
                vault.sweep()
            except KeyvaultError as error:  # a full disk, say: wiping can wait, serving cannot
                log.error("%s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _SWEEP_EVERY_S)
    finally:
        await server.stop()
