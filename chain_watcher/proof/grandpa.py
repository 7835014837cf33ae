"""GRANDPA finality: justifications, and the authority sets that follow from a pinned checkpoint.

Sources: Substrate's `GrandpaJustification::verify_with_voter_set` and `finality_grandpa::validate_commit`; the
signed message is 0x01 + target hash + u32 number + u64 round + u64 set id; the threshold is
total - (total - 1) // 3 of the summed weights.

Substrate's versions differ. This module accepts what is sound in all of them: votes for the target and for its
descendants count (older nodes; newer ones send such votes only together with votes that make the target the ghost);
votes below the target do not count but are allowed (newer nodes).

Signatures are verified by `ed25519_zebra`, the library that Substrate uses, with ZIP-215 rules. They accept
non-canonical points and multiply by the cofactor; OpenSSL and libsodium refuse some of these signatures. A stricter
library would be safe, but one authority with an unusual signature that the chain accepts could then hide finality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ed25519_zebra  # type: ignore[import-untyped]

from chain_watcher.errors import ChainWatcherError

from .header import AUTHORITIES_MAX, Authorities, Header, require_chain
from .scale import U32_MAX, U64_MAX, Reader, encode_compact, refuse
from .trie import HASH_BYTES

JUSTIFICATION_BYTES_MAX: Final = 4 << 20
PRECOMMITS_MAX: Final = 2 * AUTHORITIES_MAX
ANCESTRIES_MAX: Final = 4096
#: A voter casts one vote per round, or two if it equivocates. Each signature takes about 30 microseconds.
VOTES_PER_VOTER_MAX: Final = 4
SIGNATURE_BYTES: Final = 64
_PRECOMMIT_BYTES: Final = HASH_BYTES + 4 + SIGNATURE_BYTES + 32
#: Smallest header: three hashes, a number and an empty digest.
_HEADER_BYTES_MIN: Final = 3 * HASH_BYTES + 2
_CHECKPOINT_MEMBERS: Final = frozenset({"block_number", "set_id", "authorities"})


@dataclass(frozen=True, slots=True)
class Precommit:
    """One signed precommit: a vote for a block by the authority with the ed25519 key `authority`."""

    target_hash: bytes
    target_number: int
    signature: bytes
    authority: bytes


@dataclass(frozen=True, slots=True)
class Justification:
    """A decoded GRANDPA justification, not verified."""

    round: int
    target_hash: bytes
    target_number: int
    precommits: tuple[Precommit, ...]
    ancestries: tuple[Header, ...]
    #: The SCALE form from which it was decoded; empty if it was not decoded.
    encoded: bytes = field(default=b"", compare=False, repr=False)

    @classmethod
    def decode(cls, data: bytes) -> Justification:
        """Decode the SCALE form to its last byte. Raises SCALE_*, HEADER_DIGEST_INVALID."""
        if len(data) > JUSTIFICATION_BYTES_MAX:
            raise refuse("SCALE_TOO_LARGE", "justification", f"{len(data)} bytes, at most {JUSTIFICATION_BYTES_MAX}")
        reader = Reader(data, "justification")
        round_number = reader.u64()
        target_hash = reader.take(HASH_BYTES)
        target_number = reader.u32()
        count = reader.length(PRECOMMITS_MAX, _PRECOMMIT_BYTES)
        precommits = tuple(
            Precommit(reader.take(HASH_BYTES), reader.u32(), reader.take(SIGNATURE_BYTES), reader.take(32))
            for _ in range(count)
        )
        headers = reader.length(ANCESTRIES_MAX, _HEADER_BYTES_MIN)
        ancestries = tuple(Header.read(reader) for _ in range(headers))
        reader.finish()
        return cls(round_number, target_hash, target_number, precommits, ancestries, data)

    def encode(self) -> bytes:
        """Return the SCALE form."""
        parts = [self.round.to_bytes(8, "little"), self.target_hash, self.target_number.to_bytes(4, "little")]
        parts.append(encode_compact(len(self.precommits)))
        for vote in self.precommits:
            parts += [vote.target_hash, vote.target_number.to_bytes(4, "little"), vote.signature, vote.authority]
        parts.append(encode_compact(len(self.ancestries)))
        parts += [header.encoded for header in self.ancestries]
        return b"".join(parts)


class VoterSet:
    """The weights of an authority set, as Substrate's `VoterSet`: zero weights left out, repeated keys summed."""

    __slots__ = ("threshold", "total", "weights")

    def __init__(self, authorities: Authorities) -> None:
        """Raises AUTHORITY_SET_INVALID if no weight is left or the total exceeds u64."""
        weights: dict[bytes, int] = {}
        for key, weight in authorities:
            if weight:
                weights[key] = weights.get(key, 0) + weight
        self.weights: Mapping[bytes, int] = weights
        self.total = sum(weights.values())
        if not 0 < self.total <= U64_MAX:
            raise refuse("AUTHORITY_SET_INVALID", "authority set", f"total weight {self.total}")
        self.threshold = self.total - (self.total - 1) // 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The authority set `set_id`, in force for blocks above `number` (0: from genesis on)."""

    number: int
    set_id: int
    authorities: Authorities

    def to_json(self) -> dict[str, Any]:
        """Return {"block_number", "set_id", "authorities": [["0x" key, weight], ...]}."""
        rows = [["0x" + key.hex(), weight] for key, weight in self.authorities]
        return {"block_number": self.number, "set_id": self.set_id, "authorities": rows}

    @classmethod
    def from_json(cls, value: object) -> Checkpoint:
        """Read that form strictly. Raises CHECKPOINT_INVALID, AUTHORITY_SET_INVALID.

        An additional member `genesis_hash` is allowed, as `chain checkpoint` prints it. It names the chain of the
        checkpoint; `checkpoint_genesis` reads it.
        """
        if not isinstance(value, Mapping) or set(value) - {"genesis_hash"} != _CHECKPOINT_MEMBERS:
            raise _bad_checkpoint("members are block_number, set_id and authorities, and genesis_hash at will")
        checkpoint_genesis(value)
        number = _uint(value["block_number"], U32_MAX, "block_number")
        set_id = _uint(value["set_id"], U64_MAX, "set_id")
        rows = value["authorities"]
        if not isinstance(rows, list) or len(rows) > AUTHORITIES_MAX:
            raise _bad_checkpoint(f"authorities is not a list of at most {AUTHORITIES_MAX}")
        checkpoint = cls(number, set_id, tuple(_authority(row) for row in rows))
        VoterSet(checkpoint.authorities)
        return checkpoint


