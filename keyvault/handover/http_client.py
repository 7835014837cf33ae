"""The requester's side over HTTP: one limited request, and the steps of handover v2."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from attestation.errors import CODES as ATTESTATION_CODES
from keyvault.errors import CODES, KeyvaultError, error_from_json

from .key_set import KeySet
from .messages import MESSAGE_BYTES_MAX, strict_json
from .requester import Requester

_LOST_ANSWER_TRIES: Final = 3
_LOST_ANSWER_PAUSE_S: Final = 0.1
#: Without the conditions of a vault: a stranger on a node's port could otherwise halt the agent.
_PEERS_SAY: Final = {*CODES, *ATTESTATION_CODES} - {"VAULT_REPLACED", "VAULT_FACTS_MISSING"}


async def exchange(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 30.0,
    limit: int = MESSAGE_BYTES_MAX,
    who: str = "HANDOVER",
) -> bytes:
    """Send one request and return the body of its 200 answer, of at most `limit` bytes.

    A refusal of the peer is raised unchanged if its code is one that peers may use. Raises HANDOVER_PEER_UNREACHABLE or
    HANDOVER_ANSWER_MALFORMED (with `who="VAULT"`: VAULT_UNREACHABLE, VAULT_ANSWER_MALFORMED).
    """
    answer = await send(session, method, url, body, headers, timeout_s=timeout_s, limit=limit, who=who)
    return accepted(answer, f"{method} {url}", who)


@dataclass(frozen=True)
class Answer:
    """An answer: HTTP status, headers, and body (None if it exceeds the limit)."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None


async def send(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 30.0,
    limit: int = MESSAGE_BYTES_MAX,
    who: str = "HANDOVER",
) -> Answer:
    """Send one request and return the answer, whatever it is. Raises HANDOVER_PEER_UNREACHABLE, VAULT_UNREACHABLE."""
    try:
        async with session.request(
            method,
            URL(url, encoded=True),
            data=body,
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **(headers or {})},
            allow_redirects=False,
            auto_decompress=False,  # an unpacked answer could be a thousand times larger than the limit
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        ) as answer:
            return Answer(answer.status, answer.headers, await _bounded(answer, limit))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:  # ValueError: malformed URL
        raise KeyvaultError(
            code="VAULT_UNREACHABLE" if who == "VAULT" else "HANDOVER_PEER_UNREACHABLE",
            what=f"{method} {url.partition('?')[0]} failed",
            why=type(error).__name__,
            action="Check that the process runs and listens there.",
            kind="transient",
        ) from error


def accepted(answer: Answer, what: str, who: str = "HANDOVER") -> bytes:
    """Return the body of a 200 answer, or raise its refusal as described in `exchange`."""
    if answer.status == 200 and answer.body is not None:
        return answer.body
    refusal = _refusal(answer.body)
    if refusal is not None and (who == "VAULT" or refusal.code in _PEERS_SAY):
        raise refusal
    shown = f", {refusal.code}: {refusal.why}" if refusal is not None else f": {shown_text(answer.body)}"
    known_kind = refusal.kind if refusal is not None and refusal.kind != "invariant" else None
    raise KeyvaultError(
        code="VAULT_ANSWER_MALFORMED" if who == "VAULT" else "HANDOVER_ANSWER_MALFORMED",
        what=f"{what} failed",
        why=f"status {answer.status} with an answer that is not of the protocol{shown}",
        action="Check which program listens there.",
        kind=known_kind or ("transient" if answer.status >= 500 else "rejected"),
    )


def shown_text(body: bytes | None) -> str:
    """Return the beginning of a peer's text for an operator: printable, on one line, at most 200 characters."""
    if body is None:
        return "it is too long"
    text = body[:200].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text).strip() or "it is empty"


async def _bounded(answer: aiohttp.ClientResponse, limit: int) -> bytes | None:
    if answer.content_length is not None:  # the parser returns no more than that
        return await answer.read() if answer.content_length <= limit else None
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > limit:
            return None
    return bytes(content)


def _refusal(content: bytes | None) -> KeyvaultError | None:
    try:
        return error_from_json(strict_json(content or b"", MESSAGE_BYTES_MAX, "answer"))
    except KeyvaultError:
        return None


async def fetch_key_set(session: aiohttp.ClientSession, base_url: str, requester: Requester) -> KeySet:
    """Run one attempt up to the delivery. The caller seals, confirms and wipes the returned key set."""
    challenge = await exchange(session, "POST", f"{base_url}/v2/hello", requester.hello())
    delivery = await exchange(session, "POST", f"{base_url}/v2/request", requester.on_challenge(challenge))
    return requester.on_delivery(delivery)


async def confirm(
    session: aiohttp.ClientSession, base_url: str, requester: Requester, sealing: Awaitable[bool]
) -> None:
    """Send both confirmations: `received` while `sealing` is awaited, then `durable`.

    `sealing` seals the key set, reads it back, and returns whether a canary of older data was opened. Raises its
    exception or that of a message; no task is left running.
    """
    receipt = asyncio.ensure_future(_insist(session, f"{base_url}/v2/received", requester.received))
    try:
        canary = await sealing
        requester.acknowledged(await receipt, "received")
    finally:
        receipt.cancel()
        await asyncio.gather(receipt, return_exceptions=True)
    answer = await _insist(session, f"{base_url}/v2/durable", lambda: requester.durable(canary=canary))
    requester.acknowledged(answer, "durable")


async def _insist(session: aiohttp.ClientSession, url: str, message: Callable[[], bytes]) -> bytes:
    """Send a message that may be repeated; retry after a lost answer."""
    for attempt in range(_LOST_ANSWER_TRIES - 1):
        try:
            return await exchange(session, "POST", url, message())
        except KeyvaultError as error:
            if error.code != "HANDOVER_PEER_UNREACHABLE":
                raise
            await asyncio.sleep(_LOST_ANSWER_PAUSE_S * 2**attempt)
    return await exchange(session, "POST", url, message())


def node_base_url(url: str) -> str:
    """Return a node's address without a trailing slash. Raises `VAULT_NODE_URL_REFUSED`.

    The address is http://host:port and nothing else.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme == "http" and parts.hostname is not None and parts.port is not None
    except ValueError:
        fine = False
    if not fine or parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise KeyvaultError(
            code="VAULT_NODE_URL_REFUSED",
            what="collecting keys was refused",
            why="the node's address is not http://host:port",
        )
    return f"http://{parts.netloc}"
