"""Conformance suite of handover v2 for requesters: a strict holder that tries what a requester must refuse.

The holder serves on loopback and is asked once per trial. In all but the first it does one thing that the protocol
forbids, and the requester must end there: it may neither continue the exchange nor take keys.

Example:
    results = await run_suite(ask, vault_party, node_keys)  # `ask(url)` runs the requester once
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from attestation.sgx import TargetInfo

from .conformance import Result
from .handover import messages
from .handover.guarded_server import GuardedServer
from .handover.holder import Holder, VerifiedRequest
from .handover.http_server import add_handover_routes, new_app
from .handover.key_set import KeySet
from .handover.party import Party
from .handover.transcript import (
    CHALLENGE_TAG,
    DELIVERY_TAG,
    REQUEST_TAG,
    Transcript,
    add_ciphertext,
    opening,
)

#: Runs the requester once against a URL; returns "" if it then has keys, or the code of its refusal ("?" if unknown).
Ask = Callable[[str], Awaitable[str]]
_SIGNATURE: Final = bytes(messages.SIGNATURE_BYTES)


@dataclass
class Exchange:
    """What the suite's holder brings into one exchange, and what a trial may replace in its next message.

    `stranger` is another enclave with a network signature that the requester does not expect as a holder.
    """

    party: Party
    keys: bytes
    stranger: Party
    hello: dict[str, Any] = field(default_factory=dict)

    def challenge(self, session: bytes, nonce: bytes, by: Party | None = None, **changes: Any) -> bytes:
        """Return a challenge; `changes` replace what its transcript holds, or its tag and target."""
        party = by or self.party
        target = TargetInfo.decode(self.hello["target_info"])
        said = {
            "offered": self.hello["versions"],
            "genesis": party.genesis_hash,
            "requester_nonce": self.hello["nonce"],
            "requester": target,
            "session": session,
            "holder_nonce": nonce,
            "holder_id": party.tee.target_info().mrenclave,
        }
        transcript = opening(**{**said, **{name: value for name, value in changes.items() if name in said}})
        data = transcript.report_data(changes.get("tag", CHALLENGE_TAG))
        return messages.CHALLENGE.encode(
            version=changes.get("version", messages.VERSION),
            session=session,
            nonce=nonce,
            report=party.tee.report(changes.get("target", target), data).encode(),
            network_signatures=changes.get("signatures", party.network_signatures),
        )

    def delivery(self, request: VerifiedRequest, by: Party | None = None, **changes: Any) -> bytes:
        """Return a delivery; `changes` replace info, ciphertext, tag, session, or the state of the report."""
        party = by or self.party
        plaintext = bytearray(party.crypto.random(messages.RECEIPT_KEY_BYTES) + changes.get("keys", self.keys))
        sealed = party.crypto.kem_seal(request.public_key, changes.get("info", request.transcript), plaintext)
        ciphertext = changes.get("ciphertext", lambda made: made)(sealed)
        transcript = Transcript(request.transcript)
        add_ciphertext(transcript, changes.get("bound", lambda made, _: made)(ciphertext, sealed))
        data = transcript.report_data(changes.get("tag", DELIVERY_TAG))
        return messages.DELIVERY.encode(
            session=changes.get("session", request.session),
            ciphertext=ciphertext,
            report=party.tee.report(request.report.target_info(), data).encode(),
        )


@dataclass(frozen=True)
class Trial:
    """One thing that a holder must not do. `spoil` makes the message; after it `never` may not come.

    `spoil` is called with the exchange, and with the good message and what it answers.
    """

    name: str
    why: str
    at: str
    never: str
    code: str
    spoil: Callable[[Exchange, bytes, Any], bytes]


def _field(name: str, change: Callable[[Any], Any]) -> Callable[[Exchange, bytes, Any], bytes]:
    def spoil(_: Exchange, message: bytes, __: Any) -> bytes:
        value = json.loads(message)
        value[name] = change(value[name])
        return json.dumps(value).encode()

    return spoil


def _flipped(text: str) -> str:
    data = bytearray(messages.decode_base64(text, "value"))
    data[-1] ^= 1
    return messages.encode_base64(data)


def _more(_: Exchange, message: bytes, __: Any) -> bytes:
    return message[:-1] + b',"more":1}'


def _twice(_: Exchange, message: bytes, __: Any) -> bytes:
    session = json.dumps(json.loads(message)["session"]).encode()
    return message[:-1] + b',"session":' + session + b"}"


def _padded(_: Exchange, message: bytes, __: Any) -> bytes:
    return message.ljust(messages.SMALL_MESSAGE_BYTES_MAX + 1)


def _challenge(**changes: Any) -> Callable[[Exchange, bytes, Any], bytes]:
    def spoil(exchange: Exchange, message: bytes, _: Any) -> bytes:
        fields = messages.CHALLENGE.decode(message)
        made = {name: value(exchange) if callable(value) else value for name, value in changes.items()}
        return exchange.challenge(fields["session"], fields["nonce"], **made)

    return spoil


def _delivery(**changes: Any) -> Callable[[Exchange, bytes, Any], bytes]:
    def spoil(exchange: Exchange, _: bytes, request: Any) -> bytes:
        by = exchange.stranger if changes.get("by") else None
        return exchange.delivery(request, **{**changes, "by": by})

    return spoil


def _cut(made: bytes) -> bytes:
    return made[:-1] + bytes([made[-1] ^ 1])


def _other_target(exchange: Exchange) -> TargetInfo:
    return replace(TargetInfo.decode(exchange.hello["target_info"]), mrenclave=bytes(32))


_BOUND: Final = "HANDOVER_REPORTDATA_MISMATCH"
_MALFORMED: Final = "HANDOVER_MESSAGE_MALFORMED"
_CHALLENGE: Final = ("challenge", "request")
_DELIVERY: Final = ("delivery", "received")
_RECEIPT: Final = ("receipt", "durable")

TRIALS: Final[tuple[Trial, ...]] = (
    Trial("version", "a version that was not offered", *_CHALLENGE, "HANDOVER_VERSION_UNSUPPORTED",
          _challenge(version=3)),
    Trial("challenge-forged", "a report that this CPU did not make", *_CHALLENGE, "REPORT_MAC_BAD",
          _field("report", _flipped)),
    Trial("challenge-for-another", "a report for another enclave", *_CHALLENGE, "REPORT_MAC_BAD",
          _challenge(target=_other_target)),
    Trial("unsigned", "a holder that the network did not sign", *_CHALLENGE, "NETWORK_SIGNATURE_BAD",
          _challenge(signatures=(_SIGNATURE,))),
    Trial("stranger", "a signed enclave that is not the expected holder", *_CHALLENGE, "PEER_NOT_UPGRADER",
          _challenge(by=lambda exchange: exchange.stranger)),
    Trial("replayed", "a challenge for another try", *_CHALLENGE, _BOUND, _challenge(requester_nonce=bytes(32))),
    Trial("relayed", "a challenge for another requester", *_CHALLENGE, _BOUND, _challenge(requester=_other_target)),
    Trial("other-chain", "a challenge of another chain", *_CHALLENGE, _BOUND, _challenge(genesis=bytes(32))),
    Trial("other-offer", "a challenge to another offer of versions", *_CHALLENGE, _BOUND, _challenge(offered=(1, 2))),
    Trial("challenge-role", "a report of another role", *_CHALLENGE, _BOUND, _challenge(tag=REQUEST_TAG)),
    Trial("session-swapped", "another session than the report binds", *_CHALLENGE, _BOUND,
          _field("session", lambda _: messages.encode_base64(bytes(16)))),
    Trial("challenge-more", "an unknown field", *_CHALLENGE, _MALFORMED, _more),
    Trial("challenge-twice", "a field that occurs twice", *_CHALLENGE, _MALFORMED, _twice),
    Trial("challenge-oversized", "a message over its limit", *_CHALLENGE, "HANDOVER_MESSAGE_TOO_LARGE", _padded),
    Trial("delivery-forged", "a report that this CPU did not make", *_DELIVERY, "REPORT_MAC_BAD",
          _field("report", _flipped)),
    Trial("delivery-by-another", "a report of another enclave than the challenge's", *_DELIVERY,
          "HANDOVER_PEER_CHANGED", _delivery(by=True)),
    Trial("delivery-session", "a delivery for another session", *_DELIVERY, "HANDOVER_SESSION_UNKNOWN",
          _delivery(session=bytes(16))),
    Trial("delivery-role", "a report of another role", *_DELIVERY, _BOUND, _delivery(tag=CHALLENGE_TAG)),
    Trial("ciphertext-unbound", "a ciphertext that the report does not bind", *_DELIVERY, _BOUND,
          _delivery(ciphertext=_cut, bound=lambda _, sealed: sealed)),
    Trial("ciphertext-altered", "a ciphertext that does not open", *_DELIVERY, "HANDOVER_CIPHERTEXT_BAD",
          _delivery(ciphertext=_cut)),
    Trial("ciphertext-of-another", "a ciphertext under another transcript", *_DELIVERY, "HANDOVER_CIPHERTEXT_BAD",
          _delivery(info=bytes(32))),
    Trial("other-keys", "another key set than was asked for", *_DELIVERY, "HANDOVER_KEY_SET_MISMATCH",
          _delivery(keys=b"other keys")),
    Trial("no-keys", "a delivery without a key set", *_DELIVERY, _MALFORMED, _delivery(keys=b"")),
    Trial("delivery-more", "an unknown field", *_DELIVERY, _MALFORMED, _more),
    Trial("delivery-twice", "a field that occurs twice", *_DELIVERY, _MALFORMED, _twice),
    Trial("receipt-state", "a receipt that is answered as durable", *_RECEIPT, _MALFORMED,
          _field("state", lambda _: "durable")),
    Trial("receipt-session", "an answer for another session", *_RECEIPT, "HANDOVER_SESSION_UNKNOWN",
          _field("session", lambda _: messages.encode_base64(bytes(16)))),
)  # fmt: skip


class _TrialHolder:
    """A `keyvault.handover.http_server.HandoverPort` that does what one trial says."""

    def __init__(self, exchange: Exchange, trial: Trial | None) -> None:
        self._exchange = exchange
        self._trial = trial
        self._holder = Holder(exchange.party)
        self.came: list[str] = []
        self.spoiled = False

    def _answer(self, at: str, good: bytes, to: Any = None) -> bytes:
        if self._trial is None or self._trial.at != at:
            return good
        self.spoiled = True
        return self._trial.spoil(self._exchange, good, to)

    async def on_hello(self, body: bytes) -> bytes:
        self.came.append("hello")
        good = self._holder.on_hello(body, time.monotonic())
        self._exchange.hello = messages.HELLO.decode(body)
        return self._answer("challenge", good)

    async def on_request(self, body: bytes) -> bytes:
        self.came.append("request")
        request = self._holder.on_request(body, time.monotonic())
        with KeySet(self._exchange.keys) as keys:
            return self._answer("delivery", self._holder.deliver(request, keys, time.monotonic()), request)

    async def on_received(self, body: bytes) -> bytes:
        self.came.append("received")
        return self._answer("receipt", self._holder.on_received(body, time.monotonic()).answer)

    async def on_durable(self, body: bytes) -> bytes:
        self.came.append("durable")
        return self._holder.on_durable(body, time.monotonic()).answer


async def run_suite(ask: Ask, party: Party, stranger: Party, keys: bytes) -> list[Result]:
    """Run the honest exchange and every trial; one failing does not keep the others from running.

    `party` is the holder's side, in an enclave that the requester expects; `stranger` another signed one. `keys` is the
    key set that the requester must be made to want by its id.
    """
    exchange = Exchange(party, keys, stranger)
    results = [Result("handover", "the whole exchange works and is confirmed twice", await _honest(ask, exchange))]
    for trial in TRIALS:
        results.append(Result(trial.name, f"refused: {trial.why}", await _tried(ask, exchange, trial)))
    return results


async def _honest(ask: Ask, exchange: Exchange) -> str:
    holder, said = await _served(ask, exchange, None)
    if said or holder.came != ["hello", "request", "received", "durable"]:
        return f"it sent {', '.join(holder.came) or 'nothing'} and ended with {said or 'keys'}"
    return ""


async def _tried(ask: Ask, exchange: Exchange, trial: Trial) -> str:
    holder, said = await _served(ask, exchange, trial)
    if not holder.spoiled:
        return f"it did not come so far: it sent {', '.join(holder.came) or 'nothing'} and ended with {said or 'keys'}"
    if trial.never in holder.came:
        return f"it continued: {trial.never} was sent"
    if said not in (trial.code, "?"):
        return f"expected {trial.code}, found {said or 'keys'}"
    return ""


async def _served(ask: Ask, exchange: Exchange, trial: Trial | None) -> tuple[_TrialHolder, str]:
    holder = _TrialHolder(exchange, trial)
    app = new_app()
    add_handover_routes(app, holder)
    server = GuardedServer(app)
    try:
        said = await ask(f"http://127.0.0.1:{await server.start('127.0.0.1', 0)}")
    finally:
        await server.stop()
    return holder, said
