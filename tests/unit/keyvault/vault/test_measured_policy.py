"""The measured policy: strict decoding, all mistakes in one report, and a host that can only make it stricter."""

import json
from typing import Any

import pytest

from attestation.network import encode_multibase
from keyvault.errors import KeyvaultError
from keyvault.vault.measured_policy import VaultPolicy, parse_policy, tighten
from tests.doubles.vault_kit import NETWORK, code_of

KEY = encode_multibase(NETWORK.public_key().public_bytes_raw())
ID, OTHER = "a" * 64, "b" * 64
CHECKPOINT = {
    "block_number": 7,
    "set_id": 1,
    "authorities": [["0x" + NETWORK.public_key().public_bytes_raw().hex(), 1]],
}
BASE: dict[str, Any] = {
    "network_keys": [KEY],
    "genesis_hash": "0x" + "11" * 32,
    "evidence_mode": "proven",
    "checkpoint": CHECKPOINT,
}
UNPROVEN = {**BASE, "evidence_mode": "single", "unsafe_unproven_evidence": True, "checkpoint": None}


def parse(**fields: Any) -> VaultPolicy:
    return parse_policy(json.dumps({**BASE, **fields}).encode())


def mistakes(**fields: Any) -> str:
    with pytest.raises(KeyvaultError) as caught:
        parse(**fields)
    assert caught.value.code == "VAULT_POLICY_INVALID"
    return caught.value.why


def test_the_defaults_are_the_strict_ones() -> None:
    policy = parse()
    assert policy.unsafe() == ()
    assert policy.rules(ID).evidence_modes == {"proven"}
    assert policy.rules(ID).require_listed_vault
    assert policy.rules(ID).floor_number == 7
    assert not policy.v1_allowed(ID)


@pytest.mark.parametrize(
    ("mode", "modes"),
    [("single", {"proven", "quorum", "single"}), ("quorum", {"proven", "quorum"}), ("proven", {"proven"})],
)
def test_a_mode_accepts_itself_and_stronger_ones(mode: str, modes: set[str]) -> None:
    policy = parse(evidence_mode=mode, unsafe_unproven_evidence=True)
    assert policy.rules(ID).evidence_modes == modes
    assert policy.unsafe() == ("unsafe_unproven_evidence",)


def test_all_mistakes_are_told_at_once() -> None:
    why = mistakes(
        genesis_hash="xyz", threshold=3, permit_ttl_s=0, unsafe_simulated_tee="yes", retention=5, allow_v1=["short"]
    )
    for name in ("genesis_hash", "network_keys", "permit_ttl_s", "unsafe_simulated_tee", "retention", "allow_v1"):
        assert name in why


