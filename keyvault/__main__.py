"""Command line of the vault: ``serve``, ``build``, ``verify``, ``inspect``, ``conformance``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.resources
import json
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attestation.errors import AttestationError

from .errors import KeyvaultError

if TYPE_CHECKING:
    from keyvault.handover.party import Party, Tee
    from keyvault.store.sealed_store import FolderDisk
    from keyvault.vault.measured_policy import VaultPolicy
    from keyvault.vault.vault import Vault

    from .conformance import Result

_SIGNATURE_CHARS: Final = 104
_SWEEP_EVERY_S: Final = 60.0
_LOCK_WAIT_S: Final = 5.0
_TOKEN: Final = re.compile(r"[\x21-\x7e]{16,512}")


def _refused(why: str, action: str = "") -> KeyvaultError:
    return KeyvaultError(code="VAULT_START_REFUSED", what="the vault does not start", why=why, action=action)


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _refused(f"the {what} {path} cannot be read ({type(error).__name__})") from None


def read_signatures(text: str) -> tuple[bytes, ...]:
    """Decode one or more network signatures in multibase base32; spaces and newlines are ignored."""
    from attestation.network import decode_multibase

    joined = "".join(text.split())
    parts = [joined[at : at + _SIGNATURE_CHARS] for at in range(0, len(joined), _SIGNATURE_CHARS)]
    return tuple(decode_multibase(part) for part in parts)


def measured_policy(tighten_file: Path | None) -> VaultPolicy:
    """Return the policy inside this image, tightened by the host's file if there is one."""
    from keyvault.vault.measured_policy import FILE_NAME, parse_policy, tighten

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
    return tighten(policy, _read(tighten_file, "settings file").encode("utf-8")) if tighten_file else policy


def _enter_tee(args: argparse.Namespace, arguments: list[str]) -> None:
    """Outside a TEE: become the simulated CPU that runs the image with the same arguments. Does not return."""
    if not (args.cpu and args.image and args.sigstruct):
        raise _refused(
            "it is not inside a TEE", "Give --cpu, --image and --sigstruct for the simulated TEE, or run it in Gramine."
        )
    kept = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("--cpu", "--image", "--sigstruct"):
            skip = True
        elif not argument.startswith(("--cpu=", "--image=", "--sigstruct=")):
            kept.append(argument)
    command = [sys.executable, "-m", "attestation.simulated.__main__", "run", "--cpu", str(args.cpu)]
    command += ["--image", str(args.image), "--sigstruct", str(args.sigstruct), "--", *kept]
    os.execv(sys.executable, command)  # noqa: S606 - the same interpreter, no shell


def _open_tee(args: argparse.Namespace, arguments: list[str]) -> Tee:
    """Return the TEE this process runs in, or go into one."""
    from attestation.tee.driver import open_driver

    if "DC_TEE" not in os.environ and args.image is not None:
        _enter_tee(args, arguments)
    try:
        return open_driver()
    except AttestationError as error:
        if error.code == "TEE_MISSING":
            _enter_tee(args, arguments)
        raise


