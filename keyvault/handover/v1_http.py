"""Handover v1 over HTTP: the routes of a holder, and the two requests of a requester.

As the programs in the field do: plain GET on loopback; 200 with an empty body means "refused or not yet", 400 with a
text means a bad parameter or a failed verification.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol

import aiohttp
from aiohttp import web
from yarl import URL

from attestation.errors import CODES as ATTESTATION_CODES
from attestation.errors import AttestationError
from keyvault.errors import CODES, KeyvaultError

from .http_client import accepted, send, shown_text
from .http_server import log_refusal, refuse_browsers
from .key_set import KeySet
from .party import Party
from .v1 import ANSWER_MAX_BYTES, REPORT_LENGTH, V1Requester

VERSION_BYTES_MAX: Final = 512


class V1Port(Protocol):
    """Answers v1 requests: the vault or a node; see `keyvault.handover.v1.V1Holder`."""

    async def v1_challenge(self, query: Mapping[str, str]) -> bytes:
        """Return the answer to `/teerandom`."""

    async def v1_answer(self, query: Mapping[str, str]) -> bytes:
        """Return the answer to `/secret`."""


def add_v1_routes(app: web.Application, port: V1Port) -> None:
    """Add `GET /teerandom` and `GET /secret`. A refusal is logged in full; the caller gets only its code."""

    async def teerandom(request: web.Request) -> web.Response:
        return web.Response(body=await port.v1_challenge(request.query), content_type="application/octet-stream")

    async def secret(request: web.Request) -> web.Response:
        return web.Response(body=await port.v1_answer(request.query), content_type="application/json")

    app.router.add_get("/teerandom", _told_the_v1_way(teerandom))
    app.router.add_get("/secret", _told_the_v1_way(secret))


def add_upgrader_routes(
    app: web.Application, *, version: str, secret_flag: Callable[[], bool], upgrade_flag: Callable[[], bool]
) -> None:
    """Add the routes that managers in the field request from an upgrader: `/version`, `/secretflag`, `/upgradeflag`.

    `version` is `<enclave id>@<version>`. The original also has `/exit`, which anybody may call; it is left out.
    """

    def telling(text: Callable[[], str]) -> Handler:
        async def tell(_: web.Request) -> web.Response:
            return web.Response(text=text())

        return tell

    app.router.add_get("/version", telling(lambda: version))
    app.router.add_get("/secretflag", telling(lambda: str(secret_flag()).lower()))
    app.router.add_get("/upgradeflag", telling(lambda: str(upgrade_flag()).lower()))


Handler = Callable[[web.Request], Awaitable[web.Response]]


def _told_the_v1_way(handler: Handler) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        try:
            refuse_browsers(request)
            return await handler(request)
        except (KeyvaultError, AttestationError) as error:
            log_refusal(error)
            return web.Response() if error.kind == "transient" else web.Response(status=400, text=error.code)

    return handle


#: Refusals that may disappear on a new attempt: the holder was restarted or replaced during the exchange.
_MAY_PASS: Final = {"V1_CHALLENGE_UNKNOWN", "REPORT_MAC_BAD"}


async def fetch_key_set_v1(session: aiohttp.ClientSession, base_url: str, party: Party) -> KeySet:
    """Run the requester's two requests against a v1 holder; the caller seals and wipes the key set.

    v1 carries one network signature; if there are several, each is tried in turn. Raises V1_REFUSED (transient if a new
    attempt may succeed) with the holder's text, V1_* and attestation codes if an answer does not verify, and
    HANDOVER_PEER_UNREACHABLE.
    """
    refusals = []
    for signature in party.network_signatures:
        requester = V1Requester(replace(party, network_signatures=(signature,)))
        try:
            challenge = await _get(session, URL(base_url) / "teerandom" % requester.random_query(), REPORT_LENGTH)
            query = requester.secret_query(challenge)
            return requester.open(await _get(session, URL(base_url) / "secret" % query, ANSWER_MAX_BYTES))
        except KeyvaultError as error:
            if error.code != "V1_REFUSED":
                raise
            refusals.append(error)
    raise next((refusal for refusal in refusals if refusal.kind == "transient"), refusals[0])


async def _get(session: aiohttp.ClientSession, url: URL, limit: int) -> bytes:
    answer = await send(session, "GET", str(url), limit=limit)
    what = f"GET {url.with_query(None)}"  # without the query: a report of half a kilobyte
    if answer.status != 400:
        return accepted(answer, what)
    text = shown_text(answer.body)
    known = text in CODES or text in ATTESTATION_CODES
    raise KeyvaultError(
        code="V1_REFUSED",
        what=f"{what} was refused",
        why=f"the holder answered 400: {text}",
        action="Look at the holder's log.",
        kind="rejected" if known and text not in _MAY_PASS else "transient",
    )
