"""The simulated TEE: a process that acts as the CPU of one enclave. It protects nothing from its host.

`python -m attestation.simulated run` copies an image into sealed memory, measures that copy, verifies the SIGSTRUCT,
and executes exactly the measured bytes, as a child with a cleared environment and one end of a socket pair. The other
end uses the measurement as the child's identity, so a program cannot choose its identity. Processes that share one
`--cpu` folder are one CPU. The enclave ends with its CPU (PR_SET_PDEATHSIG), which exits with the enclave's exit code.
"""

import argparse
import contextlib
import ctypes
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from attestation.artefact.files import read_sigstruct
from attestation.errors import AttestationError
from attestation.sgx import DEBUG, REPORTDATA_SIZE, TARGETINFO_SIZE, Attributes, KeyRequest, TargetInfo
from attestation.tee.simulated_client import (
    MESSAGE_BYTES_MAX,
    OP_KEY,
    OP_REPORT,
    OP_TARGET_INFO,
    STATUS_KEY_REFUSED,
    STATUS_MALFORMED,
    STATUS_OK,
)

from .cpu import CPUSVN_DEFAULT, CPUSVN_LEVELS, KeyRefusedError, Secs, SoftwareCpu, einit
from .image import execute, is_native, need_static, private_copy
from .root_keys import init_cpu, load_root_keys, set_cpusvn

EXIT_REFUSED = 125  # the CPU did not start the enclave; every other exit code comes from the enclave
EXIT_EXEC_FAILED = 126
_SOCKET_FD, _IMAGE_FD = 3, 4
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


def load_enclave(image: Path, sigstruct: Path, debug: bool) -> tuple[int, Secs]:
    """Do the work of a loader and of EINIT. Returns the sealed copy's descriptor and the enclave's identity."""
    signed = read_sigstruct(sigstruct)
    copy, measured = private_copy(image)
    try:
        if is_native(copy):
            need_static(copy)
        wanted, fixed = signed.attributes, signed.attribute_mask.flags
        # If the signer leaves DEBUG open, the host decides: a debug enclave only with `--debug`.
        flags = wanted.flags | DEBUG if debug else wanted.flags & (fixed | ~DEBUG)
        return copy, einit(signed, measured, Attributes(flags, wanted.xfrm), signed.miscselect)
    except BaseException:
        os.close(copy)
        raise


