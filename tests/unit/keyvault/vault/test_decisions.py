"""The release decision: every rule, each with the code of its refusal."""

from dataclasses import replace
from typing import Any

import pytest

from keyvault.errors import KeyvaultError
from keyvault.vault import decisions as core
from keyvault.vault.chain_state import ChainState, Entry
from keyvault.vault.decisions import Rules
from keyvault.vault.record import Facts, Permit, decode_facts
from tests.doubles.vault_kit import code_of

A, B, C, VAULT, KEYS, MORE = ("a" * 64, "b" * 64, "c" * 64, "e" * 64, "1" * 64, "2" * 64)
GENESIS = "11" * 32
RULES = Rules(GENESIS, VAULT, frozenset({"single"}), require_listed_vault=False, retention_s=100, permit_ttl_s=60)
NOW = 1_700_000_000


def state(block: int = 10, program: str | None = B, listed: dict[str, int] | None = None, **fields: Any) -> ChainState:
    entries = tuple(Entry(h, i, f"sig of {i}") for i, h in (listed if listed is not None else {A: 3, B: 7}).items())
    made = ChainState("single", GENESIS, block, f"{block:064x}", NOW * 1000, program, entries)
    return replace(made, **fields)


def verify(enclave_id: str, signatures: tuple[str, ...]) -> None:
    if f"sig of {enclave_id}" not in signatures:
        raise KeyvaultError(code="X_Y", what="", why="not signed")


def collected(source: str = A, key_set: str = KEYS, facts: Facts | None = None, now: int = NOW) -> Facts:
    return core.record_collected(facts if facts is not None else Facts(), key_set, source, 1, now)


def permit(
    facts: Facts,
    at: ChainState,
    rules: Rules = RULES,
    source: str = A,
    target: str = B,
    key_set: str = KEYS,
    now: int = NOW,
) -> tuple[Facts, Permit | KeyvaultError]:
    admitted = core.admit_evidence(facts, rules, at, now)
    return core.decide_permit(
        admitted, rules, at, verify, source_id=source, target_id=target, key_set_id=key_set, now=now
    )


def permitted(now: int = NOW, **fields: Any) -> Facts:
    facts, outcome = permit(collected(), state(**fields), now=now)
    assert isinstance(outcome, Permit), outcome
    return facts


def refusal(facts: Facts, at: ChainState, rules: Rules = RULES, **more: Any) -> str:
    _, outcome = permit(facts, at, rules, **more)
    return outcome.code if isinstance(outcome, KeyvaultError) else "permitted"


def release(facts: Facts, who: str, now: int = NOW, wanted: str = "", rules: Rules = RULES) -> core.Release:
    return core.decide_release(facts, rules, who, wanted, now)


def released(facts: Facts, who: str, **more: Any) -> str:
    return code_of(lambda: release(facts, who, **more))


# evidence


def test_evidence_raises_the_floor_and_keeps_the_lowest_heights() -> None:
    facts = core.admit_evidence(Facts(), RULES, state(10, listed={A: 3, B: 7}), NOW)
    facts = core.admit_evidence(facts, RULES, state(11, listed={A: 9, B: 5, VAULT: 1}), NOW)
    assert (facts.floor_number, dict(facts.add_heights), facts.vault_listed) == (11, {A: 3, B: 5, VAULT: 1}, True)
    again = core.admit_evidence(facts, RULES, state(11, listed={A: 3}), NOW)
    assert again.add_heights is facts.add_heights
    assert not again.vault_listed


def test_the_proven_authority_set_is_kept_where_evidence_brings_one() -> None:
    facts = core.admit_evidence(Facts(), RULES, state(10, authorities={"set_id": 4}), NOW)
    assert core.admit_evidence(facts, RULES, state(11), NOW).authorities == {"set_id": 4}


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (state(mode="quorum"), "VAULT_EVIDENCE_UNPROVEN"),
        (state(mode="proven"), "VAULT_EVIDENCE_UNPROVEN"),
        (state(genesis_hash="22" * 32), "VAULT_EVIDENCE_WRONG_CHAIN"),
        (state(9), "VAULT_EVIDENCE_BELOW_FLOOR"),
        (state(10, block_hash="f" * 64), "VAULT_EVIDENCE_FORKED"),
        (state(11, timestamp_ms=(NOW - 3601) * 1000), "VAULT_EVIDENCE_STALE"),
        (state(11, timestamp_ms=(NOW + 301) * 1000), "VAULT_EVIDENCE_STALE"),
    ],
)
def test_evidence_outside_the_rules_is_refused_and_changes_nothing(at: ChainState, code: str) -> None:
    facts = core.admit_evidence(Facts(), RULES, state(10), NOW)
    assert code_of(lambda: core.admit_evidence(facts, RULES, at, NOW)) == code
    assert core.admit_evidence(facts, RULES, state(10), NOW) == facts


