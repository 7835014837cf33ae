"""Bytes that enclaves get from peers, hosts and disks: SGX structures, sealed files, handover messages (v1, v2)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode

from attestation.artefact.measure import measure_image, measure_sgxs
from attestation.artefact.signed_files import sigstruct_in, verify_sigstruct
from attestation.artefact.sigstruct import SIGSTRUCT_SIZE, SigStruct
from attestation.network import decode_multibase, encode_multibase
from attestation.sgx import Attributes, KeyRequest, Report, TargetInfo
from attestation.simulated.__main__ import answer
from devnet.field.signed_elf import signed_elf
from keyvault.handover import messages, v1
from keyvault.handover.key_set import KeySet
from keyvault.store.sealed_file import decode_header, open_sealed, seal
from keyvault.vault.chain_state import decode_unproven, trust_root, verify_proven
from keyvault.vault.measured_policy import parse_policy, tighten
from keyvault.vault.start_files import read_signatures
from keyvault.vault.token_proof import parse_call
from tests.doubles.state_maker import GENESIS, Case
from tests.doubles.vault_host import policy, policy_text
from tests.doubles.vault_kit import CPU, GOOD, SECRET, Enclave, conversation, deliver, header, secs, sign

from .target import Target, of_json, of_text

TEE = Enclave("node").tee
REPORT = TEE.self_report().encode()
SIGSTRUCT_HEAD = bytes.fromhex("06000000e10000000000010000000000")
SIGSTRUCT_HEAD2 = bytes.fromhex("01010000600000006000000001000000")
SIGSTRUCT = (SIGSTRUCT_HEAD.ljust(24, b"\0") + SIGSTRUCT_HEAD2).ljust(512, b"\0") + b"\3\0\0\0" + bytes(1292)
SEAL_KEY = bytes([1]) * 16
SEALED = seal(header(), SEAL_KEY, SECRET)
POLICY = policy_text(transitions=[["a" * 64, "b" * 64]])
SHAPES = {
    name.lower(): getattr(messages, name)
    for name in ("HELLO", "CHALLENGE", "REQUEST", "DELIVERY", "RECEIVED", "DURABLE", "ACKNOWLEDGED")
}


def _round_trip(
    decode: Callable[[bytes], Report | TargetInfo | KeyRequest | Attributes | SigStruct],
) -> Callable[[bytes], None]:
    """Decoded values must encode to the same bytes: an unchecked field could have a second meaning."""

    def take(data: bytes) -> None:
        if decode(data).encode() != data:
            raise AssertionError("it decodes to something else than it says")

    return take


def _holder(step: str) -> Callable[[bytes], object]:
    """A holder that gets the input in place of a message, in the middle of a conversation."""

    def take(body: bytes) -> object:
        requester, holder = Enclave("node").requester(), Enclave("vault").holder()
        if step == "hello":
            return holder.on_hello(body, 0.0)
        request = requester.on_challenge(holder.on_hello(requester.hello(), 0.0))
        if step == "request":
            return holder.on_request(body, 0.0)
        delivery = deliver(holder, request)
        if step == "delivery":
            return requester.on_delivery(body)
        requester.on_delivery(delivery)
        holder.on_received(requester.received(), 0.0)
        return holder.on_durable(body, 0.0)

    return take


@functools.cache
def _v1_holder() -> v1.V1Holder:
    return v1.V1Holder(Enclave("node").party)


def _v1_query() -> bytes:
    requester = v1.V1Requester(Enclave("upgrader").party)
    return urlencode(requester.secret_query(_v1_holder().challenge(requester.random_query(), now_s=0.0))).encode()


def _v1_answer(data: bytes) -> object:
    query = dict(parse_qsl(data.decode("utf-8", "replace"), keep_blank_values=True))
    return _v1_holder().answer(query, lambda _: KeySet(SECRET), now_s=0.0)


def _v1_challenge(data: bytes) -> object:
    query = dict(parse_qsl(data.decode("utf-8", "replace"), keep_blank_values=True))
    return _v1_holder().challenge(query, now_s=0.0)


def _v1_requester(step: str) -> Callable[[bytes], object]:
    def take(data: bytes) -> object:
        requester = v1.V1Requester(Enclave("upgrader").party)
        return requester.secret_query(data) if step == "challenge" else requester.open(data)

    return take


def _v1_good_answer() -> bytes:
    requester = v1.V1Requester(Enclave("upgrader").party)
    query = requester.secret_query(_v1_holder().challenge(requester.random_query(), now_s=0.0))
    return _v1_holder().answer(query, lambda _: KeySet(SECRET), now_s=0.0)


def _proven(value: object) -> object:
    return verify_proven(value, trust_root(GENESIS.hex(), Case().trust.checkpoint.to_json(), ()))


TARGETS = {
    "report": Target(_round_trip(Report.decode), (REPORT,)),
    "target info": Target(_round_trip(TargetInfo.decode), (TEE.target_info().encode(),)),
    "key request": Target(_round_trip(KeyRequest.decode), (header().key_request.encode(),)),
    "attributes": Target(_round_trip(Attributes.decode), (REPORT[48:64],)),
    "report of v1": Target(v1.decode_report, (v1.encode_report(TEE.self_report()),)),
    "SIGSTRUCT": Target(_round_trip(SigStruct.decode), (SIGSTRUCT,)),
    "SIGSTRUCT, verified": Target(verify_sigstruct, (SIGSTRUCT,)),
    ".oeinfo": Target(sigstruct_in, (signed_elf(SIGSTRUCT), SIGSTRUCT), bytes_max=3 * SIGSTRUCT_SIZE),
    "SGXS": Target(lambda data: measure_sgxs([data]), (b"ECREATE\0" + bytes(56), b"EADD\0\0\0\0" + bytes(56))),
    "image": Target(lambda data: measure_image([data], len(data)), (b"x" * 4096, b"\0" * 4000)),
    "multibase": Target(of_text(decode_multibase), (encode_multibase(sign("node")).encode(),)),
    "messages of the simulated CPU": Target(
        lambda data: answer(CPU, secs("node"), data), (b"\1" + TEE.target_info().encode() + bytes(64),)
    ),
    "sealed file": Target(lambda data: open_sealed(data, SEAL_KEY), (SEALED,)),
    "sealed file, header": Target(decode_header, (SEALED,)),
    "policy.json": Target(parse_policy, (POLICY,)),
    "settings of the vault's host": Target(
        lambda data: tighten(policy(), data), (b'{"permit_ttl_s": 60, "allow_v1": false}',)
    ),
    "network signatures": Target(of_text(read_signatures), (encode_multibase(sign("node")).encode() * 2,)),
    "proof of the token": Target(
        of_text(parse_call), (b"DCUpgrade " + b".".join([b"0" * 64, b"0" * 80, b"0" * 64, b"0" * 64]),)
    ),
    "evidence, claimed": Target(of_json(decode_unproven), (json.dumps(GOOD).encode(),)),
    "evidence, proven": Target(of_json(_proven), (json.dumps(Case().json()).encode(),), bytes_max=1 << 15),
    **{f"v2 {name}": Target(shape.decode, (conversation()[name],)) for name, shape in SHAPES.items()},
    **{
        f"v2 {step} in a conversation": Target(_holder(step), (conversation()[step],))
        for step in ("hello", "request", "delivery", "durable")
    },
    "v1 /teerandom": Target(
        _v1_challenge, (urlencode(v1.V1Requester(Enclave("upgrader").party).random_query()).encode(),)
    ),
    "v1 /secret": Target(_v1_answer, (_v1_query(),)),
    "v1 challenge": Target(_v1_requester("challenge"), (v1.encode_report(TEE.self_report()),)),
    "v1 secret": Target(_v1_requester("secret"), (_v1_good_answer(),)),
}
