"""Command line of the vault on the host: `serve`, `watch`, `build`, `verify`, `inspect`, `conformance`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from attestation.errors import AttestationError
from keyvault.vault.start_files import read_signatures, start_refused

from . import conformance_command
from .errors import KeyvaultError
from .vault import serve


def _read(path: Path, what: str, failed: str) -> str:
    """Return a file's text. Raises VAULT_START_REFUSED, which says what `failed`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "it is not text in UTF-8"
        raise KeyvaultError(
            code="VAULT_START_REFUSED", what=failed, why=f"the {what} {path} cannot be read ({why})"
        ) from None


def _enter_tee(args: argparse.Namespace, arguments: list[str]) -> NoReturn:
    """Become the simulated CPU that runs the image with these arguments.

    `-P` and the working folder `/` keep modules of the caller's folder out of a process that holds root keys.
    """
    if not (args.cpu and args.image and args.sigstruct):
        raise start_refused(
            "it is not inside a TEE", "Give --cpu, --image and --sigstruct for the simulated TEE, or run it in Gramine."
        )
    command = [sys.executable, "-P", "-m", "attestation.simulated", "run", "--cpu", str(args.cpu.absolute())]
    command += ["--image", str(args.image.absolute()), "--sigstruct", str(args.sigstruct.absolute()), "--", *arguments]
    os.chdir("/")
    os.execv(sys.executable, command)  # noqa: S606 - the same interpreter, no shell


def _command_serve(args: argparse.Namespace) -> int:
    words = ["serve", "--listen", args.listen, "--store", str(args.store.absolute())]
    words += ["--port-file", str(args.port_file.absolute())] if args.port_file else []
    words += ["--token-file", str(args.token_file.absolute()), "--auth-file", str(args.auth_file.absolute())]
    _enter_tee(args, [*words, "--tighten", str(args.tighten.absolute())] if args.tighten else words)


def _command_watch(args: argparse.Namespace) -> int:
    from .watchdog import answers, watch

    return watch(args.argv, lambda: answers(args.url), args.silent_s)


def _command_conformance(args: argparse.Namespace) -> int:
    """Run the suite against a node; from inside an enclave if an image is given."""
    if args.image is not None:
        _enter_tee(args, conformance_command.arguments_for_image(args))
    conformance_command.run(args, None)
    return 0


def _command_build(args: argparse.Namespace) -> int:
    from .build import CONFORMANCE, VAULT, build_program, load_signing_key

    policy = _read(args.policy, "policy", "nothing is built").encode("utf-8")
    program = CONFORMANCE if args.conformance else VAULT
    enclave_id = build_program(program, policy, load_signing_key(args.key), args.out, isvsvn=args.isvsvn)
    sys.stdout.write(enclave_id + "\n")
    return 0


def _command_verify(args: argparse.Namespace) -> int:
    """Verify a vault artefact: SIGSTRUCT over the image, and the network's signature over the enclave id."""
    from attestation.artefact.files import read_sigstruct, verify_artefact
    from keyvault.vault.measured_policy import parse_policy

    from .build import policy_of

    if args.image is None:  # of Gramine, whose measurement its own tools make
        sigstruct = read_sigstruct(args.sigstruct)
        sigstruct.verify()
        sigstruct.need_pinned_attributes()
        sys.stdout.write(f"{sigstruct.enclave_id}  ISVSVN {sigstruct.isvsvn}, seal key pinned, image not read\n")
        return 0
    enclave_id = verify_artefact(args.image, args.sigstruct)
    read_sigstruct(args.sigstruct).need_pinned_attributes()
    policy = parse_policy(policy_of(args.image))
    if args.auth_file is not None:
        policy.network.verify(
            enclave_id, read_signatures(_read(args.auth_file, "network signature file", "nothing is verified"))
        )
    signed = "signed by the network" if args.auth_file is not None else "network signature not checked"
    sys.stdout.write(f"{enclave_id}  {policy.evidence_mode} evidence, {signed}\n")
    for name in policy.unsafe():
        sys.stdout.write(f"UNSAFE: {name}\n")
    return 0


def _command_rebuild(args: argparse.Namespace) -> int:
    """Build the vault again and compare its enclave id with the expected one."""
    from .build import policy_of, rebuild

    policy = (
        _read(args.policy, "policy", "nothing is rebuilt").encode("utf-8") if args.policy else policy_of(args.published)
    )
    sys.stdout.write(f"{rebuild(args.expect, policy, args.published)}  equal\n")
    return 0


