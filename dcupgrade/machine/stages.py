"""What an upgrade has achieved so far: one value per stage, in the order of docs/concepts.md.

Only the port that did and verified the work makes such a value, and the event that ends the work carries it. Code with
such a value need not check again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StagedRelease:
    """A release whose files are in their slot and were verified there."""

    enclave_id: str


@dataclass(frozen=True, slots=True)
class SealedKeys:
    """A key set that the vault collected from the node `source_id` and sealed. `key_set_id`: SHA-256 id, hex."""

    source_id: str
    key_set_id: str


@dataclass(frozen=True, slots=True)
class Permit:
    """The vault's permission to hand a sealed key set over to `target_id`, until `expires_unix_s`."""

    target_id: str
    expires_unix_s: int


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A version whose process was started, or was found running."""

    enclave_id: str


@dataclass(frozen=True, slots=True)
class AttestedNode:
    """A running version that attested itself, confirmed the key set, and serves."""

    enclave_id: str
