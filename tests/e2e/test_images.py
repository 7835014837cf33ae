"""The images that the manifests name, built by `make images` on a real engine: agent and vault upgrade a node.

Two things differ from a host: the TEE is simulated, and the base of the vault's image has no Gramine.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from attestation.simulated.root_keys import init_cpu
from dcupgrade import __version__
from devnet.chain import DevChain
from devnet.docker.engine import PrivateEngine, missing_tools
from devnet.release_builder import ROOT
from devnet.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.compose, pytest.mark.slow]

USER = "10001:10001"
AGENT, VAULT = (f"dcupgrade/{part}:{__version__}" for part in ("agent", "vault"))


def build(engine: PrivateEngine) -> str:
    base = engine.import_base()
    environ = {**engine.environment(), "BASE_IMAGE": base, "GRAMINE_IMAGE": base, "BUILD_OPTIONS": "--network=host"}
    done = subprocess.run(["make", "-C", ROOT, "images"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start(engine: PrivateEngine, world: World, name: str, image: str, *arguments: str) -> None:
    """A container on the host's network, hardened as the manifests have it, with the world's folder at its own path."""
    hardened = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", USER, "--init"]
    folder = ["--volume", f"{world.folder}:{world.folder}"]
    engine.docker("run", "--detach", "--name", name, "--network", "host", *hardened, *folder, image, *arguments)


def give_to_the_user(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 10001, 10001)


@pytest.mark.timeout(1500)  # the first time installs the packages
async def test_both_images_are_built_by_one_command_and_upgrade_a_node(shared_chain: DevChain, tmp_path: Path) -> None:
    if lacks := missing_tools():
        pytest.skip(f"no Docker engine of our own: it needs {'; '.join(lacks)}")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):  # noqa: S108 - the user inside passes through
            folder.chmod(folder.stat().st_mode | 0o011)
    with PrivateEngine(keep_data=True) as engine:
        built = await asyncio.to_thread(build, engine)
        assert {AGENT, VAULT} <= set(built.split())
        for image, user in ((AGENT, "10001:10001"), (VAULT, "10667:10667")):
            assert engine.docker("inspect", "--format", "{{.Config.User}}", image).strip() == user
        version = engine.docker("run", "--rm", "--network", "none", AGENT, "version")
        assert version.startswith(f"dcupgrade {__version__} ")
        assert "watch" in engine.docker("run", "--rm", "--network", "none", VAULT, "--help")
        overrides = {"vault": {"start": False, "token_file": str(tmp_path / "world" / "token")}}
        async with World.open(tmp_path / "world", shared_chain.ws_url, overrides=overrides) as world:
            (world.folder / "token").write_text("a-token-of-this-trial\n")
            for place in (world.state_dir, world.data_dir, world.folder / "store"):
                place.mkdir()
            init_cpu(world.state_dir / "cpu")
            old, new = [await asyncio.to_thread(world.builder.good, number) for number in ("1.0.0", "1.1.0")]
            await world.publish(old)
            give_to_the_user(world.folder)
            from_builder = world.folder / "vault-image"
            files = ["--image", str(from_builder / "vault.pyz"), "--sigstruct", str(from_builder / "vault.sig")]
            files += ["--auth-file", str(from_builder / "vault.auth"), "--token-file", str(world.folder / "token")]
            files += ["--cpu", str(world.state_dir / "cpu"), "--store", str(world.folder / "store")]
            listen = f"127.0.0.1:{world.ports['vault']}"
            try:
                start(engine, world, "vault", VAULT, "serve", "--listen", listen, *files)
                start(engine, world, "agent", AGENT, "--config", str(world.settings_path), "watch", "--first-install")
                await world.wait_committed(old.enclave_id)
                await world.wait_serving(old.enclave_id)
                await world.node.put("kept", b"data of before")
                seq = world.last_seq()
                await world.publish(new)
                await world.wait_committed(new.enclave_id, after=seq)
                assert await world.node.get("kept") == b"data of before"
                shown = engine.docker(
                    "exec", "agent", "python3", "-m", "dcupgrade", "-c", str(world.settings_path), "status"
                )
                assert shown.startswith("Up to date: 1.1.0 serves.")
            except Exception as error:
                logs = "\n".join(
                    engine.docker("logs", name) for name in engine.docker("ps", "-a", "--format", "{{.Names}}").split()
                )
                raise AssertionError(f"{error}\n{logs[-6000:]}") from error
