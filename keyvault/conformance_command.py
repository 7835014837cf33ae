"""The command `conformance`: try a node from outside, or from inside an enclave that the node accepts.

`main` is the entry point of the suite's own image (`python -m keyvault build --conformance`): the vault's image cannot
be used to try nodes, and a change of the suite does not change the vault's enclave id.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from pathlib import Path

import aiohttp

from attestation.errors import AttestationError
from attestation.policy import Policy, Role
from attestation.tee.open import open_driver
from keyvault.handover.hpke import RealCrypto
from keyvault.handover.party import Party, Tee, peer_verifier
from keyvault.vault.start_files import measured_policy, read_signatures, read_text_file

from .conformance import Node, Result, as_json, as_text, find_genesis, run_suite
from .errors import KeyvaultError


def _genesis(text: str) -> str:
    digits = text.removeprefix("0x")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise argparse.ArgumentTypeError("it is not a 32-byte hash in lower-case hex")
    return digits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a run to a parser."""
    parser.add_argument("url", help="like http://127.0.0.1:6667")
    parser.add_argument("--genesis", type=_genesis, help="genesis hash of the node's chain (default: ask the node)")
    parser.add_argument("--auth-file", type=Path, help="network signature over the image's enclave id")
    parser.add_argument("--json", action="store_true")


def arguments_for_image(args: argparse.Namespace) -> list[str]:
    """Return the words that start the same run inside the suite's image."""
    words = [args.url]
    words += ["--genesis", args.genesis] if args.genesis else []
    words += ["--auth-file", str(args.auth_file.absolute())] if args.auth_file else []
    return [*words, "--json"] if args.json else words


def run(args: argparse.Namespace, tee: Tee | None) -> None:
    """Run the suite and print its results; `tee` is the enclave it runs in, or None. Raises CONFORMANCE_FAILED."""
    results = asyncio.run(_results(args, tee))
    sys.stdout.write(json.dumps(as_json(results), indent=2) + "\n" if args.json else as_text(results))
    if any(result.found for result in results):
        raise KeyvaultError(
            code="CONFORMANCE_FAILED",
            what=f"{args.url} does not conform",
            why=f"{sum(bool(result.found) for result in results)} of {len(results)} checks failed",
            action="docs/protocol.md says what each message must be.",
        )


async def _results(args: argparse.Namespace, tee: Tee | None) -> list[Result]:
    url = args.url.rstrip("/")
    async with aiohttp.ClientSession() as session:
        genesis = bytes.fromhex(args.genesis) if args.genesis else await find_genesis(session, url)
        return await run_suite(Node(session, url, genesis, _party(args, tee, genesis) if tee else None))


def _party(args: argparse.Namespace, tee: Tee, genesis: bytes) -> Party:
    verify = peer_verifier(tee, Policy(network=measured_policy(None).network), Role.UPGRADER, None)
    signatures = read_signatures(read_text_file(args.auth_file, "network signature file")) if args.auth_file else ()
    return Party(genesis, signatures, tee, RealCrypto(), verify)


def main() -> int:
    """Run the suite inside its enclave; returns the exit code."""
    parser = argparse.ArgumentParser(prog="conformance", description="Try a node's handover v2 over HTTP.")
    add_arguments(parser)
    args = parser.parse_args()
    try:
        run(args, open_driver())
    except (KeyvaultError, AttestationError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
