"""Command line of the vault: ``serve``, ``build``, ``verify``, ``inspect``, ``conformance``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attestation.errors import AttestationError
from keyvault.vault.serve import measured_policy, open_vault, read_signatures, read_text_file, serve, start_refused

from .errors import KeyvaultError

if TYPE_CHECKING:
    from keyvault.handover.party import Party, Tee

    from .conformance import Result


def _enter_tee(args: argparse.Namespace, arguments: list[str]) -> None:
    """Outside a TEE: become the simulated CPU that runs the image with the same arguments. Does not return."""
    if not (args.cpu and args.image and args.sigstruct):
        raise start_refused(
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
    command = [sys.executable, "-m", "attestation.simulated", "run", "--cpu", str(args.cpu)]
    command += ["--image", str(args.image), "--sigstruct", str(args.sigstruct), "--", *kept]
    os.execv(sys.executable, command)  # noqa: S606 - the same interpreter, no shell


def _open_tee(args: argparse.Namespace, arguments: list[str]) -> Tee:
    """Return the TEE this process runs in, or go into one."""
    from attestation.tee.open import open_driver

    if "DC_TEE" not in os.environ and args.image is not None:
        _enter_tee(args, arguments)
    try:
        return open_driver()
    except AttestationError as error:
        if error.code == "TEE_MISSING":
            _enter_tee(args, arguments)
        raise


def _command_serve(args: argparse.Namespace, arguments: list[str]) -> int:
    tee = _open_tee(args, arguments)
    from keyvault.vault.hygiene import harden_process

    facts: dict[str, object] = {"hygiene": harden_process()}
    vault = open_vault(args, tee)
    asyncio.run(serve(args, vault, facts))
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
    signatures = read_signatures(read_text_file(args.auth_file, "network signature file")) if args.auth_file else ()
    return Party(genesis, signatures, tee, RealCrypto(), verify)


def _genesis(text: str) -> str:
    digits = text.removeprefix("0x")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise argparse.ArgumentTypeError("it is not a 32-byte hash in lower-case hex")
    return digits


def _command_build(args: argparse.Namespace, _: list[str]) -> int:
    from .build import build_vault, load_signing_key

    policy = read_text_file(args.policy, "policy").encode("utf-8")
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
        policy.network.verify(enclave_id, read_signatures(read_text_file(args.auth_file, "network signature file")))
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
