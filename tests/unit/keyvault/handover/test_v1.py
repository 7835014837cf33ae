"""Handover v1: both roles with each other, and messages that the field's programs accept but ours refuse."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.network import NetworkKeys, decode_multibase, encode_multibase
from attestation.sgx import DEBUG, INIT, MODE64BIT
from keyvault.errors import KeyvaultError
from keyvault.handover import v1
from keyvault.handover.key_set import KeySet
from tests.doubles.vault_kit import KEYS, SECRET, Enclave, altered, code_of, sign

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


def test_a_requester_that_proved_itself_consumes_its_challenge_whatever_the_answer() -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)

    def not_yet(_: str) -> KeySet:
        raise KeyvaultError(code="NO_PERMIT_YET", what="a", why="b", kind="transient")

    query = query_of(requester, holder)
    assert code_of(lambda: holder.answer(query, not_yet, now_s=1.0)) == "NO_PERMIT_YET"
    assert code_of(lambda: holder.answer(query, give, now_s=1.0)) == "V1_CHALLENGE_UNKNOWN"


def test_polls_before_the_permit_do_not_delay_the_keys_after_it() -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)

    def not_yet(_: str) -> KeySet:
        raise KeyvaultError(code="NO_PERMIT_YET", what="a", why="b", kind="transient")

    for poll in range(50):
        query = query_of(requester, holder, float(poll))
        assert code_of(lambda q=query, p=poll: holder.answer(q, not_yet, now_s=float(p))) == "NO_PERMIT_YET"
    body = holder.answer(query_of(requester, holder, 50.0), give, now_s=50.0)
    assert bytes(requester.open(body).view()) == SECRET


def test_an_unknown_challenge_means_begin_again() -> None:
    """The holder was restarted between the two requests: the field's programs answer that with an empty body."""
    requester = v1.V1Requester(UPGRADER.party)
    query = query_of(requester, v1.V1Holder(NODE.party))
    with pytest.raises(KeyvaultError) as caught:
        v1.V1Holder(NODE.party).answer(query, give, now_s=0.0)
    assert (caught.value.code, caught.value.kind) == ("V1_CHALLENGE_UNKNOWN", "transient")


def test_polling_in_an_enclaves_name_does_not_end_that_enclaves_challenge() -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    query = query_of(requester, holder)
    for _ in range(200):
        holder.challenge(requester.random_query(), now_s=0.0)
    for number in range(50):
        holder.challenge(v1.V1Requester(Enclave(f"s{number}").party).random_query(), now_s=0.0)
    assert bytes(requester.open(holder.answer(query, give, now_s=1.0)).view()) == SECRET


def test_the_table_of_challenges_is_bounded_and_the_oldest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v1, "ENCLAVES_MAX", 10)
    holder = v1.V1Holder(NODE.party)
    early, late = v1.V1Requester(UPGRADER.party), v1.V1Requester(STRANGER.party)
    first, second = query_of(early, holder), query_of(late, holder)
    for number in range(9):
        holder.challenge(v1.V1Requester(Enclave(f"s{number}").party).random_query(), now_s=0.0)
    assert len(holder._challenges) == 10
    assert code_of(lambda: holder.answer(first, give, now_s=0.0)) == "V1_CHALLENGE_UNKNOWN"
    assert bytes(late.open(holder.answer(second, give, now_s=0.0)).view()) == SECRET


def test_a_challenge_is_renewed_before_it_expires_and_the_earlier_one_still_serves() -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    early = query_of(requester, holder, 0.0)
    later = v1.CHALLENGE_RENEWED_AFTER_S
    challenges = [holder.challenge(requester.random_query(), now_s=at) for at in (0.0, later - 1, later, later + 1)]
    digests = [v1.decode_report(challenge).report_data for challenge in challenges]
    assert digests[0] == digests[1] != digests[2] == digests[3]
    assert bytes(requester.open(holder.answer(early, give, now_s=later + 2)).view()) == SECRET


NEW_KEY = Ed25519PrivateKey.from_private_bytes(bytes([8]) * 32)
NEW_KEYS = NetworkKeys((NEW_KEY.public_key().public_bytes_raw(),))


def test_of_two_network_signatures_the_holder_sends_the_one_that_the_requester_knows() -> None:
    """The network changed its key: both keys signed the vault, the field's node knows only the old one."""
    holder_enclave = replace(NODE, signatures=(sign(NODE.id, NEW_KEY), sign(NODE.id)))
    both = NetworkKeys((*NEW_KEYS.keys, *KEYS.keys))
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(holder_enclave.party, both)
    assert bytes(requester.open(holder.answer(query_of(requester, holder), give, now_s=0.0)).view()) == SECRET


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


def test_fields_of_a_later_version_are_ignored() -> None:
    requester, holder = v1.V1Requester(UPGRADER.party), v1.V1Holder(NODE.party)
    body = holder.answer(query_of(requester, holder), give, now_s=0.0)
    assert bytes(requester.open(altered(body, More={"version": 3})).view()) == SECRET


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