def _command_content(args: argparse.Namespace) -> int:
    """Write the folder that Gramine measures, and print its listing or compare it with an expected one."""
    from .enclave_content import differences, listing, shown, write_content

    write_content(args.image, args.out, args.extension)
    found = listing(args.out)
    if args.expect is None:
        sys.stdout.write(found)
        return 0
    said = differences(_read(args.expect, "listing", "nothing is compared"), found)
    if said:
        raise KeyvaultError(
            code="VAULT_REBUILD_DIFFERS",
            what=f"{args.out} is not the expected content",
            why=shown(said),
            action="Use the same release, requirements.enclave.lock, Python and compiler.",
        )
    sys.stdout.write("equal\n")
    return 0


def _command_inspect(args: argparse.Namespace) -> int:
    """Print the headers of a store's sealed files as JSON; needs no TEE and unseals nothing."""
    from keyvault.store.sealed_file import decode_header

    if not args.store.is_dir():
        raise KeyvaultError(
            code="STORE_READ_FAILED", what=f"{args.store} cannot be read", why="it is not a folder", kind="invariant"
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
                "store_id": header.store_id.hex(),
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
    parser = argparse.ArgumentParser(prog="keyvault", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="run a vault image in the simulated TEE")
    serve.add_arguments(serving)
    serving.set_defaults(run=_command_serve)
    watching = commands.add_parser("watch", help="run a vault's command, and end it once it does not answer")
    watching.add_argument("--url", default="http://127.0.0.1:6666", help="where the vault listens")
    watching.add_argument("--silent-s", type=float, default=90.0, help="seconds without an answer (default 90)")
    watching.add_argument("argv", nargs="+", metavar="COMMAND", help="after --, like gramine-sgx keyvault")
    watching.set_defaults(run=_command_watch)
    build = commands.add_parser("build", help="build the measured artefact and print its enclave id")
    build.add_argument("--policy", type=Path, required=True, help="the vault's policy, JSON (docs/protocol.md)")
    build.add_argument("--key", type=Path, required=True, help="RSA-3072 key (e = 3) in PEM")
    build.add_argument("--out", type=Path, required=True, help="folder for image and SIGSTRUCT")
    build.add_argument("--isvsvn", type=int, default=0, help="security version in the SIGSTRUCT")
    build.add_argument("--conformance", action="store_true", help="build the conformance suite instead of the vault")
    build.set_defaults(run=_command_build)
    verify = commands.add_parser("verify", help="verify a built vault")
    verify.add_argument("--image", type=Path, help="left out for Gramine's SIGSTRUCT, which measures more")
    verify.add_argument("--sigstruct", type=Path, required=True)
    verify.add_argument("--auth-file", type=Path)
    verify.set_defaults(run=_command_verify)
    rebuild = commands.add_parser("rebuild", help="build the vault again and say whether it is the expected one")
    rebuild.add_argument("--expect", required=True, metavar="ID", help="enclave id that the network signed")
    given = rebuild.add_mutually_exclusive_group(required=True)
    given.add_argument("--policy", type=Path)
    given.add_argument("--published", type=Path, help="the published image: its policy is used, its files compared")
    rebuild.set_defaults(run=_command_rebuild)
    content = commands.add_parser("content", help="write the folder that Gramine measures, and print its listing")
    content.add_argument("--image", type=Path, required=True, help="vault image that `build` made")
    content.add_argument("--extension", type=Path, help="_egetkey.abi3.so")
    content.add_argument("--out", type=Path, required=True, help="new folder")
    content.add_argument("--expect", type=Path, metavar="FILE", help="listing to compare with")
    content.set_defaults(run=_command_content)
    inspect = commands.add_parser("inspect", help="print the headers of a sealed store")
    inspect.add_argument("--store", type=Path, required=True)
    inspect.set_defaults(run=_command_inspect)
    conformance = commands.add_parser("conformance", help="try a node's handover v2 over HTTP")
    conformance_command.add_arguments(conformance)
    conformance.set_defaults(run=_command_conformance)
    for command in (serving, conformance):
        command.add_argument("--cpu", type=Path, help="folder of the simulated CPU")
        command.add_argument("--image", type=Path, help="measured image to run there")
        command.add_argument("--sigstruct", type=Path, help="SIGSTRUCT of the image")
    return parser


def main() -> int:
    """Run a command; returns its exit code. Errors go to standard error under their code."""
    args = _parser().parse_args()
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except (KeyvaultError, AttestationError) as error:
        sys.stderr.write(f"error: {error}\n")
    except BrokenPipeError:  # `| head` has seen enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
