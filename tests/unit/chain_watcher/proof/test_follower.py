"""The follower: honest answers make progress, gaps in answers are reported, no honest node is accused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof import follower as module
from chain_watcher.proof.follower import (
    CHANGES_KEPT,
    FinalityProof,
    FinalityProofOf,
    Follower,
    HeaderOf,
    Question,
    StoredJustificationOf,
    TooLarge,
)
from chain_watcher.proof.grandpa import Checkpoint, Justification
from tests.doubles import chain_makers as makers
from tests.doubles.chain_makers import attempt, code_of
from tests.doubles.chain_of_sets import ChainOfSets, walk

#: What an honest endpoint that does not have everything may lead to.
HARMLESS = {"FINALITY_NOT_PROVEN", "AUTHORITY_SET_UNKNOWN"}


def follower_of(chain: ChainOfSets, gap_max: int = 512, **more: Any) -> Follower:
    return Follower(chain.start, gap_max=gap_max, **more)


def prove(follower: Follower, chain: ChainOfSets, number: int) -> Any:
    return walk(follower.prove(chain.justify(number)), chain.answer)


@pytest.mark.parametrize("gap_max", [512, 3])
@pytest.mark.parametrize("delay", [0, 2])
def test_set_changes_are_followed(gap_max: int, delay: int) -> None:
    chain = ChainOfSets(90, {10: delay, 20: delay, 21 + delay: 0})
    follower = follower_of(chain, gap_max)
    assert prove(follower, chain, 90) == chain.headers[90]
    assert (follower.checkpoint.set_id, follower.set_changes, follower.floor) == (3, 3, 90)
    assert follower.checkpoint.authorities == makers.authorities(*chain.voters(3))
    assert prove(follower, chain, 89) is None, "it is below"


@pytest.mark.parametrize("gap_max", [512, 3])
def test_the_last_block_of_a_set_is_proven_whichever_way(gap_max: int) -> None:
    chain = ChainOfSets(30, {30: 0})
    follower = follower_of(chain, gap_max)
    assert prove(follower, chain, 30) == chain.headers[30]
    assert follower.checkpoint.number == 30


def test_a_justification_is_decoded_once() -> None:
    chain = ChainOfSets(5)
    data = chain.justify(5)
    with mock.patch.object(Justification, "decode", side_effect=Justification.decode) as decode:
        walk(follower_of(chain).prove(data), chain.answer)
    assert decode.call_count == 1


def test_a_change_that_is_ordered_and_not_in_force_survives_a_restart() -> None:
    chain = ChainOfSets(20, {5: 10})
    follower = follower_of(chain)
    prove(follower, chain, 8)
    stored = follower.to_json()
    assert stored["scan_from"] == 4
    again = Follower(
        Checkpoint.from_json(stored["checkpoint"]),
        gap_max=512,
        known=(8, chain.headers[8].hash),
        scan_from=stored["scan_from"],
    )
    assert prove(again, chain, 20) == chain.headers[20]
    assert again.checkpoint.set_id == 1


def test_three_thousand_set_changes_are_caught_up_with() -> None:
    count = 3000
    chain = ChainOfSets(count * 2 + 10, {number * 2: 0 for number in range(1, count + 1)})
    last = {of_set: number for number, of_set in chain.set_of.items()}
    with mock.patch.object(ChainOfSets, "last_of_set", lambda self, number: last[self.set_of[number]]):
        follower = follower_of(chain)
        assert prove(follower, chain, count * 2 + 10) == chain.headers[count * 2 + 10]
    assert (follower.checkpoint.set_id, len(follower.changes)) == (count, CHANGES_KEPT)


def test_a_walk_that_is_dropped_loses_nothing() -> None:
    """A slow endpoint's turn ends at any question; the next one continues from what was proven."""
    chain = ChainOfSets(120, {number: 0 for number in range(10, 60, 5)})
    follower, turns = follower_of(chain, 3), 0
    while follower.floor < 120:
        steps, answer = follower.prove(chain.justify(120)), None
        turns += 1
        before = follower.checkpoint.set_id
        try:
            while True:
                question = steps.send(answer)
                if follower.checkpoint.set_id > before + 1:
                    steps.close()
                    break
                answer = chain.answer(question)
        except StopIteration:
            break
    assert (follower.checkpoint.set_id, follower.floor) == (10, 120)
    assert turns > 3


