import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.artefact.sigstruct import SigStruct, sign_sigstruct
from attestation.errors import AttestationError
from attestation.sgx import (
    DEBUG,
    INIT,
    KSS,
    MODE64BIT,
    PROVISIONKEY,
    REPORT_KEY,
    SEAL_KEY,
    Attributes,
    KeyRequest,
    Report,
    TargetInfo,
    report_key_request,
    seal_key_request,
    verify_report_mac,
)
from attestation.simulated.cpu import CPUSVN_LEVELS, KeyRefusedError, RootKeys, Secs, SoftwareCpu, einit
from tests.doubles import intel_sim
from tests.doubles.signed_enclaves import Key

PLAIN = Attributes(MODE64BIT, 3)
ANY_XFRM = Attributes((1 << 64) - 1, 0)


@pytest.fixture(scope="module")
def known(vectors: Path) -> dict[str, Any]:
    return json.loads((vectors / "sim" / "intel_sim_vectors.json").read_text())


def test_reports_are_intels_bit_for_bit(known: dict[str, Any]) -> None:
    enclaves = [intel_sim.secs(bytes.fromhex(entry["secs_first_320"])) for entry in known["secs"]]
    for case in known["reports"]:
        cpu = SoftwareCpu(intel_sim.root_keys(case["cpusvn"]))
        target = TargetInfo.decode(bytes.fromhex(case["targetinfo"]))
        assert target == enclaves[case["to"]].target_info()
        report = cpu.ereport(enclaves[case["from"]], target, bytes.fromhex(case["reportdata"]))
        assert report.encode().hex() == case["report"]
        key = cpu.egetkey(enclaves[case["to"]], report_key_request(report.key_id))
        assert key.hex() == case["report_key"]
        verify_report_mac(key, report)
    assert len(known["reports"]) >= 10


def test_seal_keys_are_intels_bit_for_bit(known: dict[str, Any]) -> None:
    enclaves = [intel_sim.secs(bytes.fromhex(entry["secs_first_320"])) for entry in known["secs"]]
    for case in known["keys"]:
        cpu = SoftwareCpu(intel_sim.root_keys(case["cpusvn"]))
        request = KeyRequest.decode(bytes.fromhex(case["keyrequest_first_128"]).ljust(512, b"\0"))
        assert case["rc"] == 0
        assert cpu.egetkey(enclaves[case["secs"]], request).hex() == case["key"]
    assert len(known["keys"]) >= 58


def test_error_codes_are_intels(known: dict[str, Any]) -> None:
    enclave = intel_sim.secs(bytes.fromhex(known["secs"][0]["secs_first_320"]))
    for case in known["errors"]:
        cpu = SoftwareCpu(intel_sim.root_keys(case["platform_cpusvn"]))
        cpusvn = CPUSVN_LEVELS[intel_sim.LEVELS[case["request_cpusvn"]]]
        request = KeyRequest(SEAL_KEY, 1, enclave.isvsvn + case["isv_svn_delta"], cpusvn)
        with pytest.raises(KeyRefusedError) as caught:
            cpu.egetkey(enclave, request)
        assert caught.value.code == case["rc"]
    assert known["errors"]


@pytest.mark.parametrize(
    ("platform", "requested", "refused"),
    [(p, r, r > p) for p in range(3) for r in range(3)],
)
def test_a_key_is_for_an_equal_or_older_cpusvn_only(platform: int, requested: int, refused: bool, alice: Secs) -> None:
    cpu = SoftwareCpu(replace(intel_sim.root_keys(), cpusvn_level=platform))
    request = KeyRequest(SEAL_KEY, 1, 0, CPUSVN_LEVELS[requested])
    if refused:
        with pytest.raises(KeyRefusedError) as caught:
            cpu.egetkey(alice, request)
        assert caught.value.code == 32
    else:
        assert cpu.egetkey(alice, request)


def test_an_unknown_cpusvn_is_refused_and_zeros_mean_the_default(cpu: SoftwareCpu, alice: Secs) -> None:
    with pytest.raises(KeyRefusedError) as caught:
        cpu.egetkey(alice, KeyRequest(SEAL_KEY, 1, 0, b"\x01" * 16))
    assert caught.value.code == 32
    zeros, default = KeyRequest(SEAL_KEY, 1), KeyRequest(SEAL_KEY, 1, 0, CPUSVN_LEVELS[1])
    assert cpu.egetkey(alice, zeros) == cpu.egetkey(alice, default)
    downgraded = SoftwareCpu(replace(cpu.root, cpusvn_level=0))
    with pytest.raises(KeyRefusedError) as caught:
        downgraded.egetkey(alice, zeros)
    assert caught.value.code == 32


