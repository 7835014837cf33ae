"""A node with nothing but the handover, for trials of the vault. Its image also has attestation and keyvault.

Arguments: folder, port, upgrader URL, network key (hex), genesis (hex), network signature (hex), upgrader ids, and
"make" (a first node, keys may follow), "ask" (asks the upgrader for its keys) or "ask-v1" (the same over handover v1).
Prints one JSON line when it has keys.
"""

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path

import aiohttp

from attestation.network import NetworkKeys
from attestation.tee.driver import TeeDriver
from attestation.tee.open import open_driver
from keyvault.errors import KeyvaultError
from keyvault.handover.guarded_server import GuardedServer
from keyvault.handover.http_server import add_handover_routes, new_app
from keyvault.handover.key_set import KeySet
from keyvault.handover.v1_http import fetch_key_set_v1
from keyvault.node import NodeHandover, NodePolicy, node_party, request_keys
from keyvault.store.disk import FolderDisk
from keyvault.store.sealed_file import KIND_KEY_SET
from keyvault.store.sealed_store import SealedStore

VERSION = "unset"  # each image says another version, so that each has another enclave id


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 - the trial reads it


async def request_v1(
    session: aiohttp.ClientSession, upgrader: str, tee: TeeDriver, policy: NodePolicy, signed: bytes
) -> bytes:
    """Ask over v1 until keys arrive, as nodes in the field do. Retry temporary failures; a refusal ends it."""
    party = node_party(tee, policy, [signed])
    while True:
        try:
            with await fetch_key_set_v1(session, upgrader, party) as key_set:
                return bytes(key_set.view())
        except KeyvaultError as error:
            if error.kind != "transient":
                raise
            say(event="again", code=error.code)
            await asyncio.sleep(0.2)


async def run() -> int:
    folder, port, upgrader, key, genesis, signature, ids, mode = sys.argv[1:9]
    tee = open_driver()
    upgraders = frozenset(ids.split(",")) if ids else None
    policy = NodePolicy(NetworkKeys.parse([key]), bytes.fromhex(genesis), upgraders)
    store = SealedStore(FolderDisk(Path(folder)), tee, os.urandom, allow_simulated=True)
    held: list[KeySet] = []

    async def seal(data: bytes) -> bool:
        key_set = KeySet(data)
        store.put(KIND_KEY_SET, key_set.key_set_id, bytes(32), key_set.view())
        return True

    app = new_app()
    signed = bytes.fromhex(signature)
    add_handover_routes(app, NodeHandover(tee, policy, signed, lambda: KeySet(held[0].view()) if held else None))
    server = GuardedServer(app)
    bound = await server.start("127.0.0.1", int(port))
    say(event="listening", port=bound, version=VERSION)
    if mode.startswith("make"):  # "make:<hex>" gives a trial keys that it can look for afterwards
        held.append(KeySet(bytes.fromhex(mode[5:]) or os.urandom(64)))
    else:
        async with aiohttp.ClientSession() as session:
            try:
                if mode == "ask-v1":
                    data = await request_v1(session, upgrader, tee, policy, signed)
                else:
                    data = await request_keys(session, upgrader, tee, policy, signed, seal, deadline_s=20)
            except Exception as error:
                say(event="refused", code=getattr(error, "code", type(error).__name__))
                return 3
            held.append(KeySet(data))
    say(event="keys", key_set_id=held[0].key_set_id, digest=hashlib.sha256(held[0].view()).hexdigest())
    await asyncio.Event().wait()
    return 0


def main() -> int:
    return asyncio.run(run())
