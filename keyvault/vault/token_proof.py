"""Agent and vault prove to each other that they share a token, without sending it. Pure: bytes in, bytes out.

Another process could listen on the vault's port while the vault is down, and would learn a token that is sent. So:

    agent                                   vault
      GET /vault/challenge?nonce=A  ----->
                                    <-----  V, HMAC(token, challenge, A, V)
      verifies that proof
      the call, with A, V, SHA-256 of its body, HMAC(token, call, A, V, method, path, body)  ----->
                                            verifies; accepts V once
                                    <-----  the answer, HMAC(token, answer, A, V, status, body)
      verifies that proof

A and V are 32 and 40 bytes, new for each call. A relay can neither alter nor repeat a call or its answer. The token
must not be guessable, because a relay can test guesses against the messages. The agent generates 32 random bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

NONCE_BYTES: Final = 32
CHALLENGE_PATH: Final = "/vault/challenge"
SCHEME: Final = "DCUpgrade"
ANSWER_HEADER: Final = "DCUpgrade-Proof"
_CHALLENGE_TAG: Final = b"dcupgrade agent api v1 challenge by vault"
_CALL_TAG: Final = b"dcupgrade agent api v1 call by agent"
_ANSWER_TAG: Final = b"dcupgrade agent api v1 answer by vault"
_VAULT_NONCE_TAG: Final = b"dcupgrade agent api v1 nonce of the vault"
_EXPIRY_BYTES: Final = 8
_RANDOM_BYTES: Final = 16
_TAG_BYTES: Final = 16
VAULT_NONCE_BYTES: Final = _EXPIRY_BYTES + _RANDOM_BYTES + _TAG_BYTES
_CREDENTIALS: Final = re.compile(rf"{SCHEME} ([0-9a-f]{{64}})\.([0-9a-f]{{80}})\.([0-9a-f]{{64}})\.([0-9a-f]{{64}})")


def _mac(key: bytes, *parts: bytes) -> bytes:
    """Return HMAC-SHA256 over parts with a length in front of each, so that the borders between parts are fixed."""
    return hmac.digest(key, b"".join(len(part).to_bytes(8, "big") + part for part in parts), "sha256")


@dataclass(frozen=True)
class Nonces:
    """The two nonces of one call: 32 bytes of the agent, 40 of the vault."""

    agent: bytes
    vault: bytes


def challenge_proof(token: bytes, nonces: Nonces) -> bytes:
    """Return the vault's proof (32 bytes) in its answer to the agent's nonce."""
    return _mac(token, _CHALLENGE_TAG, nonces.agent, nonces.vault)


def answer_proof(token: bytes, nonces: Nonces, status: int, body: bytes) -> bytes:
    """Return the vault's proof (32 bytes) that this is its answer to the call with these nonces."""
    return _mac(token, _ANSWER_TAG, nonces.agent, nonces.vault, status.to_bytes(2, "big"), body)


@dataclass(frozen=True)
class Call:
    """The agent's proof of one call: nonces, SHA-256 of the body, and the MAC over both, the method and the path."""

    nonces: Nonces
    body_digest: bytes
    proof: bytes

    def header(self) -> str:
        """Return the value of the Authorization header."""
        parts = (self.nonces.agent, self.nonces.vault, self.body_digest, self.proof)
        return f"{SCHEME} {'.'.join(part.hex() for part in parts)}"

    def is_proven(self, token: bytes, method: str, path: str) -> bool:
        """Tell whether the caller knows the token and made this call for this method and path."""
        return hmac.compare_digest(self.proof, _call_proof(token, self.nonces, method, path, self.body_digest))


def make_call(token: bytes, nonces: Nonces, method: str, path: str, body: bytes) -> Call:
    """Return the agent's proof for one call. `path` is the path as it is sent."""
    digest = hashlib.sha256(body).digest()
    return Call(nonces, digest, _call_proof(token, nonces, method, path, digest))


def parse_call(header: str) -> Call | None:
    """Return what an Authorization header says, or None if it is not of this scheme."""
    match = _CREDENTIALS.fullmatch(header)
    if match is None:
        return None
    agent, vault, digest, proof = (bytes.fromhex(part) for part in match.groups())
    return Call(Nonces(agent, vault), digest, proof)


def _call_proof(token: bytes, nonces: Nonces, method: str, path: str, body_digest: bytes) -> bytes:
    texts = (method.encode("ascii"), path.encode("ascii", "backslashreplace"))
    return _mac(token, _CALL_TAG, nonces.agent, nonces.vault, *texts, body_digest)


class VaultNonces:
    """The vault's nonces: each is accepted once, within 30 s. Making one stores nothing: strangers can fill no table.

    `key`: 32 random bytes of this process. `now_s`: a monotonic clock, seconds.
    """

    TTL_S: Final = 30.0

    def __init__(self, key: bytes) -> None:
        self._key = key
        #: used nonces of proven calls, until they expire; only a caller with the token can add one
        self._used: dict[bytes, float] = {}

    def make(self, random: bytes, agent_nonce: bytes, now_s: float) -> bytes:
        """Return a nonce (40 bytes) for the agent's nonce. `random` is 16 bytes."""
        head = int((now_s + self.TTL_S) * 1000).to_bytes(_EXPIRY_BYTES, "big") + random
        return head + self._tag(head, agent_nonce)

    def take(self, nonces: Nonces, now_s: float) -> bool:
        """Consume the nonce of a proven call. Returns False if it is of another process, expired or used."""
        head, tag = nonces.vault[:-_TAG_BYTES], nonces.vault[-_TAG_BYTES:]
        expires_at_s = int.from_bytes(head[:_EXPIRY_BYTES], "big") / 1000
        for nonce in [nonce for nonce, until_s in self._used.items() if until_s <= now_s]:
            del self._used[nonce]
        ours = hmac.compare_digest(tag, self._tag(head, nonces.agent))
        if not ours or expires_at_s <= now_s or nonces.vault in self._used:
            return False
        self._used[nonces.vault] = expires_at_s
        return True

    def _tag(self, head: bytes, agent_nonce: bytes) -> bytes:
        return _mac(self._key, _VAULT_NONCE_TAG, head, agent_nonce)[:_TAG_BYTES]
