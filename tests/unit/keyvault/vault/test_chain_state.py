"""Chain evidence as the vault decodes it: a claim by its form, proven evidence by chain_watcher's verifier."""

import json
from typing import Any

import pytest

from keyvault.handover.key_set import KEY_SET_BYTES_MAX, KeySet, key_set_id
from keyvault.vault.chain_state import ChainState, decode_unproven, trust_root, verify_proven
from tests.doubles.state_maker import GENESIS, NEW, OLD, Case, entries_value
from tests.doubles.vault_kit import GOOD, SECRET, A, code_of


def test_a_claim_is_decoded() -> None:
    state = decode_unproven(GOOD)
    assert isinstance(state, ChainState)
    assert (state.mode, state.genesis_hash, state.block_hash) == ("single", "11" * 32, "22" * 32)
    assert (state.program_id, state.heights()) == (A, {A: 1})
    assert decode_unproven({**GOOD, "program": None, "mode": "quorum"}).program_id is None


def test_one_bad_entry_on_the_chain_does_not_hide_the_good_ones() -> None:
    bad = {"height": 9, "enclave_id": "not an id", "signature": "x"}
    assert decode_unproven({**GOOD, "enclave_ids": [bad, *GOOD["enclave_ids"]]}).heights() == {A: 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "proven"}, {"mode": 1}, {"more": 1}, {"genesis_hash": "0x12"}, {"genesis_hash": None},
        {"block_number": -1}, {"block_number": 2**32}, {"block_number": True}, {"block_hash": "0X" + "22" * 32},
        {"timestamp_ms": 1.5}, {"program": []}, {"program": {"enclave_id": A}},
        {"program": {**GOOD["program"], "version": 5}}, {"program": {**GOOD["program"], "origin_url": "x" * 2049}},
        {"enclave_ids": {}}, {"enclave_ids": [1]}, {"enclave_ids": [{"height": 1}]},
        {"enclave_ids": [{"height": "1", "enclave_id": A, "signature": ""}]},
        {"enclave_ids": [{"height": 1, "enclave_id": A, "signature": None}]},
        {"enclave_ids": GOOD["enclave_ids"] * 2049},
    ],
)  # fmt: skip
def test_a_claim_of_another_form_is_refused(fields: dict[str, Any]) -> None:
    assert code_of(lambda: decode_unproven({**GOOD, **fields})) == "VAULT_EVIDENCE_MALFORMED"
    assert code_of(lambda: decode_unproven([])) == "VAULT_EVIDENCE_MALFORMED"


def test_proven_evidence_keeps_the_verifiers_codes() -> None:
    trust = trust_root("11" * 32, {"block_number": 0, "set_id": 0, "authorities": [["0x" + "33" * 32, 1]]}, ())
    assert code_of(lambda: verify_proven({"mode": "proven"}, trust)) == "EVIDENCE_INVALID"
    wrong = {
        "mode": "proven", "genesis_hash": "0x" + "22" * 32, "set_changes": [], "header": "0x", "justification": "0x",
        "proof": [], "layout": {},
    }  # fmt: skip
    assert code_of(lambda: verify_proven(wrong, trust)) == "EVIDENCE_WRONG_GENESIS"
    assert trust_root("11" * 32, trust.checkpoint.to_json(), ("aa" * 32,)).layouts == {"aa" * 32}
    assert code_of(lambda: trust_root("11" * 32, {}, ())) == "VAULT_POLICY_INVALID"


def test_proven_evidence_becomes_the_state_the_decision_reads() -> None:
    case = Case(changes=(("enclave_ids", entries_value((10, OLD), (20, NEW), (30, "é"))),))
    trust = trust_root(GENESIS.hex(), case.trust.checkpoint.to_json(), ())
    state = verify_proven(json.loads(json.dumps(case.json())), trust)
    assert (state.mode, state.block_number, state.program_id) == ("proven", 100, NEW)
    assert state.heights() == {OLD: 10, NEW: 20}
    assert state.authorities is not None
    assert state.authorities["set_id"] == 2
    assert trust_root(GENESIS.hex(), state.authorities, ()).checkpoint.set_id == 2
    without = Case(changes=(("dc_program", None),))
    assert verify_proven(without.json(), trust).program_id is None


# key sets


def test_a_key_set_is_not_shown_not_pickled_and_wiped() -> None:
    import pickle

    with KeySet(SECRET) as key_set:
        text = f"{key_set!r} {key_set} {[key_set]}"
        assert SECRET.decode() not in text
        assert key_set.key_set_id[:8] in text
        assert (len(key_set), key_set.key_set_id) == (len(SECRET), key_set_id(SECRET))
        assert key_set == KeySet(SECRET)
        assert key_set != KeySet(b"other")
        assert key_set != SECRET
        with pytest.raises(TypeError):
            pickle.dumps(key_set)
        with pytest.raises(TypeError):
            json.dumps({"keys": key_set})
        with pytest.raises(TypeError):
            {key_set}  # noqa: B018
        with pytest.raises(TypeError):
            key_set.view()[0] = 1
        buffer = key_set.buffer
    assert not any(buffer)
    key_set.wipe()
    assert code_of(key_set.view) == "KEY_SET_WIPED"


@pytest.mark.parametrize("size", [0, KEY_SET_BYTES_MAX + 1])
def test_a_key_set_of_unusable_size_is_refused(size: int) -> None:
    assert code_of(lambda: KeySet(bytes(size))) == "KEY_SET_SIZE_INVALID"
    KeySet(bytes(KEY_SET_BYTES_MAX))
