"""Building the vault as a measured artefact: attestation, keyvault, pure modules of chain_watcher, and the policy."""

from __future__ import annotations

import datetime
import importlib.util
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attestation.artefact.files import build_image, build_sigstruct, verify_artefact
from keyvault.vault.measured_policy import FILE_NAME, parse_policy

from .errors import KeyvaultError

IMAGE_NAME: Final = "vault.pyz"
SIGSTRUCT_NAME: Final = "vault.sig"
#: Fixed, so that the same sources and policy give the same SIGSTRUCT on every day.
_DATE: Final = datetime.date(2026, 1, 1)


def _refused(why: str) -> KeyvaultError:
    return KeyvaultError(code="VAULT_START_REFUSED", what="the vault cannot be built", why=why)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise _refused(f"package {package} is not installed")
    return Path(spec.origin).parent


def vault_sources(policy: bytes) -> dict[str, Path | bytes]:
    """Return what goes into the vault's image, by archive name. Raises VAULT_POLICY_INVALID."""
    parse_policy(policy)
    return {
        "attestation": _folder("attestation"),
        "keyvault": _folder("keyvault"),
        f"keyvault/{FILE_NAME}": policy,
        **proof_sources(),
    }


def proof_sources() -> dict[str, Path | bytes]:
    """Return the files of `chain_watcher` that verify proofs, by archive name."""
    folder = _folder("chain_watcher")
    files = [folder / "__init__.py", folder / "errors.py", *sorted((folder / "proof").glob("*.py"))]
    return {f"chain_watcher/{path.relative_to(folder).as_posix()}": path for path in files}


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


def build_vault(policy: bytes, key: RSAPrivateKey, out: Path, *, isvsvn: int = 0) -> str:
    """Write ``vault.pyz`` and ``vault.sig`` into ``out`` and return the vault's enclave id.

    Raises VAULT_POLICY_INVALID, VAULT_START_REFUSED, and AttestationError for a key or number SGX has no room for.
    """
    image, sigstruct = out / IMAGE_NAME, out / SIGSTRUCT_NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        build_image(image, vault_sources(policy), "keyvault.__main__:main")
        sigstruct.write_bytes(build_sigstruct(image, key, isvsvn=isvsvn, date=_DATE))
    except OSError as error:
        raise _refused(f"{error.filename or out} cannot be written ({error.strerror})") from None
    return verify_artefact(image, sigstruct)
