"""The known-answer transcript of docs/protocol.md, recomputed from the document's text, not from the code."""

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite

from attestation.sgx import Report
from tests.unit.keyvault.make_handover_vector import inputs, parties, transcript

DOCS = Path(__file__).resolve().parents[4] / "docs"


@pytest.fixture(scope="module")
def vector() -> dict[str, Any]:
    return json.loads((DOCS / "handover-v2-vector.json").read_text())


def blob(message: dict[str, Any], name: str) -> bytes:
    return base64.b64decode(message[name], validate=True)


def step(state: bytes, label: bytes, value: bytes) -> bytes:
    """T' = SHA-256(T, length of label (1 byte), label, length of value (4 bytes, big-endian), value)."""
    return hashlib.sha256(state + bytes([len(label)]) + label + len(value).to_bytes(4, "big") + value).digest()


def states(vector: dict[str, Any]) -> list[bytes]:
    """T0, T1, T2, T3."""
    said = vector["messages"]
    hello, challenge, request = said["hello"], said["challenge"], said["request"]
    state = hashlib.sha256(b"dcupgrade handover v2 transcript\0").digest()
    target = blob(hello, "target_info")
    for label, value in (
        (b"versions", bytes(hello["versions"])),
        (b"version", b"\2"),
        (b"genesis", blob(hello, "genesis")),
        (b"requester nonce", blob(hello, "nonce")),
        (b"requester target info", target),
        (b"session", blob(challenge, "session")),
        (b"holder nonce", blob(challenge, "nonce")),
        (b"requester id", target[:32]),
        (b"holder id", blob(challenge, "report")[64:96]),
    ):
        state = step(state, label, value)
    found = [state]
    state = step(state, b"kem public key", blob(request, "kem_public_key"))
    found.append(step(state, b"wanted key set", request["key_set_id"].encode()))
    found.append(step(found[1], b"ciphertext", blob(said["delivery"], "ciphertext")))
    state = step(found[2], b"durable key set", said["durable"]["key_set_id"].encode())
    found.append(step(state, b"canary opened", b"\1"))
    return found


def test_every_report_carries_its_tag_and_state(vector: dict[str, Any]) -> None:
    tags = {
        "challenge": b"dcupgrade handover v2 challenge by holder\0",
        "request": b"dcupgrade handover v2 request by requester\0",
        "delivery": b"dcupgrade handover v2 delivery by holder\0",
        "durable": b"dcupgrade handover v2 durable by requester\0",
    }
    for (name, tag), state in zip(tags.items(), states(vector), strict=True):
        report = Report.decode(blob(vector["messages"][name], "report"))
        assert report.report_data == hashlib.sha512(tag + state).digest(), name


def test_the_ciphertext_decrypts_under_t1_to_the_receipt_key_and_the_key_set(vector: dict[str, Any]) -> None:
    private = bytes.fromhex(vector["inputs"]["kem_private_key"])
    mlkem = MLKEM768PrivateKey.from_seed_bytes(private[:64])
    x25519 = X25519PrivateKey.from_private_bytes(private[64:])
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    assert blob(vector["messages"]["request"], "kem_public_key") == public
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    plaintext = suite.decrypt(
        blob(vector["messages"]["delivery"], "ciphertext"),
        MLKEM768X25519PrivateKey(mlkem, x25519),
        states(vector)[1],
    )
    assert plaintext.hex() == vector["inputs"]["receipt_key"] + vector["inputs"]["key_set"]


def test_receipt_and_key_set_id(vector: dict[str, Any]) -> None:
    said, given = vector["messages"], vector["inputs"]
    tag = b"dcupgrade handover v2 received by requester\0"
    mac = hmac.new(bytes.fromhex(given["receipt_key"]), tag + states(vector)[2], hashlib.sha256).digest()
    assert blob(said["received"], "mac") == mac
    key_set_id = hashlib.sha256(b"dcupgrade key set v1\0" + bytes.fromhex(given["key_set"])).hexdigest()
    assert said["durable"]["key_set_id"] == key_set_id


def test_the_code_says_the_same_bytes_on_both_sides(vector: dict[str, Any]) -> None:
    assert inputs() == vector["inputs"]
    ciphertext = blob(vector["messages"]["delivery"], "ciphertext")
    assert transcript(ciphertext) == vector["messages"]


def test_a_fresh_run_differs_in_the_ciphertext_and_what_follows_from_it_only(vector: dict[str, Any]) -> None:
    fresh = transcript(None)
    assert [name for name in fresh if fresh[name] != vector["messages"][name]] == ["delivery", "received", "durable"]


def test_a_requester_opens_the_recorded_delivery(vector: dict[str, Any]) -> None:
    said = {name: json.dumps(message).encode() for name, message in vector["messages"].items()}
    requester, _ = parties(None)
    assert json.loads(requester.hello()) == vector["messages"]["hello"]
    requester.on_challenge(said["challenge"])
    with requester.on_delivery(said["delivery"]) as key_set:
        assert bytes(key_set.view()).hex() == vector["inputs"]["key_set"]


def test_the_document_quotes_the_states_of_the_vector(vector: dict[str, Any]) -> None:
    text = (DOCS / "protocol.md").read_text()
    for number, state in enumerate(states(vector)):
        assert f"T{number} = {state.hex()}" in text
