"""A chain in memory with true hashes, tries, proofs and GRANDPA votes, and a node that serves it and can misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import aiohttp
from aiohttp import web
from nacl.signing import SigningKey

from .metadata_maker import compact, make_metadata, vec

State = dict[bytes, bytes]


def hash256(data: bytes) -> bytes:
    return blake2b(data, digest_size=32).digest()


def twox128(data: str) -> bytes:
    import xxhash

    return b"".join(xxhash.xxh64(data.encode(), seed=seed).digest()[::-1] for seed in (0, 1))


def storage_key(pallet: str, item: str) -> bytes:
    return twox128(pallet) + twox128(item)


def octets(data: bytes) -> bytes:
    return compact(len(data)) + data


# --- trie --------------------------------------------------------------------------------------------------------


def _nibbles(key: bytes) -> tuple[int, ...]:
    return tuple(half for byte in key for half in (byte >> 4, byte & 15))


def _node_header(kind: int, bits: int, nibbles: tuple[int, ...]) -> bytes:
    top = (1 << bits) - 1
    count = len(nibbles)
    out = [kind << bits | min(count, top)]
    rest = count - top
    while rest >= 0:
        out.append(min(rest, 255))
        rest -= 255
    padded = ((0, *nibbles)) if count % 2 else nibbles
    return bytes(out) + bytes(padded[i] << 4 | padded[i + 1] for i in range(0, len(padded), 2))


class Trie:
    """A Substrate trie (layout V1) of a whole state, with every node kept for proofs."""

    def __init__(self, state: State) -> None:
        self.wanted: dict[tuple[int, ...], bytes] = {}
        self.values: dict[tuple[int, ...], bytes] = {}
        items = sorted((_nibbles(key), value) for key, value in state.items())
        encoded = self._build(items, 0) if items else b"\x00"
        self.root = hash256(encoded)
        self.wanted[()] = encoded

    def _build(self, items: list[tuple[tuple[int, ...], bytes]], depth: int) -> bytes:
        first, last = items[0][0], items[-1][0]
        end = depth
        while end < min(len(first), len(last)) and first[end] == last[end]:
            end += 1
        partial = first[depth:end]
        value = items[0][1] if len(first) == end else None
        hashed = value is not None and len(value) > 32
        if hashed:
            self.values[first] = value or b""
        stored = b"" if value is None else (hash256(value) if hashed else octets(value))
        if len(items) == 1:
            return (_node_header(0b001, 5, partial) if hashed else _node_header(0b01, 6, partial)) + stored
        bitmap, children = 0, b""
        rest = items[1:] if value is not None else items
        for nibble in range(16):
            group = [item for item in rest if item[0][end] == nibble]
            if not group:
                continue
            bitmap |= 1 << nibble
            path = (*first[:end], nibble)
            child = self._build(group, end + 1)
            if len(child) >= 32:
                self.wanted[path] = child
                child = hash256(child)
            children += octets(child)
        if value is None:
            head = _node_header(0b10, 6, partial)
        else:
            head = _node_header(0b0001, 4, partial) if hashed else _node_header(0b11, 6, partial)
        return head + bitmap.to_bytes(2, "little") + stored + children

    def proof(self, keys: Iterable[bytes]) -> list[bytes]:
        nodes: dict[bytes, None] = {}
        for key in keys:
            path = _nibbles(key)
            for at in sorted(self.wanted, key=len):
                if path[: len(at)] == at:
                    nodes[self.wanted[at]] = None
            if path in self.values:
                nodes[self.values[path]] = None
        return list(nodes)


# --- chain -------------------------------------------------------------------------------------------------------


@dataclass
class Block:
    number: int
    parent: bytes
    state: State
    spec_version: int
    digest: tuple[bytes, ...] = ()
    zero_root: bool = False
    salt: bytes = bytes(32)
    trie: Trie = field(init=False)

    def __post_init__(self) -> None:
        self.trie = Trie(self.state)

    @property
    def root(self) -> bytes:
        return bytes(32) if self.zero_root else self.trie.root

    @property
    def scale(self) -> bytes:
        return self.parent + compact(self.number) + self.root + self.salt + vec(list(self.digest))

    @property
    def hash(self) -> bytes:
        return hash256(self.scale)

    @property
    def json(self) -> dict[str, Any]:
        return {
            "parentHash": "0x" + self.parent.hex(),
            "number": hex(self.number),
            "stateRoot": "0x" + self.root.hex(),
            "extrinsicsRoot": "0x" + self.salt.hex(),
            "digest": {"logs": ["0x" + item.hex() for item in self.digest]},
        }


@dataclass(frozen=True)
class Entry:
    height: int
    enclave_id: str
    signature: str


class FakeChain:
    """Blocks by hash, the finalized height, and who votes. `zero_root` imitates Chopsticks."""

    def __init__(self, *, zero_root: bool = False, metadata: bytes | None = None, timestamps: bool = True) -> None:
        self.zero_root = zero_root
        self.metadata: dict[int, bytes] = {1: metadata or make_metadata()}
        self.prefix = "DcNode"
        self.timestamps = timestamps
        self.set_id = 0
        self.voters = [SigningKey(hash256(b"voter %d" % number)) for number in range(4)]
        genesis = Block(0, bytes(32), self._base_state(0, 1), 1, (), zero_root)
        self.blocks: dict[bytes, Block] = {genesis.hash: genesis}
        self.main: list[Block] = [genesis]
        self.justifications: dict[int, bytes] = {}
        self.set_ends: dict[int, int] = {}
        self.finalized = 0
        self.nodes: list[FakeNode] = []

    def _base_state(self, number: int, spec_version: int) -> State:
        state = {b":code": b"wasm" + spec_version.to_bytes(4, "little") * 20}
        if number:
            upgrade = compact(spec_version) + octets(b"fake")
            state[storage_key("System", "LastRuntimeUpgrade")] = upgrade
        if self.timestamps and number:
            state[storage_key("Timestamp", "Now")] = (1_790_000_000_000 + 6000 * number).to_bytes(8, "little")
        return state

    @property
    def genesis_hash(self) -> str:
        return "0x" + self.main[0].hash.hex()

    @property
    def best(self) -> Block:
        return self.main[-1]

    def program_key(self) -> bytes:
        return storage_key(self.prefix, "DcProgram")

    def ids_key(self) -> bytes:
        return storage_key(self.prefix, "EnclaveIds")

    def child(
        self, parent: Block, change: State | None = None, *, digest: tuple[bytes, ...] = (), salt: int = 0
    ) -> Block:
        """A block on any parent, executed by the parent's runtime; not announced."""
        spec = parent.spec_version
        state = {**parent.state, **self._base_state(parent.number + 1, spec)}
        for key, value in (change or {}).items():
            if value:
                state[key] = value
            else:
                state.pop(key, None)
        block = Block(parent.number + 1, parent.hash, state, spec, digest, self.zero_root, bytes([salt]) * 32)
        self.blocks[block.hash] = block
        return block

    def grow(self, change: State | None = None, *, digest: tuple[bytes, ...] = ()) -> Block:
        """A new best block on the main chain; not announced."""
        block = self.child(self.best, change, digest=digest)
        self.main.append(block)
        return block

    def set_code(self, spec_version: int, metadata: bytes) -> Block:
        """A block in which the runtime changes: its own state still has the old layout."""
        self.metadata[spec_version] = metadata
        block = self.grow(digest=(b"\x08",))
        block.spec_version = spec_version
        return block

    def change(self, program: bytes | None = None, entries: list[Entry] | None = None) -> State:
        out: State = {}
        if program is not None:
            out[self.program_key()] = program
        if entries is not None:
            tuples = sorted((one.height, one.enclave_id.encode(), one.signature.encode()) for one in entries)
            out[self.ids_key()] = vec([h.to_bytes(4, "little") + octets(i) + octets(s) for h, i, s in tuples])
        return out

    # --- GRANDPA

    def authorities(self) -> list[tuple[bytes, int]]:
        return [(bytes(voter.verify_key), 1) for voter in self.voters]

    def justify(self, block: Block, *, voters: list[SigningKey] | None = None, set_id: int | None = None) -> bytes:
        """A justification by all voters (or those given) for `block`."""
        round_number = block.number + 7
        message = b"\x01" + block.hash + block.number.to_bytes(4, "little")
        message += round_number.to_bytes(8, "little")
        message += (self.set_id if set_id is None else set_id).to_bytes(8, "little")
        target = block.hash + block.number.to_bytes(4, "little")
        signers = sorted(voters or self.voters, key=lambda one: bytes(one.verify_key))
        votes = [target + one.sign(message).signature + bytes(one.verify_key) for one in signers]
        return round_number.to_bytes(8, "little") + target + vec(votes) + vec([])

    def change_set(self, voters: list[SigningKey], delay: int = 0) -> Block:
        """A block whose digest schedules the next authority set."""
        listed = vec([bytes(one.verify_key) + (1).to_bytes(8, "little") for one in voters])
        change = b"\x01" + listed + delay.to_bytes(4, "little")
        block = self.grow(digest=(b"\x04FRNK" + octets(change),))
        self.justifications[block.number] = self.justify(block)
        self.set_ends[block.number] = self.set_id
        self.voters, self.set_id = voters, self.set_id + 1
        return block

    # --- announcing

    async def announce_best(self, block: Block | None = None) -> None:
        for node in self.nodes:
            await node.notify("chain_subscribeNewHeads", (block or self.best).json)

    async def announce_storage(self) -> None:
        for node in self.nodes:
            await node.notify("state_subscribeStorage", {"block": "0x" + self.best.hash.hex(), "changes": []})

    async def finalize(self, number: int | None = None, *, announce: bool = True) -> Block:
        self.finalized = self.best.number if number is None else number
        block = self.main[self.finalized]
        if announce:
            for node in self.nodes:
                await node.announce_finalized(block)
        return block

    async def advance(self, change: State | None = None) -> Block:
        """Grow, announce the best head, finalize."""
        block = self.grow(change)
        await self.announce_best()
        await self.finalize()
        return block


