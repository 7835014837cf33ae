"""Known answers of the token proof, recomputed from its module's text; different calls have different proofs."""

import hashlib
import hmac
from dataclasses import replace

import pytest

from keyvault.vault import token_proof
from keyvault.vault.token_proof import Nonces, VaultNonces, make_call, parse_call

TOKEN = b"a token of the agent"
NONCES = Nonces(bytes(range(32)), bytes(range(40)))


def by_hand(tag: bytes, *parts: bytes) -> bytes:
    message = b"".join(len(part).to_bytes(8, "big") + part for part in (tag, *parts))
    return hmac.new(TOKEN, message, hashlib.sha256).digest()


def test_each_proof_is_an_hmac_over_its_own_tag_and_everything_it_is_about() -> None:
    call = make_call(TOKEN, NONCES, "POST", "/vault/permit", b"{}")
    digest = hashlib.sha256(b"{}").digest()
    a, v = NONCES.agent, NONCES.vault
    assert call.proof == by_hand(b"dcupgrade agent api v1 call by agent", a, v, b"POST", b"/vault/permit", digest)
    assert token_proof.challenge_proof(TOKEN, NONCES) == by_hand(b"dcupgrade agent api v1 challenge by vault", a, v)
    answer = token_proof.answer_proof(TOKEN, NONCES, 200, b"{}")
    assert answer == by_hand(b"dcupgrade agent api v1 answer by vault", a, v, (200).to_bytes(2, "big"), b"{}")


def test_a_call_reads_back_from_its_header_and_holds_for_nothing_else() -> None:
    call = make_call(TOKEN, NONCES, "POST", "/vault/permit", b"{}")
    again = parse_call(call.header())
    assert again == call
    assert again.is_proven(TOKEN, "POST", "/vault/permit")
    assert not again.is_proven(TOKEN + b"x", "POST", "/vault/permit")
    assert not again.is_proven(TOKEN, "GET", "/vault/permit")
    assert not again.is_proven(TOKEN, "POST", "/vault/permi")
    for other in (
        replace(call, body_digest=bytes(32)),
        replace(call, nonces=replace(NONCES, agent=bytes(32))),
        replace(call, nonces=replace(NONCES, vault=bytes(40))),
    ):
        assert not other.is_proven(TOKEN, "POST", "/vault/permit")


@pytest.mark.parametrize("change", ["", "Bearer x", " ", "x"])
def test_a_header_of_another_form_is_none(change: str) -> None:
    header = make_call(TOKEN, NONCES, "GET", "/vault/status", b"").header()
    assert parse_call(change + header if change.strip() else change) is None
    assert parse_call(header.upper()) is None


def test_a_nonce_serves_once_within_its_time_for_its_own_agent_nonce_and_key() -> None:
    nonces = VaultNonces(bytes(32))
    made = Nonces(bytes(32), nonces.make(bytes(16), bytes(32), 100.0))
    assert len(made.vault) == token_proof.VAULT_NONCE_BYTES
    assert not nonces.take(replace(made, agent=b"\1" * 32), 100.0)
    assert not VaultNonces(b"\1" * 32).take(made, 100.0)
    assert not nonces.take(replace(made, vault=b"\xff" + made.vault[1:]), 100.0)  # a later expiry of one's own
    assert not nonces.take(made, 130.0)
    assert nonces.take(made, 129.0)
    assert not nonces.take(made, 129.0)


def test_used_nonces_are_forgotten_once_they_have_expired() -> None:
    nonces = VaultNonces(bytes(32))
    for second in range(100):
        random = second.to_bytes(16, "big")
        assert nonces.take(Nonces(bytes(32), nonces.make(random, bytes(32), float(second))), float(second))
    assert len(nonces._used) <= 31