def test_a_long_set_is_left_by_a_question_near_its_end() -> None:
    chain = ChainOfSets(120, {100: 0})

    def bounded(question: Question) -> Any:
        if isinstance(question, FinalityProofOf) and chain.last_of_set(question.number) - question.number > 25:
            return TooLarge()
        return chain.answer(question)

    with mock.patch.object(module, "SET_STEP_BLOCKS", 20):
        follower = follower_of(chain, 3)
        assert walk(follower.prove(chain.justify(120)), bounded) == chain.headers[120]
    assert follower.checkpoint.set_id == 1


# --- heads without a justification (case D2)


@pytest.mark.parametrize("source", [FinalityProofOf, StoredJustificationOf])
def test_a_head_is_proven_by_what_the_endpoint_has(source: type) -> None:
    chain = ChainOfSets(20, {20: 0})

    def only(question: Question) -> Any:
        return chain.answer(question) if isinstance(question, HeaderOf | source) else None

    follower = follower_of(chain)
    assert walk(follower.prove_head(chain.headers[20]), only) == chain.headers[20]


def test_a_head_above_the_newest_justification_is_proven_up_to_that() -> None:
    chain = ChainOfSets(20)

    def newest_is_15(question: Question) -> Any:
        if isinstance(question, FinalityProofOf):
            proof = FinalityProof(chain.headers[15].hash, chain.justify(15))
            return proof if question.number <= 15 else None
        return chain.answer(question) if isinstance(question, HeaderOf) else None

    follower = follower_of(chain)
    assert walk(follower.prove_head(chain.headers[20]), newest_is_15) == chain.headers[15]
    assert walk(follower.prove_head(chain.headers[20]), newest_is_15) is None, "there is nothing newer"


# --- what is refused, and by which name


def test_a_forged_justification_is_called_one_only_where_nothing_can_be_hidden() -> None:
    chain = ChainOfSets(20)
    follower = follower_of(chain)
    forged = makers.finalize(chain.headers[10], range(30, 34), 0)
    steps = lambda: walk(follower.prove(forged), chain.answer)  # noqa: E731
    assert code_of(steps) == "AUTHORITY_SET_UNKNOWN", "the checkpoint has not proven itself: it may be wrong"
    prove(follower, chain, 5)
    assert code_of(steps) == "JUSTIFICATION_BELOW_THRESHOLD"
    short = Follower(chain.start, gap_max=2, known=(5, chain.headers[5].hash), scan_from=5)
    assert code_of(lambda: walk(short.prove(forged), chain.answer)) in HARMLESS, "a gap could hide a change"


@pytest.mark.parametrize("delay", [0, 4])
@pytest.mark.parametrize("target", [10, 12, 20])
@pytest.mark.parametrize("gap_max", [512, 3])
def test_a_change_by_force_has_a_name_of_its_own(delay: int, target: int, gap_max: int) -> None:
    """Case D4: the old set never finalizes its block, and headers alone do not distinguish it from an invented one."""
    chain = ChainOfSets(20, forced={10: delay})
    follower = follower_of(chain, gap_max)
    prove(follower, chain, 5)
    by_new = chain.justify(target, set_id=1)
    honest = {number: chain.justify(number, set_id=1) for number in range(10, 21)}

    def without_the_old_set(question: Question) -> Any:
        if isinstance(question, FinalityProofOf):
            return FinalityProof(chain.headers[20].hash, honest[20])
        if isinstance(question, StoredJustificationOf):
            return honest.get(chain.by_hash[question.block_hash].number)
        return chain.answer(question)

    assert code_of(lambda: walk(follower.prove(by_new), without_the_old_set)) in HARMLESS
    pinned = Checkpoint(max(10 + delay, 10), 1, makers.authorities(*chain.voters(1)))
    if target > pinned.number:
        assert walk(Follower(pinned, gap_max=512).prove(by_new), chain.answer) == chain.headers[target]


def test_a_change_by_force_that_the_old_set_finalized_is_followed() -> None:
    chain = ChainOfSets(20, forced={10: 0})
    follower = follower_of(chain)
    assert prove(follower, chain, 20) == chain.headers[20]
    assert follower.checkpoint.set_id == 1


