"""Enclaves on a software CPU inside the test's own process, and parties that speak handover v2."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.network import NetworkKeys, encode_multibase
from attestation.policy import Policy, Role
from attestation.sgx import (
    INIT,
    MODE64BIT,
    Attributes,
    KeyRequest,
    Report,
    TargetInfo,
    report_key_request,
    verify_report_mac,
)
from attestation.simulated.cpu import KeyRefusedError, RootKeys, Secs, SoftwareCpu
from attestation.tee.driver import key_refused
from keyvault.errors import KeyvaultError
from keyvault.handover.holder import Holder, Limits
from keyvault.handover.hpke import RealCrypto
from keyvault.handover.key_set import KeySet, key_set_id
from keyvault.handover.party import Party, peer_verifier
from keyvault.handover.requester import Requester
from keyvault.store import sealed_file as sealed
from keyvault.store.sealed_file import KIND_KEY_SET
from keyvault.store.sealed_store import SealedStore

from .crash_disk import CrashDisk

GENESIS = bytes([0x11]) * 32
SECRET = b"application keys of a node: never to be seen" * 2
NETWORK = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
CPU = SoftwareCpu(RootKeys(bytes([1]) * 16, bytes([2]) * 16, bytes([3]) * 16, bytes([4]) * 32))


class CpuTee:
    """A TEE driver over a software CPU in this process."""

    def __init__(self, secs: Secs, cpu: SoftwareCpu = CPU, kind: str = "simulated") -> None:
        self.secs, self.cpu, self._kind = secs, cpu, kind

    @property
    def kind(self) -> str:
        return self._kind

    def target_info(self) -> TargetInfo:
        return self.secs.target_info()

    def report(self, target: TargetInfo, report_data: bytes) -> Report:
        return self.cpu.ereport(self.secs, target, report_data)

    def self_report(self) -> Report:
        return self.report(self.target_info(), bytes(64))

    def verify(self, report: Report) -> None:
        verify_report_mac(self.cpu.egetkey(self.secs, report_key_request(report.key_id)), report)

    def seal_key(self, request: KeyRequest) -> bytes:
        try:
            return self.cpu.egetkey(self.secs, request)
        except KeyRefusedError as error:
            raise key_refused(error.code) from None


def secs(name: str, flags: int = INIT | MODE64BIT, **fields: Any) -> Secs:
    return Secs(hashlib.sha256(name.encode()).digest(), bytes(32), Attributes(flags, 3), **fields)


def enclave_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def sign(name_or_id: str, key: Ed25519PrivateKey = NETWORK) -> bytes:
    return key.sign(name_or_id.encode("ascii"))


def signature_text(enclave: str) -> str:
    return encode_multibase(sign(enclave))


KEYS = NetworkKeys((NETWORK.public_key().public_bytes_raw(),))


@dataclass
class Enclave:
    """One enclave with its side of the handover; `expected` are the peers it accepts (None: any signed one)."""

    name: str
    flags: int = INIT | MODE64BIT
    cpu: SoftwareCpu = CPU
    expected: frozenset[str] | None = None
    genesis: bytes = GENESIS
    signatures: tuple[bytes, ...] | None = None
    isvsvn_floor: int = 0
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def tee(self) -> CpuTee:
        return CpuTee(secs(self.name, self.flags, **self.fields), self.cpu)

    @property
    def id(self) -> str:
        return enclave_id(self.name)

    @property
    def party(self) -> Party:
        tee = self.tee
        policy = Policy(network=KEYS, isvsvn_floor=self.isvsvn_floor)
        signatures = self.signatures if self.signatures is not None else (sign(self.id),)
        return Party(
            self.genesis, signatures, tee, RealCrypto(), peer_verifier(tee, policy, Role.UPGRADER, self.expected)
        )

    def requester(self, wanted: str = "") -> Requester:
        return Requester(self.party, wanted)

    def holder(self, **limits: Any) -> Holder:
        return Holder(self.party, Limits(**limits))


def deliver(holder: Holder, request: bytes, secret: bytes = SECRET, now: float = 0.0) -> bytes:
    """Return the holder's delivery for a request, as if the release decision were positive."""
    verified = holder.on_request(request, now)
    with KeySet(secret) as key_set:
        return holder.deliver(verified, key_set, now)


def run(requester: Requester, holder: Holder, secret: bytes = SECRET, now: float = 0.0) -> KeySet:
    """A whole handover, confirmed twice."""
    request = requester.on_challenge(holder.on_hello(requester.hello(), now))
    key_set = requester.on_delivery(deliver(holder, request, secret, now))
    requester.acknowledged(holder.on_received(requester.received(), now).answer, "received")
    requester.acknowledged(holder.on_durable(requester.durable(canary=True), now).answer, "durable")
    return key_set


def altered(message: bytes, **fields: Any) -> bytes:
    """The message with some fields replaced (a callable gets the old value)."""
    value = json.loads(message)
    for name, new in fields.items():
        value[name] = new(value[name]) if callable(new) else new
    return json.dumps(value).encode()


def code_of(call: Callable[[], object]) -> str:
    """Code of the refusal a call ends with."""
    try:
        call()
    except Exception as error:
        return str(getattr(error, "code", type(error).__name__))
    return "nothing was refused"


def codes_raised(sources: Iterable[str]) -> set[str]:
    """All texts that look like codes in `code="..."` or as first argument of a refusal."""
    import re

    found = set()
    for source in sources:
        found |= set(re.findall(r'"((?:[A-Z][A-Z0-9]*_)+[A-Z0-9]+)"', source))
    return found


__all__ = ["KeyvaultError", "replace"]


def header(**fields: object) -> sealed.Header:
    disk = CrashDisk()
    put(store(disk))
    (data,) = disk.files.values()
    return replace(sealed.decode_header(data), **fields)  # type: ignore[arg-type]


A = "a" * 64
GOOD: dict[str, Any] = {
    "mode": "single",
    "genesis_hash": "0x" + "11" * 32,
    "block_number": 5,
    "block_hash": "0x" + "22" * 32,
    "timestamp_ms": 1000,
    "program": {"enclave_id": A, "version": "1", "origin_url": "http://x", "mirror_url": ""},
    "enclave_ids": [{"height": 2, "enclave_id": A, "signature": "b"}, {"height": 1, "enclave_id": A, "signature": ""}],
}


NAME = key_set_id(SECRET)
SOURCE = bytes([5]) * 32


def store(disk: object, name: str = "vault", cpu: SoftwareCpu = CPU, **more: object) -> SealedStore:
    return SealedStore(disk, CpuTee(secs(name), cpu), os.urandom, **{"allow_simulated": True, **more})  # type: ignore[arg-type]


def put(to: SealedStore, payload: bytes = SECRET, name: str = NAME) -> int:
    return to.put(KIND_KEY_SET, name, SOURCE, payload)


@functools.cache
def conversation() -> Mapping[str, bytes]:
    """One good message of each kind, of one handover."""
    requester, holder = Enclave("node").requester(), Enclave("vault").holder()
    said = {"hello": requester.hello()}
    said["challenge"] = holder.on_hello(said["hello"], 0.0)
    said["request"] = requester.on_challenge(said["challenge"])
    said["delivery"] = deliver(holder, said["request"])
    requester.on_delivery(said["delivery"])
    said["received"] = requester.received()
    said["acknowledged"] = holder.on_received(said["received"], 0.0).answer
    said["durable"] = requester.durable(canary=True)
    return said
