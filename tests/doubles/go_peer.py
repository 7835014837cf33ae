"""Programs in Go that use a software CPU in the test's process, which gives them any identity without an image."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attestation.network import encode_multibase
from attestation.simulated.__main__ import answer
from attestation.simulated.cpu import Secs, SoftwareCpu
from attestation.tee.simulated_client import MESSAGE_BYTES_MAX
from devnet.go_image import build_go_program
from tests.doubles.vault_kit import CPU, NETWORK, SECRET, secs, sign

SDK = Path(__file__).resolve().parents[2] / "sdk" / "go"
_FOLDER = TemporaryDirectory(prefix="dcupgrade-go-peer-")


@cache
def peer_program() -> Path:
    """The program `sdk/go/internal/peer`, built once per run."""
    program = Path(_FOLDER.name) / "peer"
    build_go_program(program, SDK, package="./internal/peer")
    return program


@dataclass
class GoProgram:
    """A running program whose standard output is lines of JSON."""

    process: subprocess.Popen[bytes]

    def says(self) -> Any:
        """Return the next line."""
        if self.process.stdout is None:
            raise AssertionError("its output was not asked for")
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait(10)} and said nothing more"
        return json.loads(line)


@contextmanager
def in_software_tee(
    command: list[str], identity: Secs, cpu: SoftwareCpu = CPU, environment: Mapping[str, str] | None = None
) -> Iterator[GoProgram]:
    """Run a program that finds the software CPU of `identity` at its socket, and end it."""
    cpu_end, enclave_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve() -> None:
        while message := cpu_end.recv(MESSAGE_BYTES_MAX):
            cpu_end.send(answer(cpu, identity, message))

    serving = threading.Thread(target=serve, daemon=True)
    fd = enclave_end.fileno()
    tee = {"DC_TEE": "simulated", "DC_TEE_FD": str(fd)}
    with subprocess.Popen(
        command, env={**(environment or os.environ), **tee}, pass_fds=[fd], stdout=subprocess.PIPE
    ) as process:
        enclave_end.close()
        serving.start()
        try:
            yield GoProgram(process)
        finally:
            process.kill()
            process.wait()
            serving.join(10)
            cpu_end.close()


def peer_command(name: str, *words: str, signatures: tuple[bytes, ...] | None = None, **options: str) -> list[str]:
    """The command line of the peer for the enclave that is called `name`; `options` become flags."""
    signed = signatures if signatures is not None else (sign(secs(name).mrenclave.hex()),)
    flags = {
        "network": NETWORK.public_key().public_bytes_raw().hex(),
        "signatures": ",".join(map(encode_multibase, signed)),
        "keys": SECRET.hex(),
        **options,
    }
    return [str(peer_program()), *(f"-{flag}={value}" for flag, value in flags.items()), *words]


@contextmanager
def go_holder(name: str = "node", **options: Any) -> Iterator[str]:
    """A holder in Go that serves SECRET; gives its address."""
    with in_software_tee(peer_command(name, "hold", **options), secs(name)) as holder:
        yield str(holder.says()["url"])


def go_asks(url: str, how: str = "ask", name: str = "node", identity: Secs | None = None, **options: Any) -> Any:
    """Return the result of a requester in Go: the id of its key set, or the code of a refusal."""
    with in_software_tee(peer_command(name, how, url, **options), identity or secs(name)) as requester:
        return requester.says()
