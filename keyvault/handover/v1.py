"""Handover protocol v1, which DCNodes in the field use, with stricter checks. Pure: bytes in, bytes out.

Layouts and order of messages follow the public Go programs (`dcnetio/dcupgrade` 0.1.8, `dcnetio/dcmanager`).
Both roles are here: the requester R asks for a secret, the holder H has it. Checks that the field's programs do not
make: a challenge is used once and expires, reports of debug or uninitialised enclaves are refused (by the acceptance
policy), and the holder of step 6 must be the enclave that gave the challenge in step 1.
"""

import base64
import binascii
import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import nacl.bindings
import nacl.exceptions
import nacl.public
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from attestation.errors import AttestationError
from attestation.network import NetworkKeys, decode_multibase, encode_multibase
from attestation.sgx import Report
from keyvault.errors import KeyvaultError

from .key_set import KeySet
from .messages import strict_json
from .party import Party

OE_HEADER = struct.pack("<IIQ", 1, 1, 432)
"""Open Enclave's report header: version 1, type 1 (SGX local), size of the REPORT."""
REPORT_LENGTH = len(OE_HEADER) + 432
NONCE_LENGTH, BOX_OVERHEAD = 24, 24 + 32 + 16
SECRET_MAX_BYTES = 65536
ANSWER_MAX_BYTES = 2 * SECRET_MAX_BYTES
CHALLENGE_TTL_S = 60.0
#: An enclave id that asks again within this time gets the same challenge.
CHALLENGE_RENEWED_AFTER_S = 30.0
#: High enough that strangers cannot displace an honest requester: the port accepts fewer requests in its exchange.
ENCLAVES_MAX = 16_384
ANSWER_FIELDS = ("EnclaveSignature", "EncryptSecret", "Pubkey", "LocalReport")


def encode_report(report: Report) -> bytes:
    """Encode a report in Open Enclave's form of a local report, 448 bytes."""
    return OE_HEADER + report.encode()


def decode_report(data: bytes) -> Report:
    """Decode a report in Open Enclave's form. Raises KeyvaultError V1_MESSAGE_INVALID or AttestationError."""
    if len(data) != REPORT_LENGTH or data[: len(OE_HEADER)] != OE_HEADER:
        raise _invalid("report", f"{len(data)} bytes are not an Open Enclave local report of {REPORT_LENGTH}")
    return Report.decode(data[len(OE_HEADER) :])


def challenge_bytes(random: bytes) -> bytes:
    """Return a number below 2^128 as v1 encodes it: big-endian without leading zeros. `random`: 16 bytes."""
    if len(random) != 16:
        raise ValueError("a v1 challenge is drawn from 16 random bytes")
    return random.lstrip(b"\0")


def box_seal(recipient: bytes, plaintext: bytes, *, nonce: bytes, ephemeral: bytes) -> bytes:
    """Encrypt to an ed25519 public key: nonce (24), ephemeral X25519 key (32), NaCl box.

    `recipient`: a raw ed25519 key (32 bytes); `ephemeral`: an X25519 secret (32 bytes), used once.
    Raises KeyvaultError V1_KEY_INVALID if the recipient's key is not a point of the curve, or is of low order.
    """
    secret = nacl.public.PrivateKey(ephemeral)
    sealed = nacl.public.Box(secret, _x25519_public(recipient)).encrypt(plaintext, nonce).ciphertext
    return nonce + bytes(secret.public_key) + sealed


def box_open(seed: bytes, ciphertext: bytes) -> bytes:
    """Decrypt a ciphertext for the ed25519 key of `seed` (32 bytes).

    Raises KeyvaultError V1_MESSAGE_INVALID (too short, too long) or V1_DECRYPT_FAILED.
    """
    if not BOX_OVERHEAD <= len(ciphertext) <= BOX_OVERHEAD + SECRET_MAX_BYTES:
        raise _invalid("EncryptSecret", f"{len(ciphertext)} bytes are not a v1 ciphertext")
    public = bytes(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())
    secret = nacl.public.PrivateKey(nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(seed + public))
    peer = nacl.public.PublicKey(ciphertext[NONCE_LENGTH : NONCE_LENGTH + 32])
    try:
        return nacl.public.Box(secret, peer).decrypt(ciphertext[NONCE_LENGTH + 32 :], ciphertext[:NONCE_LENGTH])
    except (nacl.exceptions.CryptoError, nacl.exceptions.RuntimeError) as error:
        raise _rejected("V1_DECRYPT_FAILED", "the ciphertext does not open with the key of this session") from error