def test_a_fork_is_found_by_its_hashes() -> None:
    chain = ChainOfSets(20)
    follower = follower_of(chain)
    prove(follower, chain, 10)
    fork = makers.chain(9, 6, parent=chain.headers[8].hash, salt=7)
    by_hash = {header.hash: header for header in [*fork, *chain.headers.values()]}
    forked = makers.finalize(fork[-1], chain.voters(0), 0)
    answers = lambda question: by_hash.get(question.block_hash)  # noqa: E731
    assert code_of(lambda: walk(follower.prove(forked), answers)) == "FINALITY_FORKED"
    restarted = Follower(chain.start, gap_max=512, known=(10, chain.headers[10].hash), scan_from=10)
    assert code_of(lambda: walk(restarted.prove(forked), answers)) == "FINALITY_FORKED"


def test_another_header_than_the_one_asked_for_is_refused() -> None:
    chain = ChainOfSets(20)
    wrong = lambda question: chain.headers[3] if isinstance(question, HeaderOf) else None  # noqa: E731
    assert code_of(lambda: walk(follower_of(chain).prove(chain.justify(9)), wrong)) == "HEADER_HASH_MISMATCH"
    skips = makers.header(9, chain.headers[5].hash)
    by_hash = {skips.hash: skips, **chain.by_hash}
    data = makers.finalize(skips, chain.voters(0), 0)
    answers = lambda question: by_hash.get(question.block_hash)  # noqa: E731
    assert code_of(lambda: walk(follower_of(chain).prove(data), answers)) == "HEADER_PARENT_MISMATCH"


# --- every way an honest endpoint can fail to have something


def outcome(chain: ChainOfSets, follower: Follower, answers: Callable[[Question], Any], target: int) -> str | None:
    try:
        walk(follower.prove(chain.justify(target)), answers)
    except ChainWatcherError as problem:
        return problem.code
    return None


@pytest.mark.parametrize("gap_max", [512, 3])
@pytest.mark.parametrize(("changes", "forced"), [({}, {}), ({6: 0, 9: 2}, {}), ({6: 3}, {}), ({6: 0}, {12: 0})])
def test_an_endpoint_that_lacks_something_is_never_called_a_forger(
    changes: dict[int, int], forced: dict[int, int], gap_max: int
) -> None:
    """Pruned, warp-synced, lagging, or several behind one balancer: each answer may be missing, at each question."""
    chain, target = ChainOfSets(20, changes, forced), 20
    for missing in itertools.product((False, True), repeat=7):
        follower, asked = follower_of(chain, gap_max), itertools.count()

        def answers(question: Question, asked: Any = asked, missing: Any = missing) -> Any:
            at = next(asked)
            return None if at < len(missing) and missing[at] else chain.answer(question)

        assert outcome(chain, follower, answers, target) in (None, *HARMLESS)
        assert outcome(chain, follower, chain.answer, target) is None, "and with an honest answer it is led on"
        assert follower.floor == target


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_answers_lead_to_an_undocumented_error_or_to_a_forged_block(data: st.DataObject) -> None:
    chain = ChainOfSets(16, {4: 0, 8: 1})
    foreign = makers.chain(1, 16, salt=9)
    follower = follower_of(chain, data.draw(st.sampled_from([1, 4, 512])))
    headers = [*chain.headers.values(), *foreign]
    proofs = [chain.justify(at, set_id) for at in (3, 4, 9, 16) for set_id in range(4)]
    proofs += [makers.finalize(one, range(20, 24), 0) for one in foreign[-2:]] + [b"", b"\0" * 200]
    answer = st.one_of(
        st.none(),
        st.just(TooLarge()),
        st.sampled_from(headers),
        st.sampled_from(proofs),
        st.builds(FinalityProof, st.sampled_from([one.hash for one in headers]), st.sampled_from(proofs)),
    )
    for _ in range(data.draw(st.integers(1, 4))):
        steps = (
            follower.prove(data.draw(st.sampled_from(proofs)))
            if data.draw(st.booleans())
            else follower.prove_head(data.draw(st.sampled_from(headers)))
        )
        truth = data.draw(st.floats(0, 1))

        def answers(question: Question, truth: float = truth) -> Any:
            honest = data.draw(st.floats(0, 1)) < truth
            return chain.answer(question) if honest and _known(chain, question) else data.draw(answer)

        with mock.patch.object(module, "SET_STEPS_MAX", 5):
            found, _ = attempt(lambda steps=steps, answers=answers: walk(steps, answers))
        assert found is None or found == chain.headers[found.number], "no foreign block is ever proven"


def _known(chain: ChainOfSets, question: Question) -> bool:
    return not isinstance(question, StoredJustificationOf) or question.block_hash in chain.by_hash
