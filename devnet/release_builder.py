"""Build releases of the reference node, good and bad ones: measured image, SIGSTRUCT, network signature, archive.

Every key is generated for the run. A network's real key is never on a build machine: its owner runs `dcupgrade release
sign` elsewhere, on the enclave id that the build printed.
"""

from __future__ import annotations

import datetime
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from dcupgrade.publishing.signing import network_key_text, sign_enclave_id
from devnet.go_image import build_go_node
from process_supervisor.archive import unpack
from process_supervisor.limits import ArchiveLimits

ROOT = Path(__file__).resolve().parent.parent
NODE_MAIN = "devnet.reference_node.main:main"
NODE_PACKAGES = ("attestation", "devnet", "keyvault")
POLICY_NAME = "devnet/reference_node/node_policy.json"
SIGSTRUCT_DATE = datetime.date(2026, 1, 1)
FORMAT_TAG = "dc object v1"


@dataclass(frozen=True, slots=True)
class ReleaseKeys:
    """The network's ed25519 key and the vendor's RSA-3072 key (exponent 3, as SGX requires)."""

    network: Ed25519PrivateKey
    vendor: RSAPrivateKey

    @classmethod
    def draw(cls, folder: Path) -> ReleaseKeys:
        """Generate both and store them in `folder` as `network.pem` and `vendor.pem`, mode 0600."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = cls(Ed25519PrivateKey.generate(), generate_private_key(public_exponent=3, key_size=3072))
        for name, key in (("network.pem", keys.network), ("vendor.pem", keys.vendor)):
            path = folder / name
            path.touch(mode=0o600)
            path.write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
        return keys

    @classmethod
    def load(cls, folder: Path) -> ReleaseKeys:
        """Load both keys that `draw` stored in `folder`. Raises OSError, ValueError."""
        network = serialization.load_pem_private_key((folder / "network.pem").read_bytes(), None)
        vendor = serialization.load_pem_private_key((folder / "vendor.pem").read_bytes(), None)
        if not isinstance(network, Ed25519PrivateKey) or not isinstance(vendor, RSAPrivateKey):
            raise ValueError(f"{folder} holds keys of other kinds")
        return cls(network, vendor)

    @property
    def network_public(self) -> str:
        """The network's public key in the multibase form of the settings."""
        return network_key_text(self.network)


