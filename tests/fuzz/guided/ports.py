"""Bytes that strangers send to the listening ports: whole connections, in pieces, before the server's own protocol."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from dcupgrade.machine.gates import GateRules
from dcupgrade.machine.plan import plan
from dcupgrade.machine.state import Name, State
from dcupgrade.surfaces.http_api import Site, make_app
from keyvault.handover.guarded_server import GuardedServer, _Guard
from keyvault.handover.http_server import add_handover_routes, new_app
from keyvault.handover.key_set import KeySet
from keyvault.node import NodeHandover, NodePolicy
from keyvault.vault import token_proof
from keyvault.vault.agent_api import vault_app
from tests.doubles.vault_host import KEYS_ID, NEW, OLD, TOKEN, Host, policy
from tests.doubles.vault_kit import GENESIS, KEYS, SECRET, CpuTee, enclave_id, secs, sign

from .target import Target, UndocumentedError

HOST = b"Host: 127.0.0.1\r\n"
#: Rounds of the loop after which a connection that waits for more bytes gets none.
SETTLED = 50
ROUNDS_MAX = 20_000
#: Paths of calls with the agent's proof; those that open connections of their own are left out.
PROVEN_PATHS = ("/vault/permit", "/vault/advance", "/vault/retain", "/vault/committed", "/vault/selftest")


class FakeTransport(asyncio.Transport):
    """Keeps what the server answers."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.sent = bytearray()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


class Port:
    """One application in a server without sockets; each connection of it ends with the input."""

    def __init__(self, make: Callable[[], web.Application]) -> None:
        logging.disable(logging.CRITICAL)  # refusals are logged, and there are millions of them here
        self._loop = asyncio.new_event_loop()
        self._server = GuardedServer(make())
        self._loop.run_until_complete(self._server._runner.setup())
        self._wrong: list[object] = []
        self._loop.set_exception_handler(lambda _, context: self._wrong.append(context.get("exception", context)))

    def take(self, data: bytes) -> bytes:
        """Answer one connection's bytes; raises where the server fails instead of answering."""
        return self._loop.run_until_complete(self._one(data))

    async def _one(self, data: bytes) -> bytes:
        factory = self._server._runner.server
        if factory is None:
            raise RuntimeError("aiohttp made no server")
        transport = FakeTransport()
        guard = _Guard(factory(), self._server._connections)
        guard.connection_made(transport)
        middle = len(data) // 2
        for piece in (data[:middle], data[middle:]):
            if not transport.closed:
                guard.data_received(piece)
                await asyncio.sleep(0)
        for number in range(ROUNDS_MAX):
            waits = guard._request is None or not guard._request.content.is_eof()
            if transport.closed or (waits and (transport.sent or number > SETTLED)):
                break
            await asyncio.sleep(0 if number < SETTLED else 0.001)  # a step in a thread takes real time
        guard.connection_lost(None)
        await asyncio.sleep(0)
        if self._server.connections_open:
            raise UndocumentedError("a connection that ended is still counted")
        if self._wrong or b" 500 " in transport.sent[:16] or b"VAULT_INTERNAL" in transport.sent:
            raise UndocumentedError(f"the server failed: {self._wrong} {bytes(transport.sent[:300])!r}")
        return bytes(transport.sent)


def _vault() -> web.Application:
    return vault_app(Host(policy=policy(allow_v1=True)).vault(), TOKEN, {"hygiene": {}})


def _node() -> web.Application:
    app = new_app()
    node_policy = NodePolicy(KEYS, GENESIS)
    add_handover_routes(
        app, NodeHandover(CpuTee(secs("node")), node_policy, sign(enclave_id("node")), lambda: KeySet(SECRET))
    )
    return app


def _agent() -> web.Application:
    state = State(Name.IDLE)
    facts: dict[str, Any] = {"node_id": "n", "tee": "simulated", "state": state.to_json(), "since_unix_s": 90.0}
    facts |= {"now_unix_s": 100.0, "block_number": 12, "alarms": [], "progress": {}, "node": {"status": "serving"}}
    facts |= {"vault": {}, "chain": {"endpoints": []}}

    async def nothing() -> AsyncIterator[dict[str, Any]]:
        yield {}

    def answered(value: Any) -> Callable[..., Awaitable[Any]]:
        async def answer(*_: object) -> Any:
            return value

        return answer

    return make_app(
        Site(
            status=answered(facts),
            plan=answered(plan(state, GateRules(), 100.0, 90.0)),
            events=nothing,
            history=answered([]),
            counts=answered({}),
            enqueue=answered(1),
            outcome=answered(None),
            explain=lambda code: (code, code),
            token=TOKEN,
        )
    )


@functools.cache
def _port(make: Callable[[], web.Application]) -> Port:
    return Port(make)


def _stranger(make: Callable[[], web.Application]) -> Callable[[bytes], object]:
    return lambda data: _port(make).take(data)


def _proven_call(data: bytes) -> object:
    """A body with the agent's valid proof, so that it is decoded: the vault does not trust the agent either."""
    port, path = _port(_vault), PROVEN_PATHS[data[0] % len(PROVEN_PATHS)] if data else "/vault/permit"
    body, agent = data[1:], bytes(32)
    challenge = b"GET %s?nonce=%s HTTP/1.1\r\n%s\r\n" % (
        token_proof.CHALLENGE_PATH.encode(),
        agent.hex().encode(),
        HOST,
    )
    answer = port.take(challenge)
    vault_nonce = bytes.fromhex(answer.partition(b'"nonce": "')[2].partition(b'"')[0].decode())
    call = token_proof.make_call(TOKEN.encode(), token_proof.Nonces(agent, vault_nonce), "POST", path, body)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {call.header()}\r\n"
    return port.take(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def _post(path: bytes, body: bytes, more: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n%s" % (path, HOST, more, len(body), body)


def _get(path: bytes) -> bytes:
    return b"GET %s HTTP/1.1\r\n%s\r\n" % (path, HOST)


CHUNKED = b"POST /v2/hello HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{} \r\n0\r\n\r\n"
TOKEN_HEADER = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"

TARGETS = {
    "port of the vault": Target(
        _stranger(_vault),
        (_post(b"/v2/hello", b"{}"), _get(b"/teerandom?verifyreport=b"), _get(b"/vault/status"), CHUNKED),
    ),
    "port of a node": Target(_stranger(_node), (_post(b"/v2/request", b'{"session": "AA=="}'), CHUNKED)),
    "port of the agent": Target(
        _stranger(_agent),
        (
            *(_get(path) for path in (b"/", b"/metrics", b"/api/v1/history?limit=5", b"/icon.svg?level=x")),
            _post(b"/api/v1/actions/hold", b'{"who": "a", "reason": "b"}', TOKEN_HEADER),
        ),
    ),
    "proven calls to the vault": Target(
        _proven_call,
        (
            b'\0{"source_id":"%s","target_id":"%s","key_set_id":"%s","evidence":{}}'
            % (OLD.encode(), NEW.encode(), KEYS_ID.encode()),
            b'\2{"key_set_id":"%s","until_unix_s":1}' % KEYS_ID.encode(),
        ),
    ),
}
