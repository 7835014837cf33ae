"""Building and running real vault and node processes under the simulated CPU."""

import asyncio
import datetime
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

import attestation
import chain_watcher
import keyvault
from attestation.artefact.files import build_image, build_sigstruct, verify_artefact
from attestation.network import encode_multibase
from keyvault.build import CONFORMANCE, build_program, build_vault
from keyvault.client import VaultClient
from keyvault.errors import KeyvaultError

GENESIS = "11" * 32
TOKEN = "a-token-for-the-trial"
DATE = datetime.date(2026, 1, 1)


async def ready(client: VaultClient) -> dict[str, Any]:
    """Wait until a started vault listens; returns its health."""
    deadline = time.monotonic() + 90
    while True:
        try:
            return await client.health()
        except KeyvaultError as error:
            if error.code != "VAULT_UNREACHABLE" or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Artefact:
    image: Path
    sigstruct: Path
    enclave_id: str


@dataclass
class Process:
    """A child whose output lines are JSON (standard output) and log lines (a file)."""

    popen: subprocess.Popen[bytes]
    log: Path
    buffer: bytes = b""

    def event(self, timeout_s: float = 60.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        assert self.popen.stdout is not None
        while b"\n" not in self.buffer:
            chunk = b""
            if not self.popen.stdout.closed:
                poll = select.poll()  # `select` takes no descriptor above 1,023
                poll.register(self.popen.stdout, select.POLLIN)
                if poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                    chunk = os.read(self.popen.stdout.fileno(), 65536)
            if not chunk:
                raise AssertionError(f"no more output; log:\n{self.log.read_text()}")
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            code = self.popen.wait(30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            code = self.popen.wait(10)
        if self.popen.stdout is not None and not self.popen.stdout.closed:
            self.buffer += self.popen.stdout.read()
            self.popen.stdout.close()
        return code

    def enclave_pid(self) -> int:
        """Pid of the enclave under its software CPU."""
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()
        return int(children[0])


@dataclass
class Bench:
    """One host: a simulated CPU, a network key, artefacts, and running processes."""

    folder: Path
    rsa: RSAPrivateKey = field(default_factory=lambda: generate_private_key(3, 3072))
    network: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    running: list[Process] = field(default_factory=list)
    count: int = 0

    @property
    def network_key(self) -> str:
        return encode_multibase(self.network.public_key().public_bytes_raw())

    def sign(self, enclave_id: str) -> bytes:
        return self.network.sign(enclave_id.encode("ascii"))

    def policy(self, **fields: Any) -> bytes:
        return json.dumps(
            {
                "network_keys": [self.network_key],
                "genesis_hash": "0x" + GENESIS,
                "evidence_mode": "single",
                "unsafe_unproven_evidence": True,
                "unsafe_simulated_tee": True,
                "require_listed_vault": False,
                **fields,
            }
        ).encode()

    def vault(self, name: str = "vault", **fields: Any) -> Artefact:
        out = self.folder / name
        enclave_id = build_vault(self.policy(**fields), self.rsa, out)
        return Artefact(out / "vault.pyz", out / "vault.sig", enclave_id)

    def conformance(self) -> Artefact:
        """The conformance suite's own enclave, which the network has signed: its signature lies beside it."""
        out = self.folder / "conformance"
        enclave_id = build_program(CONFORMANCE, self.policy(), self.rsa, out)
        (out / "auth").write_text(encode_multibase(self.sign(enclave_id)))
        return Artefact(out / CONFORMANCE.image_name, out / CONFORMANCE.sigstruct_name, enclave_id)

    def enclave(self, name: str, sources: Mapping[str, Path | bytes], main: str, *, debug: bool = False) -> Artefact:
        """An image of attestation, keyvault and some sources; `main` is "module:function"."""
        out = self.folder / name
        out.mkdir(exist_ok=True)
        image, sigstruct = out / "enclave.pyz", out / "enclave.sig"
        packages = {"attestation": attestation, "keyvault": keyvault, "chain_watcher": chain_watcher}
        folders = {name: Path(str(package.__file__)).parent for name, package in packages.items()}
        build_image(image, {**folders, **sources}, main)
        sigstruct.write_bytes(build_sigstruct(image, self.rsa, debug=debug, date=DATE))
        return Artefact(image, sigstruct, verify_artefact(image, sigstruct))

    def node(self, version: str, *, debug: bool = False) -> Artefact:
        source = (Path(__file__).parent / "tiny_node.py").read_text().replace('"unset"', repr(version))
        return self.enclave(f"node-{version}", {"tiny_node.py": source.encode()}, "tiny_node:main", debug=debug)

    def start_enclave(
        self, artefact: Artefact, arguments: list[str], cpu: str = "cpu", *, debug: bool = False
    ) -> Process:
        """Start any image under the simulated CPU."""
        command = [sys.executable, "-m", "attestation.simulated", "run", "--cpu", str(self.folder / cpu)]
        command += ["--image", str(artefact.image), "--sigstruct", str(artefact.sigstruct)]
        return self._start([*command, *(["--debug"] if debug else []), "--", *arguments])

    def _start(self, command: list[str], log_end: int | None = None) -> Process:
        self.count += 1
        log = self.folder / f"process-{self.count}.log"
        with log.open("wb") if log_end is None else os.fdopen(log_end, "wb") as sink:
            popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, stdin=subprocess.DEVNULL)
        process = Process(popen, log)
        self.running.append(process)
        return process

    def start_vault(
        self,
        artefact: Artefact,
        port: int,
        *,
        store: str = "store",
        cpu: str = "cpu",
        more: tuple[str, ...] = (),
        log_end: int | None = None,
    ) -> Process:
        """Start a vault. `log_end`: a descriptor to write its log to, closed here, instead of a file."""
        token, auth = self.folder / "token", self.folder / f"{artefact.enclave_id}.auth"
        token.write_text(TOKEN + "\n")
        auth.write_text(encode_multibase(self.sign(artefact.enclave_id)))
        command = [sys.executable, "-P", "-m", "keyvault", "serve", "--listen", f"127.0.0.1:{port}"]
        command += ["--store", str(self.folder / store), "--token-file", str(token), "--auth-file", str(auth)]
        command += ["--cpu", str(self.folder / cpu), "--image", str(artefact.image)]
        return self._start([*command, "--sigstruct", str(artefact.sigstruct), *more], log_end)

    def start_node(
        self,
        artefact: Artefact,
        upgrader_port: int,
        mode: str,
        *,
        folder: str = "sealed",
        upgraders: str = "",
        signature: bytes | None = None,
        cpu: str = "cpu",
        debug: bool = False,
    ) -> Process:
        signed = signature if signature is not None else self.sign(artefact.enclave_id)
        key = self.network.public_key().public_bytes_raw().hex()
        arguments = [str(self.folder / folder), "0", f"http://127.0.0.1:{upgrader_port}"]
        return self.start_enclave(artefact, [*arguments, key, GENESIS, signed.hex(), upgraders, mode], cpu, debug=debug)

    def evidence(self, target: Artefact | None, entries: list[tuple[int, str]], block: int = 100) -> dict[str, Any]:
        return {
            "mode": "single",
            "genesis_hash": "0x" + GENESIS,
            "block_number": block,
            "block_hash": "0x" + f"{block:064x}",
            "timestamp_ms": int(time.time() * 1000),
            "program": None
            if target is None
            else {"enclave_id": target.enclave_id, "version": "x", "origin_url": "", "mirror_url": ""},
            "enclave_ids": [
                {"height": height, "enclave_id": name, "signature": encode_multibase(self.sign(name))}
                for height, name in entries
            ],
        }

    def stop(self) -> None:
        for process in self.running:
            process.stop()
