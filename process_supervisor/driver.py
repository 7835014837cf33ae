"""The protocol of drivers, which run nodes as processes or containers, and the records that find nodes again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from .container_template import ContainerTemplate
from .errors import ProcessSupervisorError

RECORD_CHARS_MAX = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A container to start: `image` by id (`sha256:<hex>`) or reference, and the template with all other settings.

    `exclusive` lists what only one node may have mounted: volumes by name, folders of the host by path.
    """

    image: str
    template: ContainerTemplate
    exclusive: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What to start. `name` ([a-z0-9._-]) is unique among the nodes of one driver; it finds the node after a crash.

    `argv` is the whole command, `env` the whole environment (nothing is inherited), `cwd` the working folder, and
    `log_path` the file for the output. The container driver uses `container` instead of these; there the engine keeps
    the log.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    log_path: Path
    container: ContainerSpec | None = None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over everything that identifies a running node as started from this spec."""
        parts: list[object] = [self.argv, sorted(self.env.items()), str(self.cwd)]
        if self.container is not None:
            parts = [self.container.image, self.container.template.to_json()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a node ended. For a node that an earlier agent started, both `code` and `signal` may be unknown (None).

    Its text completes a sentence: "the node" "ended by signal 9".
    """

    code: int | None = None
    signal: int | None = None
    killed: bool = False

    def __str__(self) -> str:
        if self.code is not None:
            return f"ended with exit code {self.code}"
        if self.signal is not None:
            return f"ended by signal {self.signal}"
        return "ended, and its exit status is not known: another process had started it"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """The facts by which a node is found again.

    For `kind` "process": pid, start time in clock ticks since boot, boot id, and the session (its id is the pid). For
    `kind` "container": container id and image id. `started_unix_s` is for people only.
    """

    kind: Literal["process", "container"]
    name: str
    started_unix_s: float
    command_digest: str
    pid: int = 0
    start_time_ticks: int = 0
    boot_id: str = ""
    container_id: str = ""
    image_id: str = ""
    log_path: str = ""

    def to_json(self) -> str:
        """Return one line of JSON with every field."""
        return json.dumps({name: getattr(self, name) for name in _FIELDS}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str = "a node's record") -> "NodeRecord":
        """Decode what `to_json` wrote. Raises NODE_RECORD_INVALID, naming `where`, for anything else."""
        try:
            if len(text) > RECORD_CHARS_MAX:
                raise ValueError("it is too long")
            values = json.loads(text)
            if not isinstance(values, dict) or set(values) != set(_FIELDS):
                raise ValueError("its fields are others")
            if any(type(values[name]) is not kind for name, kind in _FIELDS.items() if kind is not float):
                raise ValueError("a field has another type")
            if values["kind"] not in ("process", "container") or values["pid"] < 0:
                raise ValueError("a field has an impossible value")
            values["started_unix_s"] = float(values["started_unix_s"])
            return cls(**values)
        except (ValueError, TypeError, RecursionError) as error:
            raise ProcessSupervisorError(
                code="NODE_RECORD_INVALID",
                what=where,
                why=str(error),
                action="Look whether the node still runs and stop it by hand; keep the record for the report",
                kind="invariant",
            ) from error


_FIELDS: dict[str, type] = {
    "kind": str,
    "name": str,
    "started_unix_s": float,
    "command_digest": str,
    "pid": int,
    "start_time_ticks": int,
    "boot_id": str,
    "container_id": str,
    "image_id": str,
    "log_path": str,
}


def not_adoptable(name: str, why: str, action: str = "") -> ProcessSupervisorError:
    """Return NODE_NOT_ADOPTABLE, for a node of another program that cannot be taken over."""
    return ProcessSupervisorError(
        code="NODE_NOT_ADOPTABLE", what=f"taking over {name!r}", why=why, action=action, kind="rejected"
    )


class NodeHandle(Protocol):
    """A node that this driver watches."""

    @property
    def record(self) -> NodeRecord:
        """The record by which the node is found again."""

    def exit_status(self) -> ExitStatus | None:
        """Return how the main process ended; None while it runs."""

    async def wait(self) -> ExitStatus:
        """Wait until the main process has ended. Others of its session may remain; `stop` ends them."""


class NodeDriver(Protocol):
    """Runs nodes. Every method is safe to call twice. Only `stop` ends a running node."""

    async def start(self, spec: LaunchSpec) -> NodeRecord:
        """Start a node, or return its record if it runs. Raises NODE_ALREADY_RUNNING, NODE_START_FAILED and others."""

    async def find(self, name: str) -> NodeRecord | None:
        """Return the record of the node last started as `name`, even if the agent crashed right after the start."""

    async def adopt(self, record: NodeRecord) -> NodeHandle | None:
        """Watch a node again; None if nothing is left of it.

        If the node is dead but some of its processes remain, return a handle that has ended.
        """

    async def take_over(self, name: str, found: str, data_dir: Path) -> NodeRecord:
        """Take over a running node of another program. `found` is its pid, or its container's name or id.

        The node is not touched. `data_dir` is the folder that a container must have mounted. Raises NODE_NOT_ADOPTABLE.
        """

    async def stop(self, handle: NodeHandle, grace_s: float) -> ExitStatus:
        """Send TERM, wait `grace_s` seconds, send KILL; return when all processes are gone. Raises NODE_STOP_FAILED."""

    async def remove(self, name: str) -> None:
        """Remove a stopped node's record or container. Raises NODE_ALREADY_RUNNING if the node runs."""

    async def logs(self, name: str, lines: int) -> list[str]:
        """Return the last lines of a node's output."""

    async def tend(self) -> None:
        """Do periodic work, such as rotating logs."""

    async def close(self) -> None:
        """Release all resources; nodes continue to run."""
