"""The narrow interface to a TEE, and the choice of the one that this process runs in."""

import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Protocol

from attestation.errors import AttestationError
from attestation.sgx import (
    KEY_SIZE,
    REPORT_KEY,
    REPORT_SIZE,
    REPORTDATA_SIZE,
    TARGETINFO_SIZE,
    KeyRequest,
    Report,
    TargetInfo,
    report_key_request,
    verify_report_mac,
)

# One datagram each way: an operation byte and its operands; a status byte and the result.
OP_TARGET_INFO, OP_REPORT, OP_KEY = 1, 2, 3
STATUS_OK, STATUS_KEY_REFUSED, STATUS_MALFORMED = 0, 1, 2
MESSAGE_BYTES_MAX = 1024


class TeeDriver(Protocol):
    """What an enclave may ask of the CPU that it runs on. Synchronous; each call takes well under 1 ms."""

    @property
    def kind(self) -> str:
        """Name the TEE: "simulated" or "gramine". A simulated one protects nothing from its host."""
        ...

    def target_info(self) -> TargetInfo:
        """Give the TARGETINFO of this enclave, for a peer that wants to send it a report."""
        ...

    def self_report(self) -> Report:
        """Give a report of this enclave targeted at itself: who it is, in its own eyes."""
        ...

    def report(self, target: TargetInfo, report_data: bytes) -> Report:
        """Make a report for `target` over 64 bytes of REPORTDATA."""
        ...

    def verify(self, report: Report) -> None:
        """Raise REPORT_MAC_BAD unless `report` was made for this enclave on this CPU. Judges nothing else."""
        ...

    def seal_key(self, request: KeyRequest) -> bytes:
        """Give the 16-byte key that `request` (KEYNAME SEAL) names. Raises TEE_KEY_REFUSED, SEAL_KEY_ZERO."""
        ...


def need_report_data(report_data: bytes) -> bytes:
    """Give `report_data` back, or raise REPORT_DATA_INVALID unless it is 64 bytes."""
    if not isinstance(report_data, bytes) or len(report_data) != REPORTDATA_SIZE:
        raise AttestationError(
            code="REPORT_DATA_INVALID", what="no report was made", why=f"REPORTDATA is not {REPORTDATA_SIZE} bytes"
        )
    return report_data


def need_key(key: bytes) -> bytes:
    """Give a seal key back, or raise SEAL_KEY_ZERO: what an interface that failed silently would give."""
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
    """Say that EGETKEY ended with error `code` (SDM 3D, EGETKEY)."""
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
    """Give `request` back, or raise TEE_KEY_REFUSED: a report key must not pass for a seal key."""
    if request.key_name == REPORT_KEY:
        raise key_refused(256)
    return request


class ReportVerifier:
    """Verifies reports with the caller's report key; keeps the key of the last KEYID, which changes per boot."""

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
        # Only a KEYID under which a MAC held is kept: a forger cannot push the good one out.
        self._last = (report.key_id, key)


class SimulatedDriver:
    """The enclave's end of the socket to its software CPU (`attestation.simulated.__main__`). Safe to share by threads."""

    kind = "simulated"

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._verifier = ReportVerifier(self._key)

    def _call(self, operation: int, operands: bytes, length: int) -> bytes:
        try:
            with self._lock:
                self._connection.send(bytes([operation]) + operands)
                answer = self._connection.recv(MESSAGE_BYTES_MAX)
        except OSError as error:
            raise self._gone(str(error)) from error
        if not answer:
            raise self._gone("it closed the connection")
        if answer[0] == STATUS_KEY_REFUSED and len(answer) == 3:
            raise key_refused(struct.unpack("<H", answer[1:])[0])
        if answer[0] != STATUS_OK or len(answer) != 1 + length:
            raise AttestationError(
                code="TEE_PROTOCOL",
                what="the software CPU cannot be used",
                why=f"it answered operation {operation} with status {answer[0]} and {len(answer) - 1} bytes",
                kind="invariant",
            )
        return answer[1:]

    def _gone(self, why: str) -> AttestationError:
        return AttestationError(
            code="TEE_GONE",
            what="the software CPU does not answer",
            why=why,
            action="Start the enclave again.",
            kind="invariant",
        )

    def _key(self, request: KeyRequest) -> bytes:
        return self._call(OP_KEY, request.encode(), KEY_SIZE)

    def target_info(self) -> TargetInfo:
        """See `TeeDriver`."""
        return TargetInfo.decode(self._call(OP_TARGET_INFO, b"", TARGETINFO_SIZE))

    def self_report(self) -> Report:
        """See `TeeDriver`."""
        return self.report(self.target_info(), bytes(REPORTDATA_SIZE))

    def report(self, target: TargetInfo, report_data: bytes) -> Report:
        """See `TeeDriver`."""
        return Report.decode(self._call(OP_REPORT, target.encode() + need_report_data(report_data), REPORT_SIZE))

    def verify(self, report: Report) -> None:
        """See `TeeDriver`."""
        self._verifier.verify(report)

    def seal_key(self, request: KeyRequest) -> bytes:
        """See `TeeDriver`."""
        return need_key(self._key(need_seal_request(request)))


def open_driver() -> TeeDriver:
    """Open the TEE that this process runs in: the software CPU's socket, or Gramine's /dev/attestation.

    Raises TEE_MISSING outside of one. The simulated TEE is used only if its CPU said so in the environment;
    whether it is good enough, the caller decides by `kind`.
    """
    if os.environ.get("DC_TEE") == "simulated":
        text = os.environ.get("DC_TEE_FD", "")
        try:
            fd = int(text)
            os.set_inheritable(fd, False)
            return SimulatedDriver(socket.socket(fileno=fd))
        except (ValueError, OSError) as error:
            raise AttestationError(
                code="TEE_MISSING",
                what="the software CPU cannot be reached",
                why=f"DC_TEE_FD={text!r} is no open socket",
                action="Start the enclave with python -m attestation.simulated.__main__ run.",
            ) from error
    if os.path.exists("/dev/attestation/report"):
        from .gramine import GramineDriver

        return GramineDriver()
    raise AttestationError(
        code="TEE_MISSING",
        what="this process runs in no TEE",
        why="there is neither DC_TEE=simulated nor /dev/attestation",
        action="Start it in Gramine, or with python -m attestation.simulated.__main__ run for development.",
    )
