"""Computations that both sides of handover v2 share: transcript hash, domain tags, checks of reports. Pure."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Final

from attestation.errors import AttestationError
from attestation.sgx import Report, TargetInfo
from keyvault.errors import KeyvaultError, Kind

from . import messages

_TRANSCRIPT_TAG: Final = b"dcupgrade handover v2 transcript\0"
CHALLENGE_TAG: Final = b"dcupgrade handover v2 challenge by holder\0"
REQUEST_TAG: Final = b"dcupgrade handover v2 request by requester\0"
DELIVERY_TAG: Final = b"dcupgrade handover v2 delivery by holder\0"
RECEIVED_TAG: Final = b"dcupgrade handover v2 received by requester\0"
DURABLE_TAG: Final = b"dcupgrade handover v2 durable by requester\0"


class Transcript:
    """The running hash: SHA-256 over the last state and each labelled, length-prefixed item."""

    __slots__ = ("state",)

    def __init__(self, state: bytes | None = None) -> None:
        self.state = hashlib.sha256(_TRANSCRIPT_TAG).digest() if state is None else state

    def add(self, label: str, value: bytes) -> None:
        """Append one item. The order and the labels are part of the protocol."""
        name = label.encode("ascii")
        self.state = hashlib.sha256(
            self.state + len(name).to_bytes(1, "big") + name + len(value).to_bytes(4, "big") + value
        ).digest()

    def report_data(self, tag: bytes) -> bytes:
        """Return the 64 bytes of REPORTDATA for a role at this point of the conversation."""
        return hashlib.sha512(tag + self.state).digest()


def protocol_error(code: str, what: str, why: str, action: str = "", kind: Kind = "rejected") -> KeyvaultError:
    """Make the error that refuses a message."""
    return KeyvaultError(code=code, what=what, why=why, action=action, kind=kind)


def decode_report(data: bytes, what: str) -> Report:
    """Decode the 432-byte REPORT of a message, without verifying it. Raises `HANDOVER_MESSAGE_MALFORMED`."""
    try:
        return Report.decode(data)
    except AttestationError as error:
        raise protocol_error("HANDOVER_MESSAGE_MALFORMED", f"the {what} was refused", error.why) from None


def check_report_data(report: Report, expected: bytes, what: str) -> None:
    """Raise `HANDOVER_REPORTDATA_MISMATCH` unless the report binds this conversation, role and message."""
    if not hmac.compare_digest(report.report_data, expected):
        raise protocol_error(
            "HANDOVER_REPORTDATA_MISMATCH",
            f"the {what} was refused",
            "its report belongs to another conversation, role or message",
        )


def _identity(report: Report) -> bytes:
    """Encode a report without the fields that differ between two reports of one enclave."""
    return replace(report, report_data=bytes(64), key_id=bytes(32), mac=bytes(16)).encode()


def check_same_enclave(report: Report, first: Report, what: str) -> None:
    """Raise `HANDOVER_PEER_CHANGED` unless all identifying fields of both reports are equal."""
    if _identity(report) != _identity(first):
        raise protocol_error(
            "HANDOVER_PEER_CHANGED",
            f"the {what} was refused",
            "its report is not from the enclave that began the session",
        )


def opening(
    offered: tuple[int, ...],
    genesis: bytes,
    requester_nonce: bytes,
    requester: TargetInfo,
    session: bytes,
    holder_nonce: bytes,
    holder_id: bytes,
) -> Transcript:
    """Return T0: everything that both sides know after hello and challenge."""
    transcript = Transcript()
    transcript.add("versions", bytes(offered))
    transcript.add("version", bytes([messages.VERSION]))
    transcript.add("genesis", genesis)
    transcript.add("requester nonce", requester_nonce)
    transcript.add("requester target info", requester.encode())
    transcript.add("session", session)
    transcript.add("holder nonce", holder_nonce)
    transcript.add("requester id", requester.mrenclave)
    transcript.add("holder id", holder_id)
    return transcript


def add_request(transcript: Transcript, public_key: bytes, wanted: str) -> None:
    """T0 becomes T1: the key to which the delivery is encrypted, and the wanted key set ("" for any)."""
    transcript.add("kem public key", public_key)
    transcript.add("wanted key set", wanted.encode("ascii"))


def add_ciphertext(transcript: Transcript, ciphertext: bytes) -> None:
    """T1 becomes T2."""
    transcript.add("ciphertext", ciphertext)


def add_durable(transcript: Transcript, key_set_id: str, canary: bool) -> None:
    """T2 becomes T3."""
    transcript.add("durable key set", key_set_id.encode("ascii"))
    transcript.add("canary opened", b"\1" if canary else b"\0")