def test_evidence_below_the_embedded_checkpoint_is_refused() -> None:
    assert refusal(collected(), state(10), replace(RULES, floor_number=10)) == "permitted"
    rules = replace(RULES, floor_number=11)
    assert code_of(lambda: core.admit_evidence(Facts(), rules, state(10), NOW)) == "VAULT_EVIDENCE_BELOW_FLOOR"


def test_the_memory_of_heights_is_bounded() -> None:
    many = {f"{n:064x}": n for n in range(core.HEIGHTS_MAX + 1)}
    assert code_of(lambda: core.admit_evidence(Facts(), RULES, state(listed=many), NOW)) == "VAULT_EVIDENCE_MALFORMED"


# collecting


def test_a_vault_that_must_be_listed_collects_nothing_before_it_saw_its_listing() -> None:
    rules = replace(RULES, require_listed_vault=True)
    assert code_of(lambda: core.check_collect(Facts(), rules)) == "VAULT_EVIDENCE_NEEDED"
    unlisted = core.admit_evidence(Facts(), rules, state(), NOW)
    assert code_of(lambda: core.check_collect(unlisted, rules)) == "VAULT_NOT_LISTED"
    core.check_collect(core.admit_evidence(Facts(), rules, state(listed={VAULT: 1}), NOW), rules)
    core.check_collect(Facts(), RULES)
    listed = {A: 3, B: 7, VAULT: 1}
    assert refusal(collected(), state(), rules) == "VAULT_NOT_LISTED"
    assert refusal(collected(), state(listed=listed), rules) == "permitted"


def test_the_number_of_key_sets_is_bounded_and_wiped_ones_do_not_count() -> None:
    facts = Facts()
    for number in range(core.KEY_SETS_MAX):
        facts = collected(key_set=f"{number:064x}", facts=facts)
    assert code_of(lambda: core.check_collect(facts, RULES)) == "VAULT_TOO_MANY_KEY_SETS"
    core.check_collect(core.record_wiped(facts, f"{0:064x}"), RULES)


def test_another_key_set_of_the_same_node_is_kept_beside_never_over_the_first() -> None:
    facts = collected(key_set=MORE, facts=collected())
    assert set(facts.collected) == {KEYS, MORE}
    assert release(facts, A, wanted=KEYS).key_set_id == KEYS


def test_collecting_again_from_the_same_source_keeps_a_permit_under_way() -> None:
    facts = permitted()
    again = collected(facts=core.record_retain(facts, KEYS, NOW + 9))
    assert again.permits == facts.permits
    assert again.collected[KEYS].retain_until_unix_s == NOW + 9
    assert collected(source=B, facts=facts).permits == {}


# permits


def test_a_permit_names_target_block_and_expiry() -> None:
    _, outcome = permit(collected(), state())
    assert isinstance(outcome, Permit)
    assert (outcome.target_id, outcome.block_number, outcome.expires_at_unix_s) == (B, 10, NOW + 60)


