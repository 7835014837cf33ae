"""The agent's client of the vault. It carries names and numbers, never key material."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp

from keyvault.handover.http_client import Answer, accepted, send, shown_text
from keyvault.handover.messages import strict_json
from keyvault.vault import token_proof
from keyvault.vault.token_proof import Nonces

from .errors import KeyvaultError

_ANSWER_BYTES_MAX: Final = 1024 * 1024
#: Collecting waits for the node and the disk, and advancing verifies many signatures. Other calls are answered at once.
_COLLECT_TIMEOUT_S: Final = 120.0
_TIMEOUT_S: Final = 30.0


class VaultClient:
    """Calls of the vault's agent API; every refusal is raised as KeyvaultError. Use as an async context manager.

    `base_url` is like `http://127.0.0.1:6666`; `token` is the text of the token file. The client never sends the token;
    it proves that it knows it (`keyvault.vault.token_proof`). An answer is accepted only if it proves the same. Each
    request opens its own connection, because other clients could displace an idle one.
    """

    def __init__(self, base_url: str, token: str, session: aiohttp.ClientSession | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._token = token.strip().encode()
        self._session = session
        self._own_session = session is None

    async def __aenter__(self) -> VaultClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections this client opened."""
        if self._own_session and self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(self, method: str, path: str, body: bytes | None, timeout_s: float, **headers: str) -> Answer:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        url = f"{self._base_url}{path}"
        return await send(
            self._session, method, url, body, headers, timeout_s=timeout_s, limit=_ANSWER_BYTES_MAX, who="VAULT"
        )

    async def _call(
        self, method: str, path: str, value: Mapping[str, Any] | None = None, timeout_s: float = _TIMEOUT_S
    ) -> dict[str, Any]:
        """Make one call with a proof of the token; accept the answer only with the vault's proof."""
        body = json.dumps(value).encode("utf-8") if value is not None else b""
        nonces = await self._challenge()
        call = token_proof.make_call(self._token, nonces, method, path, body)
        answer = await self._send(method, path, body or None, timeout_s, Authorization=call.header())
        if not self._is_vaults(answer, nonces):
            raise self._not_proven(f"its answer carries no proof: status {answer.status}, {shown_text(answer.body)}")
        return self._object(answer, f"{method} {self._base_url}{path}")

    async def _challenge(self) -> Nonces:
        own = os.urandom(token_proof.NONCE_BYTES)
        path = token_proof.CHALLENGE_PATH
        answer = self._object(await self._send("GET", f"{path}?nonce={own.hex()}", None, _TIMEOUT_S), f"GET {path}")
        try:
            nonces = Nonces(own, bytes.fromhex(answer["nonce"]))
            proof = bytes.fromhex(answer["proof"])
        except (KeyError, TypeError, ValueError):
            raise self._not_proven("its answer to a challenge is malformed") from None
        whole = len(nonces.vault) == token_proof.VAULT_NONCE_BYTES
        if not whole or not hmac.compare_digest(proof, token_proof.challenge_proof(self._token, nonces)):
            raise self._not_proven("it does not know the agent's token")
        return nonces

    def _is_vaults(self, answer: Answer, nonces: Nonces) -> bool:
        expected = token_proof.answer_proof(self._token, nonces, answer.status, answer.body or b"").hex()
        given = answer.headers.get(token_proof.ANSWER_HEADER, "")
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())

    def _not_proven(self, why: str) -> KeyvaultError:
        return KeyvaultError(
            code="VAULT_NOT_PROVEN",
            what=f"the program at {self._base_url} was not accepted as the vault",
            why=why,
            action="Check which program listens there, and give the vault and the agent the same token file.",
            kind="transient",
        )

    def _object(self, answer: Answer, what: str) -> dict[str, Any]:
        content = accepted(answer, what, "VAULT")
        try:
            return strict_json(content, _ANSWER_BYTES_MAX, "answer")
        except KeyvaultError as error:
            raise KeyvaultError(
                code="VAULT_ANSWER_MALFORMED",
                what=f"{what} failed",
                why=error.why,
                action="Check which program listens there.",
            ) from None

    async def health(self) -> dict[str, Any]:
        """Return `{"status": "ok", "enclave_id", "tee"}`; needs no token."""
        return self._object(await self._send("GET", "/healthz", None, _TIMEOUT_S), f"GET {self._base_url}/healthz")

    async def status(self) -> dict[str, Any]:
        """Return the vault's ids, policy mode, chain floor, key sets, permits and condition; no keys."""
        return await self._call("GET", "/vault/status")

    async def collect(
        self, node_url: str, source_id: str, *, protocol: str = "v2", evidence: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Let the vault collect the running node's key set; return `{"key_set_id", "source_id", "epoch"}`.

        When this returns, the sealed copy has been read back from disk and unsealed. `evidence` is as in `permit`; a
        vault whose policy has require_listed_vault needs it before the first collection.
        """
        value: dict[str, Any] = {"node_url": node_url, "source_id": source_id, "protocol": protocol}
        if evidence is not None:
            value["evidence"] = evidence
        return await self._call("POST", "/vault/collect", value, _COLLECT_TIMEOUT_S)

    async def advance(self, set_changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Advance the vault's authority set by these set changes; return `{"set_id", "block_number"}`."""
        return await self._call("POST", "/vault/advance", {"set_changes": list(set_changes)}, _COLLECT_TIMEOUT_S)

    async def permit(
        self, source_id: str, target_id: str, key_set_id: str, evidence: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Request a release permit; return `{"target_id", "block_number", "block_hash", "expires_at_unix_s"}`."""
        value = {"source_id": source_id, "target_id": target_id, "key_set_id": key_set_id, "evidence": evidence}
        return await self._call("POST", "/vault/permit", value)

    async def delivery(self, target_id: str) -> dict[str, Any]:
        """Return `{"state", "code", "instances"}` of the handover to a target."""
        return await self._call("GET", f"/vault/delivery/{target_id}")

    async def retain(self, key_set_id: str, until_unix_s: int) -> dict[str, Any]:
        """Postpone the wiping of a key set. It is never possible to wipe it earlier."""
        return await self._call("POST", "/vault/retain", {"key_set_id": key_set_id, "until_unix_s": until_unix_s})

    async def committed(self, target_id: str, key_set_id: str) -> dict[str, Any]:
        """Report to the vault that the upgrade is committed; the retention time begins."""
        return await self._call("POST", "/vault/committed", {"target_id": target_id, "key_set_id": key_set_id})

    async def self_test(self) -> dict[str, Any]:
        """Let the vault attest itself and open every sealed copy; return `{"attestation", "opened", "failed"}`."""
        return await self._call("POST", "/vault/selftest", {})
