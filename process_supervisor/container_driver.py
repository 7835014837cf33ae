"""Runs nodes as containers over the Docker Engine API (https://docs.docker.com/reference/api/engine/), by aiodocker.

A node's containers carry labels with its name and its owner (one agent's node and data). So creating a container twice
finds the first one, and agents on one engine never touch each other's containers. Stopped containers stay until
`remove`: a revert starts the previous one again. A container that another program created is taken over by a note of
its id, and is then stopped and started like our own. If the template names the container, the version that runs has
that name.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp

from .container_template import ContainerTemplate, template_of
from .driver import ExitStatus, LaunchSpec, NodeHandle, NodeRecord, not_adoptable
from .engine_client import CONNECT_S_MAX, engine_errors, gone_is_fine, unreachable
from .errors import ProcessSupervisorError
from .log_files import LogPolicy
from .process_driver import KILL_S_MAX
from .slots import write_file

LABEL_NODE = "dcupgrade.node"
LABEL_OWNER = "dcupgrade.owner"
LABEL_COMMAND = "dcupgrade.command"
NAME_PREFIX = "dcupgrade-"
RETRY_S = 0.5
TAKEN_OVER_SUFFIX = ".container"


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """The facts about one container that are used here. `stop_timeout_s` is None if the container sets none."""

    container_id: str
    image_id: str
    name: str
    labels: Mapping[str, str]
    running: bool
    exit_code: int
    started_at: str
    error: str
    mount_sources: tuple[str, ...] = ()
    auto_remove: bool = False
    stop_signal: str = "SIGTERM"
    stop_timeout_s: int | None = None
    paused: bool = False


def _facts(shown: Mapping[str, Any]) -> ContainerFacts:
    state, config = shown["State"], shown["Config"]
    running = bool(state["Running"]) or bool(state.get("Restarting"))
    return ContainerFacts(
        container_id=str(shown["Id"]),
        image_id=str(shown["Image"]),
        name=str(shown["Name"]).lstrip("/"),
        labels=dict(config.get("Labels") or {}),
        running=running,
        exit_code=int(state.get("ExitCode") or 0),
        started_at=str(state.get("StartedAt") or ""),
        error=str(state.get("Error") or ""),
        mount_sources=tuple(str(item["Source"]) for item in shown.get("Mounts") or () if item.get("Source")),
        auto_remove=bool((shown.get("HostConfig") or {}).get("AutoRemove")),
        stop_signal=str(config.get("StopSignal") or "SIGTERM"),
        stop_timeout_s=config.get("StopTimeout"),
        paused=bool(state.get("Paused")),
    )


def _status(facts: ContainerFacts, *, killed: bool) -> ExitStatus:
    """Return how a container ended. The engine reports an end by signal n as exit code 128 + n, as shells do."""
    number = facts.exit_code - 128
    if number in {int(item) for item in signal.Signals}:
        return ExitStatus(signal=number, killed=killed)
    return ExitStatus(code=facts.exit_code, killed=killed)


class ContainerHandle:
    """A watched container: a task waits for its end, also through restarts of the engine."""

    def __init__(self, record: NodeRecord, driver: "ContainerDriver") -> None:
        self._record = record
        self._driver = driver
        self._status: ExitStatus | None = None
        self.kill_sent = False
        self._task = asyncio.create_task(self._watch())

    @property
    def record(self) -> NodeRecord:
        """The record by which the container is found again."""
        return self._record

    def exit_status(self) -> ExitStatus | None:
        """Return how the container ended; None while it runs."""
        return self._status

    async def wait(self) -> ExitStatus:
        """Wait for the end of the container."""
        await asyncio.shield(self._task)
        if self._status is None:
            raise RuntimeError("the container ended without a status")
        return self._status

    async def close(self) -> None:
        """Stop watching; the container continues."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _watch(self) -> None:
        while True:
            try:
                facts = await self._driver.inspect(self._record.container_id)
                if facts is None:
                    self._status = ExitStatus(killed=self.kill_sent)
                    return
                if not facts.running:
                    self._status = _status(facts, killed=self.kill_sent)
                    return
                await self._driver.wait_stopped(self._record.container_id)
            except ProcessSupervisorError:
                # The engine cannot be reached, which says nothing about the container: ask again later.
                await asyncio.sleep(RETRY_S)


