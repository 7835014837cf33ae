"""The vault's program: open the store and serve until a signal ends it.

The vault's image is the import closure of this module (`keyvault.build`): exactly the modules that it imports, directly
or indirectly, are measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import signal
import time
from pathlib import Path
from typing import Final

from attestation.errors import AttestationError
from attestation.tee.driver import TeeDriver
from attestation.tee.open import open_driver
from keyvault.errors import KeyvaultError
from keyvault.handover.guarded_server import GuardedServer
from keyvault.handover.hpke import RealCrypto
from keyvault.store.disk import FolderDisk
from keyvault.store.sealed_store import SealedStore

from .agent_api import vault_app
from .hygiene import harden_process
from .log_writer import LogWriter
from .start_files import listen_address, measured_policy, read_signatures, read_text_file, start_refused
from .vault import Vault

log = logging.getLogger("keyvault")

#: Signals without a meaning here, which by default would end the vault without a log line.
_IGNORED: Final = (
    *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF),
    *(signal.SIGIO, signal.SIGPWR, signal.SIGXCPU, signal.SIGXFSZ),
)
_SWEEP_EVERY_S: Final = 60.0
_LOCK_WAIT_S: Final = 5.0
_TOKEN: Final = re.compile(r"[\x21-\x7e]{16,512}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the vault's arguments to a parser."""
    parser.add_argument("--listen", default="127.0.0.1:6666", metavar="HOST:PORT")
    parser.add_argument("--port-file", type=Path, help="file with another port, for several vaults on one host")
    parser.add_argument("--store", type=Path, required=True, help="folder of the sealed store")
    parser.add_argument("--token-file", type=Path, required=True, help="token that agent and vault share")
    parser.add_argument("--auth-file", type=Path, required=True, help="network signature over the vault's enclave id")
    parser.add_argument("--tighten", type=Path, help="JSON settings that make the measured policy stricter")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the image's arguments: those of `python -m keyvault serve` without the CPU's."""
    made = argparse.ArgumentParser(prog="vault", description="The key vault, inside its TEE.")
    made.add_argument("command", choices=("serve",))
    add_arguments(made)
    return made


def main() -> int:
    """Run the vault inside its TEE; returns the exit code. Errors go to standard error, each with its code."""
    args = parser().parse_args()
    for number in _IGNORED:  # until the vault serves
        signal.signal(number, signal.SIG_IGN)
    writer = LogWriter()
    writer.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[writer])
    try:
        tee = open_driver()
        facts: dict[str, object] = {"hygiene": harden_process()}
        asyncio.run(serve(args, open_vault(args, tee), facts))
    except (KeyvaultError, AttestationError) as error:
        log.error("%s", error)
        return 1
    finally:
        writer.close()
    return 0


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
    """Lock the store. Retry for 5 s: a vault that was just killed may still hold the lock."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            disk.lock()
            return
        except KeyvaultError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _take_signals(stop: asyncio.Event) -> None:
    """End cleanly on TERM, INT and QUIT. Log and ignore the signals in `_IGNORED`."""

    def end(number: signal.Signals) -> None:
        if not stop.is_set():
            log.info("the vault ends: %s", number.name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, end, number)
    for number in _IGNORED:
        loop.add_signal_handler(number, log.info, "%s is ignored", number.name)


async def serve(args: argparse.Namespace, vault: Vault, facts: dict[str, object]) -> None:
    """Serve the agent and the nodes until SIGTERM, SIGINT or SIGQUIT."""
    token = read_text_file(args.token_file, "token file").strip()
    if not _TOKEN.fullmatch(token):
        raise start_refused("the token file does not hold 16 to 512 printable characters without spaces")
    host, port = listen_address(args.listen, args.port_file)
    server = GuardedServer(vault_app(vault, token, facts))
    stop = asyncio.Event()
    _take_signals(stop)
    try:
        bound = await server.start(host, port)
    except OSError as error:
        why = f"it cannot listen on {host}:{port} ({error})"
        raise start_refused(why, "Free the port or choose another.") from None
    unsafe = f"; UNSAFE: {', '.join(vault.policy.unsafe())}" if vault.policy.unsafe() else ""
    log.info("vault %s (%s TEE) listens on %s:%d%s", vault.enclave_id, vault.status()["tee"], host, bound, unsafe)
    if vault.condition is not None:
        log.error("%s", vault.condition)
    try:
        while not stop.is_set():
            try:
                vault.sweep_sessions()
                await vault.steps.run(vault.sweep)
            except KeyvaultError as error:  # for example a full disk: wiping can wait, serving cannot
                log.error("%s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _SWEEP_EVERY_S)
    finally:
        await server.stop()
