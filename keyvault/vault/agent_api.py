"""The vault's HTTP surface: the agent's API behind its token, and the handover routes for nodes without one."""

from __future__ import annotations

import hmac
import json
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from keyvault import VERSION
from keyvault.errors import KeyvaultError
from keyvault.handover.http_server import add_handover_routes, new_app, read_body, shown_path
from keyvault.handover.messages import is_hex_id, strict_json
from keyvault.handover.v1_http import add_upgrader_routes, add_v1_routes

from .vault import Vault

_SMALL_BYTES_MAX: Final = 64 * 1024
#: Proven evidence carries justifications, headers and trie nodes.
_EVIDENCE_BYTES_MAX: Final = 8 * 1024 * 1024

Handler = Callable[[web.Request], Awaitable[web.Response]]


def _malformed(why: str) -> KeyvaultError:
    return KeyvaultError(code="VAULT_REQUEST_MALFORMED", what="the request was refused", why=why)


async def _object(request: web.Request, required: Mapping[str, type], optional: Mapping[str, type], limit: int) -> Any:
    """Return the body as a JSON object with exactly these fields and types."""
    body = await read_body(request, limit)
    try:
        value = strict_json(body, limit, "request")
    except KeyvaultError as error:
        raise _malformed(error.why) from None
    missing, unknown = required.keys() - value.keys(), value.keys() - required.keys() - optional.keys()
    if missing or unknown:
        raise _malformed(f"missing fields: {sorted(missing)}; unknown fields: {len(unknown)}")
    for name, kind in {**required, **optional}.items():
        if name in value and type(value[name]) is not kind:
            raise _malformed(f"{name} is not of type {kind.__name__}")
    return value


def _check_ids(**ids: str) -> None:
    for name, value in ids.items():
        if not is_hex_id(value):
            raise _malformed(f"{name} is not 64 lower-case hex characters")


class _AgentApi:
    """Handlers of the agent's calls. The token is compared in constant time."""

    def __init__(self, vault: Vault, token: str, facts: dict[str, object]) -> None:
        self._vault = vault
        self._expected = f"Bearer {token}".encode()
        self._facts = facts

    def guarded(self, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, self._expected):
                raise KeyvaultError(
                    code="VAULT_TOKEN_REFUSED",
                    what=f"{shown_path(request)} was refused",
                    why="the request does not carry the agent's token",
                    action="Give the vault and the agent the same token file.",
                )
            return await handler(request)

        return handle

    async def health(self, _: web.Request) -> web.Response:
        vault = self._vault
        state = "ok" if vault.condition is None else vault.condition.code
        return web.json_response({"status": state, "enclave_id": vault.enclave_id, "tee": self._vault.status()["tee"]})

    async def status(self, _: web.Request) -> web.Response:
        return web.json_response({**self._vault.status(), **self._facts}, dumps=_dumps)

    async def collect(self, request: web.Request) -> web.Response:
        required = {"node_url": str, "source_id": str, "protocol": str}
        value = await _object(request, required, {"evidence": dict}, _EVIDENCE_BYTES_MAX)
        _check_ids(source_id=value["source_id"])
        if value["protocol"] not in ("v1", "v2"):
            raise _malformed("protocol is neither v1 nor v2")
        return web.json_response(
            await self._vault.collect(value["node_url"], value["source_id"], value["protocol"], value.get("evidence"))
        )

    async def advance(self, request: web.Request) -> web.Response:
        value = await _object(request, {"set_changes": list}, {}, _EVIDENCE_BYTES_MAX)
        return web.json_response(await self._vault.advance(value["set_changes"]))

    async def permit(self, request: web.Request) -> web.Response:
        required = {"source_id": str, "target_id": str, "key_set_id": str, "evidence": dict}
        value = await _object(request, required, {}, _EVIDENCE_BYTES_MAX)
        ids = {name: value[name] for name in ("source_id", "target_id", "key_set_id")}
        _check_ids(**ids)
        return web.json_response(await self._vault.permit(**ids, evidence=value["evidence"]))

    async def delivery(self, request: web.Request) -> web.Response:
        target_id = request.match_info["target_id"]
        _check_ids(target_id=target_id)
        return web.json_response(self._vault.delivery(target_id))

    async def retain(self, request: web.Request) -> web.Response:
        value = await _object(request, {"key_set_id": str, "until_unix_s": int}, {}, _SMALL_BYTES_MAX)
        _check_ids(key_set_id=value["key_set_id"])
        return web.json_response(self._vault.retain(value["key_set_id"], value["until_unix_s"]))

    async def self_test(self, _: web.Request) -> web.Response:
        return web.json_response(self._vault.self_test())

    async def committed(self, request: web.Request) -> web.Response:
        value = await _object(request, {"target_id": str, "key_set_id": str}, {}, _SMALL_BYTES_MAX)
        _check_ids(target_id=value["target_id"], key_set_id=value["key_set_id"])
        return web.json_response(self._vault.committed(value["target_id"], value["key_set_id"]))


def _dumps(value: object) -> str:
    return json.dumps(value, default=dict)


def vault_app(vault: Vault, token: str, facts: dict[str, object] | None = None) -> web.Application:
    """Return the vault's application; serve it with `keyvault.handover.guarded_server.GuardedServer`.

    ``facts`` are shown by /vault/status as they are (hygiene of the process).
    """
    app = new_app()
    api = _AgentApi(vault, token, facts or {})
    app.router.add_get("/healthz", api.health)
    app.router.add_get("/vault/status", api.guarded(api.status))
    app.router.add_post("/vault/collect", api.guarded(api.collect))
    app.router.add_post("/vault/advance", api.guarded(api.advance))
    app.router.add_post("/vault/permit", api.guarded(api.permit))
    app.router.add_get("/vault/delivery/{target_id}", api.guarded(api.delivery))
    app.router.add_post("/vault/retain", api.guarded(api.retain))
    app.router.add_post("/vault/selftest", api.guarded(api.self_test))
    app.router.add_post("/vault/committed", api.guarded(api.committed))
    add_handover_routes(app, vault)
    if vault.policy.allow_v1:
        _add_v1(app, vault, token)
    return app


def _add_v1(app: web.Application, vault: Vault, token: str) -> None:
    """What nodes and managers in the field expect of an upgrader, where the measured policy allows v1 at all."""
    add_v1_routes(app, vault)
    add_upgrader_routes(
        app,
        version=f"{vault.enclave_id}@{VERSION}",
        secret_flag=lambda: any(not entry["wiped"] for entry in vault.status()["key_sets"]),
        upgrade_flag=lambda: any(permit["state"] != "issued" for permit in vault.status()["permits"]),
        leave=lambda: os.kill(os.getpid(), signal.SIGTERM),
        token=token,
    )
