"""The upgrade machine: what the table allows, what it refuses, and that the work follows from the state."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcupgrade.conditions import HALTED_CODES
from dcupgrade.errors import CODES, DcupgradeError, Failure
from dcupgrade.machine import events as e
from dcupgrade.machine import table as machine
from dcupgrade.machine.effects import Effect, EffectKind
from dcupgrade.machine.guards import Budgets
from dcupgrade.machine.picture import edges, mermaid
from dcupgrade.machine.state import STATE_FORMAT, ChainFacts, Hold, Name, Record, Release, State, state_from_json
from dcupgrade.machine.table import TABLE, activity, step

A, B, C = (Release(letter * 64, f"1.{n}.0", added_height=n + 1) for n, letter in enumerate("abc"))
F = EffectKind
BOTH = ChainFacts(B, ((A.enclave_id, 1), (B.enclave_id, 2)))
RUNNING = State(running=A, chain=BOTH)

COMMANDS: tuple[e.CommandEvent, ...] = (
    e.HoldCommand(hold=Hold("a reason")),
    e.UnholdCommand(),
    e.ApproveCommand(enclave_id=B.enclave_id),
    e.OverrideCommand(enclave_id=B.enclave_id),
    e.ResumeCommand(),
    e.RevertCommand(),
    e.RetryCommand(enclave_id=B.enclave_id),
)

releases = st.builds(
    Release,
    enclave_id=st.sampled_from([A.enclave_id, B.enclave_id]),
    version=st.text(max_size=8),
    origin_url=st.text(max_size=8),
    mirror_url=st.text(max_size=8),
    cids=st.tuples(st.text(max_size=5)),
    signatures=st.tuples(st.binary(min_size=64, max_size=64)),
    added_height=st.integers(0, 2**32 - 1),
)
facts = st.builds(
    ChainFacts,
    program=st.none() | releases,
    listed=st.tuples(st.tuples(st.text(max_size=4), st.integers(0, 9))),
    block_number=st.integers(0, 9),
)
states = st.builds(
    State,
    name=st.sampled_from(Name),
    running=st.none() | releases,
    target=st.none() | releases,
    previous=st.none() | releases,
    chain=st.none() | facts,
    key_set_id=st.text(max_size=4),
    hold=st.none() | st.builds(Hold, st.text(max_size=4), st.text(max_size=4), st.floats(0, 1e10)),
    records=st.tuples(st.builds(Record, st.text(max_size=4), st.integers(0, 9), st.integers(0, 9))),
    detail=st.text(max_size=20),
)


@given(states)
def test_a_state_survives_its_json_form(state: State) -> None:
    assert state_from_json(json.loads(json.dumps(state.to_json()))) == state


@given(st.sampled_from(["format", "name", "records", "running"]), st.sampled_from([None, 7, "x", []]))
def test_a_damaged_json_form_raises_documented_errors_only(key: str, value: object) -> None:
    data = {**State().to_json(), key: value}
    try:
        state_from_json(data)
    except (KeyError, TypeError, ValueError):
        pass
    else:
        assert (key, value) in [("running", None), ("records", []), ("format", STATE_FORMAT)]


def test_what_is_not_in_the_table_raises() -> None:
    with pytest.raises(DcupgradeError, match="MACHINE_NO_TRANSITION") as caught:
        step(RUNNING, e.NodeStopped(A.enclave_id))
    assert caught.value.kind == "invariant"


def test_operator_commands_and_chain_events_are_understood_in_every_state() -> None:
    known = {(row.source, row.event) for row in TABLE}
    for name in Name:
        for event in (e.ChainSeen, *map(type, COMMANDS)):
            assert (name, event) in known


def test_every_state_can_be_entered_and_left() -> None:
    moves = [(row.source, row.target) for row in TABLE if row.source is not row.target]
    assert {source for source, _ in moves} == set(Name)
    assert {target for _, target in moves} == set(Name)


def test_a_row_that_can_never_apply_is_not_in_the_table() -> None:
    """A row after an unguarded one for the same state and event would never be looked at."""
    for key in {(row.source, row.event) for row in TABLE}:
        rows = [row for row in TABLE if (row.source, row.event) == key]
        assert all(row.guard is not None for row in rows[:-1]), key


def test_the_machine_keeps_the_node_up_until_it_is_to_stop() -> None:
    keep = Effect(F.KEEP_NODE, A.enclave_id)
    for name in (Name.IDLE, Name.STAGING, Name.STAGED, Name.COLLECTING, Name.SEALED, Name.ABANDONED):
        assert keep in activity(replace(RUNNING, name=name, target=B))
    for name in (Name.STOPPING, Name.LAUNCHING, Name.DELIVERING, Name.PROBATION, Name.REVERTING):
        assert keep not in activity(replace(RUNNING, name=name, target=B))


def test_step_gives_only_the_work_that_is_new() -> None:
    staging, effects = step(RUNNING, e.UpgradeBegun(B.enclave_id))
    assert staging.name is Name.STAGING
    assert effects == (Effect(F.STAGE, B.enclave_id, depends_on=B.sources),)
    assert Effect(F.KEEP_NODE, A.enclave_id) in activity(staging)


@pytest.mark.parametrize(
    ("program", "listed", "offered"),
    [
        (B, {A: 1, B: 2}, True),
        (B, {A: 2, B: 2}, False),  # equal heights are not newer
        (B, {A: 3, B: 2}, False),
        (B, {B: 2}, True),  # a running version that was revoked is the oldest
        (B, {A: 1}, False),  # not signed
        (A, {A: 1, B: 2}, False),
        (None, {A: 1, B: 2}, False),
    ],
)
def test_only_a_signed_and_newer_version_is_begun(
    program: Release | None, listed: dict[Release, int], offered: bool
) -> None:
    facts = ChainFacts(program, tuple((item.enclave_id, height) for item, height in listed.items()))
    state, _ = step(State(running=A), e.ChainSeen(facts))
    assert (Effect(F.BEGIN, B.enclave_id) in activity(state)) is offered


def test_what_an_endpoint_that_lags_names_is_not_begun_over_a_newer_version() -> None:
    """It shows the chain from before the running version was listed, so that looks like one that was removed."""
    older = e.ChainSeen(ChainFacts(B, ((A.enclave_id, 1), (B.enclave_id, 2))))
    begin = Effect(F.BEGIN, B.enclave_id)
    assert begin not in activity(step(State(running=C), older)[0])
    unknown = replace(C, added_height=0)  # taken over by hand: nobody knows since when it is listed
    assert begin in activity(step(State(running=unknown), older)[0])


def fail(state: State, code: str, failure: str, budgets: Budgets) -> State:
    state, _ = step(state, e.UpgradeBegun(B.enclave_id), budgets)
    state, _ = step(state, e.StageFailed(B.enclave_id, Failure(code, failure, "")), budgets)
    assert (state.name, state.reason) == (Name.ABANDONED, code)
    return step(state, e.SourceServing(A.enclave_id), budgets)[0]


def test_a_refused_artefact_is_quarantined_at_once() -> None:
    state = fail(RUNNING, "SIGSTRUCT_SIGNATURE_BAD", "rejected", Budgets())
    assert state.record(B.enclave_id).quarantine == "SIGSTRUCT_SIGNATURE_BAD"
    assert {effect.kind for effect in activity(state)} == {F.KEEP_NODE}


def test_what_may_pass_is_tried_again_without_end() -> None:
    state = RUNNING
    for _ in range(40):
        state = fail(state, "DOWNLOAD_UNREACHABLE", "transient", Budgets(attempts=2))
        assert Effect(F.BACKOFF, B.enclave_id) in activity(state)
        state, _ = step(state, e.BackoffOver(B.enclave_id))
    assert state.record(B.enclave_id).quarantine == ""


@pytest.mark.parametrize("command", [one for one in COMMANDS if not isinstance(one, e.RevertCommand)])
def test_only_retry_lifts_a_quarantine(command: e.CommandEvent) -> None:
    state = fail(RUNNING, "SIGSTRUCT_SIGNATURE_BAD", "rejected", Budgets())
    state, _ = step(state, command)
    assert (Effect(F.BEGIN, B.enclave_id) in activity(state)) is isinstance(command, e.RetryCommand)
    assert (state.approved, state.override) == ("", "")


def test_records_of_old_releases_do_not_grow_without_bound() -> None:
    state = RUNNING
    for number in range(200):
        state = state.with_record(Record(f"{number}", abandoned=1))
    assert len(state.records) == 64
    assert state.record("199").abandoned == 1


def test_only_what_matters_of_the_list_is_kept() -> None:
    listed = tuple((f"{n:064x}", n) for n in range(5000))
    state, _ = step(RUNNING, e.ChainSeen(ChainFacts(B, (*listed, *BOTH.listed))))
    assert state.chain is not None
    assert state.chain.listed == BOTH.listed


def test_a_named_failure_of_the_vault_halts_before_the_stop() -> None:
    collecting = replace(RUNNING, name=Name.COLLECTING, target=B)
    state, _ = step(collecting, e.CollectFailed(A.enclave_id, Failure("VAULT_REPLACED", "invariant", "")))
    assert (state.name, state.halted, state.resume_to) == (Name.HALTED, "VAULT_REPLACED", "idle")
    assert Effect(F.KEEP_NODE, A.enclave_id) in activity(state)


def test_a_revert_while_the_node_stops_is_kept_until_it_has_stopped() -> None:
    stopping = replace(RUNNING, name=Name.STOPPING, target=B)
    wished, effects = step(stopping, e.RevertCommand("ann", "not today"))
    assert (wished.name, effects) == (Name.STOPPING, ())
    reverting, effects = step(wished, e.NodeStopped(A.enclave_id))
    assert (reverting.name, reverting.reason) == (Name.REVERTING, "OPERATOR_REVERT")
    assert effects == (Effect(F.STOP_NODE, B.enclave_id),)
    assert step(stopping, e.NodeStopped(A.enclave_id))[0].name is Name.LAUNCHING


def test_a_source_that_is_revoked_while_it_is_tried_on_and_on_is_started_only_after_a_resume() -> None:
    state = replace(RUNNING, name=Name.REVERTING, target=B, target_stopped=True)
    state, _ = step(state, e.SourceFailed(A.enclave_id, Failure("SOURCE_WONT_START", "invariant", "")))
    assert activity(state) == (Effect(F.KEEP_NODE, A.enclave_id),)
    state, _ = step(state, e.ChainSeen(ChainFacts(B, ((B.enclave_id, 2),))))
    assert (state.name, state.halted, activity(state)) == (Name.HALTED, "PREVIOUS_REVOKED", ())
    state, _ = step(state, e.ResumeCommand())
    assert (state.name, activity(state)) == (Name.REVERTING, (Effect(F.START_SOURCE, A.enclave_id),))


def test_a_target_that_does_not_stop_is_stopped_on_and_on_and_then_the_way_back_continues() -> None:
    state = replace(RUNNING, name=Name.REVERTING, target=B)
    state, _ = step(state, e.StopFailed(B.enclave_id, Failure("CONTAINER_ENGINE_UNREACHABLE", "transient", "")))
    assert (state.halted, activity(state)) == ("TARGET_WONT_STOP", (Effect(F.STOP_NODE, B.enclave_id),))
    state, _ = step(state, e.NodeStopped(B.enclave_id))
    assert (state.name, state.halted) == (Name.REVERTING, "")
    assert activity(state) == (Effect(F.START_SOURCE, A.enclave_id),)


def test_a_target_whose_data_another_process_holds_is_gone_and_the_source_is_tried_on_and_on() -> None:
    state = replace(RUNNING, name=Name.REVERTING, target=B)
    state, _ = step(state, e.StopFailed(B.enclave_id, Failure("DATA_LOCKED", "transient", "")))
    assert (state.halted, activity(state)) == ("DATA_LOCKED", (Effect(F.KEEP_NODE, A.enclave_id),))
    state, _ = step(state, e.NodeServing(A.enclave_id))
    assert state.name is Name.REVERTED


ELSEWHERE = replace(B, origin_url="https://corrected.example/b")


@pytest.mark.parametrize("failure", ["transient", "rejected"])
def test_new_addresses_of_the_same_release_are_a_new_try(failure: str) -> None:
    state = fail(RUNNING, "ARCHIVE_CORRUPT", failure, Budgets())
    state, _ = step(state, e.ChainSeen(BOTH))
    assert Effect(F.BEGIN, B.enclave_id) not in activity(state)
    state, _ = step(state, e.ChainSeen(replace(BOTH, program=ELSEWHERE)))
    assert Effect(F.BEGIN, B.enclave_id) in activity(state)
    state, _ = step(state, e.UpgradeBegun(B.enclave_id))
    assert state.target == ELSEWHERE


def test_a_download_under_way_begins_anew_with_new_addresses() -> None:
    state, _ = step(RUNNING, e.UpgradeBegun(B.enclave_id))
    _, effects = step(state, e.ChainSeen(replace(BOTH, program=ELSEWHERE)))
    assert effects == (Effect(F.STAGE, B.enclave_id, depends_on=ELSEWHERE.sources),)


@pytest.mark.parametrize(
    "record", [Record(B.enclave_id, quarantine="OPERATOR_REVERT"), Record(B.enclave_id, reverted=1)]
)
def test_new_addresses_do_not_excuse_a_version_that_failed_itself(record: Record) -> None:
    state = RUNNING.with_record(record)
    state, _ = step(state, e.ChainSeen(replace(BOTH, program=ELSEWHERE)))
    assert state.record(B.enclave_id) == record


def test_every_halted_condition_and_reason_has_a_meaning_under_one_code() -> None:
    from keyvault.errors import CODES as VAULT_CODES

    for code in HALTED_CODES:
        assert (code in CODES) != (code in VAULT_CODES)


def test_the_diagram_is_drawn_from_the_table() -> None:
    text = mermaid(Name.SEALED)
    assert "sealed --> stopping: permitted" in text
    assert "class sealed lit" in text
    assert all(name.value in text for name in Name)
    assert len(edges()) == len(machine.TABLE)
