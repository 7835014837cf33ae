"""Interfaces that the pure modules get from outside: TEE, cryptography, and the verification of a peer.

The vault, nodes and tests pass different implementations. The protocol and the release decision do not depend on one.
`Tee` is the part of `attestation.tee.driver.TeeDriver` that is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from attestation.policy import Policy, Role, accept
from attestation.sgx import KeyRequest, Report, TargetInfo


class Tee(Protocol):
    """The instructions of the TEE this code runs in. All methods are synchronous and may raise AttestationError."""

    @property
    def kind(self) -> str:
        """Name of the TEE: "simulated" or "gramine"."""

    def target_info(self) -> TargetInfo:
        """Return the TARGETINFO with which a peer makes a report for this enclave."""

    def report(self, target: TargetInfo, report_data: bytes) -> Report:
        """Return a report of this enclave for `target` with 64 bytes of REPORTDATA."""

    def verify(self, report: Report) -> None:
        """Raise unless the report was made for this enclave on this CPU (its MAC)."""

    def seal_key(self, request: KeyRequest) -> bytes:
        """Return the 16-byte key of EGETKEY for `request`."""

    def self_report(self) -> Report:
        """Return a report of this enclave, for its own identity and CPUSVN."""


class Crypto(Protocol):
    """Randomness, HPKE and MAC of the handover. The real one is `keyvault.handover.hpke`."""

    def random(self, size: int) -> bytes:
        """Return `size` unpredictable bytes."""

    def kem_generate(self) -> tuple[Any, bytes]:
        """Return a fresh private key (opaque here) and its 1,216-byte public key."""

    def kem_seal(self, public_key: bytes, info: bytes, plaintext: bytearray) -> bytes:
        """Return the HPKE base-mode ciphertext: encapsulation and AEAD output. Raises on a bad public key."""

    def kem_open(self, private_key: Any, info: bytes, ciphertext: bytes) -> bytearray:
        """Return the plaintext as a wipeable buffer, or raise `HANDOVER_CIPHERTEXT_BAD`."""

    def mac(self, key: bytes | bytearray, data: bytes) -> bytes:
        """Return a 32-byte MAC (HMAC-SHA256)."""


#: Verifies a peer: its report (MAC, attributes, policy) and its network signatures. Returns its enclave id or raises.
VerifyPeer = Callable[[Report, Sequence[bytes]], str]


@dataclass(frozen=True)
class Party:
    """What one side needs in every handover.

    `genesis_hash`: 32 bytes; `network_signatures`: 64 bytes each, over this side's own enclave id.
    """

    genesis_hash: bytes
    network_signatures: tuple[bytes, ...]
    tee: Tee
    crypto: Crypto
    verify_peer: VerifyPeer


def peer_verifier(tee: Tee, policy: Policy, role: Role, expected: frozenset[str] | None) -> VerifyPeer:
    """Return a function that verifies a peer: report MAC, attributes, identity, network signature, expected id."""

    def verify(report: Report, signatures: Sequence[bytes]) -> str:
        tee.verify(report)
        return accept(policy, report, signatures, role=role, expected=expected).enclave_id

    return verify
