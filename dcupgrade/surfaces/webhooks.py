"""Webhooks: each change of state is posted to the receivers in the settings, signed, in order, at least once.

The journal's history is the queue. The journal also stores the last event that each receiver has, so nothing is lost
while the agent or a receiver is down. A new receiver starts with the next event and gets no earlier ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from dcupgrade.errors import DcupgradeError, failure_of
from dcupgrade.settings.schema import WebhookSettings

log = logging.getLogger("dcupgrade")

BATCH = 50
PAUSE_FIRST_S, PAUSE_MAX_S = 1.0, 300.0
SIGNATURE_HEADER = "X-Dcupgrade-Signature"

Post = Callable[[str, bytes, Mapping[str, str]], Awaitable[tuple[int, float]]]
"""Posts a body with headers to a URL: the answer's status, and how long it asks to wait, seconds. Raises OSError."""


class Queue(Protocol):
    """The part of the journal that is used here."""

    async def history_after(self, seq: int, limit: int) -> list[dict[str, Any]]:
        """Changes of state after a sequence number, oldest first."""

    async def webhook_seq(self, url: str) -> int:
        """Return the last event that the receiver has; for a new receiver, the newest event."""

    async def set_webhook_seq(self, url: str, seq: int) -> None:
        """Remember durably that the receiver has everything up to `seq`."""


class ClockPort(Protocol):
    """Waiting."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


def event_name(row: dict[str, Any]) -> str:
    """Return the name of an event as receivers select it: `upgrade.<state>`."""
    return f"upgrade.{row['to']}"


def signed(body: bytes, secret: bytes | None) -> dict[str, str]:
    """Headers of a delivery: HMAC-SHA-256 over the body, as `sha256=<hex>`, where there is a secret."""
    headers = {"Content-Type": "application/json", "User-Agent": "dcupgrade"}
    if secret is not None:
        headers[SIGNATURE_HEADER] = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
    return headers


class Webhook:
    """One receiver. `run` never ends by itself; failed deliveries are retried with growing pauses."""

    def __init__(self, settings: WebhookSettings, queue: Queue, post: Post, clock: ClockPort, node_id: str) -> None:
        self._settings, self._queue, self._post = settings, queue, post
        self._clock, self._node_id = clock, node_id
        self._secret = secret_of(settings)
        self._pause_s = 0.0

    async def run(self, poll_s: float = 1.0) -> None:
        """Deliver the events of the journal, present and future. No error here may end the agent."""
        while True:
            try:
                pause_s = await self.step(poll_s)
            except Exception as error:  # such as a journal that cannot be written for now
                pause_s = self._put_off(failure_of(error).detail)
            await self._clock.sleep(pause_s)

    async def step(self, poll_s: float) -> float:
        """Deliver waiting events; return the seconds to wait before the next try."""
        url = self._settings.url
        for row in await self._queue.history_after(await self._queue.webhook_seq(url), BATCH):
            if row["reason"] == "JOURNAL_ROW_DAMAGED":
                log.error("JOURNAL_ROW_DAMAGED: event %d is not sent to %s", row["seq"], _host(self._settings))
            elif not self._settings.events or event_name(row) in self._settings.events:
                failed = await self._send(row)
                if failed is not None:
                    return self._put_off(*failed)
            self._pause_s = 0.0
            await self._queue.set_webhook_seq(url, row["seq"])
        return poll_s

    def _put_off(self, why: str, asked_s: float = 0.0) -> float:
        self._pause_s = min(PAUSE_MAX_S, max(PAUSE_FIRST_S, self._pause_s * 2))
        pause_s = max(self._pause_s, asked_s)
        log.warning("webhook %s: %s; next try in %.0f s", _host(self._settings), why, pause_s)
        return pause_s

    async def _send(self, row: dict[str, Any]) -> tuple[str, float] | None:
        """Send one event. Return None if the receiver accepted it, else why not and the seconds it asks to wait."""
        fact = {**row, "cause": row["event"], "event": event_name(row), "id": row["seq"], "node": self._node_id}
        body = json.dumps(fact, sort_keys=True).encode()
        try:
            status, wait_s = await self._post(self._settings.url, body, signed(body, self._secret))
        except OSError as error:
            return str(error) or type(error).__name__, 0.0
        return None if 200 <= status < 300 else (f"HTTP {status}", wait_s)


def secret_of(settings: WebhookSettings) -> bytes | None:
    """Return the receiver's secret, if it has one. Raises WEBHOOK_SECRET_UNREADABLE, also for an empty file."""
    if settings.secret_file is None:
        return None
    try:
        secret = settings.secret_file.read_bytes().strip()
    except OSError as error:
        raise _no_secret(settings, f"its secret file cannot be read: {error}") from error
    if not secret:
        raise _no_secret(settings, f"its secret file {settings.secret_file} is empty, and anybody can sign with that")
    return secret


def _host(settings: WebhookSettings) -> str:
    """Return a receiver's name for logs: only its host, because the rest of the URL may let others post there."""
    return urlsplit(settings.url).hostname or "?"


def _no_secret(settings: WebhookSettings, why: str) -> DcupgradeError:
    return DcupgradeError(
        code="WEBHOOK_SECRET_UNREADABLE",
        what=f"webhook of {_host(settings)}",
        why=why,
        action="Correct webhooks.secret_file; nothing is sent unsigned instead.",
    )


def webhooks(
    settings: Sequence[WebhookSettings], queue: Queue, post: Post, clock: ClockPort, node_id: str
) -> list[Webhook]:
    """Return one per receiver in the settings. Blocking: their secrets are read. Raises WEBHOOK_SECRET_UNREADABLE."""
    return [Webhook(one, queue, post, clock, node_id) for one in settings]


async def run_all(hooks: Sequence[Webhook]) -> None:
    """Run every receiver; returns only when cancelled."""
    async with asyncio.TaskGroup() as group:
        for hook in hooks:
            group.create_task(hook.run())