class ContainerDriver:
    """The `container` driver. `owner` marks this agent's containers, `notes` is a folder for ids of taken-over ones."""

    def __init__(
        self, docker: aiodocker.Docker, *, owner: str, notes: Path, log_policy: LogPolicy | None = None
    ) -> None:
        self._docker = docker
        self._owner = _label(owner)
        self._notes = notes
        self._log_policy = log_policy or LogPolicy()
        self._handles: dict[str, ContainerHandle] = {}

    # --- the engine --------------------------------------------------------------------------------------------------

    async def inspect(self, container: str) -> ContainerFacts | None:
        """Return the facts about a container (id or name); None if there is none."""
        shown = await self.show(container)
        return _facts(shown) if shown is not None else None

    async def show(self, container: str) -> dict[str, Any] | None:
        """Return the engine's whole answer about a container (id or name); None if there is none."""
        with engine_errors(f"container {container[:40]}"):
            try:
                found = await self._docker.containers.get(container)
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return None
                raise
            return dict(await found.show())

    async def wait_stopped(self, container_id: str) -> None:
        """Wait until a container does not run. Raises CONTAINER_ENGINE_*."""
        with engine_errors(f"container {container_id[:12]}"):
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S_MAX)
            await self._docker.containers.container(container_id).wait(condition="not-running", timeout=timeout)

    async def running_containers(self) -> list[dict[str, Any]]:
        """Return the engine's list of all running containers, whoever created them."""
        with engine_errors("list of containers"):
            answer = await self._docker._query_json("containers/json")
            return list(answer)

    async def _of_node(self, name: str) -> list[ContainerFacts]:
        """Return a node's containers: the running one first, then the others by their start, latest first."""
        with engine_errors(f"containers of node {name!r}"):
            wanted = [f"{LABEL_NODE}={_label(name)}", f"{LABEL_OWNER}={self._owner}"]
            listed = await self._docker.containers.list(all=True, filters=json.dumps({"label": wanted}))
        found = {item.id: await self.inspect(item.id) for item in listed}
        if container_id := (await self._taken_over()).get(name):
            found[container_id] = await self.inspect(container_id)
        facts = [item for item in found.values() if item is not None]
        return sorted(facts, key=lambda item: (item.running, item.started_at), reverse=True)

    async def _taken_over(self) -> dict[str, str]:
        """Return the ids of containers that were taken over, by the node's name."""
        return await asyncio.to_thread(_read_notes, self._notes)

    async def _is_ours(self, facts: ContainerFacts) -> bool:
        return facts.labels.get(LABEL_OWNER) == self._owner or facts.container_id in (await self._taken_over()).values()

    # --- nodes -------------------------------------------------------------------------------------------------------

    async def start(self, spec: LaunchSpec) -> NodeRecord:
        """Start a node's container, or find it running. It is created if it does not exist.

        A stopped container of the same spec is started again, and so is one that was taken over.
        Raises NODE_ALREADY_RUNNING, NODE_START_FAILED, CONTAINER_*.
        """
        if spec.container is None or not spec.container.image:
            raise _start_failed(spec.name, "no container image is set")
        containers = await self._of_node(spec.name)
        if containers and containers[0].running:
            if _is_of(containers[0], spec):
                return self._record_of(spec.name, containers[0])
            raise _already_running(spec.name, containers[0])
        same = next((item for item in containers if _is_of(item, spec)), None)
        await self._require_data_free(spec)
        name = spec.container.template.name
        if name:
            await self._free_name(name, same)
        if same is not None and name and same.name != name:
            await self._rename(same, name)
        container_id = same.container_id if same is not None else await self._create(spec)
        await self._start_container(spec.name, container_id)
        facts = await self.inspect(container_id)
        if facts is None:
            raise _start_failed(spec.name, "its container disappeared")
        return self._record_of(spec.name, facts)

    async def _require_data_free(self, spec: LaunchSpec) -> None:
        """Raise CONTAINER_DATA_IN_USE if a running container can write to data that must be the node's alone."""
        wanted = spec.container.exclusive if spec.container is not None else frozenset()
        for item in await self.running_containers():
            shared = {
                str(mount.get(key))
                for mount in item.get("Mounts") or ()
                for key in ("Name", "Source")
                if mount.get("RW", True) and mount.get(key)
            }
            if taken := sorted(shared & wanted):
                title = (item.get("Names") or [str(item.get("Id", ""))[:12]])[0].lstrip("/")
                raise ProcessSupervisorError(
                    code="CONTAINER_DATA_IN_USE",
                    what=f"start of node {spec.name!r}",
                    why=f"container {title} runs with {', '.join(taken)}",
                    action="Stop that container and what starts it: two nodes on one data folder destroy it",
                )

    async def _free_name(self, name: str, same: ContainerFacts | None) -> None:
        """Rename another version's stopped container that has this name. Raises CONTAINER_NAME_TAKEN."""
        holder = await self.inspect(name)
        if holder is None or holder.name != name or (same is not None and holder.container_id == same.container_id):
            return
        if holder.running or not await self._is_ours(holder):
            raise ProcessSupervisorError(
                code="CONTAINER_NAME_TAKEN",
                what=f"container {name}",
                why=f"{'one runs' if holder.running else 'one is there'} under that name that is not this agent's",
                action="Find out who made it (another manager, Compose); remove or rename it there",
            )
        await self._rename(holder, f"{name}-{holder.container_id[:12]}")

    async def _rename(self, facts: ContainerFacts, name: str) -> None:
        with engine_errors(f"name of container {facts.name}"):
            await self._docker.containers.container(facts.container_id).rename(name)

    async def _create(self, spec: LaunchSpec) -> str:
        if spec.container is None:
            raise _start_failed(spec.name, "no container image is set")
        template = spec.container.template
        name = template.name or f"{NAME_PREFIX}{self._owner}-{_label(spec.name)}-{spec.digest[:12]}"
        try:
            created = await self._docker.containers.create(self._body(spec, template, spec.container.image), name=name)
            return str(created.id)
        except aiodocker.DockerError as error:
            if error.status == 404:
                raise ProcessSupervisorError(
                    code="CONTAINER_IMAGE_MISSING",
                    what=f"start of node {spec.name!r}",
                    why=error.message,
                    action="Stage the release again",
                ) from error
            existing = await self.inspect(name) if error.status == 409 else None
            if existing is None or not await self._is_ours(existing) or not _is_of(existing, spec):
                with engine_errors(f"container of node {spec.name!r}"):
                    raise
            return existing.container_id
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable(f"container of node {spec.name!r}", str(error)) from error

    def _body(self, spec: LaunchSpec, template: ContainerTemplate, image: str) -> dict[str, Any]:
        labels = {LABEL_NODE: _label(spec.name), LABEL_OWNER: self._owner, LABEL_COMMAND: spec.digest}
        body = template.body(image, labels)
        options = {"max-size": str(self._log_policy.size_bytes_max), "max-file": str(1 + self._log_policy.kept)}
        logs = body["HostConfig"].get("LogConfig") or {"Type": "json-file"}
        if logs["Type"] == "json-file" and not logs.get("Config"):
            logs = {"Type": "json-file", "Config": options}
        return {**body, "HostConfig": {**body["HostConfig"], "LogConfig": logs}}

    async def _start_container(self, name: str, container_id: str) -> None:
        try:
            await self._docker.containers.container(container_id).start()
        except aiodocker.DockerError as error:
            # 4xx and 5xx alike: the program is not there, a mount's source is missing, the runtime refuses.
            if error.status == 900:
                raise unreachable(f"start of node {name!r}", error.message) from error
            raise _start_failed(name, error.message) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable(f"start of node {name!r}", str(error)) from error

    def _record_of(self, name: str, facts: ContainerFacts) -> NodeRecord:
        return NodeRecord(
            kind="container",
            name=name,
            started_unix_s=_unix_s(facts.started_at),
            command_digest=facts.labels.get(LABEL_COMMAND, ""),
            container_id=facts.container_id,
            image_id=facts.image_id,
            log_path=f"docker logs {facts.name}",
        )

    async def find(self, name: str) -> NodeRecord | None:
        """Return the record of the node's running container, else of the one that was started last."""
        containers = await self._of_node(name)
        return self._record_of(name, containers[0]) if containers else None

    async def adopt(self, record: NodeRecord) -> ContainerHandle | None:
        """Watch a container again, found by its id. Returns None if it does not run, or runs another image."""
        if record.kind != "container":
            return None
        facts = await self.inspect(record.container_id)
        if facts is None or not facts.running or facts.image_id != record.image_id:
            return None
        known = self._handles.get(record.container_id)
        if known is None or known.exit_status() is not None:
            known = self._handles[record.container_id] = ContainerHandle(record, self)
        return known

    async def take_over(self, name: str, found: str, data_dir: Path) -> NodeRecord:
        """Record a running container as this node's. It continues to run, under its own name.

        A container without a mount of the data folder cannot be the node and is refused.

        Raises NODE_NOT_ADOPTABLE, CONTAINER_ENGINE_*.
        """
        facts = await self.inspect(found) if found else None
        if facts is None or not facts.running:
            raise not_adoptable(name, f"no container {found!r} runs", "Name it as `docker ps` does")
        owner = facts.labels.get(LABEL_OWNER, self._owner)
        if owner != self._owner or facts.labels.get(LABEL_NODE, _label(name)) != _label(name):
            why = f"container {found!r} carries the labels of node {facts.labels.get(LABEL_NODE, '')!r} of {owner!r}"
            raise not_adoptable(name, why)
        if facts.auto_remove:
            why = f"container {found!r} runs with --rm: its stop would remove it, with its anonymous volumes"
            raise not_adoptable(name, why, "Start the node's container without --rm")
        folder = await asyncio.to_thread(data_dir.resolve)
        if not any(folder.is_relative_to(source) for source in facts.mount_sources):
            raise not_adoptable(name, f"container {found!r} has no mount of {folder}", "Name the node's container")
        note = self._notes / f"{_label(name)}{TAKEN_OVER_SUFFIX}"
        await asyncio.to_thread(write_file, note, f"{facts.container_id}\n".encode())
        return self._record_of(name, facts)

    async def template(self, found: str) -> ContainerTemplate:
        """Return a container's settings without those of its image. Raises NODE_NOT_ADOPTABLE, CONTAINER_ENGINE_*."""
        shown = await self.show(found)
        if shown is None:
            raise not_adoptable(found, f"there is no container {found!r}", "Name it as `docker ps` does")
        with engine_errors(f"image of container {found[:40]}"):
            image = await self._docker.images.inspect(shown["Image"])
        return template_of(shown, image)

    async def stop(self, handle: NodeHandle, grace_s: float) -> ExitStatus:
        """Set the restart policy to `no`, send the stop signal, wait, send KILL. Returns when the container has ended.

        The container's own signal and timeout are used (STOPSIGNAL of its image, --stop-timeout), else TERM and
        `grace_s` seconds. Raises NODE_STOP_FAILED, CONTAINER_ENGINE_*.
        """
        if not isinstance(handle, ContainerHandle):
            raise TypeError("not a handle of this driver")
        container_id = handle.record.container_id
        facts = await self.inspect(container_id)
        if facts is None:
            return await handle.wait()
        with engine_errors(f"restart policy of container {container_id[:12]}"):
            policy = {"RestartPolicy": {"Name": "no"}}
            await self._docker._query_json(f"containers/{container_id}/update", "POST", data=policy)
        await self._kill(container_id, facts.stop_signal)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s if facts.stop_timeout_s is None else facts.stop_timeout_s):
                return await handle.wait()
        handle.kill_sent = True
        await self._kill(container_id, "SIGKILL")
        try:
            async with asyncio.timeout(KILL_S_MAX):
                return await handle.wait()
        except TimeoutError as error:
            raise ProcessSupervisorError(
                code="NODE_STOP_FAILED",
                what=f"stop of node {handle.record.name!r}",
                why=f"container {container_id[:12]} does not end",
                action="It may hang in the kernel: look at the disk and at the engine's log",
                kind="invariant",
            ) from error

    async def _kill(self, container_id: str, number: str) -> None:
        with engine_errors(f"{number} to container {container_id[:12]}"):
            try:
                await self._docker.containers.container(container_id).kill(signal=number)
            except aiodocker.DockerError as error:
                # Not running any more (409), or removed (404): nothing is left to stop.
                if error.status not in (404, 409):
                    raise

    async def remove(self, name: str) -> None:
        """Remove a node's stopped containers, with their logs. Raises NODE_ALREADY_RUNNING if one runs.

        Anonymous volumes of a taken-over container stay: the data folder may be one.
        """
        containers = await self._of_node(name)
        if containers and containers[0].running:
            raise _already_running(name, containers[0])
        for item in containers:
            with engine_errors(f"removal of container {item.name}"), gone_is_fine():
                await self._docker.containers.container(item.container_id).delete(v=LABEL_COMMAND in item.labels)
        await asyncio.to_thread((self._notes / f"{_label(name)}{TAKEN_OVER_SUFFIX}").unlink, missing_ok=True)

    async def logs(self, name: str, lines: int) -> list[str]:
        """Return the last lines of a node's output."""
        containers = await self._of_node(name)
        if not containers or lines <= 0:
            return []
        with engine_errors(f"log of node {name!r}"):
            container = self._docker.containers.container(containers[0].container_id)
            parts = await container.log(stdout=True, stderr=True, follow=False, tail=lines)
        return "".join(parts).splitlines()[-lines:]

    async def tend(self) -> None:
        """Forget handles of containers that have ended. The engine rotates the logs itself."""
        for container_id, handle in list(self._handles.items()):
            if handle.exit_status() is not None:
                del self._handles[container_id]

    async def close(self) -> None:
        """Stop watching. The containers continue to run, and the engine's client stays open."""
        for handle in self._handles.values():
            await handle.close()
        self._handles.clear()


