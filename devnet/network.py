"""Two authorities and a full node on loopback: finality can be stalled, and forks can be made and dropped.

    async with Network() as network:
        watch(network.full.ws_url)
        network.bob.pause()          # one of two authorities: no block is finalized
        network.bob.resume()
        await network.part("bob", "full")   # two networks, each with one author and without finality
        await network.heal()                # the shorter branch is dropped

All nodes run with `--reserved-only`, so only this module decides which nodes are connected.
"""

import asyncio
import contextlib
import hashlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Self

import base58
from nacl.signing import SigningKey

from .chain_process import ChainProcess, RuntimeName
from .node_process import spawn_node
from .tools import DevnetError, free_port

PEER_TIMEOUT_S = 60.0


class NetworkNode(ChainProcess):
    """One node of the network: `alice` and `bob` are authorities, any other name is a full node."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.port = free_port()  # reserved, so that it is still free when a killed node starts again
        # Key and port of the peer-to-peer network are chosen before the start, so that each node knows the others.
        self._network_key = hashlib.sha256(f"devnet {name}".encode()).digest()
        public = bytes(SigningKey(self._network_key).verify_key)
        # A libp2p peer id: an identity multihash over a protobuf of key type (1: ed25519) and key.
        self.peer_id = base58.b58encode(bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20]) + public).decode()
        self._listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
        self.address = f"{self._listen}/p2p/{self.peer_id}"

    def start_now(self, chain_id: str, peers: Sequence[str]) -> None:
        """Start the node, blocking. A killed node starts again with its data and its RPC port."""
        role = [f"--{self.name}", "--validator", "--force-authoring"] if self.name in ("alice", "bob") else []
        # No slots for others: otherwise a peer that is no longer reserved would stay connected as an ordinary one.
        network = ["--reserved-only", "--in-peers", "0", "--out-peers", "0", "--listen-addr", self._listen]
        known = [argument for address in peers for argument in ("--reserved-nodes", address)]
        key = ["--node-key", self._network_key.hex()]
        spawn_node(self, ["--chain", chain_id, *role, *network, *known, *key], port=self.port)

    def pause(self) -> None:
        """Stop the process (SIGSTOP). Its connections stay open and become silent."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process continue."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process (SIGKILL); `restart` starts it again."""
        process = self._running()
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def stop_now(self) -> None:
        """End the node, also if it is paused."""
        if self.is_running():
            with contextlib.suppress(DevnetError):
                self.resume()
        super().stop_now()

    async def best(self) -> tuple[int, str]:
        """Return number and hash of the best block."""
        header = await self.call("chain_getHeader")
        number = int(header["number"], 16)
        return number, await self.call("chain_getBlockHash", number)

    async def wait_grown(self, by: int, timeout_s: float = 60.0) -> None:
        """Wait until the best block is that many blocks higher than it is now. Raises TimeoutError."""
        height = (await self.best())[0] + by
        async with asyncio.timeout(timeout_s):
            while (await self.best())[0] < height:  # noqa: ASYNC110 - the chain gives no event for it
                await asyncio.sleep(0.05)


class Network:
    """A context manager for the nodes `alice`, `bob` and `full`, with slots of block_time_ms."""

    def __init__(self, *, block_time_ms: int = 2000, runtime: RuntimeName = "base") -> None:
        self._chain_id = f"local{'-moved' if runtime == 'moved' else ''}:{block_time_ms}"
        self.block_time_ms = block_time_ms
        self.nodes = {name: NetworkNode(name) for name in ("alice", "bob", "full")}

    @property
    def alice(self) -> NetworkNode:
        """The first authority."""
        return self.nodes["alice"]

    @property
    def bob(self) -> NetworkNode:
        """The second authority; without it nothing is finalized."""
        return self.nodes["bob"]

    @property
    def full(self) -> NetworkNode:
        """The full node, which makes no blocks."""
        return self.nodes["full"]

    @property
    def genesis_hash(self) -> str:
        """The genesis block's hash, the same on all nodes."""
        return self.alice.genesis_hash

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(self._start(node) for node in self.nodes.values()))
            await self._connected()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _start(self, node: NetworkNode) -> None:
        others = [other.address for other in self.nodes.values() if other is not node]
        await asyncio.to_thread(node.start_now, self._chain_id, others)

    async def _stop(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))

    async def part(self, *names: str) -> None:
        """Disconnect these nodes from the rest; they stay connected to each other."""
        apart = [self.nodes[name] for name in names]
        rest = [node for node in self.nodes.values() if node not in apart]
        for here, there in itertools.product(apart, rest):
            await here.call("system_removeReservedPeer", there.peer_id)
            await there.call("system_removeReservedPeer", here.peer_id)

        def parted() -> bool:
            return all(len(node.rpc("system_peers")) == len(side) - 1 for side in (apart, rest) for node in side)

        await self._wait(parted, "the network did not part")

    async def heal(self) -> None:
        """Connect every node to every other."""
        for here, there in itertools.permutations(self.nodes.values(), 2):
            await here.call("system_addReservedPeer", there.address)
        await self._connected()

    async def _connected(self) -> None:
        def healed() -> bool:
            return all(len(node.rpc("system_peers")) == len(self.nodes) - 1 for node in self.nodes.values())

        await self._wait(healed, "the nodes did not find each other")

    async def restart(self, name: str) -> None:
        """Start a killed node again, with its data and its port, and connect it."""
        await self._start(self.nodes[name])
        await self._connected()

    async def _wait(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PEER_TIMEOUT_S
        while not await asyncio.to_thread(reached):
            if time.monotonic() > deadline:
                raise DevnetError(f"{what} within {PEER_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.2)
