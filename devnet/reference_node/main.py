"""The reference node's run: lock the data, unseal or request the keys, serve, end gracefully.

Before `commit` it makes no new application keys and no irreversible change of the data's format. It makes keys exactly
once for a data folder: at a first install, in an empty folder.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import os
import pkgutil
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from attestation.errors import AttestationError
from attestation.network import NetworkKeys, decode_multibase
from attestation.tee.driver import TeeDriver
from attestation.tee.open import open_driver
from keyvault.errors import KeyvaultError
from keyvault.handover.guarded_server import GuardedServer
from keyvault.handover.http_server import add_handover_routes, new_app
from keyvault.handover.key_set import KeySet as HandoverKeySet
from keyvault.handover.party import Party
from keyvault.handover.v1 import V1Holder
from keyvault.handover.v1_http import add_v1_routes, fetch_key_set_v1
from keyvault.node import NodeHandover, NodePolicy, node_party, request_keys
from keyvault.store.disk import FolderDisk
from keyvault.store.sealed_file import KIND_KEY_SET
from keyvault.store.sealed_store import SealedStore
from keyvault.vault.hygiene import harden_process

from .app import NodeState, add_broken_handover_routes, add_field_routes, add_node_routes
from .objects import KeySet, NodeError, ObjectStore, write_durably
from .old_copies import Versions, remove_old_copies

log = logging.getLogger("reference_node")

POLICY_RESOURCE = "node_policy.json"
ASK_FOR_KEYS_S = 24 * 3600.0
ASK_AGAIN_V1_S = 0.3
SHUTDOWN_S = 5.0
EXIT_REFUSED = 2
EXIT_DOES_NOT_START = 3
EXIT_CRASH = 70


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy that is measured with the code: whom the node trusts, and its version."""

    version: str
    network_keys: tuple[str, ...]
    threshold: int
    genesis_hash: str
    features: frozenset[str]
    unsafe_simulated_tee: bool
    does_not_start: bool
    crash_after_s: float | None
    format_tag: str
    handover: str
    upgrader_ids: frozenset[str] | None
    handover_fault: str | None

    @classmethod
    def load(cls) -> Policy:
        """Read it from the running image."""
        data = pkgutil.get_data("devnet.reference_node", POLICY_RESOURCE)
        if data is None:
            raise NodeError("NODE_POLICY_MISSING", "the image holds no policy")
        fields: dict[str, Any] = json.loads(data)
        return cls(
            **{
                **fields,
                "network_keys": tuple(fields["network_keys"]),
                "features": frozenset(fields["features"]),
                "upgrader_ids": None if fields["upgrader_ids"] is None else frozenset(fields["upgrader_ids"]),
            }
        )

    def of_handover(self, is_listed: Callable[[str], bool] | None) -> NodePolicy:
        """The node's acceptance policy for its upgrader."""
        keys = NetworkKeys.parse(self.network_keys, self.threshold)
        genesis_hash = bytes.fromhex(self.genesis_hash.removeprefix("0x"))
        return NodePolicy(keys, genesis_hash, self.upgrader_ids, is_listed=is_listed)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reference-node", description="Reference DCNode (development).")
    parser.add_argument("--data", type=Path, required=True, help="data folder; one node at a time works on it")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--upgrader", required=True, help="URL of the key vault")
    parser.add_argument("--network-signature-file", type=Path, required=True)
    parser.add_argument(
        "--enclave-list", type=Path, help="enclave ids in the chain's list, one a line: stands for following the chain"
    )
    parser.add_argument("--first-install", action="store_true", help="make keys: the folder is empty and new")
    return parser.parse_args(argv)


