"""HTTP API of the reference node: objects, health with canary, version, commit."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from .objects import NAME_BYTES_MAX, NodeError, ObjectStore

NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_BYTES_MAX - 1}}}\Z")
STATUS_OF_CODE = {
    "NODE_OBJECT_MISSING": 404,
    "NODE_OBJECT_TOO_LARGE": 413,
    "NODE_NAME_BAD": 400,
    "NODE_COMMIT_NOT_MINE": 409,
    "NODE_DISK_FAILED": 507,
}


@dataclass(slots=True)
class NodeState:
    """The node's current state. The start-up sequence writes it, the routes read it."""

    enclave_id: str
    version: str
    tee: str
    features: frozenset[str]
    status: str = "starting"
    store: ObjectStore | None = field(default=None, repr=False)
    key_set_id: str | None = None
    committed: bool = False
    error: NodeError | None = None

    def fail(self, error: NodeError) -> None:
        """Store why the node does not serve; `/health` shows it."""
        self.status, self.error = "failed", error


def add_node_routes(app: web.Application, state: NodeState, commit: Callable[[], Awaitable[None]]) -> None:
    """Add the routes of the node contract. `commit` stores the commitment durably."""
    routes = _Routes(state, commit)
    _add_object_routes(app, routes, state.features)
    app.router.add_get("/version", routes.version)
    app.router.add_get("/health", routes.health)
    app.router.add_post("/commit", routes.commit)


def add_field_routes(app: web.Application, state: NodeState) -> None:
    """Add the routes of a node with handover v1 only: `/version` once it has keys, no health, no commit.

    `/canary` is the probe of old data that operators of such nodes configure.
    """

    async def never() -> None:
        raise NodeError("NODE_NOT_SERVING", "nodes of handover v1 know no commit")

    routes = _Routes(state, never)
    _add_object_routes(app, routes, state.features)
    app.router.add_get("/version", routes.version_when_serving)
    app.router.add_get("/canary", routes.canary)


def _add_object_routes(app: web.Application, routes: _Routes, features: frozenset[str]) -> None:
    app.middlewares.append(_errors)
    app.add_routes(
        [
            web.get("/objects", routes.list_objects),
            web.put("/objects/{name}", routes.put),
            web.get("/objects/{name}", routes.get),
            web.delete("/objects/{name}", routes.delete),
        ]
    )
    if "stats" in features:
        app.router.add_get("/stats", routes.stats)


class _Routes:
    def __init__(self, state: NodeState, commit: Callable[[], Awaitable[None]]) -> None:
        self._state = state
        self._commit = commit

    def _store(self) -> ObjectStore:
        if self._state.status != "serving" or self._state.store is None:
            raise NodeError("NODE_NOT_SERVING", f"the node is {self._state.status}")
        return self._state.store

    async def version(self, _: web.Request) -> web.Response:
        return web.Response(text=f"{self._state.enclave_id}@{self._state.version}")

    async def version_when_serving(self, request: web.Request) -> web.Response:
        self._store()
        return await self.version(request)

    async def canary(self, _: web.Request) -> web.Response:
        if not self._store().canary_sings():
            raise NodeError("NODE_CANARY_UNREADABLE", "the canary record does not decrypt")
        return web.json_response({"canary": True})

    async def health(self, _: web.Request) -> web.Response:
        state = self._state
        canary = None if state.store is None else state.store.canary_sings()
        error = None if state.error is None else {"code": state.error.code, "why": state.error.why}
        body: dict[str, Any] = {
            "status": state.status,
            "canary": canary,
            "enclave_id": state.enclave_id,
            "version": state.version,
            "tee": state.tee,
            "committed": state.committed,
            "key_set_id": state.key_set_id,
            "error": error,
        }
        return web.json_response(body, status=200 if state.status != "failed" else 503)

    async def commit(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
            asked = body["enclave_id"]
        except (ValueError, KeyError, TypeError):
            raise NodeError("NODE_NAME_BAD", "the body must be JSON with enclave_id") from None
        if asked != self._state.enclave_id:
            raise NodeError("NODE_COMMIT_NOT_MINE", f"this node is {self._state.enclave_id}")
        self._store()
        await self._commit()
        return web.json_response({"committed": True})

    async def list_objects(self, _: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(self._store().sizes))

    async def stats(self, _: web.Request) -> web.Response:
        sizes = await asyncio.to_thread(self._store().sizes)
        return web.json_response({"objects": len(sizes), "bytes": sum(sizes.values())})

    async def put(self, request: web.Request) -> web.Response:
        size = await self._store().put(_name(request), request.content.iter_any())
        return web.json_response({"size": size}, status=201)

    async def get(self, request: web.Request) -> web.StreamResponse:
        name = _name(request)
        size, chunks = self._store().open(name)
        first = next(chunks)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = size
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        await response.write(first)
        try:
            for chunk in chunks:
                await response.write(chunk)
        except NodeError:
            # The headers are sent already: only a broken connection tells the client that the object is incomplete.
            if request.transport is not None:
                request.transport.abort()
            raise
        await response.write_eof()
        return response

    async def delete(self, request: web.Request) -> web.Response:
        self._store().delete(_name(request))
        return web.Response(status=204)


def _name(request: web.Request) -> str:
    name = request.match_info["name"]
    if not NAME.match(name):
        raise NodeError("NODE_NAME_BAD", "a name has 1 to 200 of the characters A-Z a-z 0-9 . _ -")
    return name


@web.middleware
async def _errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    try:
        return await handler(request)
    except NodeError as error:
        told = error
    except OSError as error:
        if isinstance(error, ConnectionError):  # of the client's connection, not of the disk
            raise
        told = NodeError("NODE_DISK_FAILED", os.strerror(error.errno) if error.errno else type(error).__name__)
    return web.Response(
        text=json.dumps({"code": told.code, "why": told.why}),
        status=STATUS_OF_CODE.get(told.code, 503),
        content_type="application/json",
    )


def add_broken_handover_routes(app: web.Application, fault: str) -> None:
    """A faulty holder for deliberately bad releases; its fault is measured: "refuses", "hangs" or "garbage"."""

    async def broken(_: web.Request) -> web.Response:
        if fault == "hangs":
            await asyncio.sleep(3600)
        if fault == "refuses":
            raise NodeError("NODE_HANDOVER_REFUSED", "this version never hands its keys over")
        return web.Response(body=bytes(range(256)) * 16, content_type="application/json")

    for step in ("hello", "request", "received", "durable"):
        app.router.add_post(f"/v2/{step}", broken)
