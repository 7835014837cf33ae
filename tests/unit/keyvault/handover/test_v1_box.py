"""v1's ciphertexts against answers made with the Go library in use."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.network import decode_multibase, encode_multibase
from keyvault.errors import KeyvaultError
from keyvault.handover import v1


@pytest.fixture(scope="session")
def cases(vectors: Path) -> list[dict[str, Any]]:
    return list(json.loads((vectors / "v1_box.json").read_text()))


def test_the_go_librarys_ciphertexts_open(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        seed = bytes.fromhex(case["ed25519_seed_and_public"])[:32]
        assert v1.box_open(seed, bytes.fromhex(case["ciphertext"])).hex() == case["plaintext"]


def test_the_challenge_and_its_signature_are_the_go_librarys(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        random = bytes.fromhex(case["random"]).rjust(16, b"\0")
        digest = hashlib.sha512(v1.challenge_bytes(random)).digest()
        assert digest.hex() == case["sha512_random"]
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["ed25519_seed_and_public"])[:32])
        signature = key.sign(digest)
        assert signature.hex() == case["signature"]
        assert encode_multibase(signature) == case["signature_multibase"]
        assert decode_multibase(case["signature_multibase"]) == signature


def test_our_ciphertexts_open_and_have_the_same_layout(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        theirs = bytes.fromhex(case["ciphertext"])
        plaintext = bytes.fromhex(case["plaintext"])
        seed = bytes.fromhex(case["ed25519_seed_and_public"])[:32]
        ours = v1.box_seal(
            bytes.fromhex(case["ed25519_public"]),
            plaintext,
            nonce=theirs[:24],
            ephemeral=hashlib.sha256(theirs).digest(),
        )
        assert (len(ours), ours[:24]) == (len(theirs), theirs[:24])
        assert v1.box_open(seed, ours) == plaintext


def test_every_flipped_bit_of_a_ciphertext_is_refused() -> None:
    seed = bytes(range(32))
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    sealed = v1.box_seal(public, b"secret", nonce=bytes(24), ephemeral=bytes([7]) * 32)
    for position in range(len(sealed) * 8):
        # X25519 ignores the top bit of a public key: that one flip is the same key.
        if position == (24 + 32) * 8 - 1:
            continue
        changed = bytearray(sealed)
        changed[position // 8] ^= 1 << (position % 8)
        with pytest.raises(KeyvaultError) as caught:
            v1.box_open(seed, bytes(changed))
        assert caught.value.code == "V1_DECRYPT_FAILED"


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32])
def test_a_key_of_low_order_or_off_the_curve_is_refused(key: bytes) -> None:
    with pytest.raises(KeyvaultError) as caught:
        v1.box_seal(key, b"secret", nonce=bytes(24), ephemeral=bytes([7]) * 32)
    assert caught.value.code == "V1_KEY_INVALID"