def _open_vault(args: argparse.Namespace, tee: Tee) -> Vault:
    from keyvault.handover.hpke import RealCrypto
    from keyvault.store.sealed_store import FolderDisk, SealedStore
    from keyvault.vault.vault import Vault

    policy = measured_policy(args.tighten)
    if tee.kind == "simulated" and not policy.unsafe_simulated_tee:
        raise _refused(
            "the TEE is simulated and the measured policy has unsafe_simulated_tee = false",
            "Run it in a real TEE; a simulated one protects nothing from its host.",
        )
    signatures = read_signatures(_read(args.auth_file, "network signature file"))
    policy.network.verify(tee.target_info().enclave_id, signatures)
    try:
        disk = FolderDisk(args.store)
    except OSError as error:
        raise _refused(
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


async def _serve(args: argparse.Namespace, vault: Vault, facts: dict[str, object]) -> None:
    from keyvault.handover.http_server import GuardedServer
    from keyvault.vault.agent_api import vault_app

    token = _read(args.token_file, "token file").strip()
    if not _TOKEN.fullmatch(token):
        raise _refused("the token file does not hold 16 to 512 printable characters without spaces")
    host, _, port = args.listen.rpartition(":")
    server = GuardedServer(vault_app(vault, token, facts))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        bound = await server.start(host.strip("[]"), int(port))
    except (OSError, ValueError, OverflowError) as error:
        raise _refused(f"it cannot listen on {args.listen} ({error})", "Free the port or choose another.") from None
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


def _command_serve(args: argparse.Namespace, arguments: list[str]) -> int:
    tee = _open_tee(args, arguments)
    from keyvault.vault.hygiene import harden_process

    facts: dict[str, object] = {"hygiene": harden_process()}
    vault = _open_vault(args, tee)
    asyncio.run(_serve(args, vault, facts))
    return 0


def _command_conformance(args: argparse.Namespace, arguments: list[str]) -> int:
    """Run the suite against a node; from inside a TEE if an image is given."""
    tee = _open_tee(args, arguments) if args.image is not None or "DC_TEE" in os.environ else None
    results = asyncio.run(_conformance(args, tee))
    from .conformance import as_json, as_text

    sys.stdout.write(json.dumps(as_json(results), indent=2) + "\n" if args.json else as_text(results))
    if any(result.found for result in results):
        raise KeyvaultError(
            code="CONFORMANCE_FAILED",
            what=f"{args.url} does not conform",
            why=f"{sum(bool(result.found) for result in results)} of {len(results)} checks failed",
            action="docs/protocol.md says what each message must be.",
        )
    return 0


async def _conformance(args: argparse.Namespace, tee: Tee | None) -> list[Result]:
    import aiohttp

    from .conformance import Node, find_genesis, run_suite

    url = args.url.rstrip("/")
    async with aiohttp.ClientSession() as session:
        genesis = bytes.fromhex(args.genesis) if args.genesis else await find_genesis(session, url)
        return await run_suite(Node(session, url, genesis, _suite_party(args, tee, genesis) if tee else None))


def _suite_party(args: argparse.Namespace, tee: Tee, genesis: bytes) -> Party:
    from attestation.policy import Policy, Role
    from keyvault.handover.hpke import RealCrypto
    from keyvault.handover.party import Party, peer_verifier

    verify = peer_verifier(tee, Policy(network=measured_policy(None).network), Role.UPGRADER, None)
    signatures = read_signatures(_read(args.auth_file, "network signature file")) if args.auth_file else ()
    return Party(genesis, signatures, tee, RealCrypto(), verify)


def _genesis(text: str) -> str:
    digits = text.removeprefix("0x")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise argparse.ArgumentTypeError("it is not a 32-byte hash in lower-case hex")
    return digits


def _command_build(args: argparse.Namespace, _: list[str]) -> int:
    from .build import build_vault, load_signing_key

    policy = _read(args.policy, "policy").encode("utf-8")
    enclave_id = build_vault(policy, load_signing_key(args.key), args.out, isvsvn=args.isvsvn)
    sys.stdout.write(enclave_id + "\n")
    return 0


def _command_verify(args: argparse.Namespace, _: list[str]) -> int:
    """Verify a vault artefact: SIGSTRUCT over the image, and the network's signature over the enclave id."""
    from zipfile import BadZipFile, ZipFile

    from attestation.artefact.files import verify_artefact
    from keyvault.vault.measured_policy import FILE_NAME, parse_policy

    from .build import IMAGE_NAME

    enclave_id = verify_artefact(args.image, args.sigstruct)
    try:
        with ZipFile(args.image) as archive:
            data = archive.read(f"keyvault/{FILE_NAME}")
    except (BadZipFile, KeyError, OSError):
        raise KeyvaultError(
            code="VAULT_POLICY_INVALID",
            what=f"{args.image} was not verified",
            why="it is no vault image: it holds no measured policy",
            action=f"Give the {IMAGE_NAME} that python -m keyvault build made.",
        ) from None
    policy = parse_policy(data)
    if args.auth_file is not None:
        policy.network.verify(enclave_id, read_signatures(_read(args.auth_file, "network signature file")))
    signed = "signed by the network" if args.auth_file is not None else "network signature not looked at"
    sys.stdout.write(f"{enclave_id}  {policy.evidence_mode} evidence, {signed}\n")
    for name in policy.unsafe():
        sys.stdout.write(f"UNSAFE: {name}\n")
    return 0


def _command_inspect(args: argparse.Namespace, _: list[str]) -> int:
    """Print the headers of a store's sealed files as JSON; needs no TEE and unseals nothing."""
    from keyvault.store.sealed_file import decode_header

    if not args.store.is_dir():
        raise KeyvaultError(
            code="STORE_READ_FAILED", what=f"{args.store} cannot be read", why="it is no folder", kind="invariant"
        )
    found = []
    for path in sorted(args.store.glob("*.sealed*")):
        row: dict[str, object] = {"file": path.name}
        try:
            header = decode_header(path.read_bytes())
            row |= {
                "kind": {1: "key set", 2: "facts"}[header.kind],
                "epoch": header.epoch,
                "sealer": header.sealer.hex(),
                "source": header.source.hex(),
                "name": header.name.hex(),
                "cpusvn": header.key_request.cpusvn.hex(),
                "isvsvn": header.key_request.isvsvn,
                "plaintext_bytes": header.plaintext_bytes,
            }
        except (KeyvaultError, OSError) as error:
            row["problem"] = str(error)
        found.append(row)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m keyvault", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the vault; outside a TEE with --image it enters the simulated one")
    serve.add_argument("--listen", default="127.0.0.1:6666", metavar="HOST:PORT")
    serve.add_argument("--store", type=Path, required=True, help="folder of the sealed store")
    serve.add_argument("--token-file", type=Path, required=True, help="token the agent must show")
    serve.add_argument("--auth-file", type=Path, required=True, help="network signature over the vault's enclave id")
    serve.add_argument("--tighten", type=Path, help="JSON settings that make the measured policy stricter")
    serve.set_defaults(run=_command_serve)
    build = commands.add_parser("build", help="build the measured artefact and print its enclave id")
    build.add_argument("--policy", type=Path, required=True)
    build.add_argument("--key", type=Path, required=True, help="RSA-3072 key (e = 3) in PEM")
    build.add_argument("--out", type=Path, required=True)
    build.add_argument("--isvsvn", type=int, default=0)
    build.set_defaults(run=_command_build)
    verify = commands.add_parser("verify", help="verify a built vault")
    verify.add_argument("--image", type=Path, required=True)
    verify.add_argument("--sigstruct", type=Path, required=True)
    verify.add_argument("--auth-file", type=Path)
    verify.set_defaults(run=_command_verify)
    inspect = commands.add_parser("inspect", help="print the headers of a sealed store")
    inspect.add_argument("--store", type=Path, required=True)
    inspect.set_defaults(run=_command_inspect)
    conformance = commands.add_parser("conformance", help="try a node's handover v2 over HTTP")
    conformance.add_argument("url", help="like http://127.0.0.1:6667")
    conformance.add_argument(
        "--genesis", type=_genesis, help="genesis hash of the node's chain (else the node is asked)"
    )
    conformance.add_argument("--auth-file", type=Path, help="network signature over the image's enclave id")
    conformance.add_argument("--json", action="store_true")
    conformance.set_defaults(run=_command_conformance)
    for command in (serve, conformance):
        command.add_argument("--cpu", type=Path, help="folder of the simulated CPU")
        command.add_argument("--image", type=Path, help="vault image for the simulated TEE")
        command.add_argument("--sigstruct", type=Path, help="SIGSTRUCT of the image")
    return parser


def main() -> int:
    """Run a command; returns its exit code. Errors go to standard error under their code."""
    arguments = sys.argv[1:]
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        return int(args.run(args, arguments))
    except (KeyvaultError, AttestationError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
