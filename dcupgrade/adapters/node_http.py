"""The node's HTTP interface: its health, and the call that commits it."""

from __future__ import annotations

import re

import aiohttp

from dcupgrade.errors import DcupgradeError
from dcupgrade.settings.schema import Settings
from dcupgrade.upgrade.ports import NodeHealth
from keyvault.errors import KeyvaultError
from keyvault.handover.messages import strict_json
from process_supervisor import http_probe

HEALTH_TIMEOUT_S = 5.0
STATUSES = ("starting", "waiting_for_keys", "serving", "failed")
"""What a node may say of itself; the protocol's page for node developers has their meaning."""
TEXT_CHARS_MAX = 500
_ENCLAVE_ID = re.compile(r"[0-9a-f]{64}")


class NodeHttp:
    """The node at the settings' port, whichever version that is."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._node, self._session = settings.node, session
        self.url = f"http://127.0.0.1:{settings.node.port}"

    async def health(self, enclave_id: str) -> NodeHealth:
        """GET /health; an invalid answer counts as silence. `canary_url` is probed for nodes that report no canary."""
        if self._node.protocol == "v1":
            return await self._health_v1()
        answer = await http_probe.probe(f"{self.url}/health", HEALTH_TIMEOUT_S, self._session)
        if answer.status is None:
            return NodeHealth("silent", detail=answer.error or "")
        health = _decode_health(answer.body)
        if health is None:
            return NodeHealth("silent", detail=f"its health report cannot be read (HTTP {answer.status})")
        if health.canary is None and self._node.canary_url and health.status == "serving":
            probed = await http_probe.probe(self._node.canary_url, HEALTH_TIMEOUT_S, self._session)
            health = NodeHealth(health.status, health.enclave_id, health.version, probed.ok, health.committed)
        return health

    async def _health_v1(self) -> NodeHealth:
        """Return the health of a v1 node. It has no health report; it answers `/version` once it has its keys."""
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
        """POST /commit. Raises COMMIT_NOT_ACKNOWLEDGED unless the node accepts it. Does nothing over v1."""
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


def _decode_health(body: bytes) -> NodeHealth | None:
    """Decode the node's health report; None if it is invalid. The node's answers are not trusted to be well-formed."""
    try:
        value = strict_json(body, http_probe.BODY_BYTES_MAX, "the health report")
    except KeyvaultError:
        return None
    status, canary = value.get("status"), value.get("canary")
    if status not in STATUSES:
        return None
    return NodeHealth(
        status=status,
        enclave_id=_text(value.get("enclave_id")),
        version=_text(value.get("version")),
        canary=canary if isinstance(canary, bool) else None,
        committed=value.get("committed") is True,
        key_set_id=_text(value.get("key_set_id")),
        detail=_text(value.get("detail") or value.get("error")),
    )


def _text(value: object) -> str:
    return str(value)[:TEXT_CHARS_MAX] if isinstance(value, str | int | float) else ""
