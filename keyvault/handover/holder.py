"""Handover protocol v2 without I/O: the holder of a key set as a state object (the requester is in `requester`).

Bytes of messages go in, bytes of messages come out. docs/protocol.md defines each message and gives the reason for each
check.

    requester                       holder
      hello        ------------>      on_hello         opens a session with a nonce
      on_challenge <------------                       report for the requester over T0
      (request)    ------------>      on_request       consumes the session; report for the holder over T1
      on_delivery  <------------      deliver          ciphertext under T1, report over T2
      received     ------------>      on_received      MAC over T2 under the receipt key
      durable      ------------>      on_durable       report for the holder over T3

T0 to T3 are states of one running hash. Every REPORTDATA is SHA-512 over a domain tag that names the role, and that
hash.
"""

from __future__ import annotations

import hmac
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from attestation.errors import AttestationError
from attestation.sgx import Report, TargetInfo

from . import messages
from .key_set import KeySet, wipe
from .party import Party
from .transcript import (
    CHALLENGE_TAG,
    DELIVERY_TAG,
    DURABLE_TAG,
    RECEIVED_TAG,
    REQUEST_TAG,
    Transcript,
    add_ciphertext,
    add_durable,
    add_request,
    check_report_data,
    check_same_enclave,
    decode_report,
    opening,
    protocol_error,
)


@dataclass(frozen=True)
class Limits:
    """Limits of the holder's memory and waiting times; times in seconds."""

    session_ttl_s: float = 60.0
    #: From delivery to `durable`: within this time the target seals, reads back and opens its canary, or asks again.
    delivery_ttl_s: float = 900.0
    #: High enough that strangers cannot displace an honest session: the port accepts fewer hellos in its duration.
    sessions_max: int = 16_384
    deliveries_max: int = 64


@dataclass(frozen=True)
class _Session:
    transcript: bytes
    requester_id: str
    expires_at: float


@dataclass(frozen=True)
class VerifiedRequest:
    """A request whose sender was verified. Whether it may get keys is not decided yet.

    `requester_id`: the verified enclave id; `wanted`: the key set that it asks for ("" for any).
    """

    session: bytes
    requester_id: str
    wanted: str
    public_key: bytes
    transcript: bytes
    report: Report


@dataclass
class _Delivery:
    transcript: bytes
    receipt_key: bytearray
    requester: Report
    key_set_id: str
    expires_at: float
    received: bool = False
    durable: bool = False


@dataclass(frozen=True)
class Confirmation:
    """The content of a verified `received` or `durable`, and the answer to send once it is recorded."""

    requester_id: str
    key_set_id: str
    canary: bool
    answer: bytes


def _expired(table: Mapping[bytes, _Session | _Delivery], now: float) -> list[bytes]:
    """Return the expired entries, which are the first ones of the table."""
    return list(itertools.takewhile(lambda session: table[session].expires_at <= now, table))


