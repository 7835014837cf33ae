"""Following GRANDPA finality from a checkpoint, without I/O: questions come out, answers go in.

A *walk* is a generator. It yields what it needs to know (`HeaderOf`, `StoredJustificationOf`, `FinalityProofOf`), is
sent the answer, and returns what is proven::

    walk = follower.prove(data)
    question = next(walk)
    while True:
        question = walk.send(answer_to(question))       # StopIteration.value is the proven header, or None

Nothing in an answer is believed: headers are found by the hash that was asked for, justifications are verified under
the authority set in force. What was proven is kept at once, so a walk may be dropped at any question and nothing is
lost. An answer of None means that whoever was asked does not have it; that is never a lie.

A refusal says as much as can be known. `JUSTIFICATION_*` is raised only where every header between the last proven
block and the justified one is known, none of them orders a change by force, and the authority set has proven itself
before: then no honest node can have sent it. Everything else that does not verify is `AUTHORITY_SET_UNKNOWN` (a change
by force that cannot be followed, a gap that hides one, or a wrong checkpoint) or `FINALITY_NOT_PROVEN` (a proof is
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

#: A scheduled change is looked for so many blocks before the block where it takes effect (delays are 0 in practice).
CHANGE_DELAY_MAX: Final = 64
#: Nodes allow answers of 15 MiB, in hex: more than so many headers, unless those are over 700 bytes each.
SET_STEP_BLOCKS: Final = 10_000
SET_STEPS_MAX: Final = 1000
#: Set changes kept in memory for evidence; older ones are asked for again.
CHANGES_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class HeaderOf:
    """Asks for the header with this hash (32 bytes). Answer: `Header`, or None when the block is not known."""

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
    """A justification (SCALE bytes, not verified) and the hash of the block that it is said to finalize."""

    block_hash: bytes
    justification: bytes


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The answer would be larger than the node allows: the set of the block lasts for many more blocks."""


Question = HeaderOf | StoredJustificationOf | FinalityProofOf
Answer = Header | bytes | FinalityProof | TooLarge | None
#: Answers are checked where they are taken in, by `_header`, `_bytes` and `_proof`.
Walk = Generator[Question, Any, "Header | None"]


@dataclass(frozen=True, slots=True)
class ProvenChange:
    """A proven change of the authority set, and the checkpoint after it."""

    change: SetChange
    after: Checkpoint


class Follower:
    """The authority set in force, and how far finality is proven.

    `checkpoint` is the set in force. `known` is the last block proven in an earlier run (number and hash), if any;
    `scan_from` the block up to which headers were searched for set changes then. `gap_max` is the longest line of
    headers that is fetched one by one; longer gaps are crossed by the last block of each set.
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
        #: Up to this block, headers were searched for changes of the set.
        self._searched = scan_from
        #: The last header proven in this run.
        self._proven: Header | None = None
        #: Headers from one that ordered a change not yet in force up to the last proven one.
        self._pending: list[Header] = []
        #: Whether the set in force follows from something that verified: a pinned checkpoint may be wrong.
        self._trusted = known is not None

    @property
    def floor(self) -> int:
        """Blocks up to this number are proven: a justification for one of them is of no use."""
        return max(self.checkpoint.number, self._proven.number if self._proven else 0)

    def to_json(self) -> dict[str, Any]:
        """Return what a restart needs: the set in force, and `scan_from` where a change is ordered but not in force."""
        out: dict[str, Any] = {"checkpoint": self.checkpoint.to_json()}
        if self._pending:
            out["scan_from"] = self._pending[0].number - 1
        return out

    # --- walks

    def prove(self, data: bytes) -> Walk:
        """Verify a justification (SCALE bytes); return the header it makes final, or None for a block below `floor`.

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
            if tip.number > self.checkpoint.number:  # else it is the last block of a set, and proven already
                line = (yield from self._line(tip, floor, CHANGE_DELAY_MAX)) or [tip]
                yield from self._follow(line, justification, complete=False)
        else:
            self._require_link(line)
            yield from self._follow(line, justification, complete=True)
        self._proven, self._searched, self.justification = tip, max(self._searched, tip.number), data
        return tip

    def prove_head(self, head: Header) -> Walk:
        """Prove a block that is said to be final, where no justification came by itself.

        Returns the header that is final now (perhaps below `head`), or None where no proof is to be had yet.
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
        """Where a proof for `head` may be had. The last question gets the newest justification, of any block."""
        questions: list[Question] = [FinalityProofOf(head.number), StoredJustificationOf(head.hash)]
        if 1 < head.number - self.floor <= self._gap_max:
            questions.append(FinalityProofOf(self.floor + 1))
        return questions

    def next_change(self, checkpoint: Checkpoint, proven: int = 0) -> Generator[Question, Any, ProvenChange | None]:
        """Prove how the set of `checkpoint` ended, whichever set it is; None while it has not, or where no proof is
        had.

        `proven` is a block above the checkpoint that this set finalized, where one is known. Raises
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
        """The headers from `floor + 1` to `tip`, oldest first, linked by hash.

        None when there are more than `length_max`, or when whoever is asked does not have all of them.
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
        """Raise FINALITY_FORKED unless `line` descends from the last proven block, or holds it."""
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
        """Take in proven headers. `complete`: nothing can have happened between the last proven block and `part`."""
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
        """Cross many blocks by the last block of each authority set, up to the set that `target` belongs to.

        Nodes send all headers from the block asked for to the end of its set: the first question is asked at the last
        proven block, not where the set began.
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
        """Without proof that the set ended, it has to be the one that signed."""
        try:
            verify_justification(justification, self.checkpoint.set_id, self.checkpoint.authorities)
        except ChainWatcherError as problem:
            why = f"block {target.number} is not signed by set {self.checkpoint.set_id}, and its end is not proven"
            raise _not_proven(why) from problem

    def _proof_near_the_end(self, number: int) -> Generator[Question, Any, FinalityProof | None]:
        """Ask for the finality proof of block `number`, at a later block of its set where the answer is too large.

        It holds the headers from the block asked for to the end of the set. One that is too large shows that the set
        lasts for more than `SET_STEP_BLOCKS`: the block so far above still belongs to it.
        """
        for _ in range(SET_STEPS_MAX):
            answer = yield FinalityProofOf(number)
            if not isinstance(answer, TooLarge):
                return answer if isinstance(answer, FinalityProof) else None
            number += SET_STEP_BLOCKS
        return None


def _header(block_hash: bytes) -> Generator[Question, Any, Header | None]:
    """Ask for a header. HEADER_HASH_MISMATCH where another one is answered."""
    answer = yield HeaderOf(block_hash)
    if not isinstance(answer, Header):
        return None
    if answer.hash != block_hash:
        why = f"block {answer.number} hashes to 0x{answer.hash.hex()}, not to 0x{block_hash.hex()}"
        raise refuse("HEADER_HASH_MISMATCH", "block header", why)
    return answer


def _by_force(headers: Sequence[Header]) -> bool:
    """Whether a header orders a change that Substrate applies without the old set's finality."""
    changes = (header.grandpa_change() for header in headers)
    return any(change is not None and change.forced_after is not None for change in changes)


def _until_end_of_set(headers: list[Header]) -> list[Header]:
    """The headers up to the last block of the set in force; all of them where it does not end inside."""
    for header in headers:
        change = header.grandpa_change()
        if change is not None:
            last = header.number + (0 if change.forced_after is not None else change.delay)
            return headers[: max(last - headers[0].number + 1, 1)]
    return headers


def _from_change(headers: list[Header]) -> list[Header]:
    """The headers from the one that orders a change; the last one alone where none does."""
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