def checkpoint_genesis(value: object) -> str | None:
    """Return the genesis hash (0x and 64 lower-case hex characters) that a checkpoint's JSON names, or None.

    Raises CHECKPOINT_INVALID for one that is not 32 bytes of hex.
    """
    if not isinstance(value, Mapping) or "genesis_hash" not in value:
        return None
    return "0x" + _key_bytes(value["genesis_hash"], "the genesis hash").hex()


def signed_message(target_hash: bytes, target_number: int, round_number: int, set_id: int) -> bytes:
    """Return the message that an authority signs for a precommit (53 bytes)."""
    return b"".join(
        (
            b"\1",
            target_hash,
            target_number.to_bytes(4, "little"),
            round_number.to_bytes(8, "little"),
            set_id.to_bytes(8, "little"),
        )
    )


def verify_justification(data: bytes | Justification, set_id: int, authorities: Authorities) -> Justification:
    """Verify that a justification finalizes its target under the authority set, and return it, with proven `target_*`.

    `data`: the SCALE form, or a decoded justification.

    Raises SCALE_* (malformed), AUTHORITY_SET_INVALID, JUSTIFICATION_INVALID (a vote without a route to the others, an
    unused ancestry header, a block number that contradicts a header, more votes than the set can cast),
    JUSTIFICATION_BELOW_THRESHOLD,
    JUSTIFICATION_SIGNATURE_BAD (any precommit, members or not, as in Substrate).
    """
    voters = VoterSet(authorities)
    justification = Justification.decode(data) if isinstance(data, bytes) else data
    votes_max = VOTES_PER_VOTER_MAX * len(voters.weights)
    if len(justification.precommits) > votes_max:
        why = f"{len(justification.precommits)} votes by {len(voters.weights)} voters"
        raise refuse("JUSTIFICATION_INVALID", _name(justification), why)
    supporters = _count_routes(justification)
    weight = _weigh(justification.precommits, supporters, voters)
    if weight < voters.threshold:
        why = f"weight {weight} of {voters.total}, {voters.threshold} needed"
        raise refuse("JUSTIFICATION_BELOW_THRESHOLD", _name(justification), why)
    for index, vote in enumerate(justification.precommits):
        message = signed_message(vote.target_hash, vote.target_number, justification.round, set_id)
        if not ed25519_zebra.ed_verify(vote.signature, message, vote.authority):
            why = f"precommit {index} by 0x{vote.authority.hex()} for set {set_id}"
            raise refuse("JUSTIFICATION_SIGNATURE_BAD", _name(justification), why)
    return justification


