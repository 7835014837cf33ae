"""Following GRANDPA finality from a checkpoint, without I/O: questions come out, answers go in.

A *walk* is a generator. It yields questions (`HeaderOf`, `StoredJustificationOf`, `FinalityProofOf`), receives the
answers by `send`, and returns the proven header::

    walk = follower.prove(data)
    question = next(walk)
    while True:
        question = walk.send(answer_to(question))       # StopIteration.value is the proven header, or None

Answers are not trusted: a header must have the hash that was asked for, and a justification is verified under the
authority set in force. Proven facts are stored at once, so a walk may be dropped at any question without loss. None as
an answer means that the node does not have it; that is never an accusation.

A refusal accuses only if the node must be lying. `JUSTIFICATION_*` is raised only if every header between the last
proven block and the justified one is known, none of them announces a forced change, and the authority set has signed
something valid before. Then no honest node can have sent it. Any other failure is `AUTHORITY_SET_UNKNOWN` (a forced
change that cannot be followed, a gap that may hide one, or a wrong checkpoint) or `FINALITY_NOT_PROVEN` (a proof is
missing).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chain_watcher.errors import ChainWatcherError

from .evidence import SetChange
from .grandpa import Checkpoint, Justification, verify_finality, verify_justification
from .header import Header
from .scale import refuse

#: A scheduled change is searched up to this many blocks before it takes effect (delays are 0 in practice).
CHANGE_DELAY_MAX: Final = 64
#: Nodes allow answers of 15 MiB, in hex. This many headers fit, unless they have more than 700 bytes each.
SET_STEP_BLOCKS: Final = 10_000
SET_STEPS_MAX: Final = 1000
#: Set changes kept in memory for evidence; older ones are requested again.
CHANGES_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class HeaderOf:
    """Asks for the header with this hash (32 bytes). Answer: `Header`, or None if the block is unknown."""

    block_hash: bytes


@dataclass(frozen=True, slots=True)
class StoredJustificationOf:
    """Asks for the justification stored with this block. Answer: its SCALE bytes, or None.

    Nodes store one for the last block of each authority set and for every 512th block.
    """

    block_hash: bytes


@dataclass(frozen=True, slots=True)
class FinalityProofOf:
    """Asks for proof that block `number` is final. Answer: `FinalityProof`, `TooLarge`, or None.

    Substrate answers with the last block of the set that finalized `number`, or with its newest justification.
    """

    number: int


@dataclass(frozen=True, slots=True)
class FinalityProof:
    """A justification (SCALE bytes, not verified) and the hash of the block that it claims to finalize."""

    block_hash: bytes
    justification: bytes


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The answer would exceed the node's limit: the set of this block lasts for many more blocks."""


Question = HeaderOf | StoredJustificationOf | FinalityProofOf
Answer = Header | bytes | FinalityProof | TooLarge | None
#: `_header`, `_bytes` and `_proof` check the types of answers.
Walk = Generator[Question, Any, "Header | None"]


@dataclass(frozen=True, slots=True)
class ProvenChange:
    """A proven change of the authority set, and the checkpoint after it."""

    change: SetChange
    after: Checkpoint


