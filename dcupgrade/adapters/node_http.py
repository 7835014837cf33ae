"""The node's HTTP interface: its health, and the call that commits it."""

from __future__ import annotations

import json
import re

import aiohttp

from dcupgrade.errors import DcupgradeError
from dcupgrade.settings.schema import Settings
from dcupgrade.upgrade.ports import NodeHealth
from process_supervisor import http_probe

HEALTH_TIMEOUT_S = 5.0
_ENCLAVE_ID = re.compile(r"[0-9a-f]{64}")


class NodeHttp:
    """The node at the settings' port, whichever version that is."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._node, self._session = settings.node, session
        self.url = f"http://127.0.0.1:{settings.node.port}"

    async def health(self, enclave_id: str) -> NodeHealth:
        """GET /health; an answer that is none counts as silence. `canary_url` fills in for nodes without one."""
        if self._node.protocol == "v1":
            return await self._health_v1()
        answer = await http_probe.probe(f"{self.url}/health", HEALTH_TIMEOUT_S, self._session)
        if answer.status is None:
            return NodeHealth("silent", detail=answer.error or "")
        try:
            body = json.loads(answer.body)
            canary = body.get("canary")
            health = NodeHealth(
                status=str(body["status"]),
                enclave_id=str(body.get("enclave_id") or ""),
                version=str(body.get("version") or ""),
                canary=canary if isinstance(canary, bool) else None,
                committed=bool(body.get("committed")),
                key_set_id=str(body.get("key_set_id") or ""),
                detail=str(body.get("detail") or body.get("error") or ""),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return NodeHealth("silent", detail=f"its health report cannot be read (HTTP {answer.status})")
        if health.canary is None and self._node.canary_url and health.status == "serving":
            probed = await http_probe.probe(self._node.canary_url, HEALTH_TIMEOUT_S, self._session)
            health = NodeHealth(health.status, health.enclave_id, health.version, probed.ok, health.committed)
        return health

    async def _health_v1(self) -> NodeHealth:
        """Nodes of handover v1 know no health: they answer `/version` once they have their keys."""
        answer = await http_probe.probe(f"{self.url}/version", HEALTH_TIMEOUT_S, self._session)
        if answer.status is None:
            return NodeHealth("silent", detail=answer.error or "")
        enclave_id, _, version = answer.body.decode("utf-8", "replace").strip().partition("@")
        if not answer.ok or not _ENCLAVE_ID.fullmatch(enclave_id):
            return NodeHealth("starting", detail=f"/version answers HTTP {answer.status}")
        canary = None
        if self._node.canary_url:
            canary = (await http_probe.probe(self._node.canary_url, HEALTH_TIMEOUT_S, self._session)).ok
        return NodeHealth("serving", enclave_id, version, canary)

    async def commit(self, enclave_id: str) -> None:
        """POST /commit; raises COMMIT_NOT_ACKNOWLEDGED unless the node took it. Over v1 there is nothing to tell."""
        if self._node.protocol == "v1":
            return
        why = ""
        try:
            timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)
            async with self._session.post(
                f"{self.url}/commit", json={"enclave_id": enclave_id}, timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status == 200:
                    return
                why = f"HTTP {answer.status}: {(await answer.content.read(500)).decode('utf-8', 'replace')}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or type(error).__name__
        raise DcupgradeError(code="COMMIT_NOT_ACKNOWLEDGED", what=f"commit of {enclave_id}", why=why, kind="transient")