class Holder:
    """The holder's side: open sessions and unfinished deliveries. `now`: a monotonic clock, seconds."""

    def __init__(self, party: Party, limits: Limits | None = None) -> None:
        self._party = party
        self._limits = limits if limits is not None else Limits()
        self._own_id = party.tee.target_info().mrenclave
        self._sessions: dict[bytes, _Session] = {}
        self._deliveries: dict[bytes, _Delivery] = {}

    @property
    def sessions_open(self) -> int:
        """Number of open sessions (expired ones are dropped by the next `sweep`)."""
        return len(self._sessions)

    def sweep(self, now: float) -> None:
        """Drop expired sessions and deliveries, and wipe receipt keys. `on_hello` and `deliver` call it too.

        Both tables are ordered by expiry, so the cost depends only on the number of dropped entries.
        """
        for session in _expired(self._sessions, now):
            del self._sessions[session]
        for session in _expired(self._deliveries, now):
            wipe(self._deliveries.pop(session).receipt_key)

    def on_hello(self, body: bytes, now: float) -> bytes:
        """Open a session and return the challenge. Only the requester that the hello names can verify it."""
        fields = messages.HELLO.decode(body)
        if messages.VERSION not in fields["versions"]:
            raise protocol_error(
                "HANDOVER_VERSION_UNSUPPORTED",
                "the hello was refused",
                f"it offers {list(fields['versions'])}, this side speaks {messages.VERSION}",
            )
        if fields["genesis"] != self._party.genesis_hash:
            raise protocol_error(
                "HANDOVER_GENESIS_MISMATCH",
                "the hello was refused",
                f"expected genesis {self._party.genesis_hash.hex()}, found {fields['genesis'].hex()}",
            )
        try:
            requester = TargetInfo.decode(fields["target_info"])
        except AttestationError as error:
            raise protocol_error("HANDOVER_MESSAGE_MALFORMED", "the hello was refused", error.why) from None
        self.sweep(now)
        while len(self._sessions) >= self._limits.sessions_max:
            del self._sessions[next(iter(self._sessions))]  # drop the oldest: nothing in a hello is verified
        session = self._party.crypto.random(messages.SESSION_BYTES)
        nonce = self._party.crypto.random(messages.NONCE_BYTES)
        transcript = opening(
            fields["versions"], self._party.genesis_hash, fields["nonce"], requester, session, nonce, self._own_id
        )
        report = self._party.tee.report(requester, transcript.report_data(CHALLENGE_TAG))
        self._sessions[session] = _Session(transcript.state, requester.enclave_id, now + self._limits.session_ttl_s)
        return messages.CHALLENGE.encode(
            version=messages.VERSION,
            session=session,
            nonce=nonce,
            report=report.encode(),
            network_signatures=self._party.network_signatures,
        )

    def on_request(self, body: bytes, now: float) -> VerifiedRequest:
        """Consume the session, then verify the requester's report and signatures, and that it began this session."""
        session_id, unchecked = messages.REQUEST.session(body)
        session = self._sessions.pop(session_id, None)
        if session is None or session.expires_at <= now:
            raise protocol_error(
                "HANDOVER_SESSION_UNKNOWN",
                "the request was refused",
                "its session does not exist, was used before, or has run out",
                "Begin again with hello.",
                kind="transient",
            )
        fields = messages.REQUEST.check(unchecked)
        report = decode_report(fields["report"], "request")
        requester_id = self._party.verify_peer(report, fields["network_signatures"])
        if requester_id != session.requester_id:
            raise protocol_error(
                "HANDOVER_PEER_CHANGED",
                "the request was refused",
                f"expected enclave {session.requester_id}, found {requester_id}",
            )
        transcript = Transcript(session.transcript)
        add_request(transcript, fields["kem_public_key"], fields["key_set_id"])
        check_report_data(report, transcript.report_data(REQUEST_TAG), "request")
        return VerifiedRequest(
            fields["session"], requester_id, fields["key_set_id"], fields["kem_public_key"], transcript.state, report
        )

    def deliver(self, request: VerifiedRequest, key_set: KeySet, now: float) -> bytes:
        """Encrypt the key set to the key in the request's report and return the delivery.

        The caller has decided before that the requester may have it.
        """
        if request.wanted not in ("", key_set.key_set_id):
            raise protocol_error(
                "HANDOVER_KEY_SET_MISMATCH",
                "the request was refused",
                f"it wants key set {request.wanted}, held for it is {key_set.key_set_id}",
            )
        receipt_key = bytearray(self._party.crypto.random(messages.RECEIPT_KEY_BYTES))
        plaintext = receipt_key + key_set.view()
        try:
            ciphertext = self._party.crypto.kem_seal(request.public_key, request.transcript, plaintext)
        finally:
            wipe(plaintext)
        transcript = Transcript(request.transcript)
        add_ciphertext(transcript, ciphertext)
        report = self._party.tee.report(request.report.target_info(), transcript.report_data(DELIVERY_TAG))
        self.sweep(now)
        while len(self._deliveries) >= self._limits.deliveries_max:
            wipe(self._deliveries.pop(next(iter(self._deliveries))).receipt_key)
        self._deliveries[request.session] = _Delivery(
            transcript.state, receipt_key, request.report, key_set.key_set_id, now + self._limits.delivery_ttl_s
        )
        return messages.DELIVERY.encode(session=request.session, ciphertext=ciphertext, report=report.encode())

    def _delivery(self, session: bytes, now: float, what: str) -> _Delivery:
        entry = self._deliveries.get(session)
        if entry is None or entry.expires_at <= now:
            raise protocol_error(
                "HANDOVER_SESSION_UNKNOWN",
                f"the {what} was refused",
                "its session has no delivery under way",
                "Begin again with hello.",
                kind="transient",
            )
        return entry

    def on_received(self, body: bytes, now: float) -> Confirmation:
        """Verify the receipt, which requires the decrypted delivery. A repeated receipt gets the same answer."""
        fields = messages.RECEIVED.decode(body)
        entry = self._delivery(fields["session"], now, "receipt")
        if not entry.durable:  # later the receipt key is wiped; `durable` includes the receipt
            mac = self._party.crypto.mac(entry.receipt_key, RECEIVED_TAG + entry.transcript)
            if not hmac.compare_digest(mac, fields["mac"]):
                raise protocol_error(
                    "HANDOVER_RECEIPT_BAD", "the receipt was refused", "its MAC does not fit the delivery"
                )
            entry.received = True
        answer = messages.ACKNOWLEDGED.encode(session=fields["session"], state="received")
        return Confirmation(entry.requester.enclave_id, entry.key_set_id, False, answer)

    def on_durable(self, body: bytes, now: float) -> Confirmation:
        """Verify the attested confirmation that the requester sealed the key set and read it back. May be repeated."""
        fields = messages.DURABLE.decode(body)
        entry = self._delivery(fields["session"], now, "confirmation that the keys are durable")
        if not entry.received:
            raise protocol_error("HANDOVER_OUT_OF_ORDER", "durable was refused", "the receipt did not come before it")
        report = decode_report(fields["report"], "durable")
        self._party.tee.verify(report)
        check_same_enclave(report, entry.requester, "durable")
        if fields["key_set_id"] != entry.key_set_id:
            raise protocol_error(
                "HANDOVER_KEY_SET_MISMATCH",
                "durable was refused",
                f"expected key set {entry.key_set_id}, found {fields['key_set_id']}",
            )
        transcript = Transcript(entry.transcript)
        add_durable(transcript, entry.key_set_id, fields["canary"])
        check_report_data(report, transcript.report_data(DURABLE_TAG), "durable")
        entry.durable = True
        wipe(entry.receipt_key)
        answer = messages.ACKNOWLEDGED.encode(session=fields["session"], state="durable")
        return Confirmation(entry.requester.enclave_id, entry.key_set_id, fields["canary"], answer)
