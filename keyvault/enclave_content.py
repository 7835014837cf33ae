"""The folder `/vault` that Gramine measures: the vault's image, the distributions that it imports, the extension.

Only what runs goes in: `.py` and shared objects. Compiled files, scripts and installation records differ from machine
to machine, so that no two builds would measure alike. `listing` is the folder's fingerprint: one line for each file.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .errors import KeyvaultError

#: What the vault imports besides Python itself, and why. A test fails when another one comes in, or one is not needed.
DISTRIBUTIONS: Final[Mapping[str, str]] = {
    "aiohappyeyeballs": "needed by aiohttp",
    "aiohttp": "HTTP on loopback: the agent's API, the handover as holder and as requester",
    "aiosignal": "needed by aiohttp",
    "attrs": "needed by aiohttp",
    "cffi": "needed by PyNaCl",
    "cryptography": "AES-256-GCM and HKDF of the sealed store, HPKE, the CMAC of reports",
    "frozenlist": "needed by aiohttp",
    "idna": "needed by yarl",
    "multidict": "needed by aiohttp",
    "propcache": "needed by yarl",
    "py-ed25519-zebra-bindings": "signatures of the network and of GRANDPA's authorities, by the chain's own rules",
    "PyNaCl": "the box of handover v1",
    "typing_extensions": "needed by aiosignal and multidict",
    "xxhash": "storage keys of the chain",
    "yarl": "needed by aiohttp",
}
_SHOWN_MAX: Final = 20
_RUNS: Final = re.compile(r"\.py$|\.so(\.[0-9.]+)?$")


def _refused(why: str, action: str = "") -> KeyvaultError:
    return KeyvaultError(
        code="VAULT_START_REFUSED", what="the enclave's content cannot be made", why=why, action=action
    )


def distribution_files(name: str) -> dict[str, bytes]:
    """Return what runs of an installed distribution, by path. Raises VAULT_START_REFUSED for one that was altered."""
    try:
        files = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError:
        raise _refused(f"{name} is not installed", "Install requirements.enclave.lock.") from None
    found = {}
    for file in files:
        path = file.as_posix()
        if not _RUNS.search(path) or path.startswith("..") or file.hash is None:
            continue
        content = Path(str(file.locate())).read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, content).digest()).rstrip(b"=").decode("ascii")
        if digest != file.hash.value:
            raise _refused(f"{path} of {name} is not what was installed", "Install requirements.enclave.lock anew.")
        found[path] = content
    return found


def write_content(image: Path, out: Path, extension: Path | None = None) -> None:
    """Write image, distributions and extension into the new folder `out`. Raises VAULT_START_REFUSED."""
    content: dict[str, bytes] = {}
    for name in DISTRIBUTIONS:
        content |= distribution_files(name)
    with zipfile.ZipFile(image) as archive:
        content |= {name: archive.read(name) for name in archive.namelist()}
    if extension is not None:
        content["attestation/egetkey/_egetkey.abi3.so"] = extension.read_bytes()
    try:
        out.mkdir(parents=True)
        for name, data in content.items():
            place = out / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    except OSError as error:
        raise _refused(f"{error.filename or out} cannot be written ({error.strerror})", "Name a new folder.") from None


def listing(folder: Path) -> str:
    """Return one line `sha256  path` for each file of a folder, sorted by path."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in files)


def image_listing(image: Path) -> str:
    """Return the same for the members of an image."""
    with zipfile.ZipFile(image) as archive:
        return "".join(
            f"{hashlib.sha256(archive.read(name)).hexdigest()}  {name}\n" for name in sorted(archive.namelist())
        )


def differences(expected: str, found: str) -> list[str]:
    """Return what two listings differ in: `missing PATH`, `added PATH` or `changed PATH`, sorted by path."""
    want, have = ({line[66:]: line[:64] for line in text.splitlines()} for text in (expected, found))
    said = []
    for name in sorted(want.keys() | have.keys()):
        if want.get(name) != have.get(name):
            word = "missing" if name not in have else "added" if name not in want else "changed"
            said.append(f"{word} {name}")
    return said


def shown(said: list[str]) -> str:
    """Return differences as one line: the first twenty, and how many there are besides."""
    more = [f"and {len(said) - _SHOWN_MAX} more"] if len(said) > _SHOWN_MAX else []
    return ", ".join(said[:_SHOWN_MAX] + more)


def enclave_lock(runtime_lock: str) -> str:
    """Return the lock of the enclave's distributions alone, cut out of the lock of all."""
    wanted = {name.lower().replace("_", "-") for name in DISTRIBUTIONS}
    entries = re.split(r"^(?=[A-Za-z0-9])", runtime_lock, flags=re.MULTILINE)
    chosen = [entry.split("    # via")[0] for entry in entries if entry.split("==")[0].lower() in wanted]
    return (
        "# What runs inside the enclave besides Python. Made from requirements.runtime.lock by `make lock`.\n"
        + "".join(chosen)
    )


if __name__ == "__main__":
    sys.stdout.write(enclave_lock(Path("requirements.runtime.lock").read_text(encoding="utf-8")))
