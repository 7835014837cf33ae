"""Two authorities and a full node on loopback: finality that can be stalled, and forks that can be made and dropped.

    async with Network() as network:
        watch(network.full.ws_url)
        network.bob.pause()          # one of two authorities: no block is finalized
        network.bob.resume()
        await network.part("bob", "full")   # two networks, each with one author and without finality
        await network.heal()                # the shorter branch is dropped

All nodes are `--reserved-only`, so who is connected to whom is decided here alone.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from devnet.chain import ChainProcess, RuntimeName
from devnet.node_process import spawn_node
from devnet.tools import DevnetError

PEER_TIMEOUT_S = 60.0


class NetworkNode(ChainProcess):
    """One node of the network: `alice` and `bob` are authorities, any other name is a full node."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.address = ""
        self._chain_id = ""

    def start_now(self, chain_id: str) -> None:
        """Starts the node, blocking; a stopped one starts again with the data and the RPC port it had."""
        role = [f"--{self.name}", "--validator", "--force-authoring"] if self.name in ("alice", "bob") else []
        listen = ["--listen-addr", "/ip4/127.0.0.1/tcp/0", "--reserved-only"]
        # An authority refuses to make its network key by itself unless it is told to.
        key = ["--unsafe-force-node-key-generation"] if role else []
        spawn_node(self, ["--chain", chain_id, *role, *listen, *key], port=self.port)
        self._chain_id = chain_id
        peer_id = self.rpc("system_localPeerId")
        addresses = self.rpc("system_localListenAddresses")
        [address] = {text.split("/p2p/")[0] for text in addresses if "/ip4/127.0.0.1/tcp/" in text}
        self.address = f"{address}/p2p/{peer_id}"

    def pause(self) -> None:
        """Stops the process where it is (SIGSTOP); its connections stay open and fall silent."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Ends the process without any farewell; `restart` starts it again."""
        os.kill(self.pid, signal.SIGKILL)
        self._running().wait()

    def stop_now(self) -> None:
        """Ends the node, a paused one too."""
        if self.is_running():
            with contextlib.suppress(DevnetError):
                self.resume()
        super().stop_now()

    @property
    def peer_id(self) -> str:
        """The node's id in the peer-to-peer network."""
        return self.address.rsplit("/", 1)[1]

    async def best(self) -> tuple[int, str]:
        """Number and hash of the best block."""
        header = await self.call("chain_getHeader")
        number = int(header["number"], 16)
        return number, await self.call("chain_getBlockHash", number)


class Network:
    """A context manager over nodes `alice`, `bob` and `full`; slots of block_time_ms."""

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
        """A node that follows and does not author."""
        return self.nodes["full"]

    @property
    def genesis_hash(self) -> str:
        """The genesis block's hash, the same on all nodes."""
        return self.alice.genesis_hash

    async def __aenter__(self) -> Self:
        try:
            starts = (asyncio.to_thread(node.start_now, self._chain_id) for node in self.nodes.values())
            await asyncio.gather(*starts)
            await self.heal()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))

    async def part(self, *names: str) -> None:
        """Cuts these nodes, which stay connected to each other, off from the rest."""
        apart = [self.nodes[name] for name in names]
        rest = [node for node in self.nodes.values() if node not in apart]
        for here, there in itertools.product(apart, rest):
            await here.call("system_removeReservedPeer", there.peer_id)
            await there.call("system_removeReservedPeer", here.peer_id)

        def parted() -> bool:
            return all(len(node.rpc("system_peers")) == len(side) - 1 for side in (apart, rest) for node in side)

        await self._wait(parted, "the network did not part")

    async def heal(self) -> None:
        """Connects every node to every other."""
        for here, there in itertools.permutations(self.nodes.values(), 2):
            await here.call("system_addReservedPeer", there.address)

        def healed() -> bool:
            return all(len(node.rpc("system_peers")) == len(self.nodes) - 1 for node in self.nodes.values())

        await self._wait(healed, "the nodes did not find each other")

    async def restart(self, name: str) -> None:
        """Starts a killed node again, with its data and its port, and connects it."""
        await asyncio.to_thread(self.nodes[name].start_now, self._chain_id)
        await self.heal()

    async def _wait(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PEER_TIMEOUT_S
        while not await asyncio.to_thread(reached):
            if time.monotonic() > deadline:
                raise DevnetError(f"{what} within {PEER_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.2)