def test_an_isvsvn_above_the_own_is_refused_before_the_cpusvn_is_looked_at(cpu: SoftwareCpu, alice: Secs) -> None:
    with pytest.raises(KeyRefusedError) as caught:
        cpu.egetkey(alice, KeyRequest(SEAL_KEY, 1, alice.isvsvn + 1, b"\x01" * 16))
    assert caught.value.code == 64


def test_kss_fields_need_a_kss_enclave(cpu: SoftwareCpu, alice: Secs) -> None:
    for key_name in (SEAL_KEY, REPORT_KEY):
        for request in (
            *(KeyRequest(key_name, policy) for policy in (4, 8, 16, 32)),
            KeyRequest(key_name, configsvn=1),
        ):
            with pytest.raises(AttestationError) as faulted:
                cpu.egetkey(alice, request)
            assert faulted.value.code == "SGX_FIELD_INVALID"


@pytest.mark.parametrize("policy", [1, 8])
def test_a_configsvn_above_the_own_is_refused_whatever_the_policy(policy: int, cpu: SoftwareCpu, alice: Secs) -> None:
    kss = replace(alice, attributes=Attributes(INIT | MODE64BIT | KSS, 3), configsvn=4)
    assert cpu.egetkey(kss, KeyRequest(SEAL_KEY, policy, configsvn=4))
    with pytest.raises(KeyRefusedError) as caught:
        cpu.egetkey(kss, KeyRequest(SEAL_KEY, policy, configsvn=5, cpusvn=b"\1" * 16))
    assert caught.value.code == 64


@pytest.mark.parametrize(("name", "code"), [(0, 2), (1, 2), (2, 2), (5, 256), (0xFFFF, 256)])
def test_launch_and_provision_keys_are_for_nobody(name: Any, code: Any, cpu: SoftwareCpu, alice: Secs) -> None:
    with pytest.raises(KeyRefusedError) as caught:
        cpu.egetkey(alice, KeyRequest(name))
    assert caught.value.code == code


def test_a_report_verifies_for_its_target_on_its_cpu_alone(cpu: SoftwareCpu, alice: Secs, bob: Secs) -> None:
    report = cpu.ereport(alice, bob.target_info(), bytes(range(64)))
    assert (report.mrenclave, report.isvsvn, report.cpusvn) == (alice.mrenclave, alice.isvsvn, cpu.cpusvn)
    request = report_key_request(report.key_id)
    verify_report_mac(cpu.egetkey(bob, request), report)
    other = SoftwareCpu(RootKeys(os.urandom(16), os.urandom(16), os.urandom(16), os.urandom(32)))
    debug_twin = replace(bob, attributes=Attributes(bob.attributes.flags | DEBUG, bob.attributes.xfrm))
    for key in (
        cpu.egetkey(alice, request),
        cpu.egetkey(debug_twin, request),
        cpu.egetkey(replace(bob, miscselect=1), request),
        cpu.egetkey(replace(bob, configid=b"\1" * 64), request),
        other.egetkey(bob, request),
    ):
        with pytest.raises(AttestationError) as caught:
            verify_report_mac(key, report)
        assert caught.value.code == "REPORT_MAC_BAD"


def test_a_report_forged_with_intels_public_keys_does_not_verify(cpu: SoftwareCpu, alice: Secs, bob: Secs) -> None:
    forged = SoftwareCpu(intel_sim.root_keys()).ereport(alice, bob.target_info(), bytes(64))
    # The control: on a CPU that had kept Intel's constants the forgery would pass.
    intel = SoftwareCpu(intel_sim.root_keys())
    verify_report_mac(intel.egetkey(bob, report_key_request(forged.key_id)), forged)
    with pytest.raises(AttestationError) as caught:
        verify_report_mac(cpu.egetkey(bob, report_key_request(forged.key_id)), forged)
    assert caught.value.code == "REPORT_MAC_BAD"


def test_reports_of_an_installed_cpu_do_not_give_its_report_key_away(cpu: SoftwareCpu, alice: Secs) -> None:
    report = cpu.ereport(alice, alice.target_info(), bytes(64)).encode()
    assert cpu.root.report not in report
    assert cpu.root.report.hex() not in repr(cpu)
    assert cpu.root.seal.hex() not in repr(cpu.root)


