"""A websocket proxy in front of a chain's JSON-RPC that lags or lies, to test what a watcher believes.

    async with LyingProxy(chain.ws_url) as proxy:
        watch(proxy.ws_url)
        proxy.tell(ForgedValue(key, "0x..."))
        ...
        proxy.truth()

Each lie is a small class that changes a request's parameters, a result, or a notification. Lies apply to open
connections and to new ones, one after another, in the order in which they were added.
"""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
from aiohttp import web

# Names of the notifications with headers of finalized and best blocks.
HEAD_NOTIFICATIONS = ("chain_finalizedHead", "chain_newHead", "chain_allHead")
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class Withheld(Exception):  # noqa: N818 - not an error: the lie is silence
    """Raised by a lie: this answer or notification is never sent."""


class Lie:
    """The base of all lies. It changes nothing: what a lie does not override stays true."""

    def params(self, method: str, params: list[Any]) -> list[Any]:
        """Return the parameters to send to the chain instead."""
        return params

    def result(self, method: str, params: list[Any], result: Any) -> Any:
        """Return the result to answer instead. `params` are the client's. May raise Withheld."""
        return result

    def notification(self, method: str, result: Any) -> Any:
        """Return the result to notify instead. May raise Withheld."""
        return result


@dataclass(frozen=True)
class ForgedValue(Lie):
    """Another value under one storage key, in plain answers and inside read proofs.

    `key`, `value` and `truth` are 0x-hex; a `value` of None means absent. In a proof, the forged bytes replace `truth`
    wherever it occurs, so that the hashes no longer match.
    """

    key: str
    value: str | None
    truth: str = ""

    def result(self, method: str, params: list[Any], result: Any) -> Any:
        """Return the forged value, or a proof that contains it."""
        if method in ("state_getStorage", "state_getStorageAt") and params[:1] == [self.key]:
            return self.value
        if method == "state_queryStorageAt":
            return [{**entry, "changes": self._changes(entry["changes"])} for entry in result]
        if method == "state_getReadProof" and self.key in params[0] and len(self.truth) > 2:
            old, new = self.truth[2:], (self.value or "0x")[2:]
            return {**result, "proof": [node.replace(old, new) for node in result["proof"]]}
        return result

    def notification(self, method: str, result: Any) -> Any:
        """Return the forged value in state_subscribeStorage."""
        if method == "state_storage":
            return {**result, "changes": self._changes(result["changes"])}
        return result

    def _changes(self, changes: list[list[Any]]) -> list[list[Any]]:
        return [[key, self.value if key == self.key else value] for key, value in changes]


@dataclass(frozen=True)
class ForgedHeader(Lie):
    """Every header has other fields: ForgedHeader({"stateRoot": "0x..."})."""

    fields: dict[str, Any]

    def result(self, method: str, params: list[Any], result: Any) -> Any:
        """Forge chain_getHeader and chain_getBlock."""
        if method == "chain_getHeader" and result is not None:
            return {**result, **self.fields}
        if method == "chain_getBlock" and result is not None:
            block = result["block"]
            return {**result, "block": {**block, "header": {**block["header"], **self.fields}}}
        return result

    def notification(self, method: str, result: Any) -> Any:
        """Forge the subscriptions of heads."""
        return {**result, **self.fields} if method in HEAD_NOTIFICATIONS else result


@dataclass(frozen=True)
class FutureHeight(Lie):
    """Every header, in answers and subscriptions, claims a height that is `ahead` blocks too high."""

    ahead: int

    def result(self, method: str, params: list[Any], result: Any) -> Any:
        """Raise the height in chain_getHeader."""
        return self._raised(result) if method == "chain_getHeader" and result is not None else result

    def notification(self, method: str, result: Any) -> Any:
        """Raise the height in the subscriptions of heads."""
        return self._raised(result) if method in HEAD_NOTIFICATIONS else result

    def _raised(self, header: dict[str, Any]) -> dict[str, Any]:
        return {**header, "number": hex(int(header["number"], 16) + self.ahead)}


@dataclass(frozen=True)
class OldState(Lie):
    """State is read at an older block, whichever block is requested. Heads stay true."""

    block_hash: str

    def params(self, method: str, params: list[Any]) -> list[Any]:
        """Return parameters with the older block's hash, whether or not another was given."""
        if method in ("state_getStorage", "state_getStorageAt", "state_getReadProof", "state_queryStorageAt"):
            return [params[0], self.block_hash]
        return params


@dataclass(frozen=True)
class Behind(Lie):
    """The chain ends at an older finalized block, although the endpoint looks healthy."""

    block_hash: str

    def result(self, method: str, params: list[Any], result: Any) -> Any:
        """Return the older block as the finalized head."""
        return self.block_hash if method == "chain_getFinalizedHead" else result

    def notification(self, method: str, result: Any) -> Any:
        """Withhold every new head."""
        if method in (*HEAD_NOTIFICATIONS, "grandpa_justifications", "state_storage"):
            raise Withheld
        return result


