"""Block headers: SCALE and JSON-RPC form, hash, digest items, and the changes of GRANDPA's authorities in them.

Layout (Polkadot specification, "Block header"): parent hash (32), compact number, state root (32), extrinsics root
(32), digest (vector of items). A digest item is a kind byte and its data: bytes for Other (0); an engine id of 4 bytes
and bytes for Consensus (4), Seal (5) and PreRuntime (6); nothing for RuntimeEnvironmentUpdated (8). The block hash is
the blake2b-256 of the SCALE form.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from chain_watcher.errors import ChainWatcherError

from .scale import U32_MAX, U64_MAX, Reader, encode_blob, encode_compact, refuse
from .trie import HASH_BYTES, blake2b_256

HEADER_BYTES_MAX: Final = 1 << 20
#: Blocks that disable many authorities carry dozens of items (Kusama 7472481: 27).
DIGEST_ITEMS_MAX: Final = 1024
AUTHORITIES_MAX: Final = 10_000
_AUTHORITY_BYTES: Final = 40

OTHER: Final = 0
CONSENSUS: Final = 4
SEAL: Final = 5
PRE_RUNTIME: Final = 6
RUNTIME_UPDATED: Final = 8
GRANDPA_ENGINE: Final = b"FRNK"
_WITH_ENGINE: Final = (CONSENSUS, SEAL, PRE_RUNTIME)

#: Public key (32 bytes) and weight of each authority.
Authorities = tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class DigestItem:
    """One digest item. `engine` is empty for Other and RuntimeEnvironmentUpdated, `data` for the latter."""

    kind: int
    engine: bytes
    data: bytes

    def encode(self) -> bytes:
        """Return the SCALE form."""
        if self.kind == RUNTIME_UPDATED:
            return bytes([self.kind])
        return bytes([self.kind]) + self.engine + encode_blob(self.data)


@dataclass(frozen=True)
class Header:
    """A block header. Hashes are 32 bytes, `number` is a u32, `digest` has the items in order."""

    parent_hash: bytes
    number: int
    state_root: bytes
    extrinsics_root: bytes
    digest: tuple[DigestItem, ...]

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Decode the SCALE form to its last byte. Raises SCALE_*, HEADER_DIGEST_INVALID."""
        if len(data) > HEADER_BYTES_MAX:
            raise refuse("SCALE_TOO_LARGE", "block header", f"{len(data)} bytes, at most {HEADER_BYTES_MAX}")
        reader = Reader(data, "block header")
        header = cls.read(reader)
        reader.finish()
        return header

    @classmethod
    def read(cls, reader: Reader) -> Header:
        """Read one header from a reader (the ancestries of a justification contain several)."""
        parent_hash = reader.take(HASH_BYTES)
        number = reader.compact(U32_MAX)
        state_root = reader.take(HASH_BYTES)
        extrinsics_root = reader.take(HASH_BYTES)
        digest = tuple(_read_item(reader) for _ in range(reader.length(DIGEST_ITEMS_MAX)))
        return cls(parent_hash, number, state_root, extrinsics_root, digest)

    @classmethod
    def from_json(cls, value: object) -> Header:
        """Decode the JSON-RPC form.

        Its members are parentHash, number (hex; some nodes pad it with zeros), stateRoot, extrinsicsRoot and
        digest.logs (hex). Others are ignored. Raises HEADER_INVALID, SCALE_*, HEADER_DIGEST_INVALID.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("digest"), Mapping):
            raise _invalid("not an object with a digest")
        logs = value["digest"].get("logs")
        if not isinstance(logs, list) or len(logs) > DIGEST_ITEMS_MAX:
            raise _invalid(f"digest.logs is not a list of at most {DIGEST_ITEMS_MAX}")
        digest = []
        for log in logs:
            reader = Reader(_hex(log, "digest.logs", None), "digest item")
            digest.append(_read_item(reader))
            reader.finish()
        if sum(len(item.data) for item in digest) > HEADER_BYTES_MAX:
            raise _invalid(f"its digest is over {HEADER_BYTES_MAX} bytes")
        return cls(
            parent_hash=_hex(value.get("parentHash"), "parentHash", HASH_BYTES),
            number=_number(value.get("number")),
            state_root=_hex(value.get("stateRoot"), "stateRoot", HASH_BYTES),
            extrinsics_root=_hex(value.get("extrinsicsRoot"), "extrinsicsRoot", HASH_BYTES),
            digest=tuple(digest),
        )

    @cached_property
    def encoded(self) -> bytes:
        """The SCALE form; equal to what `decode` was given, since decoding is strict."""
        parts = [self.parent_hash, encode_compact(self.number), self.state_root, self.extrinsics_root]
        parts += [encode_compact(len(self.digest)), *(item.encode() for item in self.digest)]
        return b"".join(parts)

    @cached_property
    def hash(self) -> bytes:
        """The block hash: blake2b-256 of the SCALE form (32 bytes)."""
        return blake2b_256(self.encoded)

    @property
    def runtime_updated(self) -> bool:
        """Whether this block changed the runtime. Its state contains the new code, in the layout of the old runtime."""
        return any(item.kind == RUNTIME_UPDATED for item in self.digest)

    def grandpa_change(self) -> AuthorityChange | None:
        """Return the authority change that this block announces, or None.

        A ForcedChange takes precedence over a ScheduledChange. Of each kind the first counts, as in Substrate's import.
        Raises SCALE_* or HEADER_DIGEST_INVALID for a malformed GRANDPA log.
        """
        changes = [
            change
            for item in self.digest
            if item.kind == CONSENSUS and item.engine == GRANDPA_ENGINE
            if isinstance(change := decode_grandpa_log(item.data), AuthorityChange)
        ]
        forced = [change for change in changes if change.forced_after is not None]
        return next(iter(forced or changes), None)


@dataclass(frozen=True, slots=True)
class AuthorityChange:
    """A change of the authorities: `authorities` take over after `delay` more blocks.

    `forced_after` is None for a ScheduledChange; for a ForcedChange it is the median last finalized block number.
    """

    authorities: Authorities
    delay: int
    forced_after: int | None = None

    def encode(self) -> bytes:
        """Return the SCALE form of the GRANDPA consensus log."""
        head = b"\1" if self.forced_after is None else b"\2" + self.forced_after.to_bytes(4, "little")
        return head + encode_authorities(self.authorities) + self.delay.to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class GrandpaNotice:
    """A GRANDPA log without an authority list: OnDisabled (3, authority index), Pause (4) and Resume (5, delay)."""

    kind: int
    value: int


def decode_grandpa_log(data: bytes) -> AuthorityChange | GrandpaNotice:
    """Decode the data of a `FRNK` consensus item to its last byte. Raises SCALE_*, HEADER_DIGEST_INVALID.

    Index (sp-consensus-grandpa `ConsensusLog`): 1 ScheduledChange(list, u32), 2 ForcedChange(u32, list, u32),
    3 OnDisabled(u64), 4 Pause(u32), 5 Resume(u32).
    """
    reader = Reader(data, "GRANDPA digest")
    kind = reader.u8()
    result: AuthorityChange | GrandpaNotice
    if kind == 1:
        result = AuthorityChange(read_authorities(reader), reader.u32())
    elif kind == 2:
        forced_after = reader.u32()
        result = AuthorityChange(read_authorities(reader), reader.u32(), forced_after)
    elif kind in (3, 4, 5):
        result = GrandpaNotice(kind, reader.u64() if kind == 3 else reader.u32())
    else:
        raise refuse("HEADER_DIGEST_INVALID", "GRANDPA digest", f"unknown log {kind}")
    reader.finish()
    return result


def read_authorities(reader: Reader) -> Authorities:
    """Read a vector of (ed25519 key, u64 weight), as in digests, `Grandpa.Authorities` and the runtime's API."""
    count = reader.length(AUTHORITIES_MAX, _AUTHORITY_BYTES)
    return tuple((reader.take(HASH_BYTES), reader.u64()) for _ in range(count))