def test_seal_keys_differ_by_enclave_debug_cpu_and_key_id(cpu: SoftwareCpu, alice: Secs, bob: Secs) -> None:
    own = cpu.ereport(alice, alice.target_info(), bytes(64))
    request = seal_key_request(own, bytes(32))
    debug = replace(alice, attributes=Attributes(INIT | MODE64BIT | DEBUG, 3))
    newer_state = replace(alice, attributes=Attributes(INIT | MODE64BIT, 7))
    keys = [
        cpu.egetkey(alice, request),
        cpu.egetkey(bob, request),
        cpu.egetkey(debug, request),
        cpu.egetkey(alice, replace(request, key_id=b"\1" * 32)),
        SoftwareCpu(replace(cpu.root, seal=os.urandom(16))).egetkey(alice, request),
        SoftwareCpu(replace(cpu.root, owner_epoch=os.urandom(16))).egetkey(alice, request),
    ]
    assert len(set(keys)) == len(keys)
    assert all(map(any, keys))
    assert cpu.egetkey(newer_state, request) == keys[0]


def test_a_blob_of_an_older_cpusvn_still_opens_and_a_newer_one_does_not(cpu: SoftwareCpu, alice: Secs) -> None:
    old = cpu.ereport(alice, alice.target_info(), bytes(64))
    updated = SoftwareCpu(replace(cpu.root, cpusvn_level=2))
    request = seal_key_request(old, bytes(32))
    assert updated.egetkey(alice, request) == cpu.egetkey(alice, request)
    new = updated.ereport(alice, alice.target_info(), bytes(64))
    assert new.cpusvn != old.cpusvn
    with pytest.raises(KeyRefusedError):
        cpu.egetkey(alice, seal_key_request(new, bytes(32)))


@pytest.mark.parametrize(
    "change", [{"seal": bytes(15)}, {"report_key_id": bytes(31)}, {"cpusvn_level": 3}, {"cpusvn_level": -1}]
)
def test_root_keys_have_their_shape(change: dict[str, Any], cpu: SoftwareCpu) -> None:
    with pytest.raises(AttestationError) as caught:
        replace(cpu.root, **change)
    assert caught.value.code in ("SGX_FIELD_INVALID", "CPU_SETTING_INVALID")


@pytest.mark.parametrize(
    "xfrm",
    [0x3, 0x7, 0x1B, 0xE7, 0x203, 0x60003, 0x602FF],
    ids=["legacy", "AVX", "MPX", "AVX-512", "PKRU", "AMX", "all"],
)
def test_einit_takes_an_xfrm_that_a_cpu_can_have(xfrm: int) -> None:
    signed = sign_sigstruct(Key(), b"\x07" * 32, date=0x20261123, attribute_mask=ANY_XFRM)
    assert einit(signed, b"\x07" * 32, Attributes(MODE64BIT, xfrm)).attributes.xfrm == xfrm


@pytest.mark.parametrize(
    "xfrm",
    [0x0, 0x1, 0x2, 0x5, 0xB, 0x13, 0x23, 0x27, 0xE3, 0x67, 0xA7, 0x20003, 0x40003, 0x803, 0x103],
)
def test_einit_refuses_an_xfrm_that_no_cpu_takes(xfrm: int) -> None:
    signed = sign_sigstruct(Key(), b"\x07" * 32, date=0x20261123, attribute_mask=ANY_XFRM)
    with pytest.raises(AttestationError) as caught:
        einit(signed, b"\x07" * 32, Attributes(MODE64BIT, xfrm))
    assert caught.value.code == "EINIT_ATTRIBUTES"


def test_einit_gives_the_identity_that_was_measured_and_signed() -> None:
    signed = sign_sigstruct(Key(), b"\x07" * 32, date=0x20261123, isvprodid=3, isvsvn=4)
    secs = einit(signed, b"\x07" * 32, PLAIN)
    assert (secs.mrenclave, secs.mrsigner) == (b"\x07" * 32, signed.mrsigner)
    assert (secs.isvprodid, secs.isvsvn) == (3, 4)
    assert secs.attributes == Attributes(INIT | MODE64BIT, 3)


