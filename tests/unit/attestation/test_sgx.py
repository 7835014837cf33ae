import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import CODES, AttestationError
from attestation.sgx import (
    DEBUG,
    INIT,
    KEYREQUEST_SIZE,
    MODE64BIT,
    POLICY_MRENCLAVE,
    REPORT_SIZE,
    SEAL_KEY,
    TARGETINFO_SIZE,
    Attributes,
    KeyRequest,
    Report,
    TargetInfo,
    cmac,
    flag_text,
    report_key_request,
    report_mac,
    seal_key_request,
    verify_report_mac,
)

TARGET = TargetInfo(bytes(range(32)), Attributes(5, 7), 1, 2, 3, bytes(range(64)))
REPORT = Report(
    bytes(range(16)),
    Attributes(0x85, 0xE7),
    bytes(range(32)),
    bytes(range(32, 64)),
    bytes(range(64)),
    1,
    2,
    bytes(range(16, 32)),
    bytes(range(64, 128)),
    3,
    4,
    5,
    bytes(range(32, 48)),
    bytes(range(48, 80)),
    bytes(range(80, 96)),
)
REQUEST = KeyRequest(4, 0x3F, 5, bytes(range(16)), Attributes(6, 7), bytes(range(32)), 8, 9)
# Structure, its bytes, and where its reserved bytes lie.
SHAPES = [
    (TargetInfo, TARGET, TARGETINFO_SIZE, [*range(49, 50), *range(56, 64), *range(128, 512)]),
    (Report, REPORT, REPORT_SIZE, [*range(21, 32), *range(96, 128), *range(160, 192), *range(262, 304)]),
    (KeyRequest, REQUEST, KEYREQUEST_SIZE, [6, 7, *range(78, 512)]),
]


@pytest.mark.parametrize(("kind", "value", "size", "reserved"), SHAPES)
def test_structures_encode_and_decode_to_the_same(kind: Any, value: Any, size: int, reserved: list[int]) -> None:
    encoded = value.encode()
    assert len(encoded) == size
    assert kind.decode(encoded) == value
    assert kind.decode(memoryview(encoded)) == kind.decode(bytearray(encoded)) == value


@pytest.mark.parametrize(("kind", "value", "size", "reserved"), SHAPES)
def test_every_reserved_byte_must_be_zero(kind: Any, value: Any, size: int, reserved: list[int]) -> None:
    for offset in reserved:
        data = bytearray(value.encode())
        assert data[offset] == 0
        data[offset] = 0x40
        with pytest.raises(AttestationError) as caught:
            kind.decode(data)
        assert caught.value.code == "SGX_RESERVED_NOT_ZERO"


@pytest.mark.parametrize(("kind", "value", "size", "reserved"), SHAPES)
def test_every_other_byte_changes_the_value(kind: Any, value: Any, size: int, reserved: list[int]) -> None:
    # KEYPOLICY (2, 3) is refused beyond its six bits, which the last test of this file looks at.
    taken = set(reserved) | ({2, 3} if kind is KeyRequest else set())
    for offset in set(range(size)) - taken:
        data = bytearray(value.encode())
        data[offset] ^= 0x40
        assert kind.decode(data) != value
        assert kind.decode(data).encode() == data


@pytest.mark.parametrize(("kind", "value", "size", "reserved"), SHAPES)
def test_any_other_length_is_refused(kind: Any, value: Any, size: int, reserved: list[int]) -> None:
    for data in (b"", value.encode()[:-1], value.encode() + b"\0"):
        with pytest.raises(AttestationError) as caught:
            kind.decode(data)
        assert caught.value.code == "SGX_LENGTH_WRONG"
        assert (caught.value.expected, caught.value.found) == (str(size), str(len(data)))


@pytest.mark.parametrize(
    ("value", "change"),
    [
        (TARGET, {"mrenclave": bytes(31)}),
        (TARGET, {"mrenclave": bytearray(32)}),
        (TARGET, {"configid": "x" * 64}),
        (TARGET, {"miscselect": 1 << 32}),
        (TARGET, {"cet_attributes": -1}),
        (REPORT, {"report_data": bytes(63)}),
        (REPORT, {"isvsvn": 1 << 16}),
        (REPORT, {"isvsvn": True}),
        (REQUEST, {"key_id": bytes(33)}),
        (REQUEST, {"configsvn": 1.0}),
        (REQUEST, {"key_policy": 0x40}),
        (REQUEST, {"key_policy": -1}),
        (REQUEST, {"key_policy": "1"}),
        (Attributes(0, 0), {"flags": 1 << 64}),
    ],
)
def test_fields_out_of_range_are_refused(value: Any, change: Any) -> None:
    with pytest.raises(AttestationError) as caught:
        replace(value, **change)
    assert caught.value.code == "SGX_FIELD_INVALID"