@pytest.mark.parametrize(
    ("code", "at", "more"),
    [
        ("PERMIT_KEY_SET_UNKNOWN", state(), {"key_set": MORE}),
        ("PERMIT_KEY_SET_UNKNOWN", state(), {"source": C}),
        ("PERMIT_TARGET_IS_SOURCE", state(), {"target": A}),
        ("PERMIT_TARGET_NOT_PROGRAM", state(program=C), {}),
        ("PERMIT_TARGET_NOT_PROGRAM", state(program=None), {}),
        ("PERMIT_TARGET_NOT_LISTED", state(listed={A: 3}), {}),
        ("PERMIT_TARGET_UNSIGNED", state(entries=(Entry(7, B, "sig of another"),)), {}),
        ("PERMIT_TARGET_NOT_NEWER", state(listed={A: 7, B: 3}), {}),
        ("PERMIT_TARGET_NOT_NEWER", state(listed={A: 7, B: 7}), {}),
    ],
    ids=[
        "unknown-set", "other-source", "source-itself", "not-the-program", "no-program",
        "signed-but-revoked", "unsigned", "signed-but-older", "equal-height",
    ],
)  # fmt: skip
def test_a_permit_is_refused(code: str, at: ChainState, more: dict[str, Any]) -> None:
    assert refusal(collected(), at, **more) == code


def test_a_wiped_key_set_gets_no_permit() -> None:
    assert refusal(core.record_wiped(collected(), KEYS), state()) == "PERMIT_KEY_SET_UNKNOWN"


def test_a_source_that_was_removed_counts_as_oldest() -> None:
    assert refusal(collected(), state(listed={B: 1})) == "permitted"


def test_a_source_removed_after_its_height_was_seen_does_not_let_an_older_target_pass() -> None:
    facts = core.admit_evidence(collected(), RULES, state(10, listed={A: 9, B: 3}), NOW)
    assert refusal(facts, state(11, listed={B: 3})) == "PERMIT_TARGET_NOT_NEWER"


def test_removing_and_adding_an_old_target_again_does_not_make_it_newer() -> None:
    facts = core.admit_evidence(collected(), RULES, state(10, listed={A: 5, B: 3}), NOW)
    facts = core.admit_evidence(facts, RULES, state(11, listed={A: 5}), NOW)
    assert refusal(facts, state(12, listed={A: 5, B: 12})) == "PERMIT_TARGET_NOT_NEWER"


def test_the_lowest_height_of_a_duplicate_counts_and_one_of_its_signatures_is_enough() -> None:
    entries = (Entry(3, A, ""), Entry(9, B, "garbage"), Entry(2, B, f"sig of {B}"))
    assert refusal(collected(), state(entries=entries)) == "PERMIT_TARGET_NOT_NEWER"
    assert refusal(collected(), state(entries=(*entries[:2], Entry(4, B, f"sig of {B}")))) == "permitted"


def test_a_transition_the_measured_policy_does_not_list_is_refused() -> None:
    assert refusal(collected(), state(), replace(RULES, transitions=frozenset({(A, C)}))) == "PERMIT_TRANSITION_REFUSED"
    assert refusal(collected(), state(), replace(RULES, transitions=frozenset({(A, B)}))) == "permitted"


def test_the_same_request_gives_the_same_permit_and_a_newer_block_renews_it_with_its_count() -> None:
    facts = release(permitted(), B).facts
    again, same = permit(facts, state(), now=NOW + 30)
    assert (again, same) == (facts, facts.permits[KEYS])
    _, renewed = permit(facts, state(11), now=NOW + 30)
    assert isinstance(renewed, Permit)
    assert (renewed.expires_at_unix_s, renewed.instances, renewed.state) == (NOW + 90, 1, "delivered")


@pytest.mark.parametrize("over", ["expired", "durable"])
def test_a_permit_that_is_over_is_issued_anew_with_a_fresh_count(over: str) -> None:
    facts = release(permitted(), B).facts
    if over == "durable":
        facts = core.record_progress(facts, KEYS, B, "durable", NOW)
    _, fresh = permit(facts, state(), now=NOW + (60 if over == "expired" else 1))
    assert isinstance(fresh, Permit)
    assert (fresh.instances, fresh.state) == (0, "issued")


def test_a_target_revoked_before_its_keys_were_durable_loses_its_permit() -> None:
    facts, outcome = permit(permitted(), state(11, listed={A: 3}))
    assert isinstance(outcome, KeyvaultError)
    assert facts.floor_number == 11  # the newer block counts, although the permit was refused
    assert (facts.permits, released(facts, B)) == ({}, "RELEASE_REVOKED")
    durable = core.record_progress(permitted(), KEYS, B, "durable", NOW)
    assert permit(durable, state(11, listed={A: 3}))[0].permits == durable.permits


