"""The vault's decoders raise only documented errors, for any bytes. A planted bug must be found."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from attestation.errors import CODES as ATTESTATION_CODES
from chain_watcher.errors import CODES as CHAIN_CODES
from keyvault.errors import CODES
from keyvault.handover import messages
from keyvault.store.sealed_file import decode_header, open_sealed, seal
from keyvault.vault.chain_state import decode_unproven, trust_root, verify_proven
from keyvault.vault.measured_policy import parse_policy, tighten
from keyvault.vault.record import Facts, decode_facts
from tests.doubles.state_maker import GENESIS, Case
from tests.doubles.vault_host import policy_text
from tests.doubles.vault_kit import GOOD, SECRET, Enclave, code_of, conversation, deliver, header

DOCUMENTED = {*CODES, *ATTESTATION_CODES, *CHAIN_CODES, "nothing was refused"}
ROUNDS = 400


def holder_takes(name: str) -> Callable[[bytes], object]:
    """A holder in the middle of a conversation, fed with bytes instead of a message."""

    def take(body: bytes) -> object:
        requester, holder = Enclave("node").requester(), Enclave("vault").holder()
        request = requester.on_challenge(holder.on_hello(requester.hello(), 0.0))
        steps: dict[str, Callable[[], object]] = {
            "hello": lambda: holder.on_hello(body, 0.0),
            "request": lambda: holder.on_request(body, 0.0),
            "received": lambda: holder.on_received(body, 0.0),
            "durable": lambda: holder.on_durable(body, 0.0),
            "delivery": lambda: (holder, requester.on_delivery(body)),
        }
        if name != "request":
            deliver(holder, request)
        return steps[name]()

    return take


def proven(body: bytes) -> object:
    trust = trust_root(GENESIS.hex(), Case().trust.checkpoint.to_json(), ())
    return verify_proven(json.loads(body), trust)


def json_of(decode: Callable[[Any], object]) -> Callable[[bytes], object]:
    return lambda body: decode(json.loads(body))


SAID = conversation()
TARGETS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    **{f"holder, {name}": (SAID[name], holder_takes(name)) for name in ("hello", "request", "received", "durable")},
    "requester, delivery": (SAID["delivery"], holder_takes("delivery")),
    "challenge": (SAID["challenge"], messages.CHALLENGE.decode),
    "sealed file": (seal(header(), bytes([1]) * 16, SECRET), lambda data: open_sealed(data, bytes([1]) * 16)),
    "header": (seal(header(), bytes([1]) * 16, SECRET), decode_header),
    "facts": (Facts().encode(), decode_facts),
    "policy": (policy_text(), parse_policy),
    "settings of the host": (
        b'{"permit_ttl_s": 60, "allow_v1": false}',
        lambda d: tighten(parse_policy(policy_text()), d),
    ),
    "claimed evidence": (json.dumps(GOOD).encode(), json_of(decode_unproven)),
    "proven evidence": (json.dumps(Case().json()).encode(), proven),
}


def mangle(data: bytes, random: Random) -> bytes:
    """A few edits: flipped bits, cut, doubled or replaced pieces, JSON's own characters."""
    out = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(out) + 1)
        piece = random.choice(
            (
                random.randbytes(random.randint(0, 4)),
                b'"',
                b"{",
                b"]",
                b"null",
                b"-1",
                b"1e999",
                b"\\u0000",
                out[at : at + 40],
            )
        )
        out[at : at + random.choice((0, 0, 1, 4, 40, 4000))] = piece
    return bytes(out)


def escaped(name: str, take: Callable[[bytes], object], seed: bytes, rounds: int) -> str | None:
    """Return the first undocumented error with its input, or None."""
    random = Random(name)
    for number in range(rounds):
        body = mangle(seed, random)
        code = code_of(lambda body=body: take(body))
        if code not in DOCUMENTED and code not in ("JSONDecodeError", "UnicodeDecodeError"):
            return f"{name}, round {number}: {code} from {body[:200]!r}"
    return None


@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors_escape(name: str) -> None:
    seed, take = TARGETS[name]
    assert code_of(lambda: take(seed)) in DOCUMENTED
    assert escaped(name, take, seed, ROUNDS) is None


def test_the_canary_is_found() -> None:
    def buggy(body: bytes) -> object:
        value = messages.HELLO.decode(body)
        return value["nonce"][40]  # out of range for every good message

    assert "IndexError" in str(escaped("canary", buggy, SAID["hello"], ROUNDS))
