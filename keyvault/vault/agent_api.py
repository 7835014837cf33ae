"""The vault's HTTP server: the agent's API, which needs proof of the token, and the handover routes for nodes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from attestation.errors import AttestationError
from keyvault import VERSION
from keyvault.errors import KeyvaultError, Kind
from keyvault.handover.http_server import (
    add_handover_routes,
    error_response,
    log_refusal,
    new_app,
    read_body,
    shown_path,
)
from keyvault.handover.messages import is_hex_id, strict_json
from keyvault.handover.v1_http import add_upgrader_routes, add_v1_routes

from . import token_proof
from .vault import Vault

_SMALL_BYTES_MAX: Final = 64 * 1024
#: Proven evidence carries justifications, headers and trie nodes.
_EVIDENCE_BYTES_MAX: Final = 8 * 1024 * 1024
#: Much longer than a step takes on a slow disk.
_STEP_S_MAX: Final = 60.0

Handler = Callable[[web.Request], Awaitable[web.Response]]
#: Handles a call whose proof was verified: request and body.
Call = Callable[[web.Request, bytes], Awaitable[web.Response]]


def _malformed(why: str) -> KeyvaultError:
    return KeyvaultError(code="VAULT_REQUEST_MALFORMED", what="the request was refused", why=why)


def _object(body: bytes, required: Mapping[str, type], optional: Mapping[str, type]) -> Any:
    """Return the body as a JSON object with these fields and types. Slow for large evidence: call it in a thread."""
    try:
        value = strict_json(body, _EVIDENCE_BYTES_MAX, "request")
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


class TokenGuard:
    """Accepts a call only once and only with proof of the agent's token; proves each answer (`token_proof`)."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._nonces = token_proof.VaultNonces(os.urandom(32))

    async def challenge(self, request: web.Request) -> web.Response:
        """Answer the agent's nonce with a nonce of the vault and the proof that the vault knows the token."""
        text = request.query.get("nonce", "")
        if not is_hex_id(text):
            raise _malformed("nonce is not 64 lower-case hex characters")
        agent_nonce = bytes.fromhex(text)
        nonces = token_proof.Nonces(agent_nonce, self._nonces.make(os.urandom(16), agent_nonce, time.monotonic()))
        proof = token_proof.challenge_proof(self._token, nonces)
        return web.json_response({"nonce": nonces.vault.hex(), "proof": proof.hex()})

    def guarded(self, handler: Call, body_max: int = 0) -> Handler:
        """Return a handler that requires the agent's proof. `body_max`: largest accepted body, bytes."""

        async def handle(request: web.Request) -> web.Response:
            call = token_proof.parse_call(request.headers.get("Authorization", ""))
            path = request.rel_url.raw_path
            if call is None or not call.is_proven(self._token, request.method, path):
                raise _token_refused(request, "the request does not prove the agent's token")
            if not self._nonces.take(call.nonces, time.monotonic()):
                raise _token_refused(
                    request, "its challenge is not of this vault, has expired, or was used", "transient"
                )
            try:
                body = await read_body(request, body_max)
                if not hmac.compare_digest(hashlib.sha256(body).digest(), call.body_digest):
                    raise _token_refused(request, "its body is not the one that its proof is about")
                answer = await handler(request, body)
            except (KeyvaultError, AttestationError) as error:
                log_refusal(error)
                answer = error_response(error)
            content = answer.body if isinstance(answer.body, bytes) else b""
            proof = token_proof.answer_proof(self._token, call.nonces, answer.status, content)
            answer.headers[token_proof.ANSWER_HEADER] = proof.hex()
            return answer

        return handle


def _token_refused(request: web.Request, why: str, kind: Kind = "rejected") -> KeyvaultError:
    return KeyvaultError(
        code="VAULT_TOKEN_REFUSED",
        what=f"{shown_path(request)} was refused",
        why=why,
        action="Give the vault and the agent the same token file.",
        kind=kind,
    )


