import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attestation.artefact.sigstruct import SIGSTRUCT_SIZE, SigStruct, sign_sigstruct
from attestation.errors import AttestationError
from attestation.sgx import AEXNOTIFY, DEBUG, KSS, MODE64BIT, Attributes
from tests.doubles.signed_enclaves import ENARX, FORTANIX, Key, rsa_key

FORTANIX_SIGNER = "fb4bab3d6036ac1d730fa83d7366df1dd2dfeac194ef335d6854d8a6c6475542"


@pytest.fixture(scope="module")
def signed() -> SigStruct:
    return sign_sigstruct(Key(), bytes(range(32)), date=0x20261123, isvprodid=1, isvsvn=2)


def refusal(sigstruct: SigStruct) -> str:
    with pytest.raises(AttestationError) as caught:
        sigstruct.verify()
    return caught.value.code


def test_a_signed_sigstruct_survives_encoding_and_verifies(signed: SigStruct) -> None:
    encoded = signed.encode()
    assert len(encoded) == SIGSTRUCT_SIZE
    assert SigStruct.decode(encoded) == signed
    SigStruct.decode(encoded).verify()
    assert encoded[:16].hex() == "06000000e10000000000010000000000"
    assert encoded[20:24].hex() == "23112620"
    assert encoded[24:40].hex() == "01010000600000006000000001000000"
    assert encoded[960:992] == bytes(range(32))
    assert encoded[1024:1028] == b"\x01\0\x02\0"
    assert signed.attributes == Attributes(MODE64BIT, 3)
    assert signed.mrsigner == hashlib.sha256(encoded[128:512]).digest()
    assert signed.enclave_id == bytes(range(32)).hex()
    signed.need_mrenclave(bytes(range(32)))


@pytest.mark.parametrize(
    ("folder", "name", "mrenclave", "signer"),
    [("enarx", "encl.ss", ENARX, None), ("fortanix", "sgx_detect.test_enclave.sig", FORTANIX, FORTANIX_SIGNER)],
)
def test_sigstructs_of_others_verify(folder: str, name: str, mrenclave: str, signer: str, vectors: Path) -> None:
    data = (vectors / folder / name).read_bytes()
    sigstruct = SigStruct.decode(data)
    sigstruct.verify()
    assert sigstruct.encode() == data
    assert sigstruct.enclave_id == mrenclave
    assert signer is None or sigstruct.mrsigner.hex() == signer


def test_signing_again_with_enarxs_key_gives_enarxs_bytes(vectors: Path) -> None:
    data = (vectors / "enarx" / "encl.ss").read_bytes()
    key = load_pem_private_key((vectors / "enarx" / "encl.pem").read_bytes(), None)
    assert isinstance(key, RSAPrivateKey)
    blank = replace(SigStruct.decode(data), signature=bytes(384), q1=bytes(384), q2=bytes(384))
    assert Key(key).resign(blank).encode() == data


def test_every_signed_byte_is_covered(signed: SigStruct) -> None:
    encoded = signed.encode()
    flips = 0
    for offset in (*range(0, 512), *range(516, SIGSTRUCT_SIZE)):
        data = bytearray(encoded)
        data[offset] ^= 0x10
        with pytest.raises(AttestationError) as caught:
            SigStruct.decode(bytes(data)).verify()
        assert caught.value.code in ("SIGSTRUCT_INVALID", "SIGSTRUCT_SIGNATURE_BAD")
        flips += 1
    assert flips == 1804


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 7), (16, 1), (24, 2), (44, 1), (127, 1), (512, 2), (910, 1), (992, 1), (1007, 1), (1028, 1), (1039, 1)],
)
def test_headers_exponent_and_reserved_bytes_are_fixed(offset: int, value: int, signed: SigStruct) -> None:
    data = bytearray(signed.encode())
    data[offset] = value
    with pytest.raises(AttestationError) as caught:
        SigStruct.decode(bytes(data))
    assert caught.value.code == "SIGSTRUCT_INVALID"


@pytest.mark.parametrize("length", [0, 1807, 1809])
def test_another_length_is_no_sigstruct(length: int) -> None:
    with pytest.raises(AttestationError) as caught:
        SigStruct.decode(bytes(length))
    assert caught.value.code == "SIGSTRUCT_INVALID"


def test_intels_vendor_id_is_one(signed: SigStruct) -> None:
    intel = Key().resign(replace(signed, vendor=0x8086))
    SigStruct.decode(intel.encode()).verify()


def test_q1_and_q2_must_be_the_signatures(signed: SigStruct) -> None:
    assert refusal(replace(signed, q1=bytes(384))) == "SIGSTRUCT_SIGNATURE_BAD"
    assert refusal(replace(signed, q2=bytes(384))) == "SIGSTRUCT_SIGNATURE_BAD"


