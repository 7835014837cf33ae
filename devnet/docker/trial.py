"""`python -m devnet compose-trial`: the demonstration's trial and checks, with every part in a container, and two more:
a release that does not start (the previous container serves again), and the agent killed in the middle of an upgrade
to a release that comes as a container image.

It builds the images on a Docker engine of its own and takes everything down again; with --attach it uses what
`docker compose up` started, and leaves it running.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import click
from rich.console import Console
from rich.markup import escape

from devnet import demo
from devnet.release_builder import ROOT, BuiltRelease, NodeTraits, ReleaseKeys
from devnet.signals import interruptible
from devnet.tools import DevnetError, free_port, run_tool
from devnet.world import World, WorldError
from process_supervisor.archive import unpack
from process_supervisor.limits import ArchiveLimits

from .engine import PrivateEngine, missing_tools
from .setup import NODE_IMAGE, PORTS, WORLD_FILE, make_world

COMPOSE_FILE = ROOT / "devnet" / "compose.yaml"
SERVICE_UID = 10001
OBJECTS = 60
INSTALL_WITHIN_S = 120.0
UPGRADE_WITHIN_S = 120.0
LABEL_NODE = "dcupgrade.node"
LABEL_VERSION = "dcupgrade.trial.version"


def compose_command() -> list[str]:
    """Return `docker compose` if the plugin is installed, else `docker-compose`. Raises DevnetError."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    if standalone := shutil.which("docker-compose"):
        return [standalone]
    raise DevnetError("Docker Compose is missing: apt-get install docker-compose, or the engine's compose plugin")


@dataclass(frozen=True, slots=True)
class Compose:
    """The services of the compose file on one engine."""

    environment: Mapping[str, str]

    def run(self, *arguments: str) -> str:
        """Run `docker compose ...`; returns its output. Raises DevnetError."""
        argv = [*compose_command(), "--file", str(COMPOSE_FILE), *arguments]
        return run_tool(argv, what=f"compose {arguments[0]}", env=dict(self.environment))

    def docker(self, *arguments: str) -> str:
        """Run `docker ...` on the same engine; returns its output. Raises DevnetError."""
        argv = [shutil.which("docker") or "docker", *arguments]
        return run_tool(argv, what=f"docker {arguments[0]}", env=dict(self.environment)).strip()

    @property
    def old_node(self) -> str:
        """Name of the container that Compose started as the first node."""
        return self.environment.get("DC_NODE_CONTAINER", "dcnode")

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the engine's facts about the nodes' containers, by node (the old node by its container's name)."""
        found = self.docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={LABEL_NODE}").split()
        found += self.docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"name=^{self.old_node}$").split()
        shown = json.loads(self.docker("inspect", *found)) if found else []
        return {_node_name(item): item for item in shown}


def _node_name(container: Mapping[str, Any]) -> str:
    name = str(container["Name"]).lstrip("/")
    return str((container["Config"]["Labels"] or {}).get(LABEL_NODE, name))


