"""The narrow interface to a TEE, and the checks that its drivers share."""

from collections.abc import Callable
from typing import Protocol

from attestation.errors import AttestationError
from attestation.sgx import (
    REPORT_KEY,
    REPORTDATA_SIZE,
    KeyRequest,
    Report,
    TargetInfo,
    report_key_request,
    verify_report_mac,
)


class TeeDriver(Protocol):
    """The operations of the CPU on which an enclave runs. Synchronous; each call takes much less than 1 ms."""

    @property
    def kind(self) -> str:
        """Return the TEE's name: "simulated" or "gramine". A simulated one protects nothing from its host."""
        ...

    def target_info(self) -> TargetInfo:
        """Return the TARGETINFO of this enclave, for a peer that wants to send it a report."""
        ...

    def self_report(self) -> Report:
        """Return a report of this enclave targeted at itself, to read its own identity."""
        ...

    def report(self, target: TargetInfo, report_data: bytes) -> Report:
        """Make a report for `target` over 64 bytes of REPORTDATA."""
        ...

    def verify(self, report: Report) -> None:
        """Raise REPORT_MAC_BAD unless `report` was made for this enclave on this CPU. Checks nothing else."""
        ...

    def seal_key(self, request: KeyRequest) -> bytes:
        """Return the 16-byte key that `request` (KEYNAME SEAL) names. Raises TEE_KEY_REFUSED, SEAL_KEY_ZERO."""
        ...


def need_report_data(report_data: bytes) -> bytes:
    """Return `report_data`, or raise REPORT_DATA_INVALID unless it is 64 bytes."""
    if not isinstance(report_data, bytes) or len(report_data) != REPORTDATA_SIZE:
        raise AttestationError(
            code="REPORT_DATA_INVALID", what="no report was made", why=f"REPORTDATA is not {REPORTDATA_SIZE} bytes"
        )
    return report_data


def need_key(key: bytes) -> bytes:
    """Return a seal key, or raise SEAL_KEY_ZERO: an interface that fails silently would return zeros."""
    if not any(key):
        raise AttestationError(
            code="SEAL_KEY_ZERO",
            what="the seal key cannot be used",
            why="it is all zeros",
            action="Do not seal anything; look at the TEE's installation.",
            kind="invariant",
        )
    return key


def key_refused(code: int) -> AttestationError:
    """Make the error for EGETKEY's error `code` (SDM 3D, EGETKEY)."""
    reason = {
        2: "INVALID_ATTRIBUTE",
        32: "INVALID_CPUSVN: the key is for a newer CPUSVN than this CPU runs at",
        64: "INVALID_ISVSVN: the key is for a newer ISVSVN than this enclave has",
        256: "INVALID_KEYNAME",
    }.get(code, "unknown")
    return AttestationError(
        code="TEE_KEY_REFUSED",
        what="the TEE gave no key",
        why=f"EGETKEY ended with {code} ({reason})",
        action="If microcode or the enclave was downgraded, bring it forward again.",
        found=str(code),
    )


def need_seal_request(request: KeyRequest) -> KeyRequest:
    """Return `request`, or raise TEE_KEY_REFUSED unless it asks for a seal key (a report key must not pass for one)."""
    if request.key_name == REPORT_KEY:
        raise key_refused(256)
    return request


class ReportVerifier:
    """Verifies reports with the caller's report key. Caches the key of the last KEYID, which changes at each boot."""

    def __init__(self, report_key: Callable[[KeyRequest], bytes]) -> None:
        self._report_key = report_key
        self._last: tuple[bytes, bytes] | None = None

    def verify(self, report: Report) -> None:
        """Raise REPORT_MAC_BAD unless `report` was made for this enclave on this CPU."""
        last = self._last
        if last is not None and last[0] == report.key_id:
            verify_report_mac(last[1], report)
            return
        key = need_key(self._report_key(report_key_request(report.key_id)))
        verify_report_mac(key, report)
        # Only a KEYID with a valid MAC is cached, so that a forged report cannot displace the good one.
        self._last = (report.key_id, key)
