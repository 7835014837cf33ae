"""Prepare everything before agent and vault start: `python -m devnet.docker.setup FOLDER`, run by the compose file.

It generates the release keys, builds and lists the vault, builds and publishes 1.0.0, installs it for the old node's
service, and writes the agent's settings and `world.json`. A folder with a `world.json` is left unchanged.
"""

import asyncio
import dataclasses
import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from devnet.artefact_server import ArtefactServer
from devnet.release_builder import ReleaseBuilder, ReleaseKeys, build_vault
from devnet.world import World, genesis_hash

WORLD_FILE = "world.json"
PORTS = ("chain", "artefacts", "vault", "node", "agent")
NODE_IMAGE = "dcupgrade-dev-node"


def ports_of(environment: Mapping[str, str]) -> dict[str, int]:
    """Return the services' ports from the environment: DC_CHAIN_PORT and others."""
    return {name: int(environment[f"DC_{name.upper()}_PORT"]) for name in PORTS}


def make_world(
    folder: Path,
    ports: Mapping[str, int],
    keys: ReleaseKeys,
    genesis: str,
    vault_id: str,
    session: aiohttp.ClientSession,
) -> World:
    """A World whose services run separately: it starts and stops nothing."""
    overrides: dict[str, dict[str, Any]] = {
        "node": {"driver": "container", "ready_deadline_s": 30.0, "probation_s": 3.0},
        "container": {"image": NODE_IMAGE},
        "vault": {"start": False},
        # a trial reads this file; `docker logs` has the same output
        "agent": {"log_format": "json"},
    }
    return World(
        folder=folder,
        chain_url=f"ws://127.0.0.1:{ports['chain']}",
        genesis_hash=genesis,
        keys=keys,
        builder=ReleaseBuilder(folder / "archives", keys, genesis, upgrader_ids=(vault_id,)),
        server=ArtefactServer(folder / "archives", port=ports["artefacts"]),
        session=session,
        overrides=overrides,
        ports=dict(ports),
    )


async def set_up(folder: Path, ports: Mapping[str, int]) -> None:
    """Run the module's command."""
    if (folder / WORLD_FILE).exists():
        return
    for name in ("archives", "agent", "data"):
        (folder / name).mkdir(mode=0o755 if name == "archives" else 0o700, exist_ok=True)
    async with aiohttp.ClientSession() as session:
        genesis = await genesis_hash(session, f"ws://127.0.0.1:{ports['chain']}")
        keys = ReleaseKeys.draw(folder / "keys")
        vault_id, signature = build_vault(folder / "vault-image", keys, genesis, {})
        world = make_world(folder, ports, keys, genesis, vault_id, session)
        await world.list_id(vault_id, signature)
        token = folder / "agent" / "vault.token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        world.write_settings()
        first = world.builder.good("1.0.0")
        await world.publish(first)
        first.install(folder / "first")
        about = {**dataclasses.asdict(first), "archive": str(first.archive)}
        facts = {"genesis_hash": genesis, "ports": dict(ports), "vault_id": vault_id, "first": about}
        (folder / f"{WORLD_FILE}.new").write_text(json.dumps(facts, indent=1))
        os.replace(folder / f"{WORLD_FILE}.new", folder / WORLD_FILE)


if __name__ == "__main__":
    asyncio.run(set_up(Path(sys.argv[1]), ports_of(os.environ)))
