"""The two enclaves of ``bench_handover``: their sources go into measured images."""

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.network import NetworkKeys
from attestation.sgx import seal_key_request
from attestation.tee.driver import TeeDriver
from attestation.tee.open import open_driver
from keyvault.handover.guarded_server import GuardedServer
from keyvault.handover.hpke import RealCrypto
from keyvault.handover.http_server import add_handover_routes, new_app
from keyvault.handover.key_set import KeySet
from keyvault.node import NodeHandover, NodePolicy, node_party, request_key_set
from keyvault.store.disk import FolderDisk
from keyvault.store.sealed_file import KIND_KEY_SET
from keyvault.store.sealed_store import SealedStore

GENESIS = bytes([0x11]) * 32


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def holder() -> int:
    async def serve() -> None:
        key, signature = sys.argv[1:3]
        secret = os.urandom(64)
        policy = NodePolicy(NetworkKeys.parse([key]), GENESIS)
        app = new_app()
        add_handover_routes(app, NodeHandover(open_driver(), policy, bytes.fromhex(signature), lambda: KeySet(secret)))
        say(port=await GuardedServer(app).start("127.0.0.1", 0))
        await asyncio.Event().wait()

    asyncio.run(serve())
    return 0


def primitives(tee: TeeDriver, keys: NetworkKeys, signature: bytes) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name -> how often a handover needs it on both sides together, and the call."""
    crypto = RealCrypto()
    private, public = crypto.kem_generate()
    info, plaintext = bytes(32), bytearray(96)
    ciphertext = crypto.kem_seal(public, info, plaintext)
    own = tee.self_report()
    target, data = tee.target_info(), bytes(64)
    report = tee.report(target, data)
    request = seal_key_request(own, os.urandom(32))
    gcm = AESGCM(os.urandom(32))
    sealed = gcm.encrypt(bytes(12), bytes(64), bytes(652))
    return {
        "KEM key pair": (1, lambda: crypto.kem_generate()),
        "HPKE seal": (1, lambda: crypto.kem_seal(public, info, plaintext)),
        "HPKE open": (1, lambda: crypto.kem_open(private, info, ciphertext)),
        "ed25519 verify": (2, lambda: keys.verify(own.enclave_id, [signature])),
        "report by the TEE": (4, lambda: tee.report(target, data)),
        "report verified": (4, lambda: tee.verify(report)),
        "seal key from the TEE": (2, lambda: tee.seal_key(request)),
        "AES-GCM seal": (1, lambda: gcm.encrypt(bytes(12), bytes(64), bytes(652))),
        "AES-GCM open": (1, lambda: gcm.decrypt(bytes(12), sealed, bytes(652))),
        "HMAC": (2, lambda: crypto.mac(info, data)),
    }


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def requester() -> int:
    async def ask() -> None:
        key, signature, url, folder, rounds, into = sys.argv[1:7]
        tee = open_driver()
        keys = NetworkKeys.parse([key])
        party = node_party(tee, NodePolicy(keys, GENESIS), [bytes.fromhex(signature)])

        def sealing_to(store: SealedStore) -> Callable[[KeySet], Awaitable[bool]]:
            async def seal(key_set: KeySet) -> bool:
                await asyncio.to_thread(store.put, KIND_KEY_SET, key_set.key_set_id, bytes(32), key_set.view())
                return True

            return seal

        calls = primitives(tee, keys, bytes.fromhex(signature))
        alone: dict[str, list[float]] = {name: [] for name in calls}
        times = []
        async with aiohttp.ClientSession() as session:
            for number in range(int(rounds)):
                if number == 0 or into == "empty":
                    disk = FolderDisk(Path(folder) / str(number))
                    seal = sealing_to(SealedStore(disk, tee, os.urandom, allow_simulated=True))
                began = time.perf_counter()
                (await request_key_set(session, url, party, seal)).wipe()
                times.append((time.perf_counter() - began) * 1000)
                if into == "empty":
                    disk.close()
                for name, (_, call) in calls.items():
                    alone[name].append(timed(call))
        each = {f"primitive {n} x {name}": n * statistics.median(alone[name]) for name, (n, _) in calls.items()}
        times.sort()
        say(
            handover_median_ms=statistics.median(times),
            handover_p90_ms=times[int(len(times) * 0.9)],
            primitives_ms=sum(each.values()),
            **each,
        )

    asyncio.run(ask())
    return 0