def answer(cpu: SoftwareCpu, secs: Secs, message: bytes) -> bytes:
    """Answer one datagram of an enclave: EREPORT or EGETKEY, always for the identity `secs`."""
    try:
        operation, operands = int.from_bytes(message[:1], "little"), message[1:]
        if operation == OP_TARGET_INFO and not operands:
            return bytes([STATUS_OK]) + secs.target_info().encode()
        if operation == OP_REPORT and len(operands) == TARGETINFO_SIZE + REPORTDATA_SIZE:
            target = TargetInfo.decode(operands[:TARGETINFO_SIZE])
            return bytes([STATUS_OK]) + cpu.ereport(secs, target, operands[TARGETINFO_SIZE:]).encode()
        if operation == OP_KEY:
            return bytes([STATUS_OK]) + cpu.egetkey(secs, KeyRequest.decode(operands))
    except KeyRefusedError as refused:
        return struct.pack("<BH", STATUS_KEY_REFUSED, refused.code)
    except AttestationError:
        return bytes([STATUS_MALFORMED])
    return bytes([STATUS_MALFORMED])


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _become_enclave(parent: int, enclave_end: int, copy: int, uid: int | None, args: list[str]) -> NoReturn:
    """In the child: close everything except the socket and the sealed copy, and execute it. Never returns."""
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, 16) for fd in (null, enclave_end, copy)]
        for fd, place in zip(moved, (0, _SOCKET_FD, _IMAGE_FD), strict=True):
            os.dup2(fd, place, inheritable=True)
        os.closerange(_IMAGE_FD + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        # After the change of uid, which clears it. Then check that the parent has not ended before.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(EXIT_EXEC_FAILED)
        for number in _FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        environment = {"DC_TEE": "simulated", "DC_TEE_FD": str(_SOCKET_FD), "LC_ALL": "C.UTF-8"}
        execute(_IMAGE_FD, args, environment)
    except BaseException as error:
        os.write(2, f"ENCLAVE_START_FAILED: the enclave was not executed: {error}.\n".encode())
    os._exit(EXIT_EXEC_FAILED)


def _serve(cpu: SoftwareCpu, secs: Secs, connection: socket.socket, child: int, pidfd: int) -> int:
    """Answer the enclave until it ends; returns its exit code, 128+n for signal n."""
    # A signal that arrives just before poll() would have its handler wait until poll() returns, perhaps indefinitely.
    # Its byte in this socket ends poll() at once.
    signalled, wakeup = socket.socketpair()
    signalled.setblocking(False)
    wakeup.setblocking(False)
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    poll = select.poll()
    for source in (connection, pidfd, signalled):
        poll.register(source, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        with contextlib.suppress(BlockingIOError):
            signalled.recv(4096)
        # Check the end first: a process that the enclave left behind may keep its socket and continue to send requests.
        if pidfd in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return code if code >= 0 else 128 - code
        if connection.fileno() not in ready:
            continue
        try:
            message = connection.recv(MESSAGE_BYTES_MAX)
            if message:
                # Without waiting: if the enclave does not read its answers, the CPU must still notice its end.
                connection.send(answer(cpu, secs, message), socket.MSG_DONTWAIT)
        except OSError:
            message = b""
        if not message:
            poll.unregister(connection)
            connection.close()  # so that a further request of the enclave fails instead of waiting indefinitely


def run(cpu_folder: Path, image: Path, sigstruct: Path, uid: int | None, debug: bool, args: list[str]) -> int:
    """Run one enclave to its end and return its exit code. Raises AttestationError if it cannot be started."""
    if uid is not None and (os.geteuid() != 0 or not 0 < uid < (1 << 32) - 1):
        raise AttestationError(
            code="CPU_SETTING_INVALID", what="--uid cannot be used", why="it takes root, and a uid from 1 to 4294967294"
        )
    init_cpu(cpu_folder)
    cpu = SoftwareCpu(load_root_keys(cpu_folder))
    copy, secs = load_enclave(image, sigstruct, debug)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    label = " DEBUG" if secs.attributes.flags & DEBUG else ""
    sys.stderr.write(f"SIMULATED TEE: not SGX, its host can read everything;{label} enclave {secs.mrenclave.hex()}\n")
    sys.stderr.flush()
    cpu_end, enclave_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _become_enclave(parent, enclave_end.fileno(), copy, uid, args)

    # By pidfd: after the enclave's end its pid may belong to another process.
    pidfd = os.pidfd_open(child)

    def forward(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    enclave_end.close()
    os.close(copy)
    return _serve(cpu, secs, cpu_end, child, pidfd)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m attestation.simulated",
        description="a software CPU: not SGX",
        epilog="What follows -- are the enclave's own arguments.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="draw the root keys of a CPU, unless it has some")
    svn = commands.add_parser("svn", help="play a microcode update")
    start = commands.add_parser("run", help="run one enclave")
    for command in (init, svn, start):
        command.add_argument("--cpu", type=Path, required=True, metavar="DIR")
    svn.add_argument("level", type=int, choices=range(len(CPUSVN_LEVELS)), help=f"a new CPU has {CPUSVN_DEFAULT}")
    start.add_argument("--image", type=Path, required=True, metavar="FILE")
    start.add_argument("--sigstruct", type=Path, required=True, metavar="FILE")
    start.add_argument("--uid", type=int, help="run the enclave under another uid and gid (takes root)")
    start.add_argument("--debug", action="store_true", help="ask for a debug enclave, as a hostile host would")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code, 125 if the CPU itself refused."""
    words = sys.argv[1:] if argv is None else argv
    # Split here, because argparse would take the enclave's options for its own.
    split = words.index("--") if "--" in words else len(words)
    options, args = _parser().parse_args(words[:split]), words[split + 1 :]
    try:
        if options.command == "init":
            state = "drew root keys" if init_cpu(options.cpu) else "root keys were there"
            sys.stdout.write(f"{state}: {options.cpu}\n")
        elif options.command == "svn":
            set_cpusvn(options.cpu, options.level)
        else:
            return run(options.cpu, options.image, options.sigstruct, options.uid, options.debug, args)
    except AttestationError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED
    except OSError as error:
        sys.stderr.write(f"ENCLAVE_START_FAILED: the simulated CPU stopped: {error}.\n")
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