class Follower:
    """The authority set in force, and how far finality is proven.

    `checkpoint`: the set in force. `known`: the last block proven in an earlier run (number and hash), if any.
    `scan_from`: the block up to which that run searched headers for set changes. `gap_max`: the longest sequence of
    headers that is fetched one by one; longer gaps are crossed by proving the last block of each set.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        gap_max: int,
        known: tuple[int, bytes] | None = None,
        scan_from: int = 0,
    ) -> None:
        self.checkpoint = checkpoint
        self.changes: OrderedDict[int, ProvenChange] = OrderedDict()
        self.set_changes = 0
        #: The justification (SCALE bytes) of the last block that `prove` returned.
        self.justification = b""
        self._gap_max = gap_max
        self._known = known
        #: Headers were searched for changes of the set up to this block.
        self._searched = scan_from
        #: The last header proven in this run.
        self._proven: Header | None = None
        #: Headers from one that announces a change not yet in force to the last proven one.
        self._pending: list[Header] = []
        #: Whether a signature of the set in force has verified: before that, the pinned checkpoint may be wrong.
        self._trusted = known is not None

    @property
    def floor(self) -> int:
        """Blocks up to this number are proven, so a justification for one of them is not needed."""
        return max(self.checkpoint.number, self._proven.number if self._proven else 0)

    def to_json(self) -> dict[str, Any]:
        """Return the values for a restart: the set in force, and `scan_from` if an announced change is not in force."""
        out: dict[str, Any] = {"checkpoint": self.checkpoint.to_json()}
        if self._pending:
            out["scan_from"] = self._pending[0].number - 1
        return out

    # --- walks

    def prove(self, data: bytes) -> Walk:
        """Verify a justification (SCALE bytes). Returns the finalized header, or None for a block below `floor`.

        Raises SCALE_* and HEADER_DIGEST_INVALID (not a justification), JUSTIFICATION_* (forged, see above),
        AUTHORITY_SET_UNKNOWN, FINALITY_NOT_PROVEN, FINALITY_FORKED, HEADER_HASH_MISMATCH, HEADER_PARENT_MISMATCH,
        AUTHORITY_SET_INVALID, AUTHORITY_CHANGE_INVALID.
        """
        justification = Justification.decode(data)
        if justification.target_number <= self.floor:
            return None
        tip = yield from _header(justification.target_hash)
        if tip is None:
            raise _not_proven(f"block {justification.target_number} is justified, but its header is not known")
        line = yield from self._line(tip, max(self.checkpoint.number, self._searched), self._gap_max)
        if line is None:
            yield from self._cross(tip, justification)
            floor, self._pending = max(self.checkpoint.number, tip.number - CHANGE_DELAY_MAX), []
            if tip.number > self.checkpoint.number:  # otherwise it is the last block of a set, which is proven already
                line = (yield from self._line(tip, floor, CHANGE_DELAY_MAX)) or [tip]
                yield from self._follow(line, justification, complete=False)
        else:
            self._require_link(line)
            yield from self._follow(line, justification, complete=True)
        self._proven, self._searched, self.justification = tip, max(self._searched, tip.number), data
        return tip

    def prove_head(self, head: Header) -> Walk:
        """Prove a block that a node calls final, without a justification from the node.

        Returns the header that is proven now (perhaps below `head`), or None if no node has a proof yet.
        """
        for question in self._proofs_of(head):
            answer = yield question
            data = answer.justification if isinstance(answer, FinalityProof) else answer
            if not isinstance(data, bytes):
                continue
            found = yield from self.prove(data)
            if found is not None:
                return found
        return None

    def _proofs_of(self, head: Header) -> list[Question]:
        """Yield questions that may bring a proof for `head`; the last is for the newest justification of any block."""
        questions: list[Question] = [FinalityProofOf(head.number), StoredJustificationOf(head.hash)]
        if 1 < head.number - self.floor <= self._gap_max:
            questions.append(FinalityProofOf(self.floor + 1))
        return questions

    def next_change(self, checkpoint: Checkpoint, proven: int = 0) -> Generator[Question, Any, ProvenChange | None]:
        """Prove how the set of `checkpoint` ended (any set). None if it has not ended, or if no node has a proof.

        `proven`: a block above the checkpoint that this set finalized, if one is known. Raises
        AUTHORITY_SET_UNKNOWN and what `prove` raises for headers.
        """
        kept = self.changes.get(checkpoint.set_id)
        if kept is not None:
            return kept
        proof = yield from self._proof_near_the_end(max(checkpoint.number, proven) + 1)
        if proof is None:
            return None
        last = yield from _header(proof.block_hash)
        if last is None or last.number <= checkpoint.number:
            return None
        part = [last]
        if last.grandpa_change() is None:
            floor = max(checkpoint.number, last.number - CHANGE_DELAY_MAX)
            part = (yield from self._line(last, floor, CHANGE_DELAY_MAX)) or part
        part = _from_change(part)
        try:
            after = verify_finality(checkpoint, part, proof.justification)
        except ChainWatcherError as problem:
            raise _unknown_set(
                f"block {last.number} is not finalized by set {checkpoint.set_id}: {problem}"
            ) from problem
        if after.set_id == checkpoint.set_id:
            return None
        return ProvenChange(SetChange(tuple(part), proof.justification), after)

    # --- parts of a walk

    def _line(self, tip: Header, floor: int, length_max: int) -> Generator[Question, Any, list[Header] | None]:
        """Return the headers from `floor + 1` to `tip`, oldest first, linked by hash.

        None if there are more than `length_max`, or if the node does not have all of them.
        """
        if tip.number - floor > length_max:
            return None
        line = [tip]
        while line[-1].number > floor + 1:
            child = line[-1]
            parent = yield from _header(child.parent_hash)
            if parent is None:
                return None
            if parent.number != child.number - 1:
                why = f"block {child.number} names a parent that is block {parent.number}"
                raise refuse("HEADER_PARENT_MISMATCH", "block header", why)
            line.append(parent)
        line.reverse()
        return line

    def _require_link(self, line: Sequence[Header]) -> None:
        """Raise FINALITY_FORKED unless `line` descends from the last proven block, or contains it."""
        known = (self._proven.number, self._proven.hash) if self._proven else self._known
        if known is None:
            return
        number, block_hash = known
        before = [header.parent_hash for header in line if header.number == number + 1]
        itself = [header.hash for header in line if header.number == number]
        if any(found != block_hash for found in (*before, *itself)):
            why = f"block {line[-1].number} does not descend from block {number} (0x{block_hash.hex()}), which is final"
            raise refuse("FINALITY_FORKED", "finality", why)

    def _follow(
        self, line: list[Header], justification: Justification, *, complete: bool
    ) -> Generator[Question, Any, None]:
        """Verify `justification` for the end of `line`, set change by set change."""
        rest = self._pending + line
        while rest:
            part = _until_end_of_set(rest)
            if len(part) == len(rest):
                self._apply(part, justification, complete=complete and not _by_force(part))
            else:
                yield from self._end_set(part)
            rest = rest[len(part) :]

    def _end_set(self, part: list[Header]) -> Generator[Question, Any, None]:
        """Prove the last block of the set in force, which is the last of `part`."""
        last = part[-1]
        by_force = _by_force(part)
        for question in (StoredJustificationOf(last.hash), FinalityProofOf(last.number)):
            answer = yield question
            data = answer.justification if isinstance(answer, FinalityProof) else answer
            if not isinstance(data, bytes):
                continue
            found = Justification.decode(data)
            if found.target_hash == last.hash:
                return self._apply(part, found, complete=not by_force)
        if by_force:
            raise _unknown_set(
                f"block {last.number} changes the set by force; set {self.checkpoint.set_id} has not finalized it"
            )
        raise _not_proven(f"no justification for block {last.number}, the last of set {self.checkpoint.set_id}")

    def _apply(self, part: list[Header], justification: Justification, *, complete: bool) -> None:
        """Store proven headers. `complete`: no header is missing between the last proven block and `part`."""
        before = self.checkpoint
        try:
            after = verify_finality(before, part, justification)
        except ChainWatcherError as problem:
            if complete and self._trusted:
                raise
            why = f"block {part[-1].number} is not finalized by set {before.set_id}, the last that is known: {problem}"
            raise _unknown_set(why) from problem
        self._trusted = True
        if after.set_id == before.set_id:
            ordered = next((i for i, one in enumerate(part) if one.grandpa_change() is not None), None)
            self._pending = [] if ordered is None else part[ordered:]
            return
        self._enter(ProvenChange(SetChange(tuple(_from_change(part)), justification.encoded), after))

    def _enter(self, found: ProvenChange) -> None:
        """Enter the next set."""
        self.changes[self.checkpoint.set_id] = found
        while len(self.changes) > CHANGES_KEPT:
            self.changes.popitem(last=False)
        self._pending, self._trusted = [], True
        self.checkpoint = found.after
        self._searched = max(self._searched, found.after.number)
        self.set_changes += 1

    def _cross(self, target: Header, justification: Justification) -> Generator[Question, Any, None]:
        """Cross many blocks by proving the last block of each authority set, up to the set of `target`.

        Nodes send all headers from the requested block to the end of its set. So the first question is about the last
        proven block, not the beginning of the set.
        """
        while self.checkpoint.number < target.number:
            found = yield from self.next_change(self.checkpoint, self._searched)
            if found is None or found.after.number > target.number:
                self._require_running(target, justification)
                return
            self._enter(found)
        last = self.changes[self.checkpoint.set_id - 1].change.headers[-1]
        if last.hash != target.hash:
            raise refuse("FINALITY_FORKED", "finality", f"block {target.number} is final as 0x{last.hash.hex()}")

    def _require_running(self, target: Header, justification: Justification) -> None:
        """If there is no proof that the set ended, the set in force must have signed."""
        try:
            verify_justification(justification, self.checkpoint.set_id, self.checkpoint.authorities)
        except ChainWatcherError as problem:
            why = f"block {target.number} is not signed by set {self.checkpoint.set_id}, and its end is not proven"
            raise _not_proven(why) from problem

    def _proof_near_the_end(self, number: int) -> Generator[Question, Any, FinalityProof | None]:
        """Ask for the finality proof of block `number`, or of a later block of its set if the answer is too large.

        The proof contains the headers from the requested block to the end of the set. If it is too large, the set lasts
        for more than `SET_STEP_BLOCKS`, so the block that many blocks later still belongs to it.
        """
        for _ in range(SET_STEPS_MAX):
            answer = yield FinalityProofOf(number)
            if not isinstance(answer, TooLarge):
                return answer if isinstance(answer, FinalityProof) else None
            number += SET_STEP_BLOCKS
        return None


def _header(block_hash: bytes) -> Generator[Question, Any, Header | None]:
    """Ask for a header. Raises HEADER_HASH_MISMATCH if the answer has another hash."""
    answer = yield HeaderOf(block_hash)
    if not isinstance(answer, Header):
        return None
    if answer.hash != block_hash:
        why = f"block {answer.number} hashes to 0x{answer.hash.hex()}, not to 0x{block_hash.hex()}"
        raise refuse("HEADER_HASH_MISMATCH", "block header", why)
    return answer


def _by_force(headers: Sequence[Header]) -> bool:
    """Tell whether a header announces a forced change, which Substrate applies without the old set's finality."""
    changes = (header.grandpa_change() for header in headers)
    return any(change is not None and change.forced_after is not None for change in changes)


def _until_end_of_set(headers: list[Header]) -> list[Header]:
    """Return the headers up to the last block of the set in force, or all if the set does not end among them."""
    for header in headers:
        change = header.grandpa_change()
        if change is not None:
            last = header.number + (0 if change.forced_after is not None else change.delay)
            return headers[: max(last - headers[0].number + 1, 1)]
    return headers


def _from_change(headers: list[Header]) -> list[Header]:
    """Return the headers from the first that announces a change, or only the last header if none does."""
    start = next((i for i, one in enumerate(headers) if one.grandpa_change() is not None), len(headers) - 1)
    return headers[start:]


def _unknown_set(why: str) -> ChainWatcherError:
    return ChainWatcherError(
        code="AUTHORITY_SET_UNKNOWN",
        what="finality",
        why=why,
        action="Compare the chain's authority set with others (`dcupgrade chain checkpoint`) and pin a new checkpoint",
        kind="transient",
    )


def _not_proven(why: str) -> ChainWatcherError:
    return ChainWatcherError(code="FINALITY_NOT_PROVEN", what="finality", why=why, kind="transient")
