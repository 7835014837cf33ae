"""A development chain as a context manager: `with DevChain() as chain: ... chain.ws_url ...`, or `async with`.

Two kinds: `chopsticks` (Node.js; starts in seconds; every block is final at once; no proofs) and `node` (a real
Substrate node of ours: Aura, GRANDPA, proofs; built on first use). Both run the runtime of `devnet/runtime` from the
same genesis, so both have the same genesis hash for the same slot length.

The chain's process ends when its standard input closes. So it ends together with the process that started it, even if
that one is killed.
"""

import asyncio
import json
import os
import select
from pathlib import Path
from typing import Literal, Self

from .chain_process import START_TIMEOUT_S, WASM_FILES, ChainProcess, RuntimeName
from .node_process import spawn_node
from .tools import (
    DEVNET,
    DevnetError,
    ensure_chopsticks,
)

ChainKind = Literal["chopsticks", "node"]


class DevChain(ChainProcess):
    """One chain with one block author.

    kind: "chopsticks" or "node". runtime: "base", or "moved" (other pallet index, five-field DcProgram).
    block_time_ms: length of a slot, even; each slot makes a block. authoring: False (chopsticks only): only `new_block`
    makes blocks. port: 0 for any free one.
    """

    def __init__(
        self,
        kind: ChainKind = "chopsticks",
        *,
        runtime: RuntimeName = "base",
        block_time_ms: int = 1000,
        authoring: bool = True,
        port: int = 0,
        log_path: Path | None = None,
    ) -> None:
        super().__init__(log_path)
        if block_time_ms <= 0 or block_time_ms % 2:
            raise DevnetError(f"block_time_ms is {block_time_ms}; it must be even and positive")
        if kind == "node" and not authoring:
            raise DevnetError("a real node authors its blocks by the clock; authoring=False is for chopsticks")
        self.kind = kind
        self.runtime = runtime
        self.block_time_ms = block_time_ms
        self._authoring = authoring
        self._wanted_port = port

    def __enter__(self) -> Self:
        return self.start_now()

    def __exit__(self, *_: object) -> None:
        self.stop_now()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start_now)

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start_now(self) -> Self:
        """Start the chain and wait until it serves, blocking. Raises DevnetError with the end of its log."""
        try:
            if self.kind == "node":
                self._start_node()
            else:
                self._start_chopsticks()
        except BaseException:
            self.stop_now()
            raise
        return self

    async def new_block(self, count: int = 1) -> str:
        """Make blocks at once (chopsticks only); returns the hash of the last one."""
        block_hash: str = await self.call("dev_newBlock", {"count": count})
        return block_hash

    def _start_chopsticks(self) -> None:
        node, modules = ensure_chopsticks()
        reading, writing = os.pipe()
        options = {
            "wasm": str(WASM_FILES[self.runtime]),
            "preset": "development",
            "slotMs": self.block_time_ms,
            "authoring": self._authoring,
            "host": "127.0.0.1",
            "port": self._wanted_port,
            "reportFd": writing,
        }
        script = DEVNET / "chopsticks" / "devchain.mjs"
        env = {**os.environ, "LOG_LEVEL": os.environ.get("LOG_LEVEL", "warn")}
        try:
            self.spawn([str(node), str(script), str(modules), json.dumps(options)], env, (writing,))
        finally:
            os.close(writing)
        with open(reading, "rb") as report:
            ready, _, _ = select.select([report], [], [], START_TIMEOUT_S)
            line = report.readline() if ready else b""
        if not line:
            raise self._failed(f"Chopsticks did not serve within {START_TIMEOUT_S:.0f} s")
        facts = json.loads(line)
        self.port, self.genesis_hash = facts["port"], facts["genesisHash"]
        if self._wanted_port not in (0, self.port):
            raise DevnetError(f"port {self._wanted_port} is in use")

    def _start_node(self) -> None:
        from .chain import start_dev_node

        start_dev_node(self, self._wanted_port)


def start_dev_node(chain: DevChain, port: int) -> None:
    """Start a node with one authority, //Alice, and no peers."""
    spec = "dev-moved" if chain.runtime == "moved" else "dev"
    listen = ["--listen-addr", "/ip4/127.0.0.1/tcp/0"]
    spawn_node(chain, ["--dev", "--chain", f"{spec}:{chain.block_time_ms}", *listen], port=port)