@pytest.mark.parametrize(
    "fields",
    [
        {"evidence_mode": "single"},
        {"evidence_mode": "quorum"},
        {"evidence_mode": "trust me"},
        {"evidence_mode": 5},
        {"checkpoint": None},
        {"checkpoint": 7},
        {"checkpoint": {"block_number": 7}},
        {"network_keys": KEY},
        {"network_keys": []},
        {"network_keys": [KEY, KEY]},
        {"isvsvn_floor": True},
        {"isvsvn_floor": 65536},
        {"transitions": [[ID]]},
        {"transitions": "any"},
        {"transitions": [[ID, "x"]]},
        {"layouts": ["x"]},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    assert mistakes(**fields)


@pytest.mark.parametrize("name", ["network_keys", "genesis_hash", "evidence_mode"])
def test_what_must_be_said_cannot_be_left_out(name: str) -> None:
    data = json.dumps({k: v for k, v in BASE.items() if k != name}).encode()
    assert code_of(lambda: parse_policy(data)) == "VAULT_POLICY_INVALID"


@pytest.mark.parametrize("data", [b"", b"[]", b'{"a":1,"a":2}', b"\xff", b" " * 300_000])
def test_what_is_not_strict_json_is_refused(data: bytes) -> None:
    assert code_of(lambda: parse_policy(data)) == "VAULT_POLICY_INVALID"
    assert code_of(lambda: tighten(parse(), data)) == "VAULT_POLICY_INVALID"


def test_v1_and_transitions_can_name_ids() -> None:
    policy = parse(allow_v1=[ID], transitions=[[ID, OTHER]])
    assert (policy.v1_allowed(ID), policy.v1_allowed(OTHER)) == (True, False)
    assert policy.rules(ID).transitions == {(ID, OTHER)}
    assert parse(allow_v1=True).v1_allowed(OTHER)
    assert parse(transitions=None).transitions is None


LOOSE = {
    **UNPROVEN, "unsafe_simulated_tee": True, "require_listed_vault": False, "isvsvn_floor": 2, "permit_ttl_s": 100,
    "retention_s": 100, "evidence_age_max_s": 100, "instances_max": 4, "allow_v1": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tighter", "looser"),
    [
        ("isvsvn_floor", 3, 1),
        ("permit_ttl_s", 99, 101),
        ("retention_s", 101, 99),
        ("evidence_age_max_s", 99, 101),
        ("instances_max", 3, 5),
    ],
)
def test_host_settings_that_loosen_the_vaults_are_refused(name: str, tighter: int, looser: int) -> None:
    policy = parse_policy(json.dumps(LOOSE).encode())
    assert getattr(tighten(policy, json.dumps({name: tighter}).encode()), name) == tighter
    assert code_of(lambda: tighten(policy, json.dumps({name: looser}).encode())) == "VAULT_SETTING_LOOSENS"


@pytest.mark.parametrize(
    ("measured", "given", "code"),
    [
        ({}, {"unsafe_simulated_tee": True}, "VAULT_SETTING_LOOSENS"),
        ({}, {"unsafe_unproven_evidence": True}, "VAULT_SETTING_LOOSENS"),
        ({}, {"require_listed_vault": False}, "VAULT_SETTING_LOOSENS"),
        ({}, {"evidence_mode": "single"}, "VAULT_SETTING_LOOSENS"),
        ({}, {"allow_v1": True}, "VAULT_SETTING_LOOSENS"),
        ({}, {"allow_v1": [ID]}, "VAULT_SETTING_LOOSENS"),
        ({"allow_v1": [ID]}, {"allow_v1": [ID, OTHER]}, "VAULT_SETTING_LOOSENS"),
        ({"allow_v1": [ID]}, {"allow_v1": True}, "VAULT_SETTING_LOOSENS"),
        ({"transitions": [[ID, OTHER]]}, {"transitions": None}, "VAULT_SETTING_LOOSENS"),
        ({"transitions": [[ID, OTHER]]}, {"transitions": [[OTHER, ID]]}, "VAULT_SETTING_LOOSENS"),
        ({}, {"network_keys": [KEY]}, "VAULT_SETTING_LOOSENS"),
        ({}, {"genesis_hash": "22" * 32}, "VAULT_SETTING_LOOSENS"),
        ({}, {"checkpoint": None}, "VAULT_SETTING_LOOSENS"),
        ({}, {"permit_ttl_s": "long"}, "VAULT_POLICY_INVALID"),
        (LOOSE, {"unsafe_simulated_tee": False, "require_listed_vault": True}, "nothing was refused"),
        (LOOSE, {"evidence_mode": "quorum", "allow_v1": False}, "nothing was refused"),
        ({"allow_v1": True}, {"allow_v1": [ID]}, "nothing was refused"),
        ({"allow_v1": [ID, OTHER]}, {"allow_v1": [ID]}, "nothing was refused"),
        ({}, {"transitions": [[ID, OTHER]]}, "nothing was refused"),
    ],
)
def test_the_host_can_only_tighten(measured: dict[str, Any], given: dict[str, Any], code: str) -> None:
    policy = parse(**measured)
    assert code_of(lambda: tighten(policy, json.dumps(given).encode())) == code
