"""Values of the upgrade machine: releases, the chain's facts, the machine's state, and their JSON form.

Everything here is frozen and JSON-able, because the journal stores it and the status page shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

import cattrs

STATE_FORMAT = 1
"""Version of the JSON form of State. A journal of a newer program is refused."""

MAX_RECORDS = 64


class Name(StrEnum):
    """The machine's states (design, section 4)."""

    IDLE = "idle"
    STAGING = "staging"
    STAGED = "staged"
    COLLECTING = "collecting"
    SEALED = "sealed"
    STOPPING = "stopping"
    LAUNCHING = "launching"
    DELIVERING = "delivering"
    PROBATION = "probation"
    COMMITTED = "committed"
    ABANDONED = "abandoned"
    REVERTING = "reverting"
    REVERTED = "reverted"
    HALTED = "halted"


@dataclass(frozen=True, slots=True)
class Release:
    """One signed DCNode version, as the chain watcher verified it.

    `enclave_id` is 64 hex characters, `signatures` are raw ed25519 (64 bytes each), `added_height` is the lowest block
    height at which the id was listed.
    """

    enclave_id: str
    version: str = ""
    origin_url: str = ""
    mirror_url: str = ""
    cids: tuple[str, ...] = ()
    signatures: tuple[bytes, ...] = ()
    added_height: int = 0

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of its files: URLs, then CIDs."""
        return (self.origin_url, self.mirror_url, *self.cids)


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """Facts of the finalized chain: the version to run, and the listed ids with their lowest heights."""

    program: Release | None = None
    listed: tuple[tuple[str, int], ...] = ()
    block_number: int = field(default=0, compare=False)

    def lists(self, enclave_id: str) -> bool:
        """Tell whether the network's signature for the id is listed at this block."""
        return any(item == enclave_id for item, _ in self.listed)


@dataclass(frozen=True, slots=True)
class Hold:
    """An operator's hold: no upgrade starts. `until_unix_s` 0: until it is lifted."""

    reason: str
    who: str = ""
    until_unix_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """The history of a release that was tried, and whether it may be tried again."""

    enclave_id: str
    abandoned: int = 0
    reverted: int = 0
    quarantine: str = ""
    waiting: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """The whole state of the machine, as the journal stores it.

    `running`: the release that owns the data (during an upgrade the source, from `committed` on the target). `target`:
    the release that is being installed or, in `reverting`, removed. `previous`: the release that `running` replaced,
    kept until `previous_until_unix_s` so that an operator can revert to it.
    """

    name: Name = Name.IDLE
    running: Release | None = None
    target: Release | None = None
    target_since_unix_s: float = 0.0
    previous: Release | None = None
    previous_until_unix_s: float = 0.0
    chain: ChainFacts | None = None
    key_set_id: str = ""
    permit_expires_unix_s: int = 0
    first_install: bool = False
    crashes: int = 0
    launches: int = 0
    target_stopped: bool = False
    revert_requested: bool = False
    revoked_accepted: bool = False
    reason: str = ""
    detail: str = ""
    halted: str = ""
    resume_to: str = ""
    hold: Hold | None = None
    approved: str = ""
    override: str = ""
    records: tuple[Record, ...] = ()

    def record(self, enclave_id: str) -> Record:
        """Return the record of a release; an empty one if there is none."""
        for item in self.records:
            if item.enclave_id == enclave_id:
                return item
        return Record(enclave_id)

    def with_record(self, record: Record) -> State:
        """Return the state with one release's record replaced. Empty and oldest records are dropped."""
        rest = tuple(item for item in self.records if item.enclave_id != record.enclave_id)
        blank = record == Record(record.enclave_id)
        return replace(self, records=(rest if blank else (*rest, record))[-MAX_RECORDS:])

    def revoked(self, release: Release | None) -> bool:
        """Tell whether the chain, as last seen, does not list the release."""
        return release is not None and self.chain is not None and not self.chain.lists(release.enclave_id)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, the inverse of `state_from_json`."""
        return {"format": STATE_FORMAT, **_CONVERTER.unstructure(self)}


_CONVERTER = cattrs.Converter(unstruct_collection_overrides={tuple: list}, detailed_validation=False)
_CONVERTER.register_unstructure_hook(bytes, bytes.hex)
_CONVERTER.register_structure_hook(bytes, lambda text, _: bytes.fromhex(text))


def value_to_json(value: ChainFacts | Hold) -> dict[str, Any]:
    """Return the JSON form of a value of the state: lists for tuples, hexadecimal text for bytes."""
    return _CONVERTER.unstructure(value)  # type: ignore[no-any-return]


def state_from_json(data: Mapping[str, Any]) -> State:
    """Rebuild a State. Raises KeyError, TypeError or ValueError if the JSON is not of this format."""
    if data["format"] != STATE_FORMAT:
        raise ValueError(f"state format {data['format']!r}, this program knows {STATE_FORMAT}")
    if missing := {item.name for item in fields(State)} - set(data):
        raise KeyError(f"the state lacks {sorted(missing)[0]}")
    return _CONVERTER.structure(data, State)
