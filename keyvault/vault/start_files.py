"""Files that a measured program reads when it starts: the policy in its image, and files of the host."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path
from typing import Final

from attestation.network import decode_multibase
from keyvault.errors import KeyvaultError

from .measured_policy import FILE_NAME, VaultPolicy, parse_policy, tighten

_SIGNATURE_CHARS: Final = 104
_PORT: Final = re.compile(r"[0-9]{1,5}")
_PORT_MAX: Final = 65535


def start_refused(why: str, action: str = "") -> KeyvaultError:
    """Make the error VAULT_START_REFUSED."""
    return KeyvaultError(code="VAULT_START_REFUSED", what="the vault does not start", why=why, action=action)


def read_text_file(path: Path, what: str) -> str:
    """Return a file's text. Raises VAULT_START_REFUSED if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise start_refused(f"the {what} {path} cannot be read ({type(error).__name__})") from None


def read_signatures(text: str) -> tuple[bytes, ...]:
    """Decode one or more network signatures in multibase base32; spaces and newlines are ignored."""
    joined = "".join(text.split())
    parts = [joined[at : at + _SIGNATURE_CHARS] for at in range(0, len(joined), _SIGNATURE_CHARS)]
    return tuple(decode_multibase(part) for part in parts)


def listen_address(measured: str, port_file: Path | None) -> tuple[str, int]:
    """Return the host and port to listen on: the measured address, with another port if the port file names one.

    Each of several vaults of one build on one host has its own port file. The host chooses the port; no security
    depends on it. Raises VAULT_START_REFUSED.
    """
    host, _, port = measured.rpartition(":")
    if port_file is not None and port_file.exists():
        port = read_text_file(port_file, "port file").strip()
    if not _PORT.fullmatch(port) or int(port) > _PORT_MAX:
        raise start_refused(f"{port[:20]!r} is no port", "Write a number from 1 to 65535 into the port file.")
    return host.strip("[]"), int(port)


def measured_policy(tighten_file: Path | None) -> VaultPolicy:
    """Return the policy inside this image, tightened by the host's file if there is one.

    Raises VAULT_POLICY_INVALID, VAULT_SETTING_LOOSENS, VAULT_START_REFUSED.
    """
    try:
        data = importlib.resources.files("keyvault").joinpath(FILE_NAME).read_bytes()
    except OSError:
        raise KeyvaultError(
            code="VAULT_POLICY_INVALID",
            what="the vault does not start",
            why="this is not a vault image: it contains no measured policy",
            action="Build one with python -m keyvault build, and start it with --image and --sigstruct.",
        ) from None
    policy = parse_policy(data)
    return tighten(policy, read_text_file(tighten_file, "settings file").encode("utf-8")) if tighten_file else policy