def verify_finality(checkpoint: Checkpoint, headers: Sequence[Header], data: bytes | Justification) -> Checkpoint:
    """Verify that a justification by the checkpoint's set finalizes `headers`; return the checkpoint after them.

    `headers` is a chain, oldest first, from the block to be proven to the justification's target (often the same
    block). All of them are final when this returns. The returned checkpoint is the given one, or the next set if the
    headers contain an authority change that is in force after the target.

    A ScheduledChange at block N with delay d ends its set at N + d: the target must not be above N + d, and only a
    target at exactly N + d proves the change. A ForcedChange is followed once the old set has finalized its block
    (Substrate applies it on import, without finality. A change that the old set never finalizes cannot be proven; an
    operator must then pin a new checkpoint).

    Raises what `verify_justification` and `require_chain` raise, JUSTIFICATION_WRONG_TARGET,
    FINALITY_BEFORE_CHECKPOINT (a block not above the checkpoint), AUTHORITY_CHANGE_INVALID (target beyond the set's
    last block, two changes at once) and AUTHORITY_SET_INVALID (the next set is unusable).
    """
    if not headers:
        raise refuse("JUSTIFICATION_WRONG_TARGET", "finality proof", "no header to prove")
    target = headers[-1]
    if headers[0].number <= checkpoint.number:
        why = f"block {headers[0].number} is not above block {checkpoint.number}, where set {checkpoint.set_id} begins"
        raise refuse("FINALITY_BEFORE_CHECKPOINT", "finality proof", why)
    require_chain(headers)
    justification = verify_justification(data, checkpoint.set_id, checkpoint.authorities)
    if (justification.target_hash, justification.target_number) != (target.hash, target.number):
        why = f"it finalizes 0x{justification.target_hash.hex()}, not block {target.number} (0x{target.hash.hex()})"
        raise refuse("JUSTIFICATION_WRONG_TARGET", _name(justification), why)
    return _follow(checkpoint, headers)


def _follow(checkpoint: Checkpoint, headers: Sequence[Header]) -> Checkpoint:
    """Apply the authority change in finalized `headers`, if it is in force after the last of them."""
    target = headers[-1]
    pending: tuple[int, Authorities] | None = None
    for header in headers:
        change = header.grandpa_change()
        if change is None:
            continue
        if pending is not None:
            raise _bad_change(f"block {header.number} orders a change while another is pending")
        last = header.number + change.delay
        if target.number > last:
            raise _bad_change(f"set {checkpoint.set_id} ends at block {last}, it cannot finalize block {target.number}")
        # A forced change needs only its own block finalized by the old set, which may never finalize a later block.
        pending = (target.number if change.forced_after is not None else last, change.authorities)
    if pending is None or pending[0] != target.number:
        return checkpoint
    if checkpoint.set_id == U64_MAX:
        raise _bad_change("the set id is at its end")
    VoterSet(pending[1])
    return Checkpoint(target.number, checkpoint.set_id + 1, pending[1])


