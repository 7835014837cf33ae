"""What is fuzzed: a decoder, good inputs to begin with, and the only errors that it may raise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import CODES as ATTESTATION_CODES
from attestation.errors import AttestationError
from chain_watcher.errors import CODES as CHAIN_CODES
from chain_watcher.errors import ChainWatcherError
from dcupgrade.errors import CODES as AGENT_CODES
from dcupgrade.errors import DcupgradeError
from keyvault.errors import CODES as VAULT_CODES
from keyvault.errors import KeyvaultError
from process_supervisor.errors import CODES as SUPERVISOR_CODES
from process_supervisor.errors import ProcessSupervisorError

#: Inputs that once made a target fail, `<slug of its name>.json`: a list of hexadecimal texts.
KEPT = Path(__file__).parent / "kept"
DOCUMENTED = (AttestationError, ChainWatcherError, DcupgradeError, KeyvaultError, ProcessSupervisorError)
CODES = {*ATTESTATION_CODES, *CHAIN_CODES, *AGENT_CODES, *VAULT_CODES, *SUPERVISOR_CODES}


#: Tried on every target beside its own seeds: depth, length and characters that a decoder may forget.
COMMON_SEEDS = (
    b"",
    b"[" * 3000,
    b'{"a":' * 1500,
    b"a = " + b"[" * 3000,
    b"9" * 5000,
    b"\xff" * 64,
    "\u0661\u00b2\u2028\ud7ff".encode(),
    b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    b"Mon, 01 Jan 2026 00:00:00 +99999999999999999999",
    b"1e999",
    b'"\\ud800"',
)


class UndocumentedError(Exception):
    """An error of the program's own class under a code that no page explains, or an answer that must not be."""


@dataclass(frozen=True, slots=True)
class Target:
    """`take` gets any bytes. Beside documented errors it may raise those of `allowed`, which it documents itself."""

    take: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    allowed: tuple[type[Exception], ...] = ()
    bytes_max: int = 4096

    def __call__(self, data: bytes) -> None:
        """Run once. Any exception from here is a find."""
        try:
            self.take(data)
        except DOCUMENTED as error:
            if error.code not in CODES:
                raise UndocumentedError(error.code) from error
        except self.allowed:
            return


def of_text(take: Callable[[str], object]) -> Callable[[bytes], object]:
    """Make a decoder of bytes from a decoder of text: any string from a network, and lone surrogates as in headers."""
    return lambda data: take(data.decode("utf-8", "surrogateescape"))


def of_json(take: Callable[[object], object]) -> Callable[[bytes], object]:
    """Make a decoder of bytes from a decoder of JSON values. Input that is not JSON is ignored."""

    def run(data: bytes) -> object:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return take(value)

    return run


def slug(name: str) -> str:
    """A target's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def kept(name: str) -> tuple[bytes, ...]:
    """What is kept for a target."""
    path = KEPT / f"{slug(name)}.json"
    return tuple(bytes.fromhex(text) for text in json.loads(path.read_text())) if path.exists() else ()
