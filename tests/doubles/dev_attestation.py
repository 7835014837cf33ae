"""A double of Gramine's /dev/attestation and of EGETKEY inside one enclave, on top of the software CPU.

Behaves as libos/src/fs/dev/attestation.c and fs/libos_fs_pseudo.c do: values live for the process, not for the
file handle; each write(2) replaces the whole value, pads it with zeros or cuts it; REPORT and my_target_info are
made when their file is opened; what is written cannot be read back; an all-zero TARGETINFO gives a report for nobody
and is replaced by this enclave's own, for which the next report is (pal_misc.c, _PalAttestationReport).
"""

import errno
import os
import threading

from attestation.errors import AttestationError
from attestation.sgx import KeyRequest, Report, TargetInfo, report_key_request, verify_report_mac
from attestation.simulated.cpu import KeyRefusedError, Secs, SoftwareCpu

SIZES = {"target_info": 512, "user_report_data": 64}


class DevAttestationDouble:
    """What `GramineDriver` needs of the file system; `lost` bytes of each write are not taken."""

    def __init__(self, cpu: SoftwareCpu, secs: Secs) -> None:
        self.cpu, self.secs = cpu, secs
        self.values = {name: bytes(size) for name, size in SIZES.items()}
        self.calls: list[tuple[str, int]] = []
        self.lost = 0
        self._users = threading.Semaphore(1)

    def read(self, name: str) -> bytes:
        with self:
            self.calls.append((name, threading.get_ident()))
            if name == "my_target_info":
                return self.secs.target_info().encode()
            if name == "report":
                target = TargetInfo.decode(self.values["target_info"])
                if not any(self.values["target_info"]):
                    self.values["target_info"] = self.secs.target_info().encode()
                return self.cpu.ereport(self.secs, target, self.values["user_report_data"]).encode()
            if name in self.values:
                return b""
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def write(self, name: str, data: bytes) -> int:
        with self:
            self.calls.append((name, threading.get_ident()))
            if name not in self.values:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            taken = data[: len(data) - self.lost]
            size = SIZES[name]
            self.values[name] = taken[:size].ljust(size, b"\0")
            return len(taken)

    def __enter__(self) -> None:
        if not self._users.acquire(blocking=False):
            raise AssertionError("two threads are in /dev/attestation at once")

    def __exit__(self, *_: object) -> None:
        self._users.release()


class EgetkeyDouble:
    """Does the work of the C extension with the software CPU."""

    def __init__(self, cpu: SoftwareCpu, secs: Secs) -> None:
        self.cpu, self.secs = cpu, secs

    def egetkey(self, request: bytes, /) -> tuple[int, bytes]:
        try:
            return 0, self.cpu.egetkey(self.secs, KeyRequest.decode(request))
        except KeyRefusedError as refused:
            return refused.code, bytes(16)

    def verify_report(self, report: bytes, /) -> int:
        decoded = Report.decode(report)
        try:
            verify_report_mac(self.cpu.egetkey(self.secs, report_key_request(decoded.key_id)), decoded)
        except AttestationError:
            return 0x10000
        return 0
