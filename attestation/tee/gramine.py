"""The TEE driver for Gramine on SGX: /dev/attestation for reports, the EGETKEY extension for keys.

Written from Gramine's documentation (attestation.rst) and libos/src/fs/dev/attestation.c; not yet run on SGX
hardware. Rules of the interface:
- a report is made when `report` is opened, from what was last written to `target_info` and `user_report_data`;
- each write replaces the whole value; a short one is padded with zeros and a long one is cut, so a value must be
  written by one write of its full length;
- an all-zero TARGETINFO means "this enclave" for the next report, so a peer's all-zero TARGETINFO must be refused;
- all this is state of the process, and Gramine does not lock it: one lock here serves all driver objects.
"""

import os
import threading
from pathlib import Path
from typing import Protocol, cast

from attestation.errors import AttestationError
from attestation.sgx import REPORT_SIZE, REPORTDATA_SIZE, TARGETINFO_SIZE, KeyRequest, Report, TargetInfo

from .driver import key_refused, need_key, need_report_data, need_seal_request

ROOT = Path("/dev/attestation")
REPORT_MAC_BAD = 0x10000  # as in egetkey.h
_LOCK = threading.Lock()


class PseudoFiles(Protocol):
    """The file operations that the driver needs. Each opens the file, makes one system call, and closes it."""

    def read(self, name: str) -> bytes:
        """Read a pseudo-file of /dev/attestation whole."""
        ...

    def write(self, name: str, data: bytes) -> int:
        """Write `data` by one write(2) and return the number of bytes written."""
        ...


class Egetkey(Protocol):
    """The C extension `attestation.egetkey._egetkey`."""

    def egetkey(self, request: bytes, /) -> tuple[int, bytes]:
        """Return EGETKEY's code and the key (zeros unless the code is 0)."""
        ...

    def verify_report(self, report: bytes, /) -> int:
        """Return 0, an EGETKEY code, or `REPORT_MAC_BAD`."""
        ...


class DevAttestation:
    """The real /dev/attestation."""

    def read(self, name: str) -> bytes:
        """See `PseudoFiles`."""
        fd = os.open(ROOT / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)

    def write(self, name: str, data: bytes) -> int:
        """See `PseudoFiles`."""
        fd = os.open(ROOT / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            return os.write(fd, data)
        finally:
            os.close(fd)


def _load_egetkey() -> Egetkey:
    try:
        from attestation.egetkey import _egetkey  # type: ignore[attr-defined]
    except ImportError as error:
        raise AttestationError(
            code="EGETKEY_MISSING",
            what="keys and reports cannot be had from this enclave",
            why="attestation/egetkey/_egetkey.abi3.so is not there",
            action="Build it (python -m attestation.egetkey.build) and list it in sgx.trusted_files.",
            kind="invariant",
        ) from error
    return cast(Egetkey, _egetkey)


def _interface(name: str, why: str) -> AttestationError:
    return AttestationError(
        code="GRAMINE_INTERFACE",
        what=f"{ROOT}/{name} cannot be used",
        why=why,
        action="Compare the version of Gramine with the one in docs/gramine.md.",
        kind="invariant",
    )


class GramineDriver:
    """A `TeeDriver` on Gramine. Threads may share it, and one process may have several."""

    kind = "gramine"

    def __init__(self, files: PseudoFiles | None = None, egetkey: Egetkey | None = None) -> None:
        self._files = DevAttestation() if files is None else files
        self._egetkey = _load_egetkey() if egetkey is None else egetkey

    def _read(self, name: str, length: int) -> bytes:
        try:
            data = self._files.read(name)
        except OSError as error:
            raise _interface(name, error.strerror or type(error).__name__) from error
        if len(data) != length:
            raise _interface(name, f"it gave {len(data)} bytes instead of {length}")
        return data

    def _write(self, name: str, data: bytes) -> None:
        try:
            taken = self._files.write(name, data)
        except OSError as error:
            raise _interface(name, error.strerror or type(error).__name__) from error
        if taken != len(data):
            raise _interface(name, f"it took {taken} of {len(data)} bytes")

    def target_info(self) -> TargetInfo:
        """See `TeeDriver`."""
        with _LOCK:
            data = self._read("my_target_info", TARGETINFO_SIZE)
        return TargetInfo.decode(data)

    def self_report(self) -> Report:
        """See `TeeDriver`."""
        return self.report(self.target_info(), bytes(REPORTDATA_SIZE))

    def report(self, target: TargetInfo, report_data: bytes) -> Report:
        """See `TeeDriver`. Also checks that the report contains the given REPORTDATA, not an earlier one."""
        wanted, encoded = need_report_data(report_data), target.encode()
        if not any(encoded):
            raise _interface("target_info", "an all-zero TARGETINFO would come to mean this enclave itself")
        with _LOCK:
            self._write("target_info", encoded)
            self._write("user_report_data", wanted)
            data = self._read("report", REPORT_SIZE)
        report = Report.decode(data)
        if report.report_data != wanted:
            raise _interface("report", "it holds other REPORTDATA than was written")
        return report

    def verify(self, report: Report) -> None:
        """See `TeeDriver`. The report key never leaves the extension."""
        code = self._egetkey.verify_report(report.encode())
        if code == REPORT_MAC_BAD:
            raise AttestationError(
                code="REPORT_MAC_BAD",
                what=f"the report of enclave {report.enclave_id} does not verify",
                why="its MAC was not made by this CPU for this enclave",
                action="Target the report at this enclave, on this machine.",
            )
        if code:
            raise key_refused(code)

    def seal_key(self, request: KeyRequest) -> bytes:
        """See `TeeDriver`."""
        code, key = self._egetkey.egetkey(need_seal_request(request).encode())
        if code:
            raise key_refused(code)
        return need_key(key)