def test_a_signature_by_another_key_does_not_verify(signed: SigStruct) -> None:
    other = Key(generate_private_key(3, 3072))
    assert refusal(replace(signed, modulus=other.modulus.to_bytes(384, "little"))) == "SIGSTRUCT_SIGNATURE_BAD"


def test_a_signature_not_below_the_modulus_does_not_verify(signed: SigStruct) -> None:
    assert refusal(replace(signed, signature=b"\xff" * 384)) == "SIGSTRUCT_SIGNATURE_BAD"
    assert refusal(replace(signed, signature=bytes(384))) == "SIGSTRUCT_SIGNATURE_BAD"


def test_a_short_or_even_modulus_does_not_verify(signed: SigStruct) -> None:
    assert refusal(replace(signed, modulus=b"\xff" * 100 + bytes(284))) == "SIGSTRUCT_SIGNATURE_BAD"
    assert refusal(replace(signed, modulus=b"\xfe" + b"\xff" * 383)) == "SIGSTRUCT_SIGNATURE_BAD"


def test_padding_that_a_lenient_parser_would_take_does_not_verify(signed: SigStruct) -> None:
    key, digest_info = Key(), bytes.fromhex("3031300d060960864801650304020105000420")
    digest = hashlib.sha256(signed.signed_bytes()).digest()
    # Bleichenbacher's shape: short padding, the rest of the block free.
    garbage = b"\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff\x00" + digest_info + digest
    forged = key.with_signature(signed, key.raw(int.from_bytes(garbage.ljust(384, b"\x77"), "big")))
    assert refusal(forged) == "SIGSTRUCT_SIGNATURE_BAD"
    # DigestInfo without the NULL parameter.
    bare = bytes.fromhex("302f300b0609608648016503040201") + b"\x04\x20" + digest
    padded = b"\x00\x01" + b"\xff" * (384 - 3 - len(bare)) + b"\x00" + bare
    assert refusal(key.with_signature(signed, key.raw(int.from_bytes(padded, "big")))) == "SIGSTRUCT_SIGNATURE_BAD"
    # The control: the same path with the right block verifies.
    right = b"\x00\x01" + b"\xff" * (384 - 3 - 51) + b"\x00" + digest_info + digest
    key.with_signature(signed, key.raw(int.from_bytes(right, "big"))).verify()


@pytest.mark.parametrize(("bits", "exponent"), [(3072, 65537), (2048, 3), (4096, 3)])
def test_other_keys_cannot_sign(bits: int, exponent: int) -> None:
    with pytest.raises(AttestationError) as caught:
        sign_sigstruct(Key(rsa_key(bits, exponent)), bytes(32), date=0x20261123)
    assert caught.value.code == "SIGSTRUCT_KEY_INVALID"


@pytest.mark.parametrize("date", [0, 0x20261323, 0x20261100, 0x20261132, 0x2026112A])
def test_the_date_is_bcd(date: int) -> None:
    with pytest.raises(AttestationError) as caught:
        sign_sigstruct(Key(), bytes(32), date=date)
    assert caught.value.code == "SIGSTRUCT_INVALID"


def test_the_measurement_must_be_the_signed_one(signed: SigStruct) -> None:
    with pytest.raises(AttestationError) as caught:
        signed.need_mrenclave(bytes(32))
    assert caught.value.code == "SIGSTRUCT_MRENCLAVE_MISMATCH"


def test_fields_have_their_lengths(signed: SigStruct) -> None:
    for change in ({"modulus": bytes(383)}, {"isvsvn": 1 << 16}):
        with pytest.raises(AttestationError) as caught:
            replace(signed, **change)
        assert caught.value.code == "SGX_FIELD_INVALID"


@pytest.mark.parametrize(
    "change",
    [
        {"attributes": Attributes(MODE64BIT | KSS, 3)},
        {"attributes": Attributes(MODE64BIT | AEXNOTIFY, 3)},
        {"attributes": Attributes(MODE64BIT | DEBUG, 3)},
        {"attribute_mask": Attributes((1 << 64) - 1 - KSS, 0)},
        {"attribute_mask": Attributes((1 << 64) - 1 - AEXNOTIFY, 0)},
        {"miscselect": 1},
        {"miscmask": 0xFFFF_FFFE},
    ],
)
def test_what_changes_a_seal_key_must_be_fixed_and_off(change: dict[str, Any]) -> None:
    signed = sign_sigstruct(Key(), b"\7" * 32, date=0x20261123)
    signed.need_pinned_attributes()
    with pytest.raises(AttestationError) as caught:
        replace(signed, **change).need_pinned_attributes()
    assert caught.value.code == "SIGSTRUCT_NOT_PINNED"
