"""A whole world in one folder: artefact server, signed releases, measured vault, and the agent as a child process.

Trials and the demonstration use this module. The agent, the vault and the nodes are real, separate processes, and
releases go through `python -m dcupgrade release`. Only the TEE is simulated.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import aiohttp

from dcupgrade.publishing import pallet, signing
from dcupgrade.publishing import publish as publishing

from .artefact_server import ArtefactServer
from .extrinsics import Root
from .release_builder import ROOT, BuiltRelease, ReleaseBuilder, ReleaseKeys, build_vault
from .tcp_proxy import TcpProxy
from .tools import free_port

SUDO = "//Alice"


class WorldError(Exception):
    """A part of the trial's own machinery failed; the text has its output."""


def toml(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Encode settings as TOML: tables of strings, numbers, booleans and lists, which look the same in JSON."""
    lines = []
    for section, values in settings.items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


@dataclass(slots=True)
class NodeClient:
    """A client of the node that listens on the port, of any version."""

    url: str
    session: aiohttp.ClientSession

    async def put(self, name: str, data: bytes) -> None:
        """Store an object; raises aiohttp.ClientError."""
        async with self.session.put(f"{self.url}/objects/{name}", data=io.BytesIO(data)) as answer:
            answer.raise_for_status()

    async def get(self, name: str) -> bytes:
        """Read an object; raises aiohttp.ClientError."""
        async with self.session.get(f"{self.url}/objects/{name}") as answer:
            answer.raise_for_status()
            return await answer.read()

    async def names(self) -> list[str]:
        """Return the names of all objects."""
        async with self.session.get(f"{self.url}/objects") as answer:
            answer.raise_for_status()
            return sorted(await answer.json())

    async def health(self) -> dict[str, Any] | None:
        """Return the node's health, or None if there is no answer."""
        timeout = aiohttp.ClientTimeout(total=10)
        try:
            async with self.session.get(f"{self.url}/health", timeout=timeout) as answer:
                if answer.status != 404:
                    body: dict[str, Any] = await answer.json()
                    return body
            # Nodes of handover v1 have no health report; they answer with their version once they serve.
            async with self.session.get(f"{self.url}/version", timeout=timeout) as answer:
                enclave_id, _, version = (await answer.text()).partition("@")
                status = "serving" if answer.status == 200 else "starting"
                return {"status": status, "enclave_id": enclave_id, "version": version}
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None


@dataclass(slots=True)
class World:
    """See the module. Create it with `World.open`. `overrides` replace the agent's settings, by section."""

    folder: Path
    chain_url: str
    genesis_hash: str
    keys: ReleaseKeys
    builder: ReleaseBuilder
    server: ArtefactServer
    session: aiohttp.ClientSession
    vault_id: str = ""
    proxy: TcpProxy | None = None
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    agent: asyncio.subprocess.Process | None = None
    by_command_line: bool = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        folder: Path,
        chain_url: str,
        *,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        vault_policy: Mapping[str, Any] | None = None,
        through_proxy: bool = False,
        keys: ReleaseKeys | None = None,
        handover: str = "v2",
        by_command_line: bool = False,
    ) -> AsyncIterator[Self]:
        """Build a world around a running chain, list the vault there, and take everything down at the end.

        `keys`: generated if not given. `handover`: "v1" makes nodes like those in the field, which support only v1.
        `by_command_line`: publish by `dcupgrade release` in a separate process.
        """
        os.makedirs(folder / "archives", exist_ok=True)
        if keys is None:
            keys = await asyncio.to_thread(ReleaseKeys.draw, folder / "keys")
        async with aiohttp.ClientSession() as session:
            genesis = await genesis_hash(session, chain_url)
            server = ArtefactServer(folder / "archives")
            world = cls(
                folder=folder,
                chain_url=chain_url,
                genesis_hash=genesis,
                keys=keys,
                builder=ReleaseBuilder(folder / "archives", keys, genesis, handover),
                server=server,
                session=session,
                overrides={section: dict(values) for section, values in (overrides or {}).items()},
                ports={name: free_port() for name in ("node", "vault", "agent")},
                by_command_line=by_command_line,
            )
            try:
                await server.start()
                if through_proxy:
                    world.proxy = TcpProxy(int(chain_url.rsplit(":", 1)[1].rstrip("/")))
                    await world.proxy.start()
                world.vault_id, signature = await asyncio.to_thread(
                    build_vault,
                    folder / "vault-image",
                    keys,
                    genesis,
                    {"allow_v1": handover == "v1", **(vault_policy or {})},
                )
                world.builder = replace(world.builder, upgrader_ids=(world.vault_id,))
                await world.list_id(world.vault_id, signature)
                world.write_settings()
                yield world
            finally:
                await world.close()

    @property
    def state_dir(self) -> Path:
        """The agent's folder with journal, slots and logs."""
        return self.folder / "agent"

    @property
    def data_dir(self) -> Path:
        """The nodes' folder with objects and sealed keys."""
        return self.folder / "data"

    @property
    def settings_path(self) -> Path:
        """The agent's settings file."""
        return self.folder / "dcupgrade.toml"

    @property
    def agent_log(self) -> Path:
        """The agent's log file."""
        return self.folder / "agent.log"

    @property
    def node(self) -> NodeClient:
        """A client of the node, of any version."""
        return NodeClient(f"http://127.0.0.1:{self.ports['node']}", self.session)

    def write_settings(self) -> None:
        """Write the agent's settings, `overrides` included."""
        endpoint = f"ws://127.0.0.1:{self.proxy.port}" if self.proxy is not None else self.chain_url
        image = self.folder / "vault-image"
        settings: dict[str, dict[str, Any]] = {
            "agent": {
                "state_dir": str(self.state_dir),
                "http_listen": f"127.0.0.1:{self.ports['agent']}",
                "log_level": "debug",
            },
            "chain": {
                "endpoints": [endpoint],
                "network_keys": [self.keys.network_public],
                "genesis_hash": self.genesis_hash,
                "finality": "single",
                "unsafe_unproven_reads": True,
            },
            "node": {
                "id": "trial",
                "data_dir": str(self.data_dir),
                "port": self.ports["node"],
                "ready_deadline_s": 60.0,
                "stop_grace_s": 10.0,
                "probation_s": 1.0,
                "probe_interval_s": 0.1,
            },
            "vault": {
                "url": f"http://127.0.0.1:{self.ports['vault']}",
                "image": str(image / "vault.pyz"),
                "sigstruct": str(image / "vault.sig"),
                "auth_file": str(image / "vault.auth"),
                "unsafe_simulated_tee": True,
            },
            "upgrade": {"attempts": 3, "backoff_s": 0.2, "backoff_max_s": 1.0, "delivery_deadline_s": 60.0},
            # the artefact server listens on loopback
            "download": {"stall_s": 10.0, "private_addresses": True},
        }
        if self.builder.handover == "v1":
            settings["node"] |= {"protocol": "v1", "canary_url": f"{self.node.url}/canary"}
        for section, values in self.overrides.items():
            settings.setdefault(section, {}).update(values)
        self.settings_path.write_text(toml(settings))

    async def publish(
        self, release: BuiltRelease, *, origin_url: str = "", mirror_url: str = "", cids: tuple[str, ...] = ()
    ) -> dict[str, str]:
        """Publish a release on the chain; returns its blocks when they are final.

        `origin_url`: by default its archive on the artefact server.
        """
        url = origin_url or self.server.url(release.archive.name)
        told = pallet.Release(release.enclave_id, release.version, url, mirror_url, cids)
        return await self._publish(told, release.signature, list_only=False)

    async def list_id(self, enclave_id: str, signature: str) -> dict[str, str]:
        """Add a signed id to the chain's list without naming it as the version to run."""
        return await self._publish(pallet.Release(enclave_id, "none", "none", ""), signature, list_only=True)

    async def _publish(self, release: pallet.Release, signature: str, *, list_only: bool) -> dict[str, str]:
        if not self.by_command_line:
            return await asyncio.to_thread(self._publish_now, release, signature, list_only)
        arguments = ["--url", self.chain_url, "--suri", SUDO, "--json", "--network-key", self.keys.network_public]
        arguments += ["--signature", signature, "--version", release.version, "--origin-url", release.origin_url]
        arguments += ["--mirror-url", release.mirror_url, *(["--list-only"] if list_only else [])]
        output = await self.dcupgrade("release", "publish", *arguments, release.enclave_id)
        return dict(json.loads(output)["blocks"])

    def _publish_now(self, release: pallet.Release, signature: str, list_only: bool) -> dict[str, str]:
        signing.verify_signatures(release.enclave_id, [signature], [self.keys.network_public])
        with pallet.PublisherChain.connect(self.chain_url) as chain:
            account = publishing.load_account(SUDO, None)
            return publishing.publish(chain, release, [signature], account, list_only=list_only)

    async def publish_unverified(self, release: BuiltRelease, signature: str | None = None, **program: str) -> None:
        """Publish any values, without the publisher's own verification. `program` overrides fields."""
        root = Root(self.chain_url)
        if signature is not None:
            await root.later(root.set_enclave_id, release.enclave_id, signature)
        fields = {
            "origin_url": self.server.url(release.archive.name),
            "mirror_url": "",
            "enclave_id": release.enclave_id,
            "version": release.version,
            **program,
        }
        await root.later(root.set_dc_program, *fields.values())

    async def install(self, release: BuiltRelease) -> None:
        """Publish a first release and let the agent install it. Returns when it serves and is committed."""
        await self.publish(release)
        await self.start_agent(first_install=True)
        await self.wait_committed(release.enclave_id)
        await self.wait_serving(release.enclave_id)

    async def dcupgrade(self, *arguments: str) -> str:
        """Run the command line to its end; returns its output. Raises WorldError with the output if it fails."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dcupgrade", *arguments),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:  # cancelled: end the process too
                process.kill()
                await process.wait()
        if process.returncode:
            raise WorldError(f"dcupgrade {' '.join(arguments[:2])}: {(err or out).decode().strip()}")
        return out.decode()

    async def start_agent(self, *, first_install: bool = False) -> None:
        """Start `dcupgrade watch` as a child process with its output in `agent_log`."""
        command = [sys.executable, "-m", "dcupgrade", "--config", str(self.settings_path), "watch"]
        if first_install:
            command.append("--first-install")
        with self.agent_log.open("ab") as log:
            self.agent = await asyncio.create_subprocess_exec(
                *command, cwd=self.folder, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def stop_agent(self, *, kill: bool = False) -> int | None:
        """Send TERM (or KILL) to the agent and wait for its end. Nodes and vault continue."""
        agent, self.agent = self.agent, None
        if agent is None:
            return None
        if agent.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                agent.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            return await asyncio.wait_for(agent.wait(), 30)
        except TimeoutError:
            agent.kill()
            await agent.wait()
            raise WorldError(f"the agent did not end within 30 s of TERM\n{self.tail()}") from None

    async def status(self) -> dict[str, Any] | None:
        """Return the agent's status from its loopback address, or None if it does not answer."""
        url = f"http://127.0.0.1:{self.ports['agent']}/api/v1/status"
        try:
            async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=10)) as answer:
                body: dict[str, Any] = await answer.json()
                return body
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the agent's events as it sends them: changes of state, and progress."""
        url = f"http://127.0.0.1:{self.ports['agent']}/api/v1/events"
        async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as answer:
            name = ""
            async for line in answer.content:
                text = line.decode().rstrip("\n")
                if text.startswith("event: "):
                    name = text.removeprefix("event: ")
                elif text.startswith("data: ") and name == "fact":
                    yield json.loads(text.removeprefix("data: "))

    def history(self, after: int = 0) -> list[dict[str, Any]]:
        """Return the journal's transitions after a sequence number, read without changing it."""
        path = self.state_dir / "journal.sqlite3"
        if not path.exists():
            return []
        columns = ("seq", "at_unix_s", "state_before", "state_after", "kind", "reason", "detail", "running", "target")
        query = f"SELECT {', '.join(columns)} FROM events WHERE seq > ? ORDER BY seq"  # noqa: S608 - constants
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
                return [dict(zip(columns, row, strict=True)) for row in db.execute(query, (after,))]
        except sqlite3.OperationalError:
            return []  # the agent is making the file at this moment

    async def wait_for(
        self, what: str, condition: Callable[[list[dict[str, Any]]], bool], *, within_s: float, after: int = 0
    ) -> list[dict[str, Any]]:
        """Wait until the transitions after `after` meet a condition. Raises WorldError with the log at the deadline."""
        deadline = time.monotonic() + within_s
        while True:
            rows = self.history(after)
            if condition(rows):
                return rows
            if self.agent is not None and self.agent.returncode is not None:
                raise WorldError(f"the agent ended ({self.agent.returncode}) before {what}\n{self.tail()}")
            if time.monotonic() > deadline:
                seen = " → ".join(row["state_after"] for row in rows if row["state_before"] != row["state_after"])
                raise WorldError(f"not within {within_s:.0f} s: {what}; seen: {seen or 'nothing'}\n{self.tail()}")
            await asyncio.sleep(0.05)

    async def wait_committed(self, enclave_id: str, *, within_s: float = 120, after: int = 0) -> list[dict[str, Any]]:
        """Wait until a release is committed and the machine is idle again."""

        def done(rows: list[dict[str, Any]]) -> bool:
            return any(row["state_after"] == "idle" and row["running"] == enclave_id for row in rows) and any(
                row["state_after"] == "committed" for row in rows
            )

        return await self.wait_for(f"{enclave_id[:12]}… committed", done, within_s=within_s, after=after)

    async def wait_serving(self, enclave_id: str, *, within_s: float = 90) -> dict[str, Any]:
        """Wait until a node of that version serves; returns its health."""
        deadline = time.monotonic() + within_s
        while True:
            health = await self.node.health()
            if health is not None and health["status"] == "serving" and health["enclave_id"] == enclave_id:
                return health
            if time.monotonic() > deadline:
                raise WorldError(f"{enclave_id[:12]}… does not serve, health is {health}\n{self.tail()}")
            await asyncio.sleep(0.05)

    def last_seq(self) -> int:
        """Return the sequence number of the newest transition."""
        return max((row["seq"] for row in self.history()), default=0)

    def tail(self, lines: int = 60) -> str:
        """Return the end of the agent's log, for messages."""
        if not self.agent_log.exists():
            return "(no log)"
        return "\n".join(self.agent_log.read_text("utf-8", "replace").splitlines()[-lines:])

    def processes(self) -> dict[int, list[str]]:
        """Return every other process whose arguments name this world's folder, of any user."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    arguments = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                    if any(str(self.folder) in argument for argument in arguments):
                        found[int(entry.name)] = arguments
        return found

    def enclaves(self) -> dict[str, list[int]]:
        """Return pids by kind: "agent", "vault" and "node" (the enclaves), "cpu" (the processes that run them)."""
        found: dict[str, list[int]] = {"agent": [], "vault": [], "node": [], "cpu": []}
        for pid, arguments in self.processes().items():
            if "dcupgrade" in arguments and "watch" in arguments:
                found["agent"].append(pid)
            elif "attestation.simulated" in arguments:
                found["cpu"].append(pid)
            elif "serve" in arguments:
                found["vault"].append(pid)
            elif "--upgrader" in arguments:
                found["node"].append(pid)
        return found

    async def close(self) -> None:
        """Stop the agent, then nodes and vault, which outlive it by design, then proxy and server."""
        try:
            await self.stop_agent()
        finally:
            await self._stop_enclaves()
            if self.proxy is not None:
                await self.proxy.cut()
            await self.server.stop()

    def _left(self) -> list[int]:
        """Return the pids that this world started. Other processes name its folder too, such as a pager on its logs."""
        return [pid for pids in self.enclaves().values() for pid in pids]

    async def _stop_enclaves(self) -> None:
        for number, patience_s in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0)):
            for pid in self._left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + patience_s
            while self._left():
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.05)
            else:
                return
        raise WorldError(f"processes that do not end: {self._left()}")


async def genesis_hash(session: aiohttp.ClientSession, chain_url: str) -> str:
    """Return a chain's genesis hash (0x-hex), requested over its websocket."""
    async with session.ws_connect(chain_url) as socket_:
        await socket_.send_json({"jsonrpc": "2.0", "id": 1, "method": "chain_getBlockHash", "params": [0]})
        while True:
            message = await socket_.receive_json(timeout=20)
            if message.get("id") == 1:
                return str(message["result"])
