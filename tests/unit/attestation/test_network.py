import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import AttestationError
from attestation.network import (
    KEYS_MAX,
    SIGNATURES_MAX,
    TEXT_CHARS_MAX,
    NetworkKeys,
    decode_multibase,
    encode_multibase,
    need_enclave_id,
)

ENCLAVE_ID = "ab" * 32
MAIN_NET = "bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"
SIGNERS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 5)]
KEYS = tuple(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw) for key in SIGNERS)


def signature(signer: int, enclave_id: str = ENCLAVE_ID) -> bytes:
    return SIGNERS[signer].sign(enclave_id.encode())


def refused(call: Callable[[], object]) -> AttestationError:
    with pytest.raises(AttestationError) as caught:
        call()
    return caught.value


def test_one_key_signs_the_ascii_of_the_enclave_id() -> None:
    assert NetworkKeys(KEYS[:1]).verify(ENCLAVE_ID, [signature(0)]) == {0}


def test_m_of_n_counts_each_key_once() -> None:
    keys = NetworkKeys(KEYS, threshold=2)
    assert keys.verify(ENCLAVE_ID, [signature(3), signature(1)]) == {1, 3}
    error = refused(lambda: keys.verify(ENCLAVE_ID, [signature(1), signature(1)]))
    assert (error.code, error.expected, error.found) == ("NETWORK_SIGNATURE_THRESHOLD", "2", "1")


def test_signatures_of_others_neither_count_nor_block() -> None:
    stranger = Ed25519PrivateKey.generate().sign(ENCLAVE_ID.encode())
    assert NetworkKeys(KEYS[:1]).verify(ENCLAVE_ID, [stranger, b"", b"x" * 63, signature(0)]) == {0}


@pytest.mark.parametrize(
    "given",
    [
        [signature(1)],
        [signature(0, "cd" * 32)],
        [SIGNERS[0].sign(bytes.fromhex(ENCLAVE_ID))],
        [signature(0)[:-1]],
        [bytes(64)],
        [signature(0)[:32] + bytes(32)],
    ],
)
def test_anything_else_is_no_network_signature(given: list[bytes]) -> None:
    assert refused(lambda: NetworkKeys(KEYS[:1]).verify(ENCLAVE_ID, given)).code == "NETWORK_SIGNATURE_BAD"


def test_no_signature_has_its_own_code() -> None:
    assert refused(lambda: NetworkKeys(KEYS[:1]).verify(ENCLAVE_ID, [])).code == "NETWORK_SIGNATURE_MISSING"


def test_work_is_bounded_however_many_signatures_are_given() -> None:
    flood = [bytes(64)] * SIGNATURES_MAX
    assert refused(lambda: NetworkKeys(KEYS[:1]).verify(ENCLAVE_ID, [*flood, signature(0)])).code == (
        "NETWORK_SIGNATURE_BAD"
    )


@pytest.mark.parametrize("enclave_id", ["", "ab" * 31, "AB" * 32, "ab" * 32 + "\n", "0x" + "ab" * 31, "zz" * 32, None])
def test_an_enclave_id_is_64_lower_case_hex_digits(enclave_id: str) -> None:
    assert refused(lambda: need_enclave_id(enclave_id)).code == "ENCLAVE_ID_INVALID"
    assert refused(lambda: NetworkKeys(KEYS[:1]).verify(enclave_id, [signature(0)])).code == "ENCLAVE_ID_INVALID"


def test_keys_are_read_from_multibase_and_hex() -> None:
    texts = [f" {encode_multibase(KEYS[0])}\n", KEYS[1].hex(), f"0x{KEYS[2].hex()}"]
    assert NetworkKeys.parse(texts, 2) == NetworkKeys(KEYS[:3], 2)
    assert len(NetworkKeys.parse([MAIN_NET]).keys[0]) == 32


TORSION = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0100000000000000000000000000000000000000000000000000000000000080",
]


@pytest.mark.parametrize(
    ("keys", "threshold"),
    [
        ((), 1),
        (KEYS[:1] * 2, 1),
        (KEYS[:1], 0),
        (KEYS[:1], 2),
        (KEYS[:1], True),
        ((KEYS[0][:-1],), 1),
        ((KEYS[0].hex(),), 1),
        (tuple(n.to_bytes(32, "little") for n in range(2, KEYS_MAX + 3)), 1),
        *(((bytes.fromhex(point),), 1) for point in TORSION),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys: tuple[bytes, ...], threshold: int) -> None:
    assert refused(lambda: NetworkKeys(keys, threshold)).code == "NETWORK_KEYS_INVALID"


def test_a_key_that_is_no_point_verifies_nothing() -> None:
    # y = 2 is not on the curve: such a key decodes to nothing and so signs nothing.
    keys = NetworkKeys(((2).to_bytes(32, "little"),))
    assert refused(lambda: keys.verify(ENCLAVE_ID, [signature(0)])).code == "NETWORK_SIGNATURE_BAD"


def test_a_key_setting_must_be_text() -> None:
    assert refused(lambda: NetworkKeys.parse([KEYS[0]])).code == "NETWORK_KEYS_INVALID"  # type: ignore[list-item]
    assert refused(lambda: NetworkKeys.parse(["nonsense"])).code == "MULTIBASE_INVALID"


@pytest.mark.parametrize("data", [b"", b"\0", b"a", bytes(range(64)), b"\xff" * 33])
def test_multibase_round_trips(data: bytes) -> None:
    text = encode_multibase(data)
    assert text[0] == "b"
    assert decode_multibase(text) == data


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B" + MAIN_NET[1:].upper(),
        MAIN_NET.upper(),
        "f00",
        "ba",
        "baaa",
        "bab",
        "baa======",
        "ba1",
        "baé",
        "b a",
        "z3",
    ],
)
def test_only_canonical_multibase_is_read(text: str) -> None:
    assert refused(lambda: decode_multibase(text)).code == "MULTIBASE_INVALID"


@pytest.mark.parametrize(
    ("data", "text"),
    [("", "b"), ("f", "bmy"), ("fo", "bmzxq"), ("foo", "bmzxw6"), ("foob", "bmzxw6yq"), ("foobar", "bmzxw6ytboi")],
)
def test_multibase_is_base32_of_rfc_4648(data: str, text: str) -> None:
    assert encode_multibase(data.encode()) == text
    assert decode_multibase(text) == data.encode()


def test_the_longest_text_is_read_in_a_time_that_nobody_notices() -> None:
    """Strangers send such texts: a decoder of quadratic time blocked the vault's loop for most of a second."""
    data = bytes(range(256)) * 300
    assert decode_multibase(encode_multibase(data)) == data


def test_multibase_is_bounded() -> None:
    assert refused(lambda: decode_multibase("b" + "a" * TEXT_CHARS_MAX)).code == "MULTIBASE_INVALID"


def test_the_go_librarys_multibase_is_read(vectors: Path) -> None:
    cases = json.loads((vectors / "v1_box.json").read_text())
    for case in cases:
        assert decode_multibase(case["signature_multibase"]).hex() == case["signature"]
        assert encode_multibase(bytes.fromhex(case["signature"])) == case["signature_multibase"]
    assert cases
