"""A fleet in Kubernetes Leases. The operator creates the Leases; agents may only update them.

`<fleet>-slot-0` … `<fleet>-slot-N` are the slots; a slot is held while its `spec.holderIdentity` is set. `<fleet>-halt`
halts the fleet while its `holderIdentity` is set. An update carries the `resourceVersion` that was read, so if two
agents update at once, one of them fails. Each slot stores the outcomes of the upgrades that held it. The API is called
with aiohttp: two verbs on one kind of object need no client library.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from dcupgrade.machine import fleet as rules
from dcupgrade.machine.fleet import Fleet, Halt, Member, Outcome, Slot

from .fleet import decode, decode_value, read_answer, unreachable

TIMEOUT_S = 5.0
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ANNOTATION_SLOT = "dcupgrade/slot"
ANNOTATION_OUTCOMES = "dcupgrade/outcomes"
ANNOTATION_HALT = "dcupgrade/halt"
LABEL = "dcupgrade/fleet"
OUTCOMES_PER_SLOT_MIN = 10
"""Outcomes that each slot has room for in the largest fleets; their number grows with the slots."""


class KubernetesFleet:
    """A fleet of Leases in one namespace. The token's file is read at each call, because the token is rotated."""

    def __init__(self, name: str, api_url: str, namespace: str, *, token_file: Path, ca_file: Path | None) -> None:
        self._name = name
        self._leases = f"{api_url.rstrip('/')}/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._token_file, self._ca_file = token_file, ca_file
        self._session: aiohttp.ClientSession | None = None

    async def read(self) -> Fleet:
        """See `FleetEngine`."""
        slots, halt = await self._objects()
        outcomes: list[Outcome] = []
        for lease in slots:
            outcomes += _outcomes(lease)
        return Fleet(tuple(_slot(lease) for lease in slots), _halt(halt), tuple(outcomes))

    async def put(self, number: int, slot: Slot) -> bool:
        """See `FleetEngine`."""
        slots, halt = await self._objects()
        if number >= len(slots) or _slot(slots[number]) is not None or _halt(halt) is not None:
            return False
        lease = slots[number]
        _annotations(lease)[ANNOTATION_SLOT] = json.dumps(rules.to_json(slot))
        at = datetime.fromtimestamp(slot.since_unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        lease["spec"] = {"holderIdentity": slot.holder, "acquireTime": at}
        if not await self._update(lease):
            return False
        _, halt = await self._objects()
        if _halt(halt) is None:
            return True
        await self.clear(
            number, slot.holder, None
        )  # the fleet was halted between the two requests; nothing has begun yet
        return False

    async def clear(self, number: int, holder: str, outcome: Outcome | None) -> None:
        """See `FleetEngine`."""
        slots, _ = await self._objects()
        if number >= len(slots):
            return
        lease, held = slots[number], _slot(slots[number])
        if held is None or held.holder != holder:
            return
        annotations = _annotations(lease)
        annotations.pop(ANNOTATION_SLOT, None)
        if outcome is not None:
            room = max(OUTCOMES_PER_SLOT_MIN, rules.OUTCOMES_KEPT // len(slots))
            kept = rules.worth_keeping((*_outcomes(lease), outcome), room)
            annotations[ANNOTATION_OUTCOMES] = json.dumps([rules.to_json(item) for item in kept])
        lease["spec"] = {}
        if not await self._update(lease):
            raise unreachable("Kubernetes", "the slot was changed by somebody else; it is tried again")

    async def set_halt(self, halt: Halt | None) -> None:
        """See `FleetEngine`; needs rights that agents do not have."""
        slots, lease = await self._objects()
        if lease is None:
            raise unreachable("Kubernetes", f"there is no Lease {self._name}-halt")
        _annotations(lease)[ANNOTATION_HALT] = json.dumps(rules.to_json(halt)) if halt is not None else ""
        lease["spec"] = {"holderIdentity": halt.who or "operator"} if halt is not None else {}
        changed = [lease]
        if halt is None:
            for slot in slots:
                if _annotations(slot).pop(ANNOTATION_OUTCOMES, None) is not None:
                    changed.append(slot)
        for item in changed:
            if not await self._update(item):
                raise unreachable("Kubernetes", f"{item['metadata']['name']} was changed meanwhile; try again")

    async def publish(self, member: Member) -> None:
        """See `FleetEngine`. Does nothing: agents may write only slots, and a waiting agent holds none."""

    async def members(self) -> tuple[Member, ...]:
        """See `FleetEngine`. Returns nothing: what nodes run is derived from the outcomes in the slots."""
        return ()

    async def aclose(self) -> None:
        """See `FleetEngine`."""
        if self._session is not None:
            await self._session.close()

    async def _objects(self) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """Return the slots in order of their number, and the halt."""
        found = await self._ask("GET", f"{self._leases}?labelSelector={LABEL.replace('/', '%2F')}%3D{self._name}")
        by_name = {item["metadata"]["name"]: item for item in found.get("items", [])}
        slots: list[dict[str, Any]] = []
        while (lease := by_name.get(f"{self._name}-slot-{len(slots)}")) is not None:
            slots.append(lease)
        return slots, by_name.get(f"{self._name}-halt")

    async def _update(self, lease: Mapping[str, Any]) -> bool:
        try:
            await self._ask("PUT", f"{self._leases}/{lease['metadata']['name']}", lease)
        except FileExistsError:
            return False
        return True

    async def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            ca_file = str(self._ca_file) if self._ca_file else None
            context = await asyncio.to_thread(ssl.create_default_context, cafile=ca_file)
            if self._session is None:  # another call may have made it in between
                self._session = aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), connector=aiohttp.TCPConnector(ssl=context)
                )
        return self._session

    async def _ask(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Make one call. Raises FLEET_UNREACHABLE, and FileExistsError for a conflict."""
        try:
            token = (await asyncio.to_thread(self._token_file.read_text, encoding="ascii")).strip()
            client = await self._client()
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
            async with client.request(method, url, json=body, headers=headers, allow_redirects=False) as answer:
                text = await read_answer(answer)
                status = answer.status
            if status == 409:
                raise FileExistsError
            value = decode(text)
            if status >= 400 or not isinstance(value, dict):
                message = value.get("message", "") if isinstance(value, dict) else ""
                raise ValueError(f"HTTP {status}: {message}"[:300])
        except FileExistsError:
            raise
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise unreachable("Kubernetes", str(error) or type(error).__name__) from error
        return value


def in_cluster() -> tuple[Path, Path]:
    """Token and CA certificates of the pod's service account."""
    return SERVICE_ACCOUNT / "token", SERVICE_ACCOUNT / "ca.crt"


def _annotations(lease: dict[str, Any]) -> dict[str, Any]:
    annotations: dict[str, Any] = lease["metadata"].setdefault("annotations", {})
    return annotations


def _slot(lease: dict[str, Any]) -> Slot | None:
    holder = (lease.get("spec") or {}).get("holderIdentity")
    if not holder:
        return None
    try:
        slot = rules.slot_from_json(decode_value(_annotations(lease).get(ANNOTATION_SLOT, "")))
    except ValueError:
        slot = None
    # the Lease's own field decides, because a person may have edited it
    return slot if slot is not None and slot.holder == holder else Slot(str(holder)[: rules.TEXT_MAX], "", "", 0.0)


def _halt(lease: dict[str, Any] | None) -> Halt | None:
    if lease is None:
        return Halt("", "the Lease for halts is not there", 0.0)
    holder = (lease.get("spec") or {}).get("holderIdentity")
    if not holder:
        return None
    try:
        return rules.halt_from_json(decode_value(_annotations(lease).get(ANNOTATION_HALT, "")))
    except ValueError:
        return Halt(str(holder)[: rules.TEXT_MAX], "set by hand", 0.0)


def _outcomes(lease: dict[str, Any]) -> list[Outcome]:
    try:
        listed = decode(_annotations(lease).get(ANNOTATION_OUTCOMES, "[]"))
        return [rules.outcome_from_json(item) for item in listed if isinstance(item, dict)]
    except (ValueError, TypeError):
        return []
