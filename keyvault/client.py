"""The agent's client of the vault: names and numbers go through it, never key material."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final

import aiohttp

from keyvault.handover.http_client import exchange

from .errors import KeyvaultError

_ANSWER_BYTES_MAX: Final = 1024 * 1024
#: Collecting waits for the node and the disk, advancing verifies many signatures; the rest is answered at once.
_COLLECT_TIMEOUT_S: Final = 120.0
_TIMEOUT_S: Final = 30.0


class VaultClient:
    """Calls of the vault's agent API; every refusal is raised as KeyvaultError. Use as an async context manager.

    ``base_url`` like ``http://127.0.0.1:6666``; ``token`` is the text of the token file.
    """

    def __init__(self, base_url: str, token: str, session: aiohttp.ClientSession | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token.strip()}"}
        self._session = session
        self._own_session = session is None

    async def __aenter__(self) -> VaultClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections this client opened."""
        if self._own_session and self._session is not None:
            await self._session.close()
            self._session = None

    async def _call(
        self, method: str, path: str, value: Mapping[str, Any] | None = None, timeout_s: float = _TIMEOUT_S
    ) -> dict[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        body = json.dumps(value).encode("utf-8") if value is not None else None
        url = f"{self._base_url}{path}"
        content = await exchange(
            self._session,
            method,
            url,
            body,
            self._headers,
            timeout_s=timeout_s,
            limit=_ANSWER_BYTES_MAX,
            who="VAULT",
        )
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise KeyvaultError(
                code="VAULT_ANSWER_MALFORMED",
                what=f"{method} {url} failed",
                why="the answer is not a JSON object",
                action="See what listens there.",
            )
        return answer

    async def health(self) -> dict[str, Any]:
        """Return ``{"status": "ok", "enclave_id", "tee"}``; needs no token."""
        return await self._call("GET", "/healthz")

    async def status(self) -> dict[str, Any]:
        """Return what the vault is and holds: ids, policy mode, chain floor, key sets, permits, condition; no keys."""
        return await self._call("GET", "/vault/status")

    async def collect(
        self, node_url: str, source_id: str, *, protocol: str = "v2", evidence: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Let the vault take the running node's key set; returns ``{"key_set_id", "source_id", "epoch"}``.

        When it returns, the sealed copy was read back from disk and unsealed. ``evidence`` as in ``permit``; a vault
        whose policy has require_listed_vault needs it before the first collection.
        """
        value: dict[str, Any] = {"node_url": node_url, "source_id": source_id, "protocol": protocol}
        if evidence is not None:
            value["evidence"] = evidence
        return await self._call("POST", "/vault/collect", value, _COLLECT_TIMEOUT_S)

    async def advance(self, set_changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Bring the vault's authority set up to date by some steps; returns ``{"set_id", "block_number"}``."""
        return await self._call("POST", "/vault/advance", {"set_changes": list(set_changes)}, _COLLECT_TIMEOUT_S)

    async def permit(
        self, source_id: str, target_id: str, key_set_id: str, evidence: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Ask for a release permit; returns ``{"target_id", "block_number", "block_hash", "expires_at_unix_s"}``."""
        value = {"source_id": source_id, "target_id": target_id, "key_set_id": key_set_id, "evidence": evidence}
        return await self._call("POST", "/vault/permit", value)

    async def delivery(self, target_id: str) -> dict[str, Any]:
        """Return ``{"state", "code", "instances"}`` of the hand-over to a target."""
        return await self._call("GET", f"/vault/delivery/{target_id}")

    async def retain(self, key_set_id: str, until_unix_s: int) -> dict[str, Any]:
        """Postpone the wiping of a key set; it can never be hastened."""
        return await self._call("POST", "/vault/retain", {"key_set_id": key_set_id, "until_unix_s": until_unix_s})

    async def committed(self, target_id: str, key_set_id: str) -> dict[str, Any]:
        """Tell the vault that the upgrade is committed: its retention time begins."""
        return await self._call("POST", "/vault/committed", {"target_id": target_id, "key_set_id": key_set_id})

    async def self_test(self) -> dict[str, Any]:
        """Let the vault attest itself and open every sealed copy; returns {"attestation", "opened", "failed"}."""
        return await self._call("POST", "/vault/selftest", {})
