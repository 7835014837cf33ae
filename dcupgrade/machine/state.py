"""Values of the upgrade machine: releases, the machine's state, events and effects, and their JSON form.

Everything here is frozen and JSON-able, because the journal stores it and the status page shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

STATE_FORMAT = 1
"""Version of the JSON form of State. A journal written by a newer program is refused, not guessed at."""

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
        """Where its files may be had: URLs, then CIDs."""
        return (self.origin_url, self.mirror_url, *self.cids)

    def to_json(self) -> dict[str, Any]:
        """JSON form, the inverse of `release_from_json`."""
        return {
            "enclave_id": self.enclave_id,
            "version": self.version,
            "origin_url": self.origin_url,
            "mirror_url": self.mirror_url,
            "cids": list(self.cids),
            "signatures": [item.hex() for item in self.signatures],
            "added_height": self.added_height,
        }


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """What the finalized chain says: the version to run and the listed ids with their lowest heights."""

    program: Release | None = None
    listed: tuple[tuple[str, int], ...] = ()
    block_number: int = field(default=0, compare=False)

    def lists(self, enclave_id: str) -> bool:
        """Whether the id carries the network's signature at this block."""
        return any(item == enclave_id for item, _ in self.listed)

    def to_json(self) -> dict[str, Any]:
        """JSON form, the inverse of `chain_from_json`."""
        return {
            "program": self.program.to_json() if self.program else None,
            "listed": [list(item) for item in self.listed],
            "block_number": self.block_number,
        }


@dataclass(frozen=True, slots=True)
class Hold:
    """An operator's order to start no upgrade; `until_unix_s` 0 means until it is lifted."""

    reason: str
    who: str = ""
    until_unix_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {"reason": self.reason, "who": self.who, "until_unix_s": self.until_unix_s}


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of a release that was tried, and whether it may be tried again."""

    enclave_id: str
    abandoned: int = 0
    reverted: int = 0
    quarantine: str = ""
    waiting: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "enclave_id": self.enclave_id,
            "abandoned": self.abandoned,
            "reverted": self.reverted,
            "quarantine": self.quarantine,
            "waiting": self.waiting,
        }


@dataclass(frozen=True, slots=True)
class State:
    """The whole state of the machine; what the journal stores.

    `running` is the release that owns the data: the source while an upgrade is under way, the target from `committed`
    on. `target` is the release on its way in, or the one on its way out while reverting. `previous` is what `running`
    replaced, kept for a revert by hand until `previous_until_unix_s`.
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
        """What is remembered of a release; an empty record when nothing is."""
        for item in self.records:
            if item.enclave_id == enclave_id:
                return item
        return Record(enclave_id)

    def with_record(self, record: Record) -> State:
        """The state with one release's record replaced; blank and oldest records are dropped."""
        rest = tuple(item for item in self.records if item.enclave_id != record.enclave_id)
        blank = record == Record(record.enclave_id)
        return replace(self, records=(rest if blank else (*rest, record))[-MAX_RECORDS:])

    def revoked(self, release: Release | None) -> bool:
        """Whether the chain, as far as it was seen, no longer lists the release."""
        return release is not None and self.chain is not None and not self.chain.lists(release.enclave_id)

    def to_json(self) -> dict[str, Any]:
        """JSON form, the inverse of `state_from_json`."""
        return {
            "format": STATE_FORMAT,
            "name": self.name.value,
            "running": self.running.to_json() if self.running else None,
            "target": self.target.to_json() if self.target else None,
            "target_since_unix_s": self.target_since_unix_s,
            "previous": self.previous.to_json() if self.previous else None,
            "previous_until_unix_s": self.previous_until_unix_s,
            "chain": self.chain.to_json() if self.chain else None,
            "key_set_id": self.key_set_id,
            "permit_expires_unix_s": self.permit_expires_unix_s,
            "first_install": self.first_install,
            "crashes": self.crashes,
            "launches": self.launches,
            "target_stopped": self.target_stopped,
            "revert_requested": self.revert_requested,
            "revoked_accepted": self.revoked_accepted,
            "reason": self.reason,
            "detail": self.detail,
            "halted": self.halted,
            "resume_to": self.resume_to,
            "hold": self.hold.to_json() if self.hold else None,
            "approved": self.approved,
            "override": self.override,
            "records": [item.to_json() for item in self.records],
        }


def release_from_json(data: Mapping[str, Any]) -> Release:
    """Rebuild a Release; raises KeyError, TypeError or ValueError when the JSON is not one."""
    return Release(
        enclave_id=str(data["enclave_id"]),
        version=str(data["version"]),
        origin_url=str(data["origin_url"]),
        mirror_url=str(data["mirror_url"]),
        cids=tuple(str(item) for item in data["cids"]),
        signatures=tuple(bytes.fromhex(item) for item in data["signatures"]),
        added_height=int(data["added_height"]),
    )


def chain_from_json(data: Mapping[str, Any]) -> ChainFacts:
    """Rebuild ChainFacts; raises KeyError, TypeError or ValueError when the JSON is none."""
    return ChainFacts(
        program=_optional(data["program"]),
        listed=tuple((str(item), int(height)) for item, height in data["listed"]),
        block_number=int(data["block_number"]),
    )


def hold_from_json(data: Mapping[str, Any]) -> Hold:
    """Rebuild a Hold."""
    return Hold(str(data["reason"]), str(data["who"]), float(data["until_unix_s"]))


def state_from_json(data: Mapping[str, Any]) -> State:
    """Rebuild a State; raises KeyError, TypeError or ValueError when the JSON is not one of this format."""
    if data["format"] != STATE_FORMAT:
        raise ValueError(f"state format {data['format']!r}, this program knows {STATE_FORMAT}")
    chain = data["chain"]
    hold = data["hold"]
    return State(
        name=Name(data["name"]),
        running=_optional(data["running"]),
        target=_optional(data["target"]),
        target_since_unix_s=float(data["target_since_unix_s"]),
        previous=_optional(data["previous"]),
        previous_until_unix_s=float(data["previous_until_unix_s"]),
        chain=chain_from_json(chain) if chain is not None else None,
        key_set_id=str(data["key_set_id"]),
        permit_expires_unix_s=int(data["permit_expires_unix_s"]),
        first_install=bool(data["first_install"]),
        crashes=int(data["crashes"]),
        launches=int(data["launches"]),
        target_stopped=bool(data["target_stopped"]),
        revert_requested=bool(data["revert_requested"]),
        revoked_accepted=bool(data["revoked_accepted"]),
        reason=str(data["reason"]),
        detail=str(data["detail"]),
        halted=str(data["halted"]),
        resume_to=str(data["resume_to"]),
        hold=hold_from_json(hold) if hold is not None else None,
        approved=str(data["approved"]),
        override=str(data["override"]),
        records=tuple(
            Record(
                str(item["enclave_id"]),
                int(item["abandoned"]),
                int(item["reverted"]),
                str(item["quarantine"]),
                bool(item["waiting"]),
            )
            for item in data["records"]
        ),
    )


def _optional(data: Mapping[str, Any] | None) -> Release | None:
    return None if data is None else release_from_json(data)
