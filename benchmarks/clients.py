"""Clients of one node as child processes: our watcher in each mode, a bare client, and the peers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chain_watcher.watch.operator_queries import find_checkpoint
from devnet.chain import DevChain

from . import peer_clients

OWN = str(Path(__file__).with_name("own_clients.py"))
READY_S = 120
_BYTECODE = tempfile.TemporaryDirectory(prefix="bench-bytecode-")  # removed when this process ends


def _environment(bytecode: str) -> dict[str, str]:
    """Return an environment in which clients in Python start from bytecode, as installed programs do."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": bytecode}


class Client:
    """A child that prints lines of JSON; `lines` keeps all of them."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, command: list[str]) -> Client:
        """Start it."""
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        return cls(
            await asyncio.create_subprocess_exec(
                *command, stdin=null, stdout=pipe, stderr=null, env=_environment(_BYTECODE.name)
            )
        )

    @classmethod
    async def start_ready(cls, command: list[str]) -> Client:
        """Start it and wait until it says that it is ready. Raises TimeoutError."""
        client = await cls.start(command)
        try:
            async with asyncio.timeout(READY_S):
                await client.find(lambda _: True)
        except BaseException:
            await client.stop()
            raise
        return client

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._news:
                with contextlib.suppress(ValueError):
                    self.lines.append(json.loads(line))
                self._news.notify_all()

    async def find(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line of that kind, once it is there."""
        async with self._news:
            while True:
                for line in self.lines:
                    if wanted(line):
                        return line
                await self._news.wait()

    async def stop(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        self._reading.cancel()


async def watcher_commands(chain: DevChain) -> dict[str, list[str]]:
    """The watcher in each mode; the node's URL, the chain's facts and a file of layouts are appended."""
    checkpoint = (await find_checkpoint([chain.ws_url])).checkpoint.to_json()
    facts = {"proven": checkpoint, "quorum": None, "single": None}
    return {
        f"watcher, mode {mode}": [
            *(sys.executable, OWN, "watcher", mode, chain.ws_url),
            json.dumps([chain.genesis_hash, known]),
        ]
        for mode, known in facts.items()
    }


def other_commands(url: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The bare client and the peers, and why other peers are missing."""
    found, missing = peer_clients.commands()
    bare = [sys.executable, OWN, "bare"]
    return {name: [*command, url] for name, command in {"bare aiohttp": bare, **found}.items()}, dict(missing)
