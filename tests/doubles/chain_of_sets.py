"""A chain of headers whose authority set changes, and an endpoint's answers about it, for the GRANDPA follower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chain_watcher.proof.follower import (
    FinalityProof,
    FinalityProofOf,
    HeaderOf,
    Question,
    StoredJustificationOf,
)
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.proof.header import DigestItem, Header

from . import chain_makers as makers

Answers = Callable[[Question], Any]


class ChainOfSets:
    """Blocks 1 to `length`; `changes` maps a block to what its digest orders for the next set.

    Set n has the four voters n to n + 3. `scheduled` changes take effect in their block, plus the delay.
    """

    def __init__(
        self, length: int, changes: dict[int, int] | None = None, forced: dict[int, int] | None = None
    ) -> None:
        self.changes, self.forced = changes or {}, forced or {}
        self.start = Checkpoint(0, 0, makers.authorities(*self.voters(0)))
        self.headers: dict[int, Header] = {}
        self.set_of: dict[int, int] = {}
        parent, number_of_set, ends = b"\x11" * 32, 0, {}
        for number in range(1, length + 1):
            digest: list[DigestItem] = []
            following = makers.authorities(*self.voters(number_of_set + 1))
            if number in self.changes:
                digest.append(makers.scheduled(following, self.changes[number]))
                ends[number + self.changes[number]] = number_of_set + 1
            if number in self.forced:
                digest.append(makers.forced(following, self.forced[number]))
                ends[number + self.forced[number]] = number_of_set + 1
            header = makers.header(number, parent, *digest)
            self.headers[number], self.set_of[number] = header, number_of_set
            number_of_set = ends.get(number, number_of_set)
            parent = header.hash
        self.by_hash = {header.hash: header for header in self.headers.values()}

    @staticmethod
    def voters(set_id: int) -> range:
        return range(set_id % 40, set_id % 40 + 4)

    def justify(self, number: int, set_id: int | None = None) -> bytes:
        """The justification by the set that finalizes the block (or by another one)."""
        of_set = self.set_of[number] if set_id is None else set_id
        return makers.finalize(self.headers[number], self.voters(of_set), of_set)

    def last_of_set(self, number: int) -> int:
        """The last block that the set of `number` finalizes."""
        return max(at for at, of_set in self.set_of.items() if of_set == self.set_of[number])

    def answer(self, question: Question) -> Any:
        """What an honest archive node with the whole chain final answers."""
        if isinstance(question, HeaderOf):
            return self.by_hash.get(question.block_hash)
        if isinstance(question, StoredJustificationOf):
            number = self.by_hash[question.block_hash].number
            return self.justify(number) if number == self.last_of_set(number) else None
        assert isinstance(question, FinalityProofOf)
        if question.number not in self.headers:
            return None
        last = self.last_of_set(question.number)
        return FinalityProof(self.headers[last].hash, self.justify(last))


def walk(steps: Any, answers: Answers) -> Any:
    """Answer a walk's questions until it returns."""
    answer: Any = None
    while True:
        try:
            question = steps.send(answer)
        except StopIteration as end:
            return end.value
        answer = answers(question)
