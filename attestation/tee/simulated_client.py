"""The driver of an enclave that runs under the simulated CPU: a client of its socket."""

import socket
import struct
import threading

from attestation.errors import AttestationError
from attestation.sgx import KEY_SIZE, REPORT_SIZE, REPORTDATA_SIZE, TARGETINFO_SIZE, KeyRequest, Report, TargetInfo

from .driver import ReportVerifier, key_refused, need_key, need_report_data, need_seal_request

# One datagram each way: an operation byte and its operands; a status byte and the result.
OP_TARGET_INFO, OP_REPORT, OP_KEY = 1, 2, 3
STATUS_OK, STATUS_KEY_REFUSED, STATUS_MALFORMED = 0, 1, 2
MESSAGE_BYTES_MAX = 1024


class SimulatedDriver:
    """The enclave's end of the socket to its software CPU (`attestation.simulated`). Threads may share it."""

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
