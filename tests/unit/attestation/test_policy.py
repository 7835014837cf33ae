from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import AttestationError
from attestation.network import NetworkKeys
from attestation.policy import Policy, Role, accept
from attestation.sgx import AEXNOTIFY, CET, DEBUG, INIT, KSS, MODE64BIT, PROVISIONKEY, Attributes, Report
from attestation.simulated.cpu import Secs, SoftwareCpu


@pytest.fixture
def policy(network_key: Ed25519PrivateKey) -> Policy:
    return Policy(NetworkKeys((network_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),)))


@pytest.fixture
def report(cpu: SoftwareCpu, alice: Secs, bob: Secs) -> Report:
    return cpu.ereport(alice, bob.target_info(), bytes(64))


@pytest.fixture
def signature(network_key: Ed25519PrivateKey, report: Report) -> bytes:
    return network_key.sign(report.enclave_id.encode())


def refusal(
    policy: Policy,
    report: Report,
    signatures: Sequence[bytes],
    role: Role = Role.TARGET,
    expected: Any = "own",
) -> AttestationError:
    ids = {report.enclave_id} if expected == "own" else expected
    with pytest.raises(AttestationError) as caught:
        accept(policy, report, signatures, role=role, expected=ids)
    return caught.value


@pytest.mark.parametrize("role", list(Role))
def test_a_signed_peer_in_its_role_is_accepted(role: Role, policy: Policy, report: Report, signature: bytes) -> None:
    peer = accept(policy, report, [signature], role=role, expected={report.enclave_id, "00" * 32})
    assert (peer.role, peer.enclave_id, peer.report, peer.signed_by) == (role, report.enclave_id, report, {0})


def test_an_upgrader_may_be_any_that_the_network_signed(policy: Policy, report: Report, signature: bytes) -> None:
    assert accept(policy, report, [signature], role=Role.UPGRADER, expected=None).signed_by == {0}


@pytest.mark.parametrize("role", [Role.TARGET, Role.SOURCE])
def test_a_network_signature_alone_makes_nobody_target_or_source(
    role: Role, policy: Policy, report: Report, signature: bytes
) -> None:
    assert refusal(policy, report, [signature], role, None).code == "POLICY_INVALID"


@pytest.mark.parametrize(
    ("role", "code"),
    [
        (Role.TARGET, "PEER_NOT_TARGET"),
        (Role.SOURCE, "PEER_NOT_SOURCE"),
        (Role.UPGRADER, "PEER_NOT_UPGRADER"),
    ],
)
def test_a_signed_peer_in_anothers_role_is_refused(
    role: Role, code: str, policy: Policy, report: Report, signature: bytes
) -> None:
    error = refusal(policy, report, [signature], role, {"cd" * 32})
    assert (error.code, error.expected, error.found) == (code, "cd" * 32, report.enclave_id)
    assert refusal(policy, report, [signature], role, set()).expected == "nobody"