class V1Requester:
    """Role R for one handover: two queries out, two answers in, then the secret.

    `party.verify_peer` verifies the holder in step 6, when its network signature arrives, before anything is decrypted.
    Step 2 carries no signature, and R's answer to it contains only public values.
    """

    def __init__(self, party: Party) -> None:
        self._party = party
        self._seed = bytearray(party.crypto.random(32))
        self._holder: str | None = None

    def random_query(self) -> dict[str, str]:
        """Return the query of `GET /teerandom`: an untargeted report, which only tells the holder whom to target."""
        return {"verifyreport": encode_multibase(encode_report(self._party.tee.self_report()))}

    def secret_query(self, challenge: bytes) -> dict[str, str]:
        """Return the query of `GET /secret` for the holder's report (448 bytes), whose REPORTDATA is the challenge."""
        if not challenge:
            raise _refused("/teerandom")
        report = decode_report(challenge)
        self._party.tee.verify(report)
        self._holder = report.enclave_id
        key = Ed25519PrivateKey.from_private_bytes(bytes(self._seed))
        answer = self._party.tee.report(report.target_info(), key.sign(report.report_data))
        return {
            "pubkey": encode_multibase(key.public_key().public_bytes_raw()),
            "authSignature": encode_multibase(self._party.network_signatures[0]),
            "teereport": encode_multibase(encode_report(answer)),
        }

    def open(self, body: bytes) -> KeySet:
        """Return the secret in the answer to `/secret`. Verifies the holder before decrypting. Ends the session."""
        if not body:
            raise _refused("/secret")
        fields = decode_answer(body)
        report = decode_report(fields["LocalReport"])
        if self._party.verify_peer(report, (fields["EnclaveSignature"],)) != self._holder:
            raise _rejected(
                "V1_HOLDER_CHANGED", f"it comes from {report.enclave_id}, the challenge from {self._holder}"
            )
        if not _signed_by(fields["Pubkey"], report.report_data, fields["EncryptSecret"]):
            raise _rejected("V1_SIGNATURE_BAD", "REPORTDATA is not its key's signature over the ciphertext")
        try:
            return KeySet(box_open(bytes(self._seed), fields["EncryptSecret"]))
        finally:
            self._seed[:] = bytes(len(self._seed))


@dataclass(frozen=True)
class _Challenge:
    digest: bytes
    made_at_s: float


@dataclass(frozen=True)
class V1Request:
    """The request of a verified requester: its ed25519 key, network signature and report."""

    enclave_id: str
    key: bytes
    signature: bytes
    report: Report


@dataclass
class V1Holder:
    """Role H: challenges for all callers, the secret for a verified requester.

    Each claimed enclave id has one current challenge, independent of who asks and how often, so that a stranger who
    polls in an enclave's name takes nothing from it. It is replaced after 30 s, expires after 60 s, and is consumed by
    a verified requester. At most 16,384 ids have one; then the oldest is dropped. `now_s`: a monotonic clock, seconds.

    `network`: the keys that peers trust, to choose among several signatures of this side. None: use the first.
    """

    party: Party
    network: NetworkKeys | None = None
    #: by enclave id, oldest first; each id has up to three, newest last
    _challenges: dict[str, list[_Challenge]] = field(default_factory=dict)

    def challenge(self, query: Mapping[str, str], *, now_s: float) -> bytes:
        """Return the answer to `/teerandom`: a report (448 bytes) targeted at the caller.

        Raises V1_MESSAGE_INVALID, AttestationError.
        """
        caller = decode_report(_query_bytes(query, "verifyreport", REPORT_LENGTH))
        digest = self._digest_for(caller.enclave_id, now_s)
        return encode_report(self.party.tee.report(caller.target_info(), digest))

    def _digest_for(self, enclave_id: str, now_s: float) -> bytes:
        live = self._live(enclave_id, now_s)
        if not live or live[-1].made_at_s + CHALLENGE_RENEWED_AFTER_S <= now_s:
            digest = hashlib.sha512(challenge_bytes(self.party.crypto.random(16))).digest()
            live.append(_Challenge(digest, now_s))
            self._challenges.pop(enclave_id, None)
            if len(self._challenges) >= ENCLAVES_MAX:
                del self._challenges[next(iter(self._challenges))]
            self._challenges[enclave_id] = live
        return live[-1].digest

    def _live(self, enclave_id: str, now_s: float) -> list[_Challenge]:
        known = self._challenges.get(enclave_id, [])
        return [one for one in known if one.made_at_s + CHALLENGE_TTL_S > now_s]

    def accept(self, query: Mapping[str, str], *, now_s: float) -> V1Request:
        """Verify a request of `/secret` and consume its challenge.

        The report's MAC is verified first. Whether this enclave may have a key set is not decided here.

        Raises V1_CHALLENGE_UNKNOWN (transient: begin again), V1_MESSAGE_INVALID, AttestationError.
        """
        key = _query_bytes(query, "pubkey", 32)
        signature = _query_bytes(query, "authSignature", 64)
        report = decode_report(_query_bytes(query, "teereport", REPORT_LENGTH))
        enclave_id = self.party.verify_peer(report, (signature,))
        live = self._live(enclave_id, now_s)
        match = next((one for one in live if _signed_by(key, report.report_data, one.digest)), None)
        if match is None:
            raise _challenge_unknown()
        live.remove(match)
        self._challenges[enclave_id] = live
        return V1Request(enclave_id, key, signature, report)

    def seal(self, request: V1Request, key_set: KeySet) -> bytes:
        """Return the answer to `/secret` (JSON): the key set for this requester alone. Raises V1_KEY_INVALID."""
        random = self.party.crypto.random
        sealed = box_seal(request.key, bytes(key_set.view()), nonce=random(NONCE_LENGTH), ephemeral=random(32))
        own = Ed25519PrivateKey.from_private_bytes(random(32))
        parts = {
            "EnclaveSignature": self._own_signature(request.enclave_id, request.signature),
            "EncryptSecret": sealed,
            "Pubkey": own.public_key().public_bytes_raw(),
            "LocalReport": encode_report(self.party.tee.report(request.report.target_info(), own.sign(sealed))),
        }
        return json.dumps({name: base64.b64encode(parts[name]).decode() for name in ANSWER_FIELDS}).encode()

    def answer(self, query: Mapping[str, str], secret: Callable[[str], KeySet], *, now_s: float) -> bytes:
        """Accept and seal, for a holder that decides at once: `secret(enclave id)` returns the key set or raises.

        Raises what `accept`, `secret` and `seal` raise.
        """
        request = self.accept(query, now_s=now_s)
        with secret(request.enclave_id) as key_set:
            return self.seal(request, key_set)

    def _own_signature(self, requester_id: str, theirs: bytes) -> bytes:
        """Return this side's signature by the network key that also signed the requester, because it trusts that key.

        v1 has room for one signature; a network that changes its key has two.
        """
        own = self.party.network_signatures
        if self.network is not None and len(own) > 1:
            own_id = self.party.tee.target_info().enclave_id
            for key in self.network.keys:
                if _by(key, requester_id, theirs):
                    return next((signature for signature in own if _by(key, own_id, signature)), own[0])
        return own[0]


