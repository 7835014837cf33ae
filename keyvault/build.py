"""Build the measured artefacts: the vault, again for comparison, and the conformance suite as an enclave of its own."""

from __future__ import annotations

import datetime
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zipfile import BadZipFile, ZipFile

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attestation.artefact.closure import import_closure
from attestation.artefact.files import build_image, build_sigstruct, measure_file, verify_artefact
from keyvault.vault.measured_policy import FILE_NAME, parse_policy

from .enclave_content import differences, image_listing, shown
from .errors import KeyvaultError


@dataclass(frozen=True)
class Program:
    """A program that runs in an enclave: the module whose `main` is its entry point, and the names of its files."""

    module: str
    image_name: str
    sigstruct_name: str


VAULT: Final = Program("keyvault.vault.serve", "vault.pyz", "vault.sig")
CONFORMANCE: Final = Program("keyvault.conformance_command", "conformance.pyz", "conformance.sig")
#: The folder that holds the packages, and those of them that a measured program may import.
ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("attestation", "chain_watcher", "keyvault")
#: Fixed, so that the same sources and policy give the same SIGSTRUCT on every day.
_DATE: Final = datetime.date(2026, 1, 1)


def _refused(why: str) -> KeyvaultError:
    return KeyvaultError(code="VAULT_START_REFUSED", what="the vault cannot be built", why=why)


def image_sources(program: Program, policy: bytes, root: Path = ROOT) -> dict[str, Path | bytes]:
    """Return what an image holds, by archive name: what the program imports, and its policy.

    Raises VAULT_POLICY_INVALID.
    """
    parse_policy(policy)
    return {**import_closure(root, program.module, PACKAGES), f"keyvault/{FILE_NAME}": policy}


def load_signing_key(pem: Path) -> RSAPrivateKey:
    """Load the RSA-3072 (e = 3) key that signs the SIGSTRUCT. Raises VAULT_START_REFUSED."""
    try:
        key = load_pem_private_key(pem.read_bytes(), password=None)
    except OSError as error:
        raise _refused(f"{pem} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError):  # TypeError: it is encrypted
        raise _refused(f"{pem} is no private key in PEM without a password") from None
    if not isinstance(key, RSAPrivateKey):
        raise _refused(f"{pem} holds no RSA private key")
    return key


def build_program(program: Program, policy: bytes, key: RSAPrivateKey, out: Path, *, isvsvn: int = 0) -> str:
    """Write the program's image and SIGSTRUCT into the folder `out` and return its enclave id.

    Raises VAULT_POLICY_INVALID, VAULT_START_REFUSED, and AttestationError for a key or number that SGX does not take.
    """
    image, sigstruct = out / program.image_name, out / program.sigstruct_name
    try:
        out.mkdir(parents=True, exist_ok=True)
        build_image(image, image_sources(program, policy), f"{program.module}:main")
        sigstruct.write_bytes(build_sigstruct(image, key, isvsvn=isvsvn, date=_DATE))
    except OSError as error:
        raise _refused(f"{error.filename or out} cannot be written ({error.strerror})") from None
    return verify_artefact(image, sigstruct)


def build_vault(policy: bytes, key: RSAPrivateKey, out: Path, *, isvsvn: int = 0) -> str:
    """Write `vault.pyz` and `vault.sig` into the folder `out`; return the enclave id. See `build_program`."""
    return build_program(VAULT, policy, key, out, isvsvn=isvsvn)


def rebuild(expected: str, policy: bytes, published: Path | None = None) -> str:
    """Build the vault's image from this source and the policy; return its enclave id, which is `expected`.

    Raises VAULT_REBUILD_DIFFERS, which names the files that differ from those in the image `published`.
    """
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / VAULT.image_name
        build_image(image, image_sources(VAULT, policy), f"{VAULT.module}:main")
        found = measure_file(image).hex()
        if found == expected:
            return found
        said = [] if published is None else differences(image_listing(published), image_listing(image))
    raise KeyvaultError(
        code="VAULT_REBUILD_DIFFERS",
        what="this source and policy give another vault",
        why=f"expected {expected}, found {found}: {shown(said) or 'no file was compared'}",
        action="Check out the release that the vault was built from."
        if published is not None
        else "Give --published with the published image to see which files differ.",
    )


def policy_of(image: Path) -> bytes:
    """Return the measured policy inside a vault image. Raises VAULT_POLICY_INVALID."""
    try:
        with ZipFile(image) as archive:
            return archive.read(f"keyvault/{FILE_NAME}")
    except (BadZipFile, KeyError, OSError):
        raise KeyvaultError(
            code="VAULT_POLICY_INVALID",
            what=f"{image} was not verified",
            why="it is not a vault image: it contains no measured policy",
            action=f"Give the {VAULT.image_name} that keyvault build made.",
        ) from None
