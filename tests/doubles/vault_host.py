"""A vault and nodes in the test's own process, over real HTTP on loopback and software enclaves."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from attestation.network import encode_multibase
from attestation.simulated.cpu import SoftwareCpu
from keyvault.client import VaultClient
from keyvault.errors import KeyvaultError
from keyvault.handover.guarded_server import GuardedServer
from keyvault.handover.holder import Limits
from keyvault.handover.hpke import RealCrypto
from keyvault.handover.http_server import add_handover_routes, new_app
from keyvault.handover.key_set import KeySet, key_set_id
from keyvault.node import NodeHandover, NodePolicy
from keyvault.store.sealed_file import KIND_KEY_SET
from keyvault.store.sealed_store import SealedStore
from keyvault.vault.agent_api import vault_app
from keyvault.vault.measured_policy import VaultPolicy, parse_policy
from keyvault.vault.vault import Clocks, Vault

from .crash_disk import CrashDisk
from .vault_kit import CPU, GENESIS, KEYS, NETWORK, SECRET, CpuTee, enclave_id, secs, sign, signature_text

TOKEN = "a-token-of-the-agent"
NOW = 1_700_000_000
OLD, NEW, VAULT = enclave_id("node 1"), enclave_id("node 2"), enclave_id("vault")
KEYS_ID = key_set_id(SECRET)
LISTED = {OLD: 3, NEW: 7, VAULT: 1}


@dataclass
class Clock:
    unix_s: float = float(NOW)
    monotonic_s: float = 1000.0

    def clocks(self) -> Clocks:
        return Clocks(lambda: self.unix_s, lambda: self.monotonic_s)


def policy_text(**fields: Any) -> bytes:
    """Return a policy file that accepts unproven evidence."""
    value = {
        "network_keys": [encode_multibase(NETWORK.public_key().public_bytes_raw())],
        "genesis_hash": GENESIS.hex(),
        "evidence_mode": "single",
        "unsafe_unproven_evidence": True,
        "unsafe_simulated_tee": True,
        "require_listed_vault": False,
        "retention_s": 100,
        **fields,
    }
    return json.dumps(value).encode()


def policy(**fields: Any) -> VaultPolicy:
    return parse_policy(policy_text(**fields))


def evidence(target: str, listed: dict[str, int], block: int = 10, **fields: Any) -> dict[str, Any]:
    return {
        "mode": "single",
        "genesis_hash": GENESIS.hex(),
        "block_number": block,
        "block_hash": f"{block:064x}",
        "timestamp_ms": NOW * 1000,
        "program": {"enclave_id": target, "version": "2", "origin_url": "", "mirror_url": ""},
        "enclave_ids": [
            {"height": height, "enclave_id": name, "signature": signature_text(name)} for name, height in listed.items()
        ],
        **fields,
    }


@dataclass
class Host:
    """The parts that survive a restart of the vault: disk, clock, policy."""

    disk: CrashDisk = field(default_factory=CrashDisk)
    clock: Clock = field(default_factory=Clock)
    policy: VaultPolicy = field(default_factory=policy)
    name: str = "vault"
    limits: Limits | None = None
    signed: bytes | None = None
    cpu: SoftwareCpu = CPU

    def vault(self) -> Vault:
        tee = CpuTee(secs(self.name), self.cpu)
        store = SealedStore(self.disk, tee, os.urandom, allow_simulated=True)
        signature = self.signed if self.signed is not None else sign(enclave_id(self.name))
        made = Vault(tee, self.policy, store, RealCrypto(), (signature,), self.clock.clocks(), self.limits)
        made.start()
        return made


@asynccontextmanager
async def serving(vault: Vault) -> AsyncIterator[VaultClient]:
    server = GuardedServer(vault_app(vault, TOKEN, {"hygiene": {}}))
    port = await server.start("127.0.0.1", 0)
    async with VaultClient(f"http://127.0.0.1:{port}", TOKEN) as client:
        try:
            yield client
        finally:
            await server.stop()


def base_url(client: VaultClient) -> str:
    return client._base_url


@asynccontextmanager
async def node_serving(
    name: str,
    secret: bytes | None = SECRET,
    upgraders: frozenset[str] | None = None,
    is_listed: Callable[[str], bool] | None = None,
) -> AsyncIterator[tuple[str, NodeHandover]]:
    """A node that hands its keys to its upgraders (None: any signed enclave); its address and its handover."""
    node_policy = NodePolicy(KEYS, GENESIS, upgraders, is_listed=is_listed)
    keys = (lambda: KeySet(secret)) if secret is not None else (lambda: None)
    handover = NodeHandover(CpuTee(secs(name)), node_policy, sign(enclave_id(name)), keys)
    app = new_app()
    add_handover_routes(app, handover)
    server = GuardedServer(app)
    port = await server.start("127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{port}", handover
    finally:
        await server.stop()


@dataclass
class NewNode:
    """The requesting side of a node with its own sealed store."""

    name: str
    disk: CrashDisk = field(default_factory=CrashDisk)
    signed: bytes | None = None
    upgraders: frozenset[str] | None = None

    async def ask(self, url: str, **more: Any) -> bytes:
        from keyvault.node import request_keys

        tee = CpuTee(secs(self.name))
        store = SealedStore(self.disk, tee, os.urandom, allow_simulated=True)

        async def seal(data: bytes) -> bool:
            key_set = KeySet(data)
            store.put(KIND_KEY_SET, key_set.key_set_id, bytes(32), data)
            return True

        signature = self.signed if self.signed is not None else sign(enclave_id(self.name))
        async with aiohttp.ClientSession() as session:
            node_policy = NodePolicy(KEYS, GENESIS, self.upgraders)
            return await request_keys(session, url, tee, node_policy, signature, seal, **{"deadline_s": 0.0, **more})


async def settle() -> None:
    await asyncio.sleep(0)


async def refused(call: Any) -> str:
    try:
        await call
    except KeyvaultError as error:
        return error.code
    return "nothing was refused"


async def collect(client: VaultClient, **more: Any) -> dict[str, Any]:
    async with node_serving("node 1") as (url, _):
        return await client.collect(url, OLD, **more)


async def permit(client: VaultClient, **fields: Any) -> dict[str, Any]:
    return await client.permit(OLD, NEW, KEYS_ID, evidence(NEW, LISTED, **fields))


async def hand_over(client: VaultClient) -> None:
    """Bring the key set from node 1 to node 2, until it is durable there."""
    await collect(client)
    await permit(client)
    await NewNode("node 2").ask(base_url(client))
