"""The reference node's life: lock the data, find or fetch the keys, serve, end gracefully.

What it owes until it hears ``commit``: no new application keys and no irreversible change of the data's format. It makes
keys exactly once in the life of a data folder: at a first install into an empty one.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import os
import pkgutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from devnet.reference_node.app import NodeState, make_app
from devnet.reference_node.objects import KeySet, NodeError, ObjectStore, write_durably

log = logging.getLogger("reference_node")

POLICY_RESOURCE = "node_policy.json"
ASK_AGAIN_S = 0.25
ASK_AGAIN_MAX_S = 3.0
SHUTDOWN_S = 5.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What is measured into the image beside the code: whom the node trusts, and which version it is."""

    version: str
    network_keys: tuple[str, ...]
    threshold: int
    genesis_hash: str
    features: frozenset[str]
    unsafe_simulated_tee: bool
    does_not_start: bool
    crash_after_s: float | None
    format_tag: str

    @classmethod
    def load(cls) -> Policy:
        """Read it out of the image that is running."""
        data = pkgutil.get_data("devnet.reference_node", POLICY_RESOURCE)
        if data is None:
            raise NodeError("NODE_POLICY_MISSING", "the image holds no policy")
        fields: dict[str, Any] = json.loads(data)
        return cls(
            **{
                **fields,
                "network_keys": tuple(fields["network_keys"]),
                "features": frozenset(fields["features"]),
            }
        )


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reference-node", description="Reference DCNode (development).")
    parser.add_argument("--data", type=Path, required=True, help="data folder; one node at a time works on it")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--upgrader", required=True, help="URL of the key vault")
    parser.add_argument("--network-signature-file", type=Path, required=True)
    parser.add_argument("--first-install", action="store_true", help="make keys: the folder is empty and new")
    return parser.parse_args(argv)


class DataLock:
    """flock on the data folder for the life of the process: never two nodes at work on the same data."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise NodeError("NODE_DATA_LOCKED", f"another node is at work on {folder}") from None

    def close(self) -> None:
        """Let go; the next node may start."""
        os.close(self._descriptor)


class Node:
    """One run of the node on one data folder, under the lock."""

    def __init__(self, policy: Policy, arguments: argparse.Namespace, driver: TeeDriver) -> None:
        self._policy = policy
        self._data: Path = arguments.data
        self._arguments = arguments
        self._driver = driver
        enclave_id = driver.self_report().mrenclave.hex()
        self.state = NodeState(enclave_id, policy.version, driver.kind, policy.features)
        self._marker = self._data / "keyset.json"
        self._commits = self._data / "commits"
        self._commits.mkdir(mode=0o700, exist_ok=True)
        self.state.committed = (self._commits / enclave_id).is_file()
        self._party = NodeParty.of(policy, driver, arguments.network_signature_file.read_text())
        self._sealed = SealedStore.open(self._data / "sealed", driver, unsafe_simulated_tee=policy.unsafe_simulated_tee)

    async def commit(self) -> None:
        """Remember durably that the operator's side let go of the predecessor."""
        if not self.state.committed:
            await asyncio.to_thread(write_durably, self._commits / self.state.enclave_id, b"committed\n")
            self.state.committed = True
            log.info("committed: this version may now change keys and formats")
