"""Building a release: image, SIGSTRUCT, release.json, and their archive. The same sources give the same bytes."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attestation.artefact.closure import import_closure
from attestation.artefact.files import build_image, build_sigstruct, verify_artefact
from attestation.simulated.image import is_native, need_static
from dcupgrade.errors import DcupgradeError, why_of

from .container_image import add_release, packed

OURS = ("attestation", "chain_watcher", "keyvault")
"""Packages of this program that a node may import; what it imports of them is measured into its image."""
PROGRAM = Path(__file__).resolve().parents[2]
SIGSTRUCT_DATE = datetime.date(2026, 1, 1)
"""Fixed, so that the same sources give the same SIGSTRUCT on every day."""
NAMES = ("enclave.pyz", "enclave.sig", "release.json")


@dataclass(frozen=True, slots=True)
class NodeSources:
    """A node's program: the folder that holds its package, its entry point `module:function`, and data files.

    `data` are paths below the folder, of files that the image holds beside the modules that are imported.
    """

    folder: Path
    main: str
    data: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The module of the entry point."""
        return self.main.partition(":")[0]


@dataclass(frozen=True, slots=True)
class NativeProgram:
    """A static program that was built already, in Go for example. It is the image itself."""

    path: Path


def load_vendor_key(path: Path) -> RSAPrivateKey:
    """The RSA-3072 key (e = 3) that signs the SIGSTRUCT, from an open PEM. Raises RELEASE_KEY_UNREADABLE."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, RSAPrivateKey) or key.key_size != 3072 or key.public_key().public_numbers().e != 3:
            raise ValueError("it is no RSA key of 3,072 bits with the exponent 3")
    except (OSError, ValueError, TypeError) as error:
        raise DcupgradeError(
            code="RELEASE_KEY_UNREADABLE",
            what=f"cannot use {path} as the vendor's key",
            why=why_of(error),
            action="One is made with: openssl genrsa -3 -out vendor.pem 3072",
        ) from error
    return key


def build_release(
    sources: NodeSources | NativeProgram,
    key: RSAPrivateKey,
    name: str,
    version: str,
    out: Path,
    base_image: Path | None = None,
) -> tuple[Path, str]:
    """Build into the folder `out`; returns the archive's path and the enclave id.

    `out` receives `enclave.pyz`, `enclave.sig`, `release.json`, and `NAME-VERSION.tar.gz` with the three. With a base
    image (an archive as `docker save` makes it), also `NAME-VERSION.image.tar`: that image with the three in
    `/release`. Raises RELEASE_BUILD_FAILED, RELEASE_BASE_UNREADABLE, and AttestationError for what cannot be measured.
    """
    image, sigstruct, about = (out / each for each in NAMES)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if isinstance(sources, NativeProgram):
            image.write_bytes(_static_program(sources.path))
        else:
            build_image(image, _image_sources(sources), sources.main)
        sigstruct.write_bytes(build_sigstruct(image, key, date=SIGSTRUCT_DATE))
        enclave_id = verify_artefact(image, sigstruct)
        about.write_text(json.dumps({"name": name, "version": version, "enclave_id": enclave_id}) + "\n")
        archive = out / f"{name}-{version}.tar.gz"
        members = {each: (out / each).read_bytes() for each in NAMES}
        archive.write_bytes(gzip.compress(packed(members), mtime=0))
        if base_image is not None:
            add_release(base_image, members, out / f"{name}-{version}.image.tar")
    except (OSError, ValueError, SyntaxError) as error:
        raise _failed(sources, why_of(error)) from error
    return archive, enclave_id


def _static_program(path: Path) -> bytes:
    """The bytes of a program that the simulated TEE can execute. Raises ENCLAVE_START_FAILED, ValueError, OSError."""
    with path.open("rb") as file:
        if not is_native(file.fileno()):
            raise ValueError("it is no ELF program; a Python program is named by its entry point, with --main")
        need_static(file.fileno())
        return file.read()


def _image_sources(sources: NodeSources) -> Mapping[str, Path | bytes]:
    """What the image holds: all that the entry point imports, of the node's own package and of ours, and its data."""
    own = sources.module.split(".")[0]
    with _beside_each_other([sources.folder / own, *(PROGRAM / name for name in OURS)]) as root:
        found = {name: path.resolve() for name, path in import_closure(root, sources.module, (own, *OURS)).items()}
    missing = [name for name in sources.data if not (sources.folder / name).is_file()]
    if missing:
        raise _failed(sources, f"there is no {sources.folder / missing[0]}")
    return {**found, **{name: sources.folder / name for name in sources.data}}


@contextlib.contextmanager
def _beside_each_other(packages: Sequence[Path]) -> Iterator[Path]:
    """A folder in which packages of different places stand beside each other."""
    with tempfile.TemporaryDirectory(prefix="dcupgrade-build-") as folder:
        for package in packages:
            (Path(folder) / package.name).symlink_to(package.resolve())
        yield Path(folder)


def _failed(sources: NodeSources | NativeProgram, why: str) -> DcupgradeError:
    of = sources.path if isinstance(sources, NativeProgram) else f"{sources.main} in {sources.folder}"
    return DcupgradeError(
        code="RELEASE_BUILD_FAILED",
        what=f"the release of {of}",
        why=why,
        action="Name the entry point as package.module:function, and the folder that holds the package.",
    )