def test_a_permit_for_a_newer_target_replaces_the_older_one() -> None:
    facts, outcome = permit(permitted(), state(11, program=C, listed={A: 3, B: 7, C: 8}), target=C)
    assert isinstance(outcome, Permit)
    assert released(facts, B) == "PERMIT_OTHER_TARGET"
    assert release(facts, C).role == "target"


# release


def test_before_the_permit_a_new_node_is_told_to_ask_again() -> None:
    with pytest.raises(KeyvaultError) as caught:
        release(collected(), B)
    assert (caught.value.code, caught.value.kind) == ("NO_PERMIT_YET", "transient")


def test_another_enclave_id_asking_after_the_keys_were_handed_out_is_refused() -> None:
    facts = release(permitted(), B).facts
    assert released(facts, C) == "PERMIT_OTHER_TARGET"
    assert released(core.record_progress(facts, KEYS, B, "durable", NOW), C) == "NO_PERMIT_YET"


def test_one_instance_of_the_target_too_many_is_refused() -> None:
    facts = permitted()
    for count in range(RULES.instances_max):
        assert facts.permits[KEYS].instances == count
        facts = release(facts, B).facts
    assert released(facts, B) == "PERMIT_INSTANCES_SPENT"


def test_a_target_that_confirmed_durable_gets_nothing_more() -> None:
    facts = core.record_progress(release(permitted(), B).facts, KEYS, B, "durable", NOW)
    assert released(facts, B) == "PERMIT_ALREADY_DURABLE"


def test_an_expired_permit_is_refused() -> None:
    assert released(permitted(), B, now=NOW + 59) == "nothing was refused"
    assert released(permitted(), B, now=NOW + 60) == "PERMIT_EXPIRED"


def test_the_exact_source_gets_its_set_back_at_any_time_without_permit_or_chain() -> None:
    for facts in (collected(), permitted(), release(permitted(), B).facts):
        for now in (0, NOW, NOW + 10**9):
            back = release(facts, A, now=now)
            assert (back.role, back.key_set_id, back.facts) == ("source", KEYS, facts)


def test_who_was_seen_removed_from_the_chains_list_gets_nothing_until_it_is_listed_again() -> None:
    seen = core.admit_evidence(release(permitted(), B).facts, RULES, state(11), NOW)
    removed = core.admit_evidence(seen, RULES, state(12, listed={}), NOW)
    assert removed.revoked == {A, B}
    assert (released(removed, A), released(removed, B)) == ("RELEASE_REVOKED", "RELEASE_REVOKED")
    listed = core.admit_evidence(removed, RULES, state(13), NOW)
    assert release(listed, A).role == "source"
    never_listed = permitted(listed={B: 7})  # a source that was never in the list was not seen removed
    assert release(never_listed, A).role == "source"


def test_only_the_latest_source_of_a_set_gets_it_back() -> None:
    facts = core.record_progress(permitted(), KEYS, B, "durable", NOW)
    assert release(facts, A).role == "source"  # until the next upgrade has collected from B, A can be gone back to
    facts = collected(source=B, facts=facts)
    assert released(facts, A) == "NO_PERMIT_YET"
    assert release(facts, B).role == "source"


def test_a_source_with_two_sets_gets_the_newest_or_the_one_it_wants() -> None:
    facts = collected(key_set=MORE, facts=collected(), now=NOW + 1)
    assert release(facts, A).key_set_id == MORE
    assert release(facts, A, wanted=KEYS).key_set_id == KEYS
    assert released(facts, A, wanted="9" * 64) == "NO_PERMIT_YET"


def test_a_source_that_is_also_an_expired_target_gets_its_own_set() -> None:
    facts = collected(source=B, key_set=MORE, facts=permitted())
    assert release(facts, B, now=NOW + 61).key_set_id == MORE
    assert release(facts, B).key_set_id == KEYS


# progress, commit, retention


def test_progress_never_steps_back_and_ignores_who_is_not_the_target() -> None:
    facts = release(permitted(), B).facts
    durable = core.record_progress(facts, KEYS, B, "durable", NOW + 5)
    assert durable.permits[KEYS].durable_at_unix_s == NOW + 5
    assert core.record_progress(durable, KEYS, B, "received", NOW) is durable
    assert core.record_progress(facts, KEYS, A, "durable", NOW) is facts
    assert core.record_progress(facts, MORE, B, "durable", NOW) is facts
    assert core.record_progress(facts, KEYS, B, "received", NOW).permits[KEYS].state == "received"