@dataclass(frozen=True, slots=True)
class BuiltRelease:
    """A release on disk: the values to publish on the chain, and the path of its archive."""

    name: str
    version: str
    enclave_id: str
    signature: str
    archive: Path

    def install(self, folder: Path) -> None:
        """Unpack it into a new folder and add the network's signature, like an operator without an agent."""
        folder.mkdir(parents=True)
        unpack(self.archive, folder, ArchiveLimits(), None)
        (folder / "network.sig").write_text(self.signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTraits:
    """Properties of a reference node that are measured with its code. Each field except `features` makes it bad."""

    features: tuple[str, ...] = ()
    does_not_start: bool = False
    crash_after_s: float | None = None
    format_tag: str = FORMAT_TAG
    handover_fault: str | None = None


@dataclass(frozen=True, slots=True)
class ReleaseBuilder:
    """Builds into `folder`. All releases of a builder have one network, one chain and one handover version."""

    folder: Path
    keys: ReleaseKeys
    genesis_hash: str
    handover: str = "v2"
    upgrader_ids: tuple[str, ...] | None = None
    """Enclave ids of the vaults that the nodes accept as upgrader; None: any that the network signed."""
    language: str = "python"
    """ "python", or "go" for the node of `devnet/go_node`, which knows no bad traits."""

    def good(self, version: str) -> BuiltRelease:
        """Build a release that works; from 1.1.0 on it has `GET /stats`."""
        features = ("stats",) if version != "1.0.0" else ()
        return self.build(version, NodeTraits(features=features))

    def build(self, version: str, traits: NodeTraits, *, name: str = "") -> BuiltRelease:
        """Build a release with a well-formed archive; the node in it may be bad."""
        name = name or f"reference-node-{version}"
        image, sigstruct, enclave_id = self._image(name, version, traits)
        return self._pack(name, version, enclave_id, {"enclave.pyz": image, "enclave.sig": sigstruct})

    def changed_after_signing(self, version: str, name: str = "changed-after-signing") -> BuiltRelease:
        """Build an archive whose image does not match its SIGSTRUCT."""
        image, sigstruct, enclave_id = self._image(name, version, NodeTraits(features=("changed",)))
        return self._pack(name, version, enclave_id, {"enclave.pyz": image + b"\0", "enclave.sig": sigstruct})

    def another_program(self, version: str, name: str = "another-program") -> BuiltRelease:
        """Build a valid archive that contains another enclave than the announced one."""
        _, _, announced = self._image(name, version, NodeTraits(features=("announced",)))
        image, sigstruct, _ = self._image(name, version, NodeTraits(features=("instead",)))
        return self._pack(name, version, announced, {"enclave.pyz": image, "enclave.sig": sigstruct})

    def bad_rsa_signature(self, version: str, name: str = "bad-rsa-signature") -> BuiltRelease:
        """Build an archive whose SIGSTRUCT has the right MRENCLAVE and a broken RSA signature."""
        image, sigstruct, enclave_id = self._image(name, version, NodeTraits(features=("broken",)))
        broken = bytearray(sigstruct)
        broken[600] ^= 1  # inside SIGNATURE, 516:384
        return self._pack(name, version, enclave_id, {"enclave.pyz": image, "enclave.sig": bytes(broken)})

    def leaves_its_folder(self, version: str, name: str = "leaves-its-folder") -> BuiltRelease:
        """Build an archive of a good release with one more member, whose path leaves the slot."""
        image, sigstruct, enclave_id = self._image(name, version, NodeTraits(features=("climbs",)))
        members = {"../../escaped.txt": b"out", "enclave.pyz": image, "enclave.sig": sigstruct}
        return self._pack(name, version, enclave_id, members)

    def links_out(self, version: str, name: str = "links-out") -> BuiltRelease:
        """Build an archive whose image is a link to a file outside the archive."""
        _, sigstruct, enclave_id = self._image(name, version, NodeTraits(features=("links",)))
        return self._pack(name, version, enclave_id, {"enclave.sig": sigstruct}, links={"enclave.pyz": "/etc/passwd"})

    def _image(self, name: str, version: str, traits: NodeTraits) -> tuple[bytes, bytes, str]:
        from attestation.artefact.files import build_image, build_sigstruct, verify_artefact

        policy = {
            "version": version,
            "network_keys": [self.keys.network_public],
            "threshold": 1,
            "genesis_hash": self.genesis_hash,
            "unsafe_simulated_tee": True,
            "features": list(traits.features),
            "does_not_start": traits.does_not_start,
            "crash_after_s": traits.crash_after_s,
            "format_tag": traits.format_tag,
            "handover": self.handover,
            "upgrader_ids": self.upgrader_ids,
            "handover_fault": traits.handover_fault,
        }
        work = self.folder / "build" / name
        work.mkdir(parents=True, exist_ok=True)
        image, sigstruct = work / "enclave.pyz", work / "enclave.sig"
        if self.language == "go":
            build_go_node(image, policy)
        else:
            build_image(image, node_sources(policy), NODE_MAIN)
        sigstruct.write_bytes(build_sigstruct(image, self.keys.vendor, date=SIGSTRUCT_DATE))
        return image.read_bytes(), sigstruct.read_bytes(), verify_artefact(image, sigstruct)

    def _pack(
        self,
        name: str,
        version: str,
        enclave_id: str,
        members: Mapping[str, bytes],
        links: Mapping[str, str] | None = None,
    ) -> BuiltRelease:
        about = {"name": "reference-node", "version": version, "enclave_id": enclave_id}
        archive = self.folder / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            for member, target in (links or {}).items():
                info = tarfile.TarInfo(member)
                info.type, info.linkname = tarfile.SYMTYPE, target
                tar.addfile(info)
            for member, data in {"release.json": json.dumps(about).encode(), **members}.items():
                info = tarfile.TarInfo(member)
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
        return BuiltRelease(name, version, enclave_id, sign_enclave_id(self.keys.network, enclave_id), archive)


def node_sources(policy: Mapping[str, Any]) -> dict[str, Path | bytes]:
    """Return the files of a node image by name: the modules that the node imports, and its policy."""
    from attestation.artefact.closure import import_closure

    module, _, _ = NODE_MAIN.partition(":")
    sources: dict[str, Path | bytes] = {**import_closure(ROOT, module, NODE_PACKAGES)}
    sources[POLICY_NAME] = json.dumps(policy, sort_keys=True, indent=1).encode()
    return sources


def build_vault(folder: Path, keys: ReleaseKeys, genesis_hash: str, policy: Mapping[str, Any]) -> tuple[str, str]:
    """Build `vault.pyz` and `vault.sig` into `folder`; returns the vault's enclave id and network signature.

    `policy`: fields that differ from the development defaults below. The whole policy is measured.
    """
    import subprocess
    import sys

    fields = {
        "network_keys": [keys.network_public],
        "threshold": 1,
        "genesis_hash": genesis_hash,
        "checkpoint": None,
        "evidence_mode": "single",
        "unsafe_unproven_evidence": True,
        "unsafe_simulated_tee": True,
        **policy,
    }
    folder.mkdir(parents=True, exist_ok=True)
    policy_file = folder / "vault_policy.json"
    policy_file.write_text(json.dumps(fields, indent=1))
    vendor = folder / "vendor.pem"
    vendor.touch(mode=0o600)
    vendor.write_bytes(
        keys.vendor.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    command = [sys.executable, "-m", "keyvault", "build"]
    command += ["--policy", str(policy_file), "--key", str(vendor), "--out", str(folder)]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    finally:
        vendor.unlink()
    enclave_id = done.stdout.split()[-1]
    signature = sign_enclave_id(keys.network, enclave_id)
    (folder / "vault.auth").write_text(signature + "\n")
    return enclave_id, signature