Override = Callable[..., Any]
PROOF_METHODS = ("state_getReadProof",)
GRANDPA_METHODS = ("grandpa_subscribeJustifications", "grandpa_unsubscribeJustifications", "grandpa_proveFinality")


class RpcFaultError(Exception):
    """Answer with a JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class FakeNode:
    """A websocket node for `chain`. `overrides` replace answers; `frozen` answers nothing."""

    chain: FakeChain
    proofs: bool = True
    grandpa: bool = False
    padded: bool = False
    frozen: bool = False
    overrides: dict[str, Override] = field(default_factory=dict)
    raw: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, list[Any]]] = field(default_factory=list)
    url: str = ""
    muted: set[str] = field(default_factory=set)
    sockets: dict[web.WebSocketResponse, dict[str, str]] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    _runner: web.AppRunner | None = None
    _next: int = 0
    port: int = 0

    async def __aenter__(self) -> FakeNode:
        await self.start()
        self.chain.nodes.append(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.chain.nodes.remove(self)
        await self.stop()

    async def start(self) -> None:
        application = web.Application()
        application.router.add_get("/", self._serve)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self.url = f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        for socket in list(self.sockets):
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def cut(self) -> None:
        """Break every connection; new ones are accepted."""
        for socket in list(self.sockets):
            await socket.close()

    def count(self, method: str) -> int:
        return sum(1 for name, _ in self.asked if name == method)

    async def notify(self, method: str, result: Any) -> None:
        if self.frozen or method in self.muted:
            return
        for socket, subscriptions in list(self.sockets.items()):
            for identity, subscribed in subscriptions.items():
                if subscribed == method and not socket.closed:
                    params = {"subscription": identity, "result": result}
                    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                        await socket.send_json({"jsonrpc": "2.0", "method": "note", "params": params})

    async def announce_finalized(self, block: Block) -> None:
        if self.grandpa:
            proof = self.chain.justifications.get(block.number) or self.chain.justify(block)
            self.chain.justifications[block.number] = proof
            await self.notify("grandpa_subscribeJustifications", "0x" + proof.hex())
        await self.notify("chain_subscribeFinalizedHeads", self._header(block))

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets[socket] = {}
        try:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT and not self.frozen:
                    await self._answer(socket, json.loads(message.data))
        finally:
            self.sockets.pop(socket, None)
        return socket

    async def _answer(self, socket: web.WebSocketResponse, question: dict[str, Any]) -> None:
        method, params = question["method"], question["params"]
        self.asked.append((method, params))
        if method in self.raw:
            await socket.send_str(self.raw[method])
            return
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": question["id"]}
        try:
            handler = self.overrides.get(method) or getattr(self, method, None)
            if handler is None or (not self.proofs and method in PROOF_METHODS):
                raise RpcFaultError(-32601, "Method not found")
            if method.endswith(("Heads", "Justifications", "Storage")) and "ubscribe" in method:
                answer["result"] = self._subscribe(socket, method, params)
            else:
                result = handler(*params)
                answer["result"] = await result if isinstance(result, Awaitable) else result
        except RpcFaultError as fault:
            answer["error"] = {"code": fault.code, "message": str(fault)}
        if not socket.closed:
            await socket.send_json(answer)
        if method in ("chain_subscribeFinalizedHeads", "chain_subscribeNewHeads") and method not in self.muted:
            block = self.chain.main[self.chain.finalized] if "Final" in method else self.chain.best
            params_out = {"subscription": answer["result"], "result": self._header(block)}
            await socket.send_json({"jsonrpc": "2.0", "method": "note", "params": params_out})

    def _subscribe(self, socket: web.WebSocketResponse, method: str, params: list[Any]) -> Any:
        if "unsubscribe" in method:
            return self.sockets[socket].pop(params[0], None) is not None
        self._next += 1
        self.sockets[socket][f"sub{self._next}"] = method
        return f"sub{self._next}"

    def _header(self, block: Block) -> dict[str, Any]:
        header = block.json
        if self.padded:
            header["number"] = f"0x{block.number:08x}"
        return header

    def _block(self, at: str | None) -> Block:
        if at is None:
            return self.chain.best
        found = self.chain.blocks.get(bytes.fromhex(at[2:]))
        if found is None:
            raise RpcFaultError(4003, "Client error: UnknownBlock: State already discarded")
        return found

    def _executed_by(self, block: Block) -> int:
        return block.spec_version

    # --- methods by their names on the wire

    def rpc_methods(self) -> dict[str, Any]:
        own = [name for name in dir(self) if name.startswith(("chain_", "state_", "grandpa_", "rpc_"))]
        hidden = (() if self.proofs else PROOF_METHODS) + (() if self.grandpa else GRANDPA_METHODS)
        return {"methods": [name for name in own if name not in hidden]}

    def chain_getBlockHash(self, number: int | None = None) -> str | None:  # noqa: N802
        if number is None:
            return "0x" + self.chain.best.hash.hex()
        return "0x" + self.chain.main[number].hash.hex() if number < len(self.chain.main) else None

    def chain_getFinalizedHead(self) -> str:  # noqa: N802
        return "0x" + self.chain.main[self.chain.finalized].hash.hex()

    def chain_getHeader(self, at: str | None = None) -> dict[str, Any] | None:  # noqa: N802
        try:
            return self._header(self._block(at))
        except RpcFaultError:
            return None

    def chain_getBlock(self, at: str | None = None) -> dict[str, Any]:  # noqa: N802
        block = self._block(at)
        proof = self.chain.justifications.get(block.number)
        stored = [[list(b"FRNK"), list(proof)]] if proof else None
        return {"block": {"header": self._header(block), "extrinsics": []}, "justifications": stored}

    def state_getStorage(self, key: str, at: str | None = None) -> str | None:  # noqa: N802
        value = self._block(at).state.get(bytes.fromhex(key[2:]))
        return None if value is None else "0x" + value.hex()

    def state_queryStorageAt(self, keys: list[str], at: str | None = None) -> Any:  # noqa: N802
        block = self._block(at)
        if block.number == 0:
            return {"another": "shape"}
        return [{"block": "0x" + block.hash.hex(), "changes": [[key, self.state_getStorage(key, at)] for key in keys]}]

    def state_getReadProof(self, keys: list[str], at: str | None = None) -> dict[str, Any]:  # noqa: N802
        block = self._block(at)
        nodes = block.trie.proof(bytes.fromhex(key[2:]) for key in keys)
        return {"at": "0x" + block.hash.hex(), "proof": ["0x" + node.hex() for node in nodes]}

    def state_getRuntimeVersion(self, at: str | None = None) -> dict[str, Any]:  # noqa: N802
        return {"specName": "fake", "specVersion": self._block(at).spec_version, "implName": "fake"}

    def state_call(self, name: str, _data: str, _at: str | None = None) -> str:
        """GRANDPA's runtime API of the set in force."""
        listed = vec([key + weight.to_bytes(8, "little") for key, weight in self.chain.authorities()])
        answers = {
            "GrandpaApi_grandpa_authorities": listed,
            "GrandpaApi_current_set_id": self.chain.set_id.to_bytes(8, "little"),
        }
        return "0x" + answers[name].hex()

    def state_getMetadata(self, at: str | None = None) -> str:  # noqa: N802
        return "0x" + self.chain.metadata[self._block(at).spec_version].hex()

    def grandpa_proveFinality(self, number: int) -> str | None:  # noqa: N802
        """The proof for the last block of the set that finalized `number`; none in the running set below a vote."""
        last = min((at for at in self.chain.set_ends if at >= number), default=None)
        if last is None:
            last = max((at for at in self.chain.justifications if at >= number), default=None)
        if last is None or last > self.chain.finalized:
            return None
        headers = vec([self.chain.main[at].scale for at in range(number + 1, last + 1)])
        return "0x" + (self.chain.main[last].hash + octets(self.chain.justifications[last]) + headers).hex()

    chain_subscribeFinalizedHeads = chain_unsubscribeFinalizedHeads = chain_subscribeNewHeads = rpc_methods  # noqa: N815
    chain_unsubscribeNewHeads = state_subscribeStorage = state_unsubscribeStorage = rpc_methods  # noqa: N815
    grandpa_subscribeJustifications = grandpa_unsubscribeJustifications = rpc_methods  # noqa: N815


class ManualClock:
    """A clock that the test advances; `sleep` returns when its time is reached."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_790_000_000.0 + self.now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, future))
        await future

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [one for one in self._sleepers if one[0] <= self.now]
        self._sleepers = [one for one in self._sleepers if one[0] > self.now]
        for _, future in due:
            if not future.done():
                future.set_result(None)

    @property
    def sleeping(self) -> int:
        return sum(1 for _, future in self._sleepers if not future.done())


async def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Let the loop run until `condition` holds (network included); no fixed waits."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)