@click.command()
@click.option("--objects", type=click.IntRange(1), default=OBJECTS, show_default=True, help="How many objects.")
@click.option("--seed", type=int, default=1, show_default=True, help="Draws the objects' sizes and contents.")
@click.option("--attach", is_flag=True, help="Use the running services of $DC_HOME and leave them running.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="[default: run/compose-…]")
def compose_trial(objects: int, seed: int, attach: bool, folder: Path | None) -> None:
    """Run the whole trial in containers and verify every object; exit code 0 only if all was verified."""
    console = Console(highlight=False)
    folder = (folder or ROOT / "run" / f"compose-{datetime.now().astimezone():%Y%m%d-%H%M%S}").resolve()
    console.print("[bold]DCUpgrade in containers.[/] [bold yellow]The TEE is SIMULATED: it protects nothing here.[/]")
    try:
        with interruptible(), services(console, folder, attach=attach) as compose:
            asyncio.run(_run(console, compose, objects, seed))
    except (demo.DemoError, WorldError, DevnetError, aiohttp.ClientError, OSError) as error:
        console.print(f"[bold red]failed[/]: {escape(str(error))}")
        console.print(f"logs and journal: {folder}")
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; everything was stopped")
        sys.exit(130)


@contextlib.contextmanager
def services(console: Console, folder: Path, *, attach: bool) -> Iterator[Compose]:
    """Give the running services: of a private engine, or with `attach` those that run already."""
    if attach:
        if "DC_HOME" not in os.environ:
            raise DevnetError("set DC_HOME to the folder that the services run with")
        yield Compose(os.environ)
        return
    lacks = missing_tools()
    if lacks:
        raise DevnetError(f"an engine of our own needs {'; '.join(lacks)}; or start the services and use --attach")
    compose_command()
    folder.mkdir(parents=True)
    for path in (folder, folder / "archives"):
        path.mkdir(exist_ok=True)
        os.chown(path, SERVICE_UID, SERVICE_UID)
    with contextlib.ExitStack() as stack:
        engine = PrivateEngine(keep_data=True, group=SERVICE_UID)
        stack.callback(engine.close)
        with demo.step(console, "Docker engine of our own, base image"):
            engine.__enter__()
        compose = Compose(_environment(engine, folder, engine.import_base()))
        try:
            with demo.step(console, "images built (the first time takes minutes)"):
                compose.run("build")
            with demo.step(console, "services up; releases built and signed, 1.0.0 published"):
                compose.run("up", "--detach")
            yield compose
        finally:
            _keep_logs(compose, folder)
            with demo.step(console, "services, nodes and engine stopped"):
                engine.remove_containers()
                # Releases are useless after their trial; the services' images are the layer cache of the next run.
                releases = engine.docker("images", "--quiet", "--no-trunc", "dcupgrade/release").split()
                if releases:
                    engine.docker("rmi", "--force", *sorted(set(releases)))
                stack.close()
            demo.remove_bulk(folder)


def _keep_logs(compose: Compose, folder: Path) -> None:
    """Write the containers' output to the folder in which the demonstration stores logs."""
    with contextlib.suppress(DevnetError):
        (folder / "services.log").write_text(compose.run("logs", "--no-color", "--timestamps"))
        (folder / "agent.log").write_text(compose.run("logs", "--no-color", "upgrader"))
        for name, node in compose.nodes().items():
            done = subprocess.run(
                [shutil.which("docker") or "docker", "logs", node["Id"]],
                env=dict(compose.environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            (folder / "agent" / "logs" / f"{name}.log").write_bytes(done.stdout)


def _environment(engine: PrivateEngine, folder: Path, base: str) -> dict[str, str]:
    ports = {f"DC_{name.upper()}_PORT": str(free_port()) for name in PORTS}
    return {
        **engine.environment(),
        **ports,
        "BASE_IMAGE": base,
        "DC_HOME": str(folder),
        "DC_UID": str(SERVICE_UID),
        "DC_GID": str(SERVICE_UID),
        "DC_ENGINE_GID": str(SERVICE_UID),
        "DC_ENGINE_SOCKET": str(engine.socket),
        "DC_NODE_CONTAINER": f"dcnode{secrets.token_hex(3)}",
        "COMPOSE_PROJECT_NAME": f"dcupgrade{secrets.token_hex(3)}",
    }


async def _run(console: Console, compose: Compose, objects: int, seed: int) -> None:
    folder = Path(compose.environment["DC_HOME"])
    facts = json.loads((folder / WORLD_FILE).read_text())
    async with aiohttp.ClientSession() as session:
        keys = ReleaseKeys.load(folder / "keys")
        world = make_world(folder, facts["ports"], keys, facts["genesis_hash"], facts["vault_id"], session)
        trial = _Trial(console, folder, objects, seed, demo.Facts())
        first = BuiltRelease(**{**facts["first"], "archive": Path(facts["first"]["archive"])})
        await trial.in_containers(world, compose, first)
    demo.summary(console, folder, trial.facts, objects)


class _Trial(demo.Demo):
    """The demonstration's steps with running services, and two steps that only containers can show."""

    async def in_containers(self, world: World, compose: Compose, first: BuiltRelease) -> None:
        facts = self.facts
        facts.old, facts.new = first, await asyncio.to_thread(world.builder.good, "1.1.0")
        with self._step("1.0.0, a service of Compose's which made its keys, taken over by the agent"):
            await world.wait_for(
                "1.0.0 taken over",
                lambda rows: any((row["kind"], row["running"]) == ("adopted", first.enclave_id) for row in rows),
                within_s=INSTALL_WITHIN_S,
            )
            await world.wait_serving(first.enclave_id)
        await self._store(world)
        await self._upgrade(world)
        await self._read_back(world)
        before = await asyncio.to_thread(compose.nodes)
        if before.get(compose.old_node, {"State": {"Running": True}})["State"]["Running"]:
            raise demo.DemoError("the container of 1.0.0 was not kept")
        with self._step("1.2.0, which does not start: the previous container serves again"):
            await self._does_not_start(world, compose, facts.new)
        with self._step("1.3.0, an image, the agent killed while it was launched: the upgrade ends all the same"):
            await self._agent_killed(world, compose)

    async def _does_not_start(self, world: World, compose: Compose, serving: BuiltRelease) -> None:
        """Publish a release that ends at once; it is reverted to the same container that served before."""
        before = _node_of(await asyncio.to_thread(compose.nodes), serving)
        broken = await asyncio.to_thread(
            world.builder.build, "1.2.0", NodeTraits(does_not_start=True), name="does-not-start"
        )
        seq = world.last_seq()
        await world.publish(broken)

        def reverted(rows: list[dict[str, Any]]) -> bool:
            states = [row["state_after"] for row in rows]
            return "reverted" in states and states[-1] == "idle" and rows[-1]["running"] == serving.enclave_id

        await world.wait_for("1.2.0 reverted", reverted, within_s=UPGRADE_WITHIN_S, after=seq)
        await world.wait_serving(serving.enclave_id)
        after = _node_of(await asyncio.to_thread(compose.nodes), serving)
        if after is None or before is None or after["Id"] != before["Id"] or not after["State"]["Running"]:
            raise demo.DemoError("another container than before serves after the revert")
        await self._verify_objects(world)

    async def _agent_killed(self, world: World, compose: Compose) -> None:
        newest = await asyncio.to_thread(_as_image, compose, await asyncio.to_thread(world.builder.good, "1.3.0"))
        (agent,) = compose.run("ps", "--quiet", "upgrader").split()
        seq = world.last_seq()
        await world.publish(newest)
        await world.wait_for(
            "1.3.0 is launched",
            lambda rows: any(row["state_after"] == "launching" for row in rows),
            within_s=UPGRADE_WITHIN_S,
            after=seq,
        )
        await asyncio.to_thread(compose.docker, "kill", "--signal", "KILL", agent)
        seen = [row["state_after"] for row in world.history(seq)]
        if "committed" in seen:
            raise demo.DemoError("the agent was killed too late to tell anything")
        await asyncio.to_thread(compose.docker, "start", agent)
        await world.wait_committed(newest.enclave_id, within_s=UPGRADE_WITHIN_S, after=seq)
        await world.wait_serving(newest.enclave_id)
        serving = _node_of(await asyncio.to_thread(compose.nodes), newest)
        if serving is None or serving["Config"]["Labels"].get(LABEL_VERSION) != newest.version:
            raise demo.DemoError("1.3.0 does not run in the image that it came in")
        await self._verify_objects(world)

    async def _verify_objects(self, world: World) -> None:
        for name, digest in self.digests.items():
            if hashlib.sha256(await world.node.get(name)).hexdigest() != digest:
                raise demo.DemoError(f"object {name} is not what was stored")


def _as_image(compose: Compose, release: BuiltRelease) -> BuiltRelease:
    """Make an image archive of the release: the nodes' image with the release's files."""
    reference = f"dcupgrade-trial/node:{release.version}"
    with tempfile.TemporaryDirectory() as text:
        context = Path(text)
        (context / "release").mkdir()
        unpack(release.archive, context / "release", ArchiveLimits(), None)
        label = f"LABEL {LABEL_VERSION}={release.version}"
        (context / "Dockerfile").write_text(f"FROM {NODE_IMAGE}\nCOPY release /release\n{label}\n")
        compose.docker("build", "--quiet", "--tag", reference, text)
        archive = release.archive.with_name(f"{release.name}-image.tar")
        compose.docker("save", "--output", str(archive), reference)
        archive.chmod(0o644)
        compose.docker("rmi", reference)
    return dataclasses.replace(release, archive=archive)


def _node_of(nodes: Mapping[str, dict[str, Any]], release: BuiltRelease) -> dict[str, Any] | None:
    return nodes.get(f"node-{release.enclave_id[:20]}")
