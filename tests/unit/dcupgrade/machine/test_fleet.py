"""Who may upgrade now, from the engine's state."""

import pytest

from dcupgrade.machine.fleet import (
    TEXT_MAX,
    Fleet,
    Halt,
    Member,
    Outcome,
    Slot,
    Take,
    decide,
    halt_from_json,
    member_from_json,
    outcome_from_json,
    slot_from_json,
    summary,
    to_json,
    worth_keeping,
)
from dcupgrade.machine.gates import Shut

A, B = "a" * 64, "b" * 64


def held(*nodes: str | None) -> tuple[Slot | None, ...]:
    return tuple(None if node is None else Slot(node, A, "1.1.0", 1.0) for node in nodes)


def ended(node: str, outcome: str, at: float, enclave_id: str = A) -> Outcome:
    return Outcome(node, enclave_id, "1.1.0", outcome, at)


def ask(fleet: Fleet, node: str = "me", draw: float = 0.0, reverts_max: int = 2) -> Take | Shut:
    return decide(fleet, node, A, reverts_max=reverts_max, draw=draw)


def test_a_free_slot_is_taken_and_the_draw_chooses_which() -> None:
    fleet = Fleet(held("x", None, None))
    assert ask(fleet, draw=0.0) == Take(1, held=False)
    assert ask(fleet, draw=0.999) == Take(2, held=False)


def test_a_slot_that_is_held_already_is_found_again_also_when_all_are_full() -> None:
    assert ask(Fleet(held("x", "me"))) == Take(1, held=True)


def test_a_full_fleet_names_the_holders() -> None:
    found = ask(Fleet(held("x", "y")))
    assert isinstance(found, Shut)
    assert (found.code, found.detail) == ("FLEET_FULL", "all 2 slots are held, by x, y")


def test_a_fleet_without_slots_is_full() -> None:
    assert ask(Fleet(())).code == "FLEET_FULL"  # type: ignore[union-attr]


def test_a_halt_stops_also_who_holds_a_slot() -> None:
    found = ask(Fleet(held("me", None), Halt("eve", "bad release", 1.0)))
    assert isinstance(found, Shut)
    assert (found.code, found.detail) == ("FLEET_HALTED", "eve: bad release")


def test_enough_reverts_of_this_release_stop_the_fleet_and_those_of_another_do_not() -> None:
    reverts = (ended("x", "reverted", 1.0), ended("y", "reverted", 2.0))
    assert ask(Fleet(held(None), outcomes=reverts)).code == "FLEET_HALTED"  # type: ignore[union-attr]
    assert isinstance(ask(Fleet(held(None), outcomes=reverts), reverts_max=3), Take)
    others = (ended("x", "reverted", 1.0, B), ended("y", "reverted", 2.0, B))
    assert isinstance(ask(Fleet(held(None), outcomes=others)), Take)


def test_a_node_that_went_back_and_succeeded_later_does_not_count() -> None:
    history = (ended("x", "reverted", 1.0), ended("y", "reverted", 2.0), ended("x", "committed", 3.0))
    assert Fleet((), outcomes=history).reverted(A) == ("y",)


def test_one_node_that_goes_back_again_and_again_counts_once() -> None:
    assert Fleet((), outcomes=tuple(ended("x", "reverted", float(n)) for n in range(9))).reverted(A) == ("x",)


def test_reverts_are_kept_longest_whatever_a_hosts_clock_says() -> None:
    past = ended("x", "reverted", 0.0)
    rest = tuple(ended(f"n{number}", "committed", 1000.0) for number in range(9))
    assert worth_keeping((past, *rest), 10) == (past, *rest)
    assert worth_keeping((past, *rest), 3) == (past, *rest[-2:])
    assert worth_keeping((past, past), 1) == (past,)


def test_a_revert_that_its_node_has_made_good_makes_room_for_that() -> None:
    reverts = tuple(ended(f"n{number}", "reverted", 1.0) for number in range(3))
    good = ended("n0", "committed", 2.0)
    assert worth_keeping((*reverts, good), 3) == (*reverts[1:], good)


def test_the_newest_outcomes_come_first() -> None:
    early, late = ended("x", "committed", 1.0), ended("y", "committed", 2.0)
    assert Fleet((), outcomes=(early, late)).newest() == (late, early)


def test_versions_are_what_nodes_say_else_what_their_last_upgrade_left() -> None:
    history = (ended("x", "committed", 1.0), ended("y", "committed", 1.0), ended("z", "reverted", 1.0))
    members = (Member("x", "1.2.0", "", 2.0), Member("new", "", "1.2.0", 2.0))
    found = summary(Fleet(held(None, "y"), outcomes=history), members)
    assert found["versions"] == {"1.2.0": 1, "1.1.0": 1}
    assert found["waiting"] == ["new"]
    assert [item["node"] for item in found["outcomes"]] == ["x", "y", "z"]


def test_values_survive_json() -> None:
    slot, halt, outcome = held("me")[0], Halt("eve", "why", 2.0), ended("me", "committed", 3.0)
    assert slot is not None
    assert slot_from_json(to_json(slot)) == slot
    assert halt_from_json(to_json(halt)) == halt
    assert outcome_from_json(to_json(outcome)) == outcome
    member = Member("me", "1.0.0", "1.1.0", 4.0)
    assert member_from_json(to_json(member)) == member


NAMED = {"holder": "x", "enclave_id": "", "version": ""}


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"holder": 1},
        NAMED,
        {**NAMED, "since_unix_s": "1"},
        {**NAMED, "since_unix_s": 1e12},
        {**NAMED, "since_unix_s": -1},
    ],
)
def test_what_is_no_slot_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is not"):
        slot_from_json(bad)


def test_a_text_that_somebody_made_long_is_cut() -> None:
    assert len(halt_from_json({"who": "x" * 10_000, "why": "", "at_unix_s": 1}).who) == TEXT_MAX
