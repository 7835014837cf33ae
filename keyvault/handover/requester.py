"""The requester's side of handover v2."""

from __future__ import annotations

import hmac
from typing import Any

from attestation.sgx import Report
from keyvault.errors import KeyvaultError

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


def _out_of_order(what: str, why: str) -> KeyvaultError:
    """Make the error for a step that was called too early: a fault of this program, not of the peer."""
    return protocol_error("HANDOVER_OUT_OF_ORDER", what, why, kind="invariant")


class Requester:
    """One attempt of a requester to get a key set. Call the steps in order; a failed step ends the attempt.

    `party.verify_peer` must refuse every holder from which this side does not accept keys.
    `wanted`: the id of the only acceptable key set, or "" for any.
    """

    def __init__(self, party: Party, wanted: str = "") -> None:
        self._party = party
        self._wanted = wanted
        self._step = "hello"
        self._nonce = party.crypto.random(messages.NONCE_BYTES)
        self._target = party.tee.target_info()
        self._private_key: Any = None
        self._transcript = Transcript()
        self._session = b""
        self._holder: Report | None = None
        self._receipt_key = bytearray()
        self._key_set_id = ""

    @property
    def holder(self) -> Report:
        """The holder's verified report, once `on_challenge` has returned."""
        if self._holder is None:
            raise _out_of_order("the step was refused", "no challenge was verified yet")
        return self._holder

    def _enter(self, step: str, following: str) -> None:
        if self._step != step:
            raise _out_of_order(f"the step {step} was refused", f"this try expects {self._step}")
        self._step = following

    def _check_session(self, session: bytes, what: str) -> None:
        if not hmac.compare_digest(session, self._session):
            raise protocol_error("HANDOVER_SESSION_UNKNOWN", f"the {what} was refused", "it names another session")

    def hello(self) -> bytes:
        """Return the first message."""
        self._enter("hello", "challenge")
        return messages.HELLO.encode(
            versions=(messages.VERSION,),
            genesis=self._party.genesis_hash,
            nonce=self._nonce,
            target_info=self._target.encode(),
        )

    def on_challenge(self, body: bytes) -> bytes:
        """Verify the holder's challenge and return the request.

        Raises AttestationError (the holder's report, attributes or signature) or KeyvaultError.
        """
        self._enter("challenge", "failed")
        fields = messages.CHALLENGE.decode(body)
        if fields["version"] != messages.VERSION:
            raise protocol_error(
                "HANDOVER_VERSION_UNSUPPORTED",
                "the challenge was refused",
                f"the holder chose version {fields['version']}",
            )
        holder = decode_report(fields["report"], "challenge")
        self._party.verify_peer(holder, fields["network_signatures"])
        self._session = fields["session"]
        self._transcript = opening(
            (messages.VERSION,),
            self._party.genesis_hash,
            self._nonce,
            self._target,
            self._session,
            fields["nonce"],
            holder.mrenclave,
        )
        check_report_data(holder, self._transcript.report_data(CHALLENGE_TAG), "challenge")
        self._holder = holder
        self._private_key, public_key = self._party.crypto.kem_generate()
        add_request(self._transcript, public_key, self._wanted)
        report = self._party.tee.report(holder.target_info(), self._transcript.report_data(REQUEST_TAG))
        self._step = "delivery"
        return messages.REQUEST.encode(
            session=self._session,
            kem_public_key=public_key,
            key_set_id=self._wanted,
            report=report.encode(),
            network_signatures=self._party.network_signatures,
        )

    def on_delivery(self, body: bytes) -> KeySet:
        """Verify and open the delivery; the caller owns the key set and wipes it after use."""
        self._enter("delivery", "failed")
        fields = messages.DELIVERY.decode(body)
        self._check_session(fields["session"], "delivery")
        report = decode_report(fields["report"], "delivery")
        self._party.tee.verify(report)
        check_same_enclave(report, self.holder, "delivery")
        info = self._transcript.state
        add_ciphertext(self._transcript, fields["ciphertext"])
        check_report_data(report, self._transcript.report_data(DELIVERY_TAG), "delivery")
        plaintext = self._party.crypto.kem_open(self._private_key, info, fields["ciphertext"])
        self._private_key = None
        try:
            self._receipt_key = plaintext[: messages.RECEIPT_KEY_BYTES]
            key_set = KeySet(memoryview(plaintext)[messages.RECEIPT_KEY_BYTES :])
        finally:
            wipe(plaintext)
        self._key_set_id = key_set.key_set_id
        if self._wanted not in ("", self._key_set_id):
            key_set.wipe()
            raise protocol_error(
                "HANDOVER_KEY_SET_MISMATCH",
                "the delivered key set was refused",
                f"expected {self._wanted}, found {self._key_set_id}",
                "Look for the vault or node that holds the expected key set.",
            )
        self._step = "received"
        return key_set

    def received(self) -> bytes:
        """Return the receipt: a MAC under the key that came inside the delivery. It may be sent again."""
        if self._step != "durable":
            self._enter("received", "durable")
        mac = self._party.crypto.mac(self._receipt_key, RECEIVED_TAG + self._transcript.state)
        return messages.RECEIVED.encode(session=self._session, mac=mac)

    def durable(self, *, canary: bool) -> bytes:
        """Return the attested confirmation that the key set was sealed, read back from disk and unsealed.

        `canary` tells whether a record of older data was opened with it too (false where there is none).
        May be made again after a lost answer.
        """
        if self._step != "done":
            self._enter("durable", "done")
            wipe(self._receipt_key)
            add_durable(self._transcript, self._key_set_id, canary)
        report = self._party.tee.report(self.holder.target_info(), self._transcript.report_data(DURABLE_TAG))
        return messages.DURABLE.encode(
            session=self._session, key_set_id=self._key_set_id, canary=canary, report=report.encode()
        )

    def acknowledged(self, body: bytes, state: str) -> None:
        """Verify the holder's answer to `received` or `durable`: it only says that the message arrived."""
        fields = messages.ACKNOWLEDGED.decode(body)
        self._check_session(fields["session"], "acknowledgement")
        if fields["state"] != state:
            raise protocol_error(
                "HANDOVER_MESSAGE_MALFORMED",
                "the acknowledgement was refused",
                f"expected {state}, found {fields['state']}",
            )