@dataclass(frozen=True)
class WithheldChange(Lie):
    """Storage keys keep old values, whatever has changed since: {key: 0x-hex or None}."""

    values: dict[str, str | None]

    def result(self, method: str, params: list[Any], result: Any) -> Any:
        """Return the old value."""
        if method in ("state_getStorage", "state_getStorageAt") and params and params[0] in self.values:
            return self.values[params[0]]
        return result

    def notification(self, method: str, result: Any) -> Any:
        """Withhold changes of these keys."""
        if method != "state_storage":
            return result
        kept = [change for change in result["changes"] if change[0] not in self.values]
        if not kept:
            raise Withheld
        return {**result, "changes": kept}


@dataclass(frozen=True)
class ForgedMetadata(Lie):
    """Some bytes of the metadata are replaced, such as the pallet's name: ForgedMetadata(b"DcNode", b"DcNodf")."""

    old: bytes
    new: bytes

    def result(self, method: str, params: list[Any], result: Any) -> Any:
        """Forge state_getMetadata, and state_call of Metadata_*."""
        if method == "state_getMetadata" or (method == "state_call" and str(params[0]).startswith("Metadata_")):
            return "0x" + bytes.fromhex(result[2:]).replace(self.old, self.new).hex()
        return result


@dataclass(frozen=True)
class NoMethods(Lie):
    """The endpoint does not offer these methods: they are not in rpc_methods, and are never answered."""

    names: tuple[str, ...]

    def result(self, method: str, params: list[Any], result: Any) -> Any:
        """Return the list without them; withhold an answer to one of them."""
        if method in self.names:
            raise Withheld
        if method == "rpc_methods":
            return {**result, "methods": [name for name in result["methods"] if name not in self.names]}
        return result


@dataclass
class LyingProxy:
    """Serves on a random loopback port. Each client connection has a connection of its own to the chain."""

    upstream: str
    lag_s: float = 0.0
    port: int = 0
    requests: list[str] = field(default_factory=list)
    _lies: list[Lie] = field(default_factory=list)
    _connections: set[web.WebSocketResponse] = field(default_factory=set)
    _cut: bool = False
    _runner: web.AppRunner | None = None
    _session: aiohttp.ClientSession | None = None

    @property
    def ws_url(self) -> str:
        """The websocket URL of the proxy."""
        return f"ws://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_get("/", self._serve)
        self._session = aiohttp.ClientSession()
        self._runner = web.AppRunner(application, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    def tell(self, *lies: Lie) -> None:
        """Add these lies, after those that apply already."""
        self._lies.extend(lies)

    def truth(self) -> None:
        """Remove all lies and the lag."""
        self._lies.clear()
        self.lag_s = 0.0

    async def cut(self) -> None:
        """Close every connection, and refuse new ones until `join`."""
        self._cut = True
        for connection in list(self._connections):
            await connection.close()

    def join(self) -> None:
        """Let clients connect again."""
        self._cut = False

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        if self._cut or self._session is None:
            raise web.HTTPServiceUnavailable
        client = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES_MAX)
        await client.prepare(request)
        self._connections.add(client)
        try:
            async with self._session.ws_connect(self.upstream, max_msg_size=MESSAGE_BYTES_MAX) as chain:
                asked: dict[Any, tuple[str, list[Any]]] = {}
                pumps = [
                    asyncio.create_task(self._requests(client, chain, asked)),
                    asyncio.create_task(self._replies(client, chain, asked)),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._connections.discard(client)
            with contextlib.suppress(ConnectionError):
                await client.close()
        return client

    async def _requests(
        self,
        client: web.WebSocketResponse,
        chain: aiohttp.ClientWebSocketResponse,
        asked: dict[Any, tuple[str, list[Any]]],
    ) -> None:
        async for message in client:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            body = json.loads(message.data)
            for request in body if isinstance(body, list) else [body]:
                method, params = request["method"], request.get("params") or []
                self.requests.append(method)
                asked[request.get("id")] = (method, params)
                if isinstance(params, list):
                    for lie in self._lies:
                        params = lie.params(method, params)
                request["params"] = params
            await chain.send_str(json.dumps(body))

    async def _replies(
        self,
        client: web.WebSocketResponse,
        chain: aiohttp.ClientWebSocketResponse,
        asked: dict[Any, tuple[str, list[Any]]],
    ) -> None:
        async for message in chain:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            if self.lag_s:
                await asyncio.sleep(self.lag_s)
            body = json.loads(message.data)
            with contextlib.suppress(Withheld):
                if isinstance(body, list):
                    body = [self._altered(reply, asked) for reply in body]
                else:
                    body = self._altered(body, asked)
                await client.send_str(json.dumps(body))

    def _altered(self, reply: dict[str, Any], asked: dict[Any, tuple[str, list[Any]]]) -> dict[str, Any]:
        if "method" in reply:
            result = reply["params"]["result"]
            for lie in self._lies:
                result = lie.notification(reply["method"], result)
            return {**reply, "params": {**reply["params"], "result": result}}
        method, params = asked.pop(reply.get("id"), ("", []))
        if "result" not in reply:
            return reply
        result = reply["result"]
        for lie in self._lies:
            result = lie.result(method, params if isinstance(params, list) else [], result)
        return {**reply, "result": result}
