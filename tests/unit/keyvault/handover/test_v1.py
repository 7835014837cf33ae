"""Handover v1: both roles against each other, and what the field's programs let pass but ours refuse."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from attestation.network import decode_multibase, encode_multibase
from attestation.sgx import DEBUG, INIT, MODE64BIT
from keyvault.errors import KeyvaultError
from keyvault.handover import v1
from keyvault.handover.key_set import KeySet
from tests.doubles.vault_kit import SECRET, Enclave, altered, code_of, sign

UPGRADER, NODE, STRANGER = Enclave("upgrader"), Enclave("node"), Enclave("stranger")


def give(_: str) -> KeySet:
    return KeySet(SECRET)


def query_of(requester: v1.V1Requester, holder: v1.V1Holder, now_s: float = 0.0) -> dict[str, str]:
    return requester.secret_query(holder.challenge(requester.random_query(), now_s=now_s))


def test_the_secret_arrives_whole_and_only_for_the_enclave_that_asked() -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    asked: list[str] = []

    def release(enclave_id: str) -> KeySet:
        asked.append(enclave_id)
        return KeySet(SECRET)

    body = holder.answer(query_of(requester, holder), release, now_s=1.0)
    assert bytes(requester.open(body).view()) == SECRET
    assert asked == [UPGRADER.id]
    assert set(json.loads(body)) == {"EnclaveSignature", "EncryptSecret", "Pubkey", "LocalReport"}


def test_a_used_challenge_does_not_serve_twice() -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    query = query_of(requester, holder)
    holder.answer(query, give, now_s=1.0)
    assert code_of(lambda: holder.answer(query, give, now_s=2.0)) == "V1_CHALLENGE_UNKNOWN"


def test_a_challenge_expires() -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    query = query_of(requester, holder)
    late = v1.CHALLENGE_TTL_S + 0.1
    assert code_of(lambda: holder.answer(query, give, now_s=late)) == "V1_CHALLENGE_UNKNOWN"


def test_a_refused_release_does_not_consume_the_challenge() -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    query = query_of(requester, holder)

    def not_yet(_: str) -> KeySet:
        raise KeyvaultError(code="NO_PERMIT_YET", what="a", why="b", kind="transient")

    assert code_of(lambda: holder.answer(query, not_yet, now_s=1.0)) == "NO_PERMIT_YET"
    assert bytes(requester.open(holder.answer(query, give, now_s=2.0)).view()) == SECRET


def test_strangers_polling_do_not_end_the_requesters_session() -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    query = query_of(requester, holder)
    for _ in range(v1.LIVE_PER_ENCLAVE_MAX - 1):
        holder.challenge(requester.random_query(), now_s=0.0)
    assert code_of(lambda: holder.challenge(requester.random_query(), now_s=0.0)) == "V1_BUSY"
    for number in range(v1.LIVE_MAX):
        code_of(lambda n=number: holder.challenge(v1.V1Requester(Enclave(f"s{n}").party).random_query(), now_s=0.0))
    assert code_of(lambda: query_of(v1.V1Requester(STRANGER.party), holder)) == "V1_BUSY"
    assert bytes(requester.open(holder.answer(query, give, now_s=1.0)).view()) == SECRET
    assert holder.challenge(requester.random_query(), now_s=v1.CHALLENGE_TTL_S + 1)


@pytest.mark.parametrize(
    ("enclave", "code"),
    [
        (replace(UPGRADER, flags=INIT | MODE64BIT | DEBUG), "PEER_DEBUG"),
        (replace(UPGRADER, flags=MODE64BIT), "PEER_NOT_INIT"),
        (replace(UPGRADER, signatures=(sign(STRANGER.id),)), "NETWORK_SIGNATURE_BAD"),
        (replace(UPGRADER, signatures=(bytes(64),)), "NETWORK_SIGNATURE_BAD"),
    ],
)
def test_a_requester_that_the_policy_refuses_gets_nothing(enclave: Enclave, code: str) -> None:
    requester, holder = v1.V1Requester(enclave.party), v1.V1Holder(NODE.party)
    assert code_of(lambda: holder.answer(query_of(requester, holder), give, now_s=0.0)) == code


def test_a_report_relayed_by_a_third_enclave_is_refused() -> None:
    """The answer to STRANGER's challenge is targeted at STRANGER: NODE cannot verify its MAC."""
    requester, holder, relay = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party), v1.V1Holder(STRANGER.party)
    query = query_of(requester, relay)
    holder.challenge(requester.random_query(), now_s=0.0)
    assert code_of(lambda: holder.answer(query, give, now_s=0.0)) == "REPORT_MAC_BAD"


def test_another_key_than_the_one_that_answered_the_challenge_is_refused() -> None:
    requester, other, holder = v1.V1Requester(UPGRADER.party), v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    query, stolen = query_of(requester, holder), query_of(other, holder)
    mixed = {**query, "pubkey": stolen["pubkey"]}
    assert code_of(lambda: holder.answer(mixed, give, now_s=0.0)) == "V1_CHALLENGE_UNKNOWN"