def _read_notes(notes: Path) -> dict[str, str]:
    paths = notes.glob(f"*{TAKEN_OVER_SUFFIX}") if notes.is_dir() else ()
    return {path.name.removesuffix(TAKEN_OVER_SUFFIX): path.read_text("ascii", "replace").strip() for path in paths}


def _unix_s(text: str) -> float:
    """Return Unix seconds of the engine's RFC 3339 time, in whole seconds; 0 for a container that never started."""
    try:
        moment = datetime.fromisoformat(text[:19] + "+00:00")
    except ValueError:
        return 0.0
    return max(0.0, moment.timestamp())


def _is_of(facts: ContainerFacts, spec: LaunchSpec) -> bool:
    # A container without our command label was taken over: it counts as the node, whatever its settings.
    return facts.labels.get(LABEL_COMMAND, spec.digest) == spec.digest


def _label(name: str) -> str:
    if not name or name.startswith((".", "-")) or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise ValueError(f"{name!r} cannot name a node")
    return name


def _already_running(name: str, facts: ContainerFacts) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="NODE_ALREADY_RUNNING",
        what=f"node {name!r}",
        why=f"container {facts.name} runs",
        action="Stop it first",
        kind="invariant",
    )


def _start_failed(name: str, why: str) -> ProcessSupervisorError:
    return ProcessSupervisorError(
        code="NODE_START_FAILED",
        what=f"start of node {name!r}",
        why=why,
        action="Look at the node's image, command and mounts in the settings",
    )
