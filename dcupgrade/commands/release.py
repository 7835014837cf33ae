"""`dcupgrade release`: build a release, sign its enclave id, verify, publish and revoke it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from dcupgrade.errors import DcupgradeError
from dcupgrade.publishing import pallet, signing
from dcupgrade.publishing import publish as publishing
from dcupgrade.publishing.signing_keys import load_signing_key, open_to_others
from process_supervisor.content_id import decode_cid
from process_supervisor.errors import ProcessSupervisorError

from .progress import progress

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def release() -> None:
    """Build, sign, verify, publish and revoke releases (for release managers).

    A release is an enclave id that the network's key has signed, listed on the chain, and named there as the version to
    run. Signing needs no network: do it on a machine that has none.
    """


def _signature(key_file: Path, enclave_id: str, passphrase_file: Path | None) -> str:
    """The network signature by the key in a file; asks for the passphrase of an encrypted one where none is given."""
    _warn(key_file)
    key = load_signing_key(key_file, lambda: _passphrase(key_file, passphrase_file))
    return signing.sign_enclave_id(key, enclave_id)


def _passphrase(key_file: Path, passphrase_file: Path | None) -> str:
    if passphrase_file is not None:
        _warn(passphrase_file)
        return passphrase_file.read_text(encoding="utf-8").rstrip("\r\n")
    if not sys.stdin.isatty():
        raise DcupgradeError(
            code="RELEASE_PASSPHRASE_NEEDED",
            what=f"the signing key {key_file}",
            why="it is encrypted, and there is no terminal to ask for its passphrase",
            action="Name a file with the passphrase: --passphrase-file.",
        )
    return str(click.prompt(f"Passphrase of {key_file}", hide_input=True, err=True))


_passphrase_option = click.option(
    "--passphrase-file", type=_FILE, help="File with the passphrase of an encrypted network key."
)


def _account(suri: str | None, key_file: Path | None) -> Any:
    if key_file is not None:
        _warn(key_file)
    return publishing.load_account(suri, key_file)


def _warn(key_file: Path) -> None:
    if told := open_to_others(key_file):
        click.echo(f"warning: {told}", err=True)


def _which_id(command: Callable[..., None]) -> Callable[..., None]:
    """ENCLAVE_ID as an argument, or out of a SIGSTRUCT whose own signature verifies."""

    @wraps(command)
    def run(enclave_id: str | None, sigstruct: Path | None, **kwargs: Any) -> None:
        if (enclave_id is None) == (sigstruct is None):
            raise click.UsageError("give either ENCLAVE_ID or --sigstruct FILE")
        found = None if sigstruct is None else signing.enclave_id_of_sigstruct(sigstruct)
        command(enclave_id=signing.require_enclave_id(found or enclave_id or ""), **kwargs)

    run = click.argument("enclave_id", required=False)(run)
    return click.option("--sigstruct", type=_FILE, help="Take the enclave id from this SIGSTRUCT file.")(run)


def _network_keys(required: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def add(command: Callable[..., None]) -> Callable[..., None]:
        command = click.option(
            "--threshold", type=click.IntRange(1), default=1, show_default=True, help="How many keys must have signed."
        )(command)
        return click.option(
            "--network-key",
            "network_keys",
            multiple=True,
            required=required,
            envvar="DCUPGRADE_NETWORK_KEYS",
            help="Public network key, multibase base32 or hex; repeat it for several.",
        )(command)

    return add


def _chain_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("--print-call", is_flag=True, help="Send nothing; print the call data, for governance."),
        click.option("--key-file", type=_FILE, help="File with the account's secret URI or hex seed."),
        click.option("--suri", help="Secret URI of the account, such as //Alice. Others can see it: for development."),
        click.option("--url", required=True, help="The chain's RPC endpoint, ws:// or wss://."),
    ):
        command = option(command)
    return command


@release.command()
@click.option("--main", help="Entry point of a node in Python, package.module:function.")
@click.option("--program", type=_FILE, help="Instead of --main: a static program, built in Go for example.")
@click.option("--source", type=_FOLDER, default=Path(), help="Folder that holds the package.  [default: this one]")
@click.option("--data", multiple=True, help="A data file below --source that the image holds too; repeatable.")
@click.option("--name", required=True, help="Name of the program; a hint for people.")
@click.option("--version", required=True, help="Version as people know it, such as 1.1.0.")
@click.option("--key", "key_file", type=_FILE, required=True, help="Vendor's key: PEM, RSA of 3,072 bits, exponent 3.")
@click.option("--base-image", type=_FILE, help="Archive of a container image (docker save) to add the release to.")
@click.option("--out", type=_FOLDER, required=True, help="Folder for image, SIGSTRUCT, release.json and archive.")
def build(
    main: str | None,
    program: Path | None,
    source: Path,
    data: tuple[str, ...],
    name: str,
    version: str,
    key_file: Path,
    base_image: Path | None,
    out: Path,
) -> None:
    """Build a release: measured image, SIGSTRUCT, release.json and the archive of the three. Prints the enclave id.

    The image holds what the entry point imports of its own package, of `attestation` and of `keyvault`. Other packages
    come from the host's Python and are not measured. The same sources give the same bytes. A static program is the
    image itself. With --base-image, the container image NAME-VERSION.image.tar is made too: `docker load` reads it, and
    agents load it by its URL or CID.
    """
    from dcupgrade.publishing.build import NativeProgram, NodeSources, build_release, load_vendor_key

    if (main is None) == (program is None):
        raise click.UsageError("Give either --main or --program.")
    _warn(key_file)
    sources = NodeSources(source, main, data) if main is not None else NativeProgram(program or Path())
    archive, enclave_id = build_release(sources, load_vendor_key(key_file), name, version, out, base_image)
    click.echo(f"built {archive}", err=True)
    click.echo(enclave_id)


@release.command()
@click.option("--key", "key_file", type=_FILE, required=True, help="Network key: PEM, 64 hex digits or 32 bytes.")
@_passphrase_option
@_which_id
def sign(enclave_id: str, key_file: Path, passphrase_file: Path | None) -> None:
    """Sign an enclave id with the network's ed25519 key and print the signature as multibase text.

    The passphrase of an encrypted PEM is asked for on the terminal, or read from --passphrase-file.
    """
    click.echo(_signature(key_file, enclave_id, passphrase_file))


@release.command()
@click.option("--signature", "signatures", multiple=True, required=True, help="Network signature, multibase text.")
@_network_keys(required=True)
@_which_id
def verify(enclave_id: str, signatures: tuple[str, ...], network_keys: tuple[str, ...], threshold: int) -> None:
    """Verify that the network signed exactly this enclave id."""
    signing.verify_signatures(enclave_id, signatures, network_keys, threshold)
    click.echo(f"{enclave_id} is signed by the network")


@release.command()
@_chain_options
@click.option("--signature", "signatures", multiple=True, help="Network signature; repeat it for M of N.")
@click.option("--sign-key", type=_FILE, help="Sign here and now with this network key.")
@_passphrase_option
@_network_keys(required=True)
@click.option("--version", help="Version as people know it, such as 1.1.0.")
@click.option("--origin-url", help="Where the release is downloaded: archive URL or image reference.")
@click.option("--mirror-url", default="", help="A second place to download it from.")
@click.option("--cid", "cids", multiple=True, help="IPFS CID, for chains whose call has that field.")
@click.option("--list-only", is_flag=True, help="Only list the signed id (as for a key vault's); no version to run.")
@_which_id
def publish(
    enclave_id: str,
    url: str,
    suri: str | None,
    key_file: Path | None,
    print_call: bool,
    as_json: bool,
    signatures: tuple[str, ...],
    sign_key: Path | None,
    passphrase_file: Path | None,
    network_keys: tuple[str, ...],
    threshold: int,
    version: str | None,
    origin_url: str | None,
    mirror_url: str,
    cids: tuple[str, ...],
    list_only: bool,
) -> None:
    """List a signed enclave id on the chain and name it as the version to run.

    Nothing is sent unless the signature verifies with the given network keys and the id is newer than the one that it
    is to replace. On a chain without sudo the call data are printed instead.
    """
    if sign_key is not None:
        signatures = (*signatures, _signature(sign_key, enclave_id, passphrase_file))
    if not list_only and not (version and origin_url):
        raise click.UsageError("give --version and --origin-url, or --list-only")
    signing.verify_signatures(enclave_id, signatures, network_keys, threshold)
    found = pallet.Release(enclave_id, version or "none", origin_url or "none", mirror_url, cids)
    found.verify_fields()
    _require_cids(cids)
    account = None if print_call else _account(suri, key_file)
    with progress(f"publishing on {url}; the last block must be final"), pallet.PublisherChain.connect(url) as chain:
        if print_call or not chain.has_sudo:
            _show_calls(publishing.prepare_calls(chain, found, signatures, list_only=list_only), chain, as_json)
            return
        blocks = publishing.publish(chain, found, signatures, account, list_only=list_only)
    _show_blocks(enclave_id, blocks, as_json)


def _require_cids(cids: tuple[str, ...]) -> None:
    """Raise RELEASE_FIELD_BAD for a CID of which no agent could verify the content."""
    for cid in cids:
        try:
            decode_cid(cid)
        except ProcessSupervisorError as error:
            raise DcupgradeError(
                code="RELEASE_FIELD_BAD",
                what=f"CID {cid[:100]!r}",
                why=error.why,
                action="Give the CID that `ipfs add` printed for the archive.",
            ) from error


@release.command()
@_chain_options
@_which_id
def revoke(enclave_id: str, url: str, suri: str | None, key_file: Path | None, print_call: bool, as_json: bool) -> None:
    """Revoke an enclave id: no vault gives it keys.

    The id is taken out of the chain's list. A node that runs it continues to serve.
    """
    account = None if print_call else _account(suri, key_file)
    with progress(f"revoking on {url}; the last block must be final"), pallet.PublisherChain.connect(url) as chain:
        if print_call or not chain.has_sudo:
            _show_calls(publishing.prepare_revocation(chain, enclave_id), chain, as_json)
            return
        blocks = publishing.revoke(chain, enclave_id, account)
    _show_blocks(enclave_id, blocks, as_json)


def _show_calls(calls: list[pallet.PreparedCall], chain: pallet.PublisherChain, as_json: bool) -> None:
    if as_json:
        rows = [{"call": call.name, "data": call.data, "hash": call.hash} for call in calls]
        click.echo(json.dumps({"sudo": chain.has_sudo, "calls": rows}))
        return
    if not chain.has_sudo:
        click.echo("This chain has no sudo: submit these calls, in this order, with root origin through governance.")
    for call in calls:
        click.echo(f"{call.name}\n  call data  {call.data}\n  call hash  {call.hash}")


def _show_blocks(enclave_id: str, blocks: dict[str, str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"enclave_id": enclave_id, "blocks": blocks}))
        return
    for name, block in blocks.items():
        click.echo(f"{name}: block {block}")