@pytest.mark.parametrize(
    ("fields", "attributes", "misc", "code"),
    [
        ({}, Attributes(MODE64BIT | DEBUG, 3), 0, "EINIT_ATTRIBUTES"),
        ({}, Attributes(MODE64BIT, 7), 0, "EINIT_ATTRIBUTES"),
        ({}, Attributes(MODE64BIT | INIT, 3), 0, "EINIT_ATTRIBUTES"),
        ({}, Attributes(0, 3), 0, "EINIT_ATTRIBUTES"),
        ({}, Attributes(MODE64BIT, 1), 0, "EINIT_ATTRIBUTES"),
        ({}, Attributes(MODE64BIT, 3 | 1 << 62), 0, "EINIT_ATTRIBUTES"),
        ({"miscselect": 2}, PLAIN, 2, "EINIT_ATTRIBUTES"),
        ({}, Attributes(MODE64BIT | PROVISIONKEY, 3), 0, "EINIT_FORBIDDEN"),
        ({}, PLAIN, 1, "EINIT_ATTRIBUTES"),
        ({"isvfamilyid": b"\1" * 16}, PLAIN, 0, "EINIT_ATTRIBUTES"),
        ({"isvextprodid": b"\1" * 16}, PLAIN, 0, "EINIT_ATTRIBUTES"),
        ({"cet_attributes": 1, "cet_mask": 1}, PLAIN, 0, "EINIT_ATTRIBUTES"),
    ],
)
def test_einit_refuses_what_the_instruction_refuses(
    fields: dict[str, Any], attributes: Any, misc: Any, code: Any
) -> None:
    signed = Key().resign(replace(sign_sigstruct(Key(), b"\x07" * 32, date=0x20261123), **fields))
    with pytest.raises(AttestationError) as caught:
        einit(signed, b"\x07" * 32, attributes, misc)
    assert caught.value.code == code
    assert caught.value.expected is not None
    assert caught.value.expected != caught.value.found


@pytest.mark.parametrize(("folder", "name"), [("enarx", "encl.ss"), ("fortanix", "sgx_detect.test_enclave.sig")])
def test_einit_takes_enclaves_that_others_signed(folder: str, name: Any, vectors: Path) -> None:
    signed = SigStruct.decode((vectors / folder / name).read_bytes())
    secs = einit(signed, signed.mrenclave, PLAIN)
    assert (secs.mrsigner, secs.isvprodid) == (signed.mrsigner, signed.isvprodid)
    # Both leave DEBUG to the host; the enclave's attributes then say so.
    assert einit(signed, signed.mrenclave, Attributes(MODE64BIT | DEBUG, 3)).attributes.flags & DEBUG


def test_einit_refuses_another_image_and_a_bad_signature() -> None:
    signed = sign_sigstruct(Key(), b"\x07" * 32, date=0x20261123)
    with pytest.raises(AttestationError) as caught:
        einit(signed, b"\x08" * 32, PLAIN)
    assert caught.value.code == "SIGSTRUCT_MRENCLAVE_MISMATCH"
    assert (caught.value.expected, caught.value.found) == ("07" * 32, "08" * 32)
    with pytest.raises(AttestationError) as caught:
        einit(replace(signed, mrenclave=b"\x08" * 32), b"\x08" * 32, PLAIN)
    assert caught.value.code == "SIGSTRUCT_SIGNATURE_BAD"


def test_einit_makes_a_debug_enclave_only_where_the_signer_let_it() -> None:
    free = Attributes(~DEBUG & 0xFFFF_FFFF_FFFF_FFFF, 0)
    open_mask: SigStruct = sign_sigstruct(Key(), b"\x07" * 32, date=0x20261123, attribute_mask=free)
    debug = einit(open_mask, b"\x07" * 32, Attributes(MODE64BIT | DEBUG, 7))
    assert debug.attributes.flags & DEBUG
    signed_debug = sign_sigstruct(Key(), b"\x07" * 32, date=0x20261123, debug=True)
    assert einit(signed_debug, b"\x07" * 32, signed_debug.attributes).attributes.flags & DEBUG


def test_a_kss_enclave_carries_its_product_ids(cpu: SoftwareCpu) -> None:
    fields: dict[str, Any] = {
        "isvfamilyid": b"\1" * 16,
        "isvextprodid": b"\2" * 16,
        "attributes": Attributes(MODE64BIT | KSS, 3),
    }
    signed = Key().resign(replace(sign_sigstruct(Key(), b"\x07" * 32, date=0x20261123), **fields))
    secs = einit(signed, b"\x07" * 32, signed.attributes)
    report = cpu.ereport(secs, secs.target_info(), bytes(64))
    assert (report.isvfamilyid, report.isvextprodid) == (b"\1" * 16, b"\2" * 16)
    assert Report.decode(report.encode()) == report


def test_report_keys_are_no_seal_keys(cpu: SoftwareCpu, alice: Secs) -> None:
    assert cpu.egetkey(alice, KeyRequest(REPORT_KEY)) != cpu.egetkey(alice, KeyRequest(SEAL_KEY, 1))