def decode_authorities(data: bytes) -> Authorities:
    """Decode an authority list to its last byte: the answer of `GrandpaApi_grandpa_authorities`. Raises SCALE_*."""
    reader = Reader(data, "GRANDPA authorities")
    authorities = read_authorities(reader)
    reader.finish()
    return authorities


def encode_authorities(authorities: Authorities) -> bytes:
    """Return the SCALE form of an authority list. Raises ValueError unless keys have 32 bytes and weights are u64."""
    if any(len(key) != HASH_BYTES or not 0 <= weight <= U64_MAX for key, weight in authorities):
        raise ValueError("an authority is a key of 32 bytes and a u64 weight")
    rows = (key + weight.to_bytes(8, "little") for key, weight in authorities)
    return encode_compact(len(authorities)) + b"".join(rows)


def require_chain(headers: Sequence[Header]) -> None:
    """Raise HEADER_PARENT_MISMATCH unless each header is the child of the one before it, by hash and number."""
    for parent, child in itertools.pairwise(headers):
        if child.parent_hash != parent.hash or child.number != parent.number + 1:
            why = f"block {child.number} is not the child of block {parent.number} (0x{parent.hash.hex()})"
            raise refuse("HEADER_PARENT_MISMATCH", "block header", why)


def _invalid(why: str) -> ChainWatcherError:
    return refuse("HEADER_INVALID", "block header", why)


def _read_item(reader: Reader) -> DigestItem:
    kind = reader.u8()
    if kind == RUNTIME_UPDATED:
        return DigestItem(kind, b"", b"")
    if kind == OTHER:
        return DigestItem(kind, b"", reader.blob(HEADER_BYTES_MAX))
    if kind in _WITH_ENGINE:
        return DigestItem(kind, reader.take(4), reader.blob(HEADER_BYTES_MAX))
    raise refuse("HEADER_DIGEST_INVALID", reader.what, f"unknown digest item kind {kind}")


def _hex(value: Any, name: str, size: int | None) -> bytes:
    """Decode `0x` and hex digits (either case, nothing else; `bytes.fromhex` would skip spaces)."""
    if not isinstance(value, str) or len(value) > 2 * HEADER_BYTES_MAX or not value.startswith("0x"):
        raise _invalid(f"{name} is not 0x and hex")
    try:
        data = bytes.fromhex(value[2:])
    except ValueError:
        raise _invalid(f"{name} is not 0x and hex") from None
    if 2 * len(data) != len(value) - 2:
        raise _invalid(f"{name} is not 0x and hex")
    if size is not None and len(data) != size:
        raise _invalid(f"{name} has not {size} bytes")
    return data


def _number(value: Any) -> int:
    """Decode a block number: 0x and 1 to 16 hex digits, at most a u32."""
    digits = value[2:] if isinstance(value, str) and value.startswith("0x") else ""
    if not 0 < len(digits) <= 16 or not set(digits) <= set("0123456789abcdefABCDEF"):
        raise _invalid("number is not 0x and hex")
    number = int(digits, 16)
    if number > U32_MAX:
        raise _invalid(f"number {number} is over u32")
    return number
