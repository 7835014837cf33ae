"""Our own clients of a node, as processes that print what they see in the form that `peer_clients.py` describes.

`watcher MODE URL FACTS [LAYOUTS_FILE]` is the watcher in mode `proven`, `quorum` or `single`; FACTS are the genesis
hash and the checkpoint as JSON. A quorum of two is the same node by two URLs. `bare URL` is a bare aiohttp client
(questions on a socket of their own): it asks on each finalized head for the two values (with a read proof where the
chain gives one), and verifies and decodes them by the watcher's own code. Both verify each release; the peers verify
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIGNING = b"\x07" * 32
"""The seed of the network key that signs the releases of a benchmark."""
NETWORK_KEY = bytes.fromhex("ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c")


def verify(enclave_id: str, signatures: tuple[bytes, ...]) -> None:
    """Raise ValueError unless one signature is the network key's."""
    import ed25519_zebra

    if not any(ed25519_zebra.ed_verify(one, enclave_id.encode(), NETWORK_KEY) for one in signatures):
        raise ValueError("no good signature")


def say(**facts: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps(facts), flush=True)


async def bare(url: str) -> None:
    """Follow finalized heads by a bare client, indefinitely."""
    import aiohttp

    from chain_watcher.endpoints.rpc import RpcClient, RpcLimits
    from chain_watcher.proof.header import Header
    from chain_watcher.proof.layout import standard_layout
    from chain_watcher.proof.release import BlockRef, read_entries, verify_release
    from chain_watcher.proof.trie import read_proof

    layout = standard_layout(fields=4)
    keys = [layout.keys["enclave_ids"], layout.keys["dc_program"]]
    texts = ["0x" + key.hex() for key in keys]
    seen = ""
    async with aiohttp.ClientSession() as session:
        heads = await RpcClient.connect(session, url, RpcLimits())
        questions = await RpcClient.connect(session, url, RpcLimits())
        subscription = await heads.subscribe("chain_subscribeFinalizedHeads", [], "chain_unsubscribeFinalizedHeads")
        say(ready=True)
        async for value in subscription:
            header = Header.from_json(value)
            block_hash = "0x" + header.hash.hex()
            if header.state_root == bytes(32):
                (answer,) = await questions.call("state_queryStorageAt", [texts, block_hash])
                values = {bytes.fromhex(k[2:]): v and bytes.fromhex(v[2:]) for k, v in answer["changes"]}
            elif header.number == 0:
                continue
            else:
                answer = await questions.call("state_getReadProof", [texts, block_hash])
                values = read_proof(header.state_root, [bytes.fromhex(node[2:]) for node in answer["proof"]], keys)
            program = layout.decode_dc_program(values[keys[1]])
            if program is None:
                say(number=header.number, release_at=time.monotonic())
                continue
            entries = read_entries(layout.decode_enclave_ids(values[keys[0]])).entries
            with contextlib.suppress(Exception):
                release = verify_release(program, entries, verify, BlockRef(header.number, block_hash))
                if release.enclave_id != seen:
                    seen = release.enclave_id
                    say(number=header.number, release_at=time.monotonic(), text=seen)


async def watcher(finality: str, url: str, facts: str, layouts_file: str = "") -> None:
    """Print each view of the watcher, indefinitely; the first one says that it is ready."""
    from chain_watcher.proof.evidence import STANDARD_LAYOUTS
    from chain_watcher.watch.config import WatcherConfig
    from chain_watcher.watch.watcher import Watcher

    genesis_hash, checkpoint = json.loads(facts)
    config = WatcherConfig(
        endpoints=(url, f"{url}/?second") if finality == "quorum" else (url,),
        finality=finality,  # type: ignore[arg-type]
        genesis_hash=genesis_hash,
        checkpoint=checkpoint,
        unsafe_unproven_reads=checkpoint is None,
        layout_hashes=tuple(STANDARD_LAYOUTS),
        layouts_file=Path(layouts_file) if layouts_file else None,
    )
    following = Watcher(config, verify)
    gc.freeze()  # as the agent does when it starts
    run = asyncio.create_task(following.run())
    async for view in following.views():
        now = time.monotonic()
        text = "" if view.program is None else view.program.enclave_id
        say(ready=True, number=view.block_number, release_at=now, text=text)
    await run


if __name__ == "__main__":
    role, *given = sys.argv[1:]
    asyncio.run(watcher(*given) if role == "watcher" else bare(*given))