def test_a_holder_that_is_not_the_expected_one_cannot_push_fake_keys() -> None:
    party = replace(UPGRADER, expected=frozenset({NODE.id})).party
    requester, fake = v1.V1Requester(party), v1.V1Holder(STRANGER.party)
    body = fake.answer(query_of(requester, fake), give, now_s=0.0)
    assert code_of(lambda: requester.open(body)) == "PEER_NOT_UPGRADER"


def test_an_answer_from_another_enclave_than_the_challenge_is_refused() -> None:
    requester, holder, second = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party), v1.V1Holder(STRANGER.party)
    query_of(requester, second)
    body = holder.answer(query_of(requester, holder), give, now_s=0.0)
    query_of(requester, second)
    assert code_of(lambda: requester.open(body)) == "V1_HOLDER_CHANGED"


def test_a_ciphertext_that_the_report_does_not_sign_is_refused() -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    body = holder.answer(query_of(requester, holder), give, now_s=0.0)
    other = holder.answer(query_of(v1.V1Requester(UPGRADER.party), holder), give, now_s=0.0)
    changed = altered(body, EncryptSecret=json.loads(other)["EncryptSecret"])
    assert code_of(lambda: requester.open(changed)) == "V1_SIGNATURE_BAD"


@pytest.mark.parametrize("answer", [lambda r: r.secret_query(b""), lambda r: r.open(b"")])
def test_an_empty_answer_means_not_yet(answer: Callable[[v1.V1Requester], object]) -> None:
    requester = v1.V1Requester(UPGRADER.party)
    with pytest.raises(KeyvaultError) as caught:
        answer(requester)
    assert (caught.value.code, caught.value.kind) == ("V1_REFUSED", "transient")


def _drop(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda fields: {key: value for key, value in fields.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        *[_drop(name) for name in v1.ANSWER_FIELDS],
        lambda fields: {**fields, "More": "AA=="},
        lambda fields: {**fields, "Pubkey": 3},
        lambda fields: {**fields, "Pubkey": "not base64!"},
        lambda fields: {**fields, "Pubkey": "é"},
        lambda fields: {**fields, "Pubkey": fields["Pubkey"][:-1]},
        lambda fields: {**fields, "Pubkey": "/x=="},
        lambda fields: {**fields, "LocalReport": fields["Pubkey"]},
    ],
)
def test_a_malformed_answer_is_refused(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    fields = json.loads(holder.answer(query_of(requester, holder), give, now_s=0.0))
    assert code_of(lambda: requester.open(json.dumps(change(fields)).encode())) == "V1_MESSAGE_INVALID"


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"null", b"[" * 100_000, b'{"Pubkey": "", "Pubkey": ""}', b" " * (v1.ANSWER_MAX_BYTES + 1)]
)
def test_garbage_for_an_answer_is_refused(body: bytes) -> None:
    assert code_of(lambda: v1.V1Requester(UPGRADER.party).open(body)) == "V1_MESSAGE_INVALID"


@pytest.mark.parametrize("name", ["pubkey", "authSignature", "teereport"])
@pytest.mark.parametrize("value", [None, "b", "baa", "zaaaa", "bA", "b" + "a" * 900])
def test_a_malformed_query_is_refused(name: str, value: str | None) -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    query = query_of(requester, holder)
    changed = {key: text for key, text in {**query, name: value}.items() if text is not None}
    assert code_of(lambda: holder.answer(changed, give, now_s=0.0)) in {"V1_MESSAGE_INVALID", "MULTIBASE_INVALID"}


@pytest.mark.parametrize("position", [0, 4, 8, 15])
def test_a_report_with_another_open_enclave_header_is_refused(position: int) -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    data = bytearray(decode_multibase(requester.random_query()["verifyreport"]))
    data[position] ^= 1
    query = {"verifyreport": encode_multibase(bytes(data))}
    assert code_of(lambda: holder.challenge(query, now_s=0.0)) == "V1_MESSAGE_INVALID"


def test_a_challenge_has_no_leading_zeros_and_exactly_16_random_bytes_behind_it() -> None:
    assert v1.challenge_bytes(bytes(3) + b"\x01" * 13) == b"\x01" * 13
    with pytest.raises(ValueError, match="16"):
        v1.challenge_bytes(b"short")


@pytest.mark.parametrize("size", [0, v1.BOX_OVERHEAD - 1, v1.BOX_OVERHEAD + v1.SECRET_MAX_BYTES + 1])
def test_a_ciphertext_of_impossible_length_is_refused(size: int) -> None:
    assert code_of(lambda: v1.box_open(bytes(32), bytes(size))) == "V1_MESSAGE_INVALID"
