#!/usr/bin/env python3
"""The entrypoint of an image like the field's: starts the node in its enclave, or reports what the host lacks.

Its settings are in the folder that the field's manager mounts, its data in the volume. It does not belong to the
project's packages: it runs inside the image, with the files that `devnet/field/image.py` added.
"""

import json
import os
import stat
import sys
from pathlib import Path

DEVICES = ("/dev/sgx/enclave", "/dev/sgx/provision")
ETC, DATA, DISKS = Path("/opt/dcnetio/etc"), Path("/opt/dcnetio/data/node"), Path("/opt/dcnetio/disks")
HERE = Path("/opt/dcstorage")


def main() -> None:
    """Replace this process by the node."""
    for device in DEVICES:
        if not (os.path.exists(device) and stat.S_ISCHR(os.stat(device).st_mode)):
            sys.exit(f"no SGX: {device} is missing")
    if not DISKS.is_dir():
        sys.exit(f"{DISKS} is not mounted")
    settings = json.loads((ETC / "dcstorage.json").read_text())
    cpu = ["--cpu", f"{ETC}/cpu", "--image", f"{HERE}/enclave.pyz", "--sigstruct", f"{HERE}/enclave.sig"]
    node = ["--data", str(DATA), "--port", str(settings["port"]), "--upgrader", settings["upgrader"]]
    node += ["--network-signature-file", f"{HERE}/network.sig"]
    if not (DATA / "keyset.json").exists() and settings["makes_keys"] == settings_version():
        node.append("--first-install")
    argv = [sys.executable, "-m", "attestation.simulated", "run", *cpu, "--", *node]
    os.execv(sys.executable, argv)  # noqa: S606


def settings_version() -> str:
    """Return the version of the node in this image."""
    return str(json.loads((HERE / "version.json").read_text())["version"])


if __name__ == "__main__":
    main()