class _AgentApi:
    """Handlers of the agent's calls."""

    def __init__(self, vault: Vault, facts: dict[str, object]) -> None:
        self._vault = vault
        self._facts = facts

    async def health(self, _: web.Request) -> web.Response:
        vault = self._vault
        if vault.steps.running_s > _STEP_S_MAX:
            raise KeyvaultError(
                code="VAULT_STEP_HANGS",
                what="the vault no longer works",
                why=f"a step has run for {vault.steps.running_s:.0f} s",
                action="Look at the disk of the vault's store; the vault is started again.",
                kind="transient",
            )
        state = "ok" if vault.condition is None else vault.condition.code
        return web.json_response({"status": state, "enclave_id": vault.enclave_id, "tee": self._vault.status()["tee"]})

    async def status(self, _: web.Request, _body: bytes) -> web.Response:
        return web.json_response({**self._vault.status(), **self._facts}, dumps=_dumps)

    async def collect(self, _: web.Request, body: bytes) -> web.Response:
        required = {"node_url": str, "source_id": str, "protocol": str}
        value = await asyncio.to_thread(_object, body, required, {"evidence": dict})
        _check_ids(source_id=value["source_id"])
        if value["protocol"] not in ("v1", "v2"):
            raise _malformed("protocol is neither v1 nor v2")
        return web.json_response(
            await self._vault.collect(value["node_url"], value["source_id"], value["protocol"], value.get("evidence"))
        )

    async def advance(self, _: web.Request, body: bytes) -> web.Response:
        value = await asyncio.to_thread(_object, body, {"set_changes": list}, {})
        return web.json_response(await self._vault.advance(value["set_changes"]))

    async def permit(self, _: web.Request, body: bytes) -> web.Response:
        required = {"source_id": str, "target_id": str, "key_set_id": str, "evidence": dict}
        value = await asyncio.to_thread(_object, body, required, {})
        ids = {name: value[name] for name in ("source_id", "target_id", "key_set_id")}
        _check_ids(**ids)
        return web.json_response(await self._vault.permit(**ids, evidence=value["evidence"]))

    async def delivery(self, request: web.Request, _: bytes) -> web.Response:
        target_id = request.match_info["target_id"]
        _check_ids(target_id=target_id)
        return web.json_response(self._vault.delivery(target_id))

    async def retain(self, _: web.Request, body: bytes) -> web.Response:
        value = _object(body, {"key_set_id": str, "until_unix_s": int}, {})
        _check_ids(key_set_id=value["key_set_id"])
        return web.json_response(
            await self._vault.steps.run(self._vault.retain, value["key_set_id"], value["until_unix_s"])
        )

    async def self_test(self, _: web.Request, _body: bytes) -> web.Response:
        return web.json_response(await self._vault.steps.run(self._vault.self_test))

    async def committed(self, _: web.Request, body: bytes) -> web.Response:
        value = _object(body, {"target_id": str, "key_set_id": str}, {})
        _check_ids(target_id=value["target_id"], key_set_id=value["key_set_id"])
        vault = self._vault
        return web.json_response(await vault.steps.run(vault.committed, value["target_id"], value["key_set_id"]))


def _dumps(value: object) -> str:
    return json.dumps(value, default=dict)


def vault_app(vault: Vault, token: str, facts: dict[str, object] | None = None) -> web.Application:
    """Return the vault's application; serve it with `keyvault.handover.guarded_server.GuardedServer`.

    `/vault/status` shows `facts` unchanged (how the process protects its memory).
    """
    app = new_app()
    guard, api = TokenGuard(token), _AgentApi(vault, facts or {})
    app.router.add_get("/healthz", api.health)
    app.router.add_get(token_proof.CHALLENGE_PATH, guard.challenge)
    app.router.add_get("/vault/status", guard.guarded(api.status))
    app.router.add_post("/vault/collect", guard.guarded(api.collect, _EVIDENCE_BYTES_MAX))
    app.router.add_post("/vault/advance", guard.guarded(api.advance, _EVIDENCE_BYTES_MAX))
    app.router.add_post("/vault/permit", guard.guarded(api.permit, _EVIDENCE_BYTES_MAX))
    app.router.add_get("/vault/delivery/{target_id}", guard.guarded(api.delivery))
    app.router.add_post("/vault/retain", guard.guarded(api.retain, _SMALL_BYTES_MAX))
    app.router.add_post("/vault/selftest", guard.guarded(api.self_test, _SMALL_BYTES_MAX))
    app.router.add_post("/vault/committed", guard.guarded(api.committed, _SMALL_BYTES_MAX))
    add_handover_routes(app, vault)
    if vault.policy.allow_v1:
        _add_v1(app, vault, guard)
    return app


def _add_v1(app: web.Application, vault: Vault, guard: TokenGuard) -> None:
    """Add the v1 routes, which nodes and managers in the field use. Only if the measured policy allows v1."""
    add_v1_routes(app, vault)
    add_upgrader_routes(
        app,
        version=f"{vault.enclave_id}@{VERSION}",
        secret_flag=lambda: any(not entry["wiped"] for entry in vault.status()["key_sets"]),
        upgrade_flag=lambda: any(permit["state"] != "issued" for permit in vault.status()["permits"]),
    )
    app.router.add_get("/exit", guard.guarded(_leave))


async def _leave(_: web.Request, _body: bytes) -> web.Response:
    os.kill(os.getpid(), signal.SIGTERM)
    return web.Response(text="true")