def test_field_offsets_are_those_of_the_architecture() -> None:
    report, target, request = REPORT.encode(), TARGET.encode(), REQUEST.encode()
    assert report[16:20] == b"\x01\0\0\0"
    assert report[20] == 2
    assert report[48:56] == (0x85).to_bytes(8, "little")
    assert report[64:96] == REPORT.mrenclave
    assert report[128:160] == REPORT.mrsigner
    assert report[256:262] == b"\x03\0\x04\0\x05\0"
    assert report[320:384] == REPORT.report_data
    assert report[416:] == REPORT.mac
    assert target[32:40] == b"\x05" + bytes(7)
    assert target[48:56] == b"\x02\0\x03\0\x01\0\0\0"
    assert request[:8] == b"\x04\0\x3f\0\x05\0\0\0"
    assert request[72:78] == b"\x08\0\0\0\x09\0"


def test_a_report_gives_the_target_of_its_answer() -> None:
    target = REPORT.target_info()
    assert (target.mrenclave, target.attributes, target.miscselect) == (REPORT.mrenclave, REPORT.attributes, 1)
    assert (target.cet_attributes, target.configsvn, target.configid) == (2, 5, REPORT.configid)
    assert target.enclave_id == REPORT.enclave_id == bytes(range(32)).hex()


def test_the_mac_covers_the_first_384_bytes_and_no_more() -> None:
    key = bytes(range(16))
    signed = replace(REPORT, mac=report_mac(key, REPORT))
    verify_report_mac(key, signed)
    assert signed.mac == cmac(key, REPORT.encode()[:384])
    verify_report_mac(key, replace(signed, key_id=bytes(32)))
    for offset in set(range(384)) - set(SHAPES[1][3]):
        data = bytearray(signed.encode())
        data[offset] ^= 1
        with pytest.raises(AttestationError) as caught:
            verify_report_mac(key, Report.decode(data))
        assert caught.value.code == "REPORT_MAC_BAD"


def test_requests_for_keys_name_what_they_are_for() -> None:
    request = seal_key_request(REPORT, bytes(range(32)))
    assert (request.key_name, request.key_policy) == (SEAL_KEY, POLICY_MRENCLAVE)
    assert (request.isvsvn, request.cpusvn) == (REPORT.isvsvn, REPORT.cpusvn)
    assert request.attribute_mask.flags & DEBUG
    assert report_key_request(bytes(range(32))).encode()[:2] == b"\x03\0"


def test_flags_are_named_for_people() -> None:
    assert flag_text(INIT | MODE64BIT) == "INIT|MODE64BIT"
    assert flag_text(DEBUG | 0x8000) == "DEBUG|0x8000"
    assert flag_text(0) == "0x0"


def test_a_cmac_key_has_sixteen_bytes() -> None:
    with pytest.raises(AttestationError) as caught:
        cmac(bytes(32), b"")
    assert caught.value.code == "SGX_FIELD_INVALID"


def test_cmac_gives_wycheproofs_answers(vectors: Path) -> None:
    groups = json.loads((vectors / "cmac" / "wycheproof_aes_cmac_test.json").read_text())["testGroups"]
    seen = {"valid": 0, "invalid": 0, "key refused": 0}
    for group in groups:
        for case in group["tests"]:
            key, message = bytes.fromhex(case["key"]), bytes.fromhex(case["msg"])
            if len(key) != 16:
                # SGX knows AES-128 only; Wycheproof's other sizes, right or wrong, are not keys here.
                with pytest.raises(AttestationError):
                    cmac(key, message)
                seen["key refused"] += 1
                continue
            assert (cmac(key, message).hex() == case["tag"]) == (case["result"] == "valid")
            seen[case["result"]] += 1
    assert min(seen.values()) > 20
    assert sum(seen.values()) == 311


def test_an_error_says_what_why_and_what_to_do() -> None:
    error = AttestationError(code="TEE_GONE", what="it stopped", why="of that", action="Do this.", kind="invariant")
    assert str(error) == "TEE_GONE: it stopped: of that. Do this."
    assert str(AttestationError(code="TEE_GONE", what="it stopped", why="of that")) == "TEE_GONE: it stopped: of that."
    assert (error.kind, error.expected, error.found) == ("invariant", None, None)
    assert all(code.isupper() and meaning for code, meaning in CODES.items())
