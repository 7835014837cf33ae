"""The vault port over the vault's client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.stages import Permit, SealedKeys
from dcupgrade.upgrade.ports import Delivery
from keyvault.client import VaultClient


class Vault:
    """The vault port over its client."""

    def __init__(self, client: VaultClient, *, node_url: str, protocol: str, allow_simulated: bool) -> None:
        self._client = client
        self._node_url = node_url
        self._protocol = protocol
        self._allow_simulated = allow_simulated
        self.last: Mapping[str, Any] = {}

    async def status(self) -> Mapping[str, Any]:
        """Return the vault's status; requested before each collection and permit.

        Raises TEE_SIMULATED if the settings do not allow a simulated TEE; then nothing is collected.
        """
        self.last = await self._client.status()
        if self.last["tee"] == "simulated" and not self._allow_simulated:
            raise DcupgradeError(
                code="TEE_SIMULATED",
                what="the vault is not used",
                why="its TEE is simulated and vault.unsafe_simulated_tee is not true",
                action="Run a vault in a real TEE; on a development machine allow it in the settings.",
                kind="transient",
            )
        return self.last

    def facts(self) -> dict[str, Any]:
        """Return the facts about the vault for display, from its last answer.

        "tee" ("unknown" before the first answer), "enclave_id", "key_sets" (how many), "sealed_unix_s" of the newest,
        "permit" (a target id, or "").
        """
        kept = [item["collected_at_unix_s"] for item in self.last.get("key_sets", ()) if not item["wiped"]]
        permits = [str(item["target_id"]) for item in self.last.get("permits", ()) if item["state"] == "issued"]
        return {
            "tee": self.last.get("tee", "unknown"),
            "enclave_id": self.last.get("enclave_id", ""),
            "key_sets": len(kept),
            "sealed_unix_s": max(kept, default=0),
            "permit": permits[-1] if permits else "",
        }

    async def collect(self, source_id: str, evidence: Mapping[str, Any]) -> SealedKeys:
        """Have the vault take and seal the running node's key set."""
        answer = await self._client.collect(self._node_url, source_id, protocol=self._protocol, evidence=dict(evidence))
        return SealedKeys(source_id, str(answer["key_set_id"]))

    async def advance(self, set_changes: Sequence[Mapping[str, Any]]) -> int:
        """Have the vault verify and store some set changes; return the id of the set that it then knows."""
        return int((await self._client.advance(set_changes))["set_id"])

    async def permit(self, source_id: str, target_id: str, key_set_id: str, evidence: Mapping[str, Any]) -> Permit:
        """Have the vault issue its release permit."""
        answer = await self._client.permit(
            source_id=source_id, target_id=target_id, key_set_id=key_set_id, evidence=dict(evidence)
        )
        return Permit(target_id, int(answer["expires_at_unix_s"]))

    async def delivery(self, enclave_id: str) -> Delivery:
        """Return the progress of the handover to an enclave."""
        answer = await self._client.delivery(enclave_id)
        return Delivery(str(answer["state"]), str(answer.get("code") or ""))

    async def holds_keys_of(self, source_id: str, key_set_id: str) -> bool:
        """Return whether the vault's status lists a key set from this source that is not wiped."""
        return any(
            item["source_id"] == source_id and not item["wiped"] and key_set_id in ("", item["key_set_id"])
            for item in (await self._client.status())["key_sets"]
        )

    async def committed(self, target_id: str, key_set_id: str) -> None:
        """Report to the vault that the target is committed."""
        await self._client.committed(target_id=target_id, key_set_id=key_set_id)
