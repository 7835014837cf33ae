"""A watcher with endpoints without sockets: the test decides what they answer and announce."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from chain_watcher.endpoints.endpoint import OPTIONAL_METHODS, Endpoint
from chain_watcher.endpoints.messages import METHOD_NOT_FOUND, RpcError
from chain_watcher.endpoints.rpc import RpcClient
from chain_watcher.errors import Kind
from chain_watcher.watch.config import WatcherConfig
from chain_watcher.watch.watcher import Watcher

from .chain_endpoint import FakeNode, RpcFaultError

#: Takes a method, its parameters and the true answer; returns what is answered instead, or raises RpcError.
Twist = Callable[[str, list[Any], Any], Any]


class ScriptedClient:
    """Stands for the questions socket to `node`."""

    latency_s = 0.001

    def __init__(self, node: FakeNode, twist: Twist | None = None) -> None:
        self.node = node
        self.twist = twist

    async def call(self, method: str, params: list[Any] | None = None, *, timeout_s: float | None = None) -> Any:
        params = params or []
        self.node.asked.append((method, params))
        handler = self.node.overrides.get(method) or getattr(self.node, method, None)
        answer: Any = None
        try:
            if handler is None:
                raise RpcFaultError(METHOD_NOT_FOUND, "Method not found")
            answer = handler(*params)
            answer = await answer if inspect.isawaitable(answer) else answer
        except RpcFaultError as fault:
            code = "RPC_METHOD_MISSING" if fault.code == METHOD_NOT_FOUND else "RPC_REFUSED"
            kind: Kind = "rejected" if fault.code == METHOD_NOT_FOUND else "transient"
            raise RpcError(code=code, what="scripted", why=str(fault), kind=kind, rpc_code=fault.code) from fault
        return answer if self.twist is None else self.twist(method, params, answer)


def connect(endpoint: Endpoint, node: FakeNode, twist: Twist | None = None) -> None:
    """Let `endpoint` be connected to `node`."""
    endpoint.questions = cast(RpcClient, ScriptedClient(node, twist))
    endpoint.state, endpoint.accusation = "connected", None
    hidden = () if node.proofs else ("state_getReadProof",)
    grandpa = () if node.grandpa else ("grandpa_subscribeJustifications", "grandpa_proveFinality")
    endpoint.methods = OPTIONAL_METHODS - {*hidden, *grandpa}
    endpoint.cut.clear()


@contextlib.asynccontextmanager
async def scripted(config: WatcherConfig, verify: Callable[..., object]) -> AsyncIterator[Watcher]:
    """A watcher that is not running: the test hands it events by `_handle`."""
    watcher = Watcher(config, verify)
    states = asyncio.create_task(watcher._views.run())
    try:
        yield watcher
    finally:
        states.cancel()
        await asyncio.gather(states, return_exceptions=True)
