"""Enclaves, keys and CPUs for the tests of attestation."""

import datetime
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from attestation.artefact.files import build_image, build_sigstruct
from attestation.sgx import INIT, MODE64BIT, Attributes
from attestation.simulated.cpu import RootKeys, Secs, SoftwareCpu

DATE = datetime.date(2026, 11, 23)
# The repository's own packages, for enclaves that the tests build.
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def signer() -> RSAPrivateKey:
    return generate_private_key(3, 3072)


@pytest.fixture(scope="session")
def network_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def cpu() -> SoftwareCpu:
    return SoftwareCpu(RootKeys(os.urandom(16), os.urandom(16), os.urandom(16), os.urandom(32)))


@pytest.fixture
def alice() -> Secs:
    return Secs(b"\xa1" * 32, b"\x51" * 32, Attributes(INIT | MODE64BIT, 3), isvprodid=7, isvsvn=2)


@pytest.fixture
def bob() -> Secs:
    return Secs(b"\xb0" * 32, b"\x51" * 32, Attributes(INIT | MODE64BIT, 7), isvprodid=7, isvsvn=3)


@pytest.fixture
def artefact(tmp_path: Path, signer: RSAPrivateKey) -> tuple[Path, Path]:
    """A small image that prints, and its SIGSTRUCT."""
    image, sigstruct = tmp_path / "enclave.pyz", tmp_path / "enclave.sig"
    build_image(image, {"app.py": b"def main():\n    print('here')\n"}, "app:main")
    sigstruct.write_bytes(build_sigstruct(image, signer, date=DATE))
    return image, sigstruct