def test_keys_are_wiped_only_after_durable_commit_and_retention() -> None:
    facts = release(permitted(), B).facts
    late = NOW + 10**8
    assert core.wipeable(facts, RULES, late) == []
    assert code_of(lambda: core.record_committed(facts, KEYS, B, NOW)) == "PERMIT_KEY_SET_UNKNOWN"
    facts = core.record_progress(facts, KEYS, B, "durable", NOW)
    assert core.wipeable(facts, RULES, late) == []
    facts = core.record_committed(facts, KEYS, B, NOW + 50)
    assert core.record_committed(facts, KEYS, B, NOW + 90) is facts
    assert core.wipeable(facts, RULES, NOW + 149) == []
    assert core.wipeable(facts, RULES, NOW + 150) == [KEYS]
    wiped = core.record_wiped(facts, KEYS)
    assert core.wipeable(wiped, RULES, late) == []
    assert released(wiped, A) == "RELEASE_KEY_SET_WIPED"
    assert released(wiped, B) == "PERMIT_ALREADY_DURABLE"


def test_a_jump_of_the_hosts_clock_does_not_hasten_wiping() -> None:
    facts = core.record_committed(core.record_progress(permitted(), KEYS, B, "durable", NOW), KEYS, B, NOW)
    assert core.wipeable(facts, RULES, NOW + 10**9) == [KEYS]
    assert not core.kept_long_enough(facts, RULES, KEYS)
    facts = core.count_kept(core.count_kept(facts, 60), 40)
    assert core.kept_long_enough(facts, RULES, KEYS)
    assert core.count_kept(permitted(), 60) == permitted()  # nothing is committed, so nothing counts
    assert core.count_kept(facts, 0) is facts
    wiped = core.record_wiped(facts, KEYS)
    assert core.count_kept(wiped, 60) is wiped


def test_the_agent_can_postpone_the_wiping_but_never_hasten_it() -> None:
    facts = core.record_committed(core.record_progress(permitted(), KEYS, B, "durable", NOW), KEYS, B, NOW)
    postponed = core.record_retain(facts, KEYS, NOW + 500)
    assert core.wipeable(postponed, RULES, NOW + 499) == []
    assert core.record_retain(postponed, KEYS, 0) is postponed
    assert core.wipeable(core.record_retain(facts, KEYS, 1), RULES, NOW + 99) == []
    assert code_of(lambda: core.record_retain(facts, MORE, NOW)) == "PERMIT_KEY_SET_UNKNOWN"


def test_facts_survive_their_json() -> None:
    facts = core.record_committed(core.record_progress(permitted(), KEYS, B, "durable", NOW), KEYS, B, NOW)
    facts = core.admit_evidence(facts, RULES, state(11, authorities={"set_id": 1}), NOW)
    assert decode_facts(facts.encode()) == facts


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: [], lambda v: {**v, "format": 2}, lambda v: {**v, "more": 1}, lambda v: {**v, "add_heights": []},
        lambda v: {**v, "add_heights": {"a": "1"}},
        lambda v: {**v, "revoked": {}}, lambda v: {**v, "revoked": [1]},
        lambda v: {**v, "floor_number": "1"},
        lambda v: {**v, "floor_hash": 1}, lambda v: {**v, "collected": {}}, lambda v: {**v, "permits": {}},
        lambda v: {**v, "collected": [1]}, lambda v: {**v, "collected": [{**v["collected"][0], "epoch": True}]},
        lambda v: {**v, "collected": [{**v["collected"][0], "more": 1}]},
    ],
)  # fmt: skip
def test_a_damaged_record_of_facts_is_refused(spoil: Any) -> None:
    import json

    damaged = json.dumps(spoil(json.loads(permitted().encode()))).encode()
    assert code_of(lambda: decode_facts(damaged)) == "STORE_FORMAT_INVALID"
    assert code_of(lambda: decode_facts(b"{")) == "STORE_FORMAT_INVALID"
