"""What the vault stores besides the keys: heights, permits, deliveries. Immutable values and their JSON form.

It is one sealed file (kind FACTS of `keyvault.store.sealed_file`). Wiping keys does not change it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final

from keyvault.errors import KeyvaultError

FORMAT: Final = 1
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})
PERMIT_STATES: Final = ("issued", "delivered", "received", "durable")


@dataclass(frozen=True)
class Permit:
    """A release permit: this key set may go to this target until `expires_at_unix_s`.

    `instances` counts deliveries of the key set; `state` is one of PERMIT_STATES; `durable_at_unix_s` and
    `committed_at_unix_s` are 0 before these events. `kept_s`: seconds that the vault has run since the commit, by the
    monotonic clock.
    """

    key_set_id: str
    source_id: str
    target_id: str
    block_number: int
    block_hash: str
    issued_at_unix_s: int
    expires_at_unix_s: int
    instances: int = 0
    state: str = "issued"
    durable_at_unix_s: int = 0
    committed_at_unix_s: int = 0
    kept_s: int = 0


@dataclass(frozen=True)
class Collected:
    """A key set that was collected and sealed.

    `source_id`: the enclave id from which it was collected last; `epoch`: that of its sealed file; `wiped`: its file is
    overwritten, or is about to be. The agent can only raise `retain_until_unix_s`.
    """

    key_set_id: str
    source_id: str
    epoch: int
    collected_at_unix_s: int
    retain_until_unix_s: int = 0
    wiped: bool = False


@dataclass(frozen=True)
class Facts:
    """Everything that the release decision needs from earlier.

    `floor_number` and `floor_hash`: highest finalized block seen; `vault_listed`: whether the vault's own id was
    in the list there; `authorities`: GRANDPA set known after it (proven mode) or None; `add_heights`: lowest height
    ever seen of each enclave id; `revoked`: ids among them that were missing from the list at the floor;
    `collected` and `permits` by key set id (at most one permit for a key set).
    """

    floor_number: int = 0
    floor_hash: str = ""
    vault_listed: bool = False
    authorities: Mapping[str, Any] | None = None
    add_heights: Mapping[str, int] = field(default_factory=lambda: _NONE)
    revoked: frozenset[str] = frozenset()
    collected: Mapping[str, Collected] = field(default_factory=lambda: _NONE)
    permits: Mapping[str, Permit] = field(default_factory=lambda: _NONE)

    def with_collected(self, entry: Collected) -> Facts:
        """Return the facts with one collected key set replaced or added."""
        return replace(self, collected=MappingProxyType({**self.collected, entry.key_set_id: entry}))

    def with_permit(self, permit: Permit) -> Facts:
        """Return the facts with the permit of one key set replaced or added."""
        return replace(self, permits=MappingProxyType({**self.permits, permit.key_set_id: permit}))

    def without_permit(self, key_set_id: str) -> Facts:
        """Return the facts without a permit for this key set."""
        return replace(self, permits=MappingProxyType({k: v for k, v in self.permits.items() if k != key_set_id}))

    def encode(self) -> bytes:
        """Return the facts as canonical JSON bytes (sorted keys), format 1."""
        value = {
            "format": FORMAT,
            "floor_number": self.floor_number,
            "floor_hash": self.floor_hash,
            "vault_listed": self.vault_listed,
            "authorities": self.authorities,
            "add_heights": dict(self.add_heights),
            "revoked": sorted(self.revoked),
            "collected": [asdict(entry) for entry in self.collected.values()],
            "permits": [asdict(permit) for permit in self.permits.values()],
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("utf-8")


def _bad(why: str) -> KeyvaultError:
    return KeyvaultError(
        code="STORE_FORMAT_INVALID",
        what="the sealed record of permits and heights was refused",
        why=why,
        action="It was sealed by this very build, so this is a fault of the program: keep the store and report it.",
        kind="invariant",
    )


def _build(kind: type[Any], value: object) -> Any:
    """Build a dataclass from a JSON object that has exactly its fields, with their types."""
    if not isinstance(value, dict) or value.keys() != {f.name for f in fields(kind)}:
        raise _bad(f"an entry has other fields than {kind.__name__}")
    types = {"str": str, "int": int, "bool": bool}
    for entry in fields(kind):
        if type(value[entry.name]) is not types[str(entry.type)]:
            raise _bad(f"{entry.name} has the wrong type")
    return kind(**value)


def decode_facts(data: bytes | bytearray) -> Facts:
    """Decode the output of `Facts.encode`. Raises `STORE_FORMAT_INVALID`."""
    try:
        value = json.loads(data)
    except ValueError:
        raise _bad("it is not JSON") from None
    names = {f.name for f in fields(Facts)} | {"format"}
    if not isinstance(value, dict) or value.keys() != names or value["format"] != FORMAT:
        raise _bad(f"it is not a record of format {FORMAT}")
    heights = value["add_heights"]
    if not isinstance(heights, dict) or not all(type(height) is int for height in heights.values()):
        raise _bad("add_heights is not a map of numbers")
    revoked = value["revoked"]
    if not isinstance(revoked, list) or not all(isinstance(enclave_id, str) for enclave_id in revoked):
        raise _bad("revoked is not a list of texts")
    if type(value["floor_number"]) is not int or not isinstance(value["floor_hash"], str):
        raise _bad("the height floor is not a number and a hash")
    if not isinstance(value["collected"], list) or not isinstance(value["permits"], list):
        raise _bad("collected or permits is not a list")
    collected = [_build(Collected, entry) for entry in value["collected"]]
    permits = [_build(Permit, entry) for entry in value["permits"]]
    return Facts(
        floor_number=value["floor_number"],
        floor_hash=value["floor_hash"],
        vault_listed=value["vault_listed"] is True,
        authorities=value["authorities"],
        add_heights=MappingProxyType(heights),
        revoked=frozenset(revoked),
        collected=MappingProxyType({entry.key_set_id: entry for entry in collected}),
        permits=MappingProxyType({permit.key_set_id: permit for permit in permits}),
    )
