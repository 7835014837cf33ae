"""Images like those of the field's releases: an entrypoint, a signed enclave, and no folder with release files."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from attestation.artefact.files import build_sigstruct
from attestation.sgx import KSS, MODE64BIT
from devnet.docker.engine import BASE_IMAGE, PrivateEngine
from devnet.docker.setup import NODE_IMAGE
from devnet.release_builder import ROOT, SIGSTRUCT_DATE, BuiltRelease, ReleaseKeys
from process_supervisor.archive import unpack
from process_supervisor.limits import ArchiveLimits

from .signed_elf import signed_elf

REPOSITORY = "dcnetio/dcstorage"
SIGNED_ENCLAVE = "/opt/dcstorage/dcstorage"
ENTRYPOINT = "dcstorage"
#: ATTRIBUTES of enclaves that EGo builds.
EGO_FLAGS, EGO_XFRM = MODE64BIT | KSS, 0x7
DOCKERFILE = f"""FROM {NODE_IMAGE}
USER root
COPY bin/dcstorage /usr/bin/{ENTRYPOINT}
COPY opt /opt/dcstorage
ENV DCSTORAGE_VERSION=@VERSION@
LABEL org.opencontainers.image.version=@VERSION@
ENTRYPOINT ["{ENTRYPOINT}"]
"""


@dataclass(frozen=True, slots=True)
class ImageBuilder:
    """Builds on one engine. The base is the nodes' image of the development network, made on first use."""

    engine: PrivateEngine
    keys: ReleaseKeys

    def base(self) -> None:
        """Make the base. With cached layers this takes a second."""
        self.engine.import_base()
        arguments = ("--network", "host", "--build-arg", f"BASE_IMAGE={BASE_IMAGE}", "--target", "node")
        file = str(ROOT / "devnet" / "docker" / "Dockerfile")
        self.engine.docker("build", "--quiet", *arguments, "--file", file, "--tag", NODE_IMAGE, str(ROOT))

    def build(self, release: BuiltRelease, *, sigstruct_lies: bool = False, entrypoint: bool = True) -> str:
        """Build an image of the release; returns its tag. `sigstruct_lies`: its SIGSTRUCT names another id."""
        tag = f"{REPOSITORY}:{release.version}"
        with tempfile.TemporaryDirectory() as text:
            context = Path(text)
            self._fill(context, release, lies=sigstruct_lies)
            if not entrypoint:
                (context / "bin" / ENTRYPOINT).chmod(0o644)
            (context / "Dockerfile").write_text(DOCKERFILE.replace("@VERSION@", release.version))
            self.engine.docker("build", "--quiet", "--network", "none", "--tag", tag, text)
        return tag

    def _fill(self, context: Path, release: BuiltRelease, *, lies: bool) -> None:
        opt, programs = context / "opt", context / "bin"
        opt.mkdir()
        programs.mkdir()
        unpack(release.archive, opt, ArchiveLimits(), None)
        (opt / "release.json").unlink()
        sigstruct = build_sigstruct(
            opt / "enclave.pyz", self.keys.vendor, flags=EGO_FLAGS, xfrm=EGO_XFRM, date=SIGSTRUCT_DATE
        )
        (opt / "enclave.sig").write_bytes(sigstruct)
        named = bytearray(sigstruct)
        if lies:
            named[960] ^= 1  # ENCLAVEHASH
        (opt / "dcstorage").write_bytes(signed_elf(bytes(named), b"payload of the enclave"))
        (opt / "network.sig").write_text(release.signature)
        (opt / "version.json").write_text(json.dumps({"version": release.version}))
        program = programs / ENTRYPOINT
        program.write_bytes(Path(__file__).with_name("dcstorage.py").read_bytes())
        program.chmod(0o755)

    def save(self, tag: str, path: Path) -> None:
        """Write the image's archive, and remove the image from the engine."""
        self.engine.docker("save", "--output", str(path), tag)
        self.engine.docker("rmi", "--force", tag)
