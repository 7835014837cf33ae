"""HTTP serving of vault and nodes: who may send requests, limits for bodies, errors as JSON, handover routes.

Refusals are sent as `{"code", "what", "why", "action", "kind"}` with status 409 (rejected), 503 (transient) or 500
(invariant).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from aiohttp import web

from attestation.errors import AttestationError
from keyvault.errors import KeyvaultError

from .messages import MESSAGE_BYTES_MAX

log = logging.getLogger("keyvault")

BODY_TIMEOUT_S: Final = 10.0
_HOST: Final = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:]+)\]|(?P<name>[0-9A-Za-z.-]+))(?::[0-9]{1,5})?")
_STATUS: Final = {"rejected": 409, "transient": 503, "invariant": 500}
_STATUS_BY_CODE: Final = {
    "HANDOVER_MESSAGE_MALFORMED": 400,
    "VAULT_REQUEST_MALFORMED": 400,
    "VAULT_EVIDENCE_MALFORMED": 400,
    "VAULT_TOKEN_REFUSED": 401,
    "VAULT_PATH_UNKNOWN": 404,
    "VAULT_REQUEST_TOO_SLOW": 408,
    "HANDOVER_MESSAGE_TOO_LARGE": 413,
    "HANDOVER_HOST_REFUSED": 421,
}


def as_keyvault_error(error: Exception) -> KeyvaultError:
    """Return an error in the form that peers may see. Of an unexpected error they see the type only."""
    if isinstance(error, KeyvaultError):
        return error
    if isinstance(error, AttestationError):
        return KeyvaultError(code=error.code, what=error.what, why=error.why, action=error.action, kind=error.kind)
    return KeyvaultError(
        code="VAULT_INTERNAL",
        what="the request failed",
        why=type(error).__name__,
        action="Look at the log; no key was delivered.",
        kind="invariant",
    )


def error_response(error: Exception) -> web.Response:
    """Return the HTTP answer for an error."""
    shown = as_keyvault_error(error)
    return web.json_response(shown.to_json(), status=_STATUS_BY_CODE.get(shown.code, _STATUS[shown.kind]))


def shown_path(request: web.Request) -> str:
    """Return the undecoded path for texts and logs: a decoded line break could forge a line of the log."""
    return request.rel_url.raw_path[:80].encode("ascii", "backslashreplace").decode("ascii")


def refuse_other_hosts(request: web.Request) -> None:
    """Raise `HANDOVER_HOST_REFUSED` unless the request names this machine by a loopback name or address.

    A web page whose name was made to point to 127.0.0.1 (DNS rebinding) sends its own name, and may read the answers.
    """
    names = request.headers.getall("Host", [])
    if len(names) != 1 or not is_loopback_host(names[0]):
        raise KeyvaultError(
            code="HANDOVER_HOST_REFUSED",
            what=f"{shown_path(request)} was refused",
            why="its Host header is not a loopback name",
            action="Address this port as 127.0.0.1, [::1] or localhost.",
        )


def is_loopback_host(value: str) -> bool:
    """Tell whether a Host header (name or address, with or without a port) is `localhost` or a loopback address."""
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    name = (match["v6"] or match["name"]).lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def refuse_browsers(request: web.Request) -> None:
    """Raise `HANDOVER_MESSAGE_MALFORMED` for a request of a web page, which can reach loopback and flood it."""
    if "Origin" in request.headers or "Sec-Fetch-Site" in request.headers:
        raise KeyvaultError(
            code="HANDOVER_MESSAGE_MALFORMED",
            what=f"{shown_path(request)} was refused",
            why="a web page in a browser sent it",
            action="Close that page; no browser takes part in a handover.",
        )


async def read_body(request: web.Request, limit: int) -> bytes:
    """Return the body of at most `limit` bytes, which must arrive within 10 s."""
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            if request.content_length is not None:
                return await request.content.readexactly(request.content_length)
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise KeyvaultError(
            code="VAULT_REQUEST_TOO_SLOW",
            what="the request was dropped",
            why=f"its body did not arrive within {BODY_TIMEOUT_S:.0f} s",
            kind="transient",
        ) from None
    except (asyncio.IncompleteReadError, web.RequestPayloadError, ConnectionError):
        raise KeyvaultError(
            code="HANDOVER_MESSAGE_MALFORMED", what="the request was refused", why="its body broke off"
        ) from None
    return bytes(body)


def _too_large(limit: int) -> KeyvaultError:
    return KeyvaultError(
        code="HANDOVER_MESSAGE_TOO_LARGE", what="the request was refused", why=f"its body has more than {limit} bytes"
    )


_logged: dict[str, float] = {}
_LOG_AGAIN_AFTER_S: Final = 600.0
_LOGGED_MAX: Final = 256


def log_refusal(error: KeyvaultError | AttestationError) -> None:
    """Log a refusal at most every ten minutes: a client that polls every second would fill the log."""
    text, now = str(error), time.monotonic()
    if now - _logged.get(text, -_LOG_AGAIN_AFTER_S) < _LOG_AGAIN_AFTER_S:
        return
    if len(_logged) >= _LOGGED_MAX:
        del _logged[next(iter(_logged))]
    _logged[text] = now
    log.log(logging.INFO if error.kind == "transient" else logging.WARNING, "%s", text)


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer every error as JSON. Log refusals with code and reason, unexpected errors without their values."""
    try:
        refuse_other_hosts(request)
        return await handler(request)
    except web.HTTPException as error:
        return error_response(
            KeyvaultError(
                code="VAULT_PATH_UNKNOWN", what=f"{request.method} {shown_path(request)} was refused", why=error.reason
            )
        )
    except (KeyvaultError, AttestationError) as error:
        log_refusal(error)
        return error_response(error)
    except Exception as error:
        # Only the type and the place: the text of an unexpected error could quote key material.
        frames = error.__traceback__
        while frames is not None and frames.tb_next is not None:
            frames = frames.tb_next
        place = f"{frames.tb_frame.f_code.co_name}:{frames.tb_lineno}" if frames is not None else "?"
        log.error("VAULT_INTERNAL: %s in %s (%s)", type(error).__name__, place, shown_path(request))
        return error_response(error)


def new_app() -> web.Application:
    """Return an application that serves loopback names only, with errors as JSON. Serve it with `GuardedServer`."""
    return web.Application(middlewares=[_errors])


class HandoverPort(Protocol):
    """Answers the four messages to a holder; see `keyvault.handover.holder.Holder`."""

    async def on_hello(self, body: bytes) -> bytes:
        """Return the challenge."""

    async def on_request(self, body: bytes) -> bytes:
        """Return the delivery."""

    async def on_received(self, body: bytes) -> bytes:
        """Return the acknowledgement."""

    async def on_durable(self, body: bytes) -> bytes:
        """Return the acknowledgement."""


def add_handover_routes(app: web.Application, port: HandoverPort) -> None:
    """Add `POST /v2/hello`, `/v2/request`, `/v2/received`, `/v2/durable`."""

    def route(step: Callable[[bytes], Awaitable[bytes]]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            refuse_browsers(request)
            body = await read_body(request, MESSAGE_BYTES_MAX)
            return web.Response(body=await step(body), content_type="application/json")

        return handle

    app.router.add_post("/v2/hello", route(port.on_hello))
    app.router.add_post("/v2/request", route(port.on_request))
    app.router.add_post("/v2/received", route(port.on_received))
    app.router.add_post("/v2/durable", route(port.on_durable))