def _by(key: bytes, enclave_id: str, signature: bytes) -> bool:
    try:
        NetworkKeys((key,)).verify(enclave_id, [signature])
    except AttestationError:
        return False
    return True


def decode_answer(body: bytes) -> dict[str, bytes]:
    """Return the four byte strings of an answer to `/secret`; fields of later versions are ignored.

    Raises V1_MESSAGE_INVALID.
    """
    try:
        fields = strict_json(body, ANSWER_MAX_BYTES, "answer")
    except KeyvaultError as error:
        raise _invalid("answer", error.why) from None
    missing = [name for name in ANSWER_FIELDS if name not in fields]
    if missing:
        raise _invalid("answer", f"it has no {', '.join(missing)}")
    return {name: _base64(name, fields[name]) for name in ANSWER_FIELDS}


def _base64(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise _invalid(name, "it is not text")
    try:
        data = base64.b64decode(value.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise _invalid(name, "it is not base64") from error
    if base64.b64encode(data).decode() != value:
        raise _invalid(name, "its base64 is not canonical")
    return data


def _query_bytes(query: Mapping[str, str], name: str, length: int) -> bytes:
    if name not in query:
        raise _invalid(name, "the parameter is missing")
    data = decode_multibase(query[name])
    if len(data) != length:
        raise _invalid(name, f"{len(data)} bytes instead of {length}")
    return data


def _signed_by(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _x25519_public(ed25519_public: bytes) -> nacl.public.PublicKey:
    try:
        return nacl.public.PublicKey(nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(ed25519_public))
    except (nacl.exceptions.CryptoError, nacl.exceptions.RuntimeError, ValueError) as error:
        raise _rejected(
            "V1_KEY_INVALID", "the requester's key is not a point of ed25519, or is of low order"
        ) from error


def _invalid(part: str, why: str) -> KeyvaultError:
    return KeyvaultError(code="V1_MESSAGE_INVALID", what=f"v1 message, {part}", why=why, kind="rejected")


def _rejected(code: str, why: str) -> KeyvaultError:
    return KeyvaultError(code=code, what="a v1 message was refused", why=why, kind="rejected")


def _challenge_unknown() -> KeyvaultError:
    return KeyvaultError(
        code="V1_CHALLENGE_UNKNOWN",
        what="a v1 message was refused",
        why="it answers no live challenge: expired, used, another's, or from before a restart",
        action="Begin again with /teerandom.",
        kind="transient",
    )


def _refused(path: str) -> KeyvaultError:
    return KeyvaultError(
        code="V1_REFUSED",
        what=f"v1 {path}",
        why="the holder answered with an empty body: it refused, or has no secret yet",
        action="Look at the holder's log; v1 does not say why.",
        kind="transient",
    )