@pytest.mark.parametrize(
    ("change", "code", "found"),
    [
        ({"attributes": Attributes(INIT | MODE64BIT | DEBUG, 3)}, "PEER_DEBUG", "INIT|DEBUG|MODE64BIT"),
        ({"attributes": Attributes(MODE64BIT | DEBUG, 3)}, "PEER_DEBUG", "DEBUG|MODE64BIT"),
        ({"attributes": Attributes(MODE64BIT, 3)}, "PEER_NOT_INIT", "MODE64BIT"),
        ({"attributes": Attributes(INIT, 3)}, "PEER_ATTRIBUTES", "INIT"),
        ({"attributes": Attributes(INIT | MODE64BIT | PROVISIONKEY, 3)}, "PEER_ATTRIBUTES", None),
        ({"attributes": Attributes(INIT | MODE64BIT | CET, 3)}, "PEER_ATTRIBUTES", None),
        ({"attributes": Attributes(INIT | MODE64BIT | 8, 3)}, "PEER_ATTRIBUTES", "INIT|MODE64BIT|0x8"),
        ({"attributes": Attributes(INIT | MODE64BIT, 1)}, "PEER_XFRM", "0x1"),
        ({"attributes": Attributes(INIT | MODE64BIT, 3 | 1 << 11)}, "PEER_XFRM", "0x803"),
        ({"miscselect": 2}, "PEER_MISCSELECT", "0x2"),
        ({"cet_attributes": 1}, "PEER_CET_ATTRIBUTES", "0x1"),
        ({"configid": b"\1" * 64}, "PEER_CONFIG", "01" * 64),
    ],
)
def test_each_property_has_its_own_refusal(
    change: dict[str, Any], code: str, found: Any, policy: Policy, report: Report, signature: bytes
) -> None:
    error = refusal(policy, replace(report, **change), [signature])
    assert error.code == code
    assert error.expected
    assert found is None or error.found == found
    assert str(error.expected) in str(error)
    assert str(error.found) in str(error)


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ({"isvsvn_floor": 3}, "PEER_ISVSVN_TOO_LOW"),
        ({"isvprodid": 8}, "PEER_ISVPRODID"),
        ({"configsvn_floor": 1}, "PEER_CONFIG"),
        ({"configids": frozenset({b"\1" * 64, b"\2" * 64})}, "PEER_CONFIG"),
        ({"flags_allowed": INIT | MODE64BIT | KSS, "flags_required": INIT | KSS}, "PEER_ATTRIBUTES"),
    ],
)
def test_a_stricter_policy_refuses_the_same_peer(
    rule: dict[str, Any], code: str, policy: Policy, report: Report, signature: bytes
) -> None:
    assert refusal(replace(policy, **rule), report, [signature]).code == code


def test_what_a_policy_allows_passes(policy: Policy, report: Report, signature: bytes) -> None:
    wide = replace(policy, isvsvn_floor=2, isvprodid=7, cet_attributes_allowed=1, configids=frozenset({b"\1" * 64}))
    flags = INIT | MODE64BIT | KSS | AEXNOTIFY
    peer = replace(report, attributes=Attributes(flags, 0x602E7), miscselect=1, cet_attributes=1, configid=b"\1" * 64)
    assert accept(wide, peer, [signature], role=Role.TARGET, expected={peer.enclave_id}).report is peer


def test_an_unsigned_peer_is_refused(policy: Policy, report: Report) -> None:
    assert refusal(policy, report, []).code == "NETWORK_SIGNATURE_MISSING"
    assert refusal(policy, report, [bytes(64)]).code == "NETWORK_SIGNATURE_BAD"


@pytest.mark.parametrize(
    "change",
    [
        {"flags_required": INIT | MODE64BIT | CET},
        {"flags_allowed": INIT | MODE64BIT | DEBUG},
        {"flags_required": MODE64BIT},
        {"isvsvn_floor": -1},
        {"isvsvn_floor": 1 << 16},
        {"configsvn_floor": 1 << 16},
        {"configids": frozenset()},
        {"configids": frozenset({b"short"})},
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(change: dict[str, Any], policy: Policy) -> None:
    with pytest.raises(AttestationError) as caught:
        replace(policy, **change)
    assert caught.value.code == "POLICY_INVALID"


def test_transitions_bind_source_to_target(policy: Policy) -> None:
    a, b, c = "aa" * 32, "bb" * 32, "cc" * 32
    policy.need_transition(a, b)
    bound = replace(policy, transitions=frozenset({(a, b)}))
    bound.need_transition(a, b)
    for source, target, allowed in ((a, c, b), (b, a, "nothing"), (c, b, "nothing")):
        with pytest.raises(AttestationError) as caught:
            bound.need_transition(source, target)
        assert caught.value.code == "TRANSITION_FORBIDDEN"
        assert allowed in str(caught.value.expected)
    with pytest.raises(AttestationError) as caught:
        replace(policy, transitions=frozenset({(a, "B" * 64)}))
    assert caught.value.code == "ENCLAVE_ID_INVALID"