def _count_routes(justification: Justification) -> frozenset[bytes]:
    """Return the hashes whose votes support the target: its own, and its descendants' by the ancestry headers.

    The root of all routes is the target, or the lowest vote if that is below the target. Every vote needs a route to
    the root, and every ancestry header must be on such a route.
    """
    if not justification.precommits:
        raise refuse("JUSTIFICATION_BELOW_THRESHOLD", _name(justification), "no precommits")
    target = (justification.target_hash, justification.target_number)
    lowest = min(justification.precommits, key=lambda vote: vote.target_number)
    root = (lowest.target_hash, lowest.target_number) if lowest.target_number < target[1] else target
    headers = {header.hash: header for header in justification.ancestries}
    #: Block hash -> (number, supports the target) of every block known to lead to the root.
    known: dict[bytes, tuple[int, bool]] = {root[0]: (root[1], root == target)}
    for vote in justification.precommits:
        route: list[Header] = []
        block, number = vote.target_hash, vote.target_number
        while block not in known:
            header = headers.get(block)
            if header is None or header.number != number or number <= root[1]:
                why = f"no route from the vote for block {vote.target_number} to block {root[1]}"
                raise refuse("JUSTIFICATION_INVALID", _name(justification), why)
            route.append(header)
            block, number = header.parent_hash, number - 1
        found, supports = known[block]
        if found != number:
            why = f"a vote or an ancestry header gives block {found} the number {number}"
            raise refuse("JUSTIFICATION_INVALID", _name(justification), why)
        for header in reversed(route):
            supports = supports or (header.hash, header.number) == target
            known[header.hash] = (header.number, supports)
    unused = len(headers.keys() - known.keys()) + (root[0] in headers)
    if unused:
        raise refuse("JUSTIFICATION_INVALID", _name(justification), f"{unused} ancestry headers are on no route")
    return frozenset(block for block, (_, supports) in known.items() if supports)


def _weigh(precommits: Sequence[Precommit], supporters: frozenset[bytes], voters: VoterSet) -> int:
    """Return the weight that supports the target, counted as Substrate does.

    Votes of strangers and repeated votes do not count. A voter that signed two different votes (an equivocation)
    counts for every block, and so for the target; further votes change nothing. Equivocators alone prove no block,
    because their votes support every block equally: at least one other voter must support the target.
    """
    first: dict[bytes, Precommit] = {}
    equivocators: set[bytes] = set()
    for vote in precommits:
        if vote.authority in voters.weights and first.setdefault(vote.authority, vote) != vote:
            equivocators.add(vote.authority)
    faithful = {key for key, vote in first.items() if key not in equivocators and vote.target_hash in supporters}
    return sum(voters.weights[key] for key in faithful | equivocators) if faithful else 0


def _name(justification: Justification) -> str:
    return f"justification of block {justification.target_number}"


def _bad_change(why: str) -> ChainWatcherError:
    return refuse("AUTHORITY_CHANGE_INVALID", "authority set change", why)


def _bad_checkpoint(why: str) -> ChainWatcherError:
    return refuse("CHECKPOINT_INVALID", "checkpoint", why)


def _uint(value: Any, maximum: int, name: str) -> int:
    if type(value) is not int or not 0 <= value <= maximum:
        raise _bad_checkpoint(f"{name} is not a whole number of 0 to {maximum}")
    return value


def _authority(row: Any) -> tuple[bytes, int]:
    if not isinstance(row, list | tuple) or len(row) != 2 or not isinstance(row[0], str):
        raise _bad_checkpoint("an authority is a list of a hex key and a weight")
    return _key_bytes(row[0], "an authority's key"), _uint(row[1], U64_MAX, "weight")


def _key_bytes(value: Any, name: str) -> bytes:
    text = value.removeprefix("0x") if isinstance(value, str) else ""
    if len(text) != 64 or not set(text) <= set("0123456789abcdefABCDEF"):
        raise _bad_checkpoint(f"{name} is not 32 bytes of hex")
    return bytes.fromhex(text)