class DataLock:
    """A flock on the data folder while the process runs, so that two nodes never use the same data."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise NodeError("NODE_DATA_LOCKED", f"another node is at work on {folder}") from None

    def close(self) -> None:
        """Release the lock; the next node may start."""
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
        self._keys: KeySet | None = None
        text = arguments.network_signature_file.read_text("ascii")
        self._signatures = tuple(decode_multibase(line) for line in text.split())
        self._handover = policy.of_handover(self._is_listed if arguments.enclave_list else None)
        self._sealed = SealedStore(
            FolderDisk(self._data / "sealed"), driver, secrets.token_bytes, allow_simulated=policy.unsafe_simulated_tee
        )

    def _is_listed(self, enclave_id: str) -> bool:
        """Tell whether the chain lists the id. A real node uses its own view of the chain, which no host can alter."""
        return enclave_id in self._arguments.enclave_list.read_text("ascii").split()

    async def commit(self) -> None:
        """Store durably that there is no way back to the predecessor."""
        if not self.state.committed:
            await asyncio.to_thread(write_durably, self._commits / self.state.enclave_id, b"committed\n")
            self.state.committed = True
            log.info("committed: this version may now change keys and formats")
        await asyncio.to_thread(self.tidy)

    def tidy(self) -> None:
        """Remove files of older versions. Does nothing unless this version is committed and its own copy opens."""
        if not self.state.committed or self._keys is None:
            return
        try:
            proven = self.own_keys()
            if proven is not None and proven.id == self._keys.id:
                for enclave_id in remove_old_copies(self._data, self.state.enclave_id, proven.id):
                    log.info("removed the sealed copy of %s: it cannot be gone back to", enclave_id)
        except (NodeError, KeyvaultError, AttestationError, OSError) as error:
            log.warning("copies of older versions stay: %s", error)

    def marked(self) -> str | None:
        """Return the id of the data's key set, or None if no version ever had keys."""
        try:
            return str(json.loads(self._marker.read_bytes())["key_set_id"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise NodeError("NODE_MARKER_UNREADABLE", f"{self._marker} is damaged; restore it from a backup") from None

    def own_keys(self) -> KeySet | None:
        """Return the key set that this enclave sealed, or None."""
        marked = self.marked()
        mine = {entry.header.name.hex() for entry in self._sealed.entries() if entry.header and not entry.problem}
        if marked is not None:
            mine &= {marked}
        if not mine:
            return None
        if len(mine) > 1:
            raise NodeError("NODE_KEY_SET_MISMATCH", "there are several sealed key sets and no marker to choose by")
        return KeySet(bytes(self._sealed.get(KIND_KEY_SET, mine.pop()).payload))

    def make_keys(self) -> KeySet:
        """First install: generate keys. Raises NODE_FIRST_INSTALL_REFUSED if there is data or a mark of a key set."""
        objects = self._data / "objects"
        used = (self._data / "canary.json").exists() or (objects.is_dir() and any(objects.iterdir()))
        if used or self.marked() is not None or self._sealed.entries():
            raise NodeError("NODE_FIRST_INSTALL_REFUSED", f"{self._data} is not empty; new keys read nothing")
        keys = KeySet.draw()
        self.seal(keys)
        return keys

    def seal(self, keys: KeySet) -> None:
        """Seal to this enclave. Returns after the copy was read back from disk and unsealed."""
        Versions(self._data).put_last(self.state.enclave_id)
        self._sealed.put(KIND_KEY_SET, keys.id, bytes.fromhex(self.state.enclave_id), keys.encoded)

    def open_data(self, keys: KeySet) -> None:
        """Serve with these keys. Raises NODE_CANARY_UNREADABLE, without having changed the data."""
        store = ObjectStore(self._data, keys, self._policy.format_tag.encode())
        marked = self.marked()
        if marked is None and store.is_empty():
            store.write_canary(self._policy.version)
        self.state.store = store
        # Data whose marker was lost keeps its canary: a new one would decrypt under the wrong keys.
        if not store.canary_sings():
            raise NodeError("NODE_CANARY_UNREADABLE", "the canary record does not decrypt in this version")
        if marked is None:
            write_durably(self._marker, json.dumps({"key_set_id": keys.id}).encode())

    def serve(self, keys: KeySet) -> None:
        """Report that the node serves."""
        try:
            Versions(self._data).put_last(self.state.enclave_id)
        except OSError as error:
            log.warning("not noted as the version that serves: %s", error)
        self._keys = keys
        self.state.key_set_id, self.state.status = keys.id, "serving"
        log.info("serving as %s, version %s, key set %s", self.state.enclave_id, self.state.version, keys.id)
        if self._policy.crash_after_s is not None:
            asyncio.get_running_loop().call_later(self._policy.crash_after_s, os._exit, EXIT_CRASH)

    def add_handover(self, app: web.Application) -> None:
        """Return the holder's side, which hands the keys to an upgrader that the network signed."""
        if self._policy.handover_fault is not None:
            add_broken_handover_routes(app, self._policy.handover_fault)
        elif self._policy.handover == "v1":
            add_v1_routes(app, _V1(self.party(), self._handover, self._held))
        else:
            add_handover_routes(
                app,
                NodeHandover(
                    self._driver,
                    self._handover,
                    self._signatures,
                    lambda: self._held() if self._keys else None,
                ),
            )

    def party(self) -> Party:
        """Return this node's side of a handover."""
        return node_party(self._driver, self._handover, self._signatures)

    def _held(self) -> HandoverKeySet:
        if self._keys is None:
            raise KeyvaultError(
                code="HANDOVER_NOTHING_HELD",
                what="no keys were handed over",
                why="this node has none",
                kind="transient",
            )
        return HandoverKeySet(self._keys.encoded)

    async def _receive(self, data: bytes) -> bool:
        """Seal, read back, unseal, decrypt the canary: everything that `durable` confirms."""
        keys = KeySet(data)
        self.seal(keys)
        self.open_data(keys)
        return True

    async def _ask_for_keys(self) -> KeySet:
        self.state.status = "waiting_for_keys"
        log.info("no key set sealed to %s: asking %s", self.state.enclave_id, self._arguments.upgrader)
        upgrader = self._arguments.upgrader.rstrip("/")
        async with aiohttp.ClientSession() as session:
            if self._policy.handover == "v1":
                return await self._ask_over_v1(session, upgrader)
            data = await request_keys(
                session,
                upgrader,
                self._driver,
                self._handover,
                self._signatures,
                self._receive,
                wanted=self.marked() or "",
                deadline_s=ASK_FOR_KEYS_S,
            )
        return KeySet(data)

    async def _ask_over_v1(self, session: aiohttp.ClientSession, upgrader: str) -> KeySet:
        """Do as nodes in the field: ask until keys arrive, seal them, and restart once. v1 has no confirmation."""
        while True:
            try:
                with await fetch_key_set_v1(session, upgrader, self.party()) as received:
                    await self._receive(bytes(received.view()))
                    log.info("keys sealed; restarting, as nodes of handover v1 do")
                    raise _RestartError
            except KeyvaultError as error:
                if error.kind != "transient":
                    raise
            await asyncio.sleep(ASK_AGAIN_V1_S)

    async def bring_up(self) -> None:
        """Run the start-up sequence until the node serves. `/health` reports what prevents it."""
        try:
            keys = self.own_keys()
            if keys is None and self._arguments.first_install:
                keys = self.make_keys()
            if keys is not None:
                self.open_data(keys)
            else:
                keys = await self._ask_for_keys()
            self.serve(keys)
        except NodeError as error:
            self._failed(error)
        except (KeyvaultError, AttestationError) as error:
            self._failed(NodeError(error.code, f"{error.what}: {error.why}"))
        except OSError as error:
            self._failed(NodeError("NODE_DISK_FAILED", str(error)))

    def _failed(self, error: NodeError) -> None:
        log.error("%s", error)
        self.state.fail(error)


class _RestartError(Exception):
    """End a v1 node after it sealed the received keys; its supervisor starts it again."""


class _V1:
    """The holder's side of handover v1 (`keyvault.handover.v1_http.V1Port`)."""

    def __init__(self, party: Party, policy: NodePolicy, held: Callable[[], HandoverKeySet]) -> None:
        self._holder = V1Holder(party, policy.network)
        self._policy = policy
        self._held = held

    async def v1_challenge(self, query: Mapping[str, str]) -> bytes:
        """Answer `/teerandom`."""
        return self._holder.challenge(query, now_s=time.monotonic())

    async def v1_answer(self, query: Mapping[str, str]) -> bytes:
        """Answer `/secret`."""
        return self._holder.answer(query, self.hand_out, now_s=time.monotonic())

    def hand_out(self, requester_id: str) -> HandoverKeySet:
        """Return the key set, for an upgrader that the network signed."""
        self._policy.require_listed(requester_id)
        return self._held()


async def run(policy: Policy, arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT. Requests in progress are finished first."""
    node = Node(policy, arguments, open_driver())
    app = new_app()
    if policy.handover == "v1":
        add_field_routes(app, node.state)
    else:
        add_node_routes(app, node.state, node.commit)
    node.add_handover(app)
    server = GuardedServer(app, shutdown_timeout_s=SHUTDOWN_S)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        await server.start(arguments.host, arguments.port)
        bring_up = asyncio.create_task(node.bring_up())
        bring_up.add_done_callback(lambda task: ended.set() if not task.cancelled() and task.exception() else None)
        await ended.wait()
        bring_up.cancel()
        (outcome,) = await asyncio.gather(bring_up, return_exceptions=True)
        if isinstance(outcome, Exception) and not isinstance(outcome, _RestartError):
            raise outcome
    finally:
        await server.stop()
    log.info("ended")


def main() -> int:
    """Entry point of the image; returns the exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    policy = Policy.load()
    if policy.does_not_start:
        log.error("this version does not start")
        return EXIT_DOES_NOT_START
    arguments = _arguments(sys.argv[1:])
    harden_process()
    try:
        lock = DataLock(arguments.data)
        try:
            asyncio.run(run(policy, arguments))
        finally:
            lock.close()
    except (NodeError, KeyvaultError, AttestationError, OSError) as error:
        log.error("%s", error)
        return EXIT_REFUSED
    return 0
