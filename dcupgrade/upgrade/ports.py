"""The ports: what the orchestrator needs of the world, as narrow protocols.

`dcupgrade.adapters` implements them over the chain watcher, the vault's client and the process supervisor; the
simulator implements them over a simulated world. Expected errors of a port carry `code` and `kind`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dcupgrade.machine.effects import Effect
from dcupgrade.machine.events import Event
from dcupgrade.machine.gates import Shut
from dcupgrade.machine.operator_commands import Command, Outcome
from dcupgrade.machine.stages import Permit, RunningNode, SealedKeys, StagedRelease
from dcupgrade.machine.state import ChainFacts, Release, State

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class NodeExit:
    """How a node's process ended; `rebooted` when it ended with the machine."""

    text: str
    rebooted: bool = False


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """A node's own account of itself. `status` is "starting", "waiting_for_keys", "serving", "failed" or "silent"."""

    status: str
    enclave_id: str = ""
    version: str = ""
    canary: bool | None = None
    committed: bool = False
    key_set_id: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far the vault is with one target; `state` as in the vault's API, `code` when it refused."""

    state: str
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One transition as it is journalled: state, what happened, the state after it, and the work now wanted.

    `command_id` and `outcome` are set where an operator command was the event.
    """

    before: State
    event: Event
    after: State
    wanted: tuple[Effect, ...]
    command_id: int = 0
    outcome: Outcome | None = None


class JournalPort(Protocol):
    """Durable memory. `append` returns only when the entry would survive a power cut."""

    async def load(self) -> State | None:
        """The last state, or None in a new journal."""

    async def intents(self) -> list[dict[str, Any]]:
        """The JSON of the work that was wanted when the last entry was stored."""

    async def append(self, entry: Entry) -> None:
        """Store one transition. Raises DcupgradeError, and then nothing was stored.

        JOURNAL_WRITE_FAILED may pass; COMMAND_CANCELLED: the operator command was cancelled meanwhile.
        """

    async def commands(self) -> list[Command]:
        """Operator commands that no entry has taken up yet, oldest first."""


class ClockPort(Protocol):
    """Time. Waiting never uses the wall clock, so clock jumps do not matter."""

    def now(self) -> float:
        """Wall clock, Unix seconds; for records and for what people or other programs agreed on."""

    def monotonic(self) -> float:
        """Seconds that never jump."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A signed release at a best block: it may be fetched early, and nothing else, since it is not final."""

    release: Release


class ChainPort(Protocol):
    """The chain: what is final, and what may become so."""

    def news(self) -> AsyncIterator[Announcement | ChainFacts]:
        """What the final chain says now and after each change, and between them what best blocks announce."""

    async def evidence(self, target_id: str, source_id: str, vault_state: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the vault needs in order to permit a target."""


class VaultPort(Protocol):
    """The key vault, over its agent API; every call is idempotent."""

    async def status(self) -> Mapping[str, Any]:
        """Its state: own enclave id, heights seen, key sets held."""

    async def collect(self, source_id: str, evidence: Mapping[str, Any]) -> SealedKeys:
        """Take the running node's key set, or find it taken already; returns once it is sealed.

        The evidence shows the vault that the network lists it.
        """

    async def permit(self, source_id: str, target_id: str, key_set_id: str, evidence: Mapping[str, Any]) -> Permit:
        """Permit the handover of the key set to the target."""

    async def delivery(self, enclave_id: str) -> Delivery:
        """How far the handover to this enclave is."""

    async def holds_keys_of(self, source_id: str, key_set_id: str) -> bool:
        """Whether a sealed copy from this source is there: of that key set, or of any when `key_set_id` is ""."""

    async def committed(self, target_id: str, key_set_id: str) -> None:
        """The target is committed: retention of the sealed copy begins."""


class SlotsPort(Protocol):
    """Files of node versions on this machine: one slot per version."""

    async def stage(self, release: Release, progress: Progress) -> StagedRelease:
        """Download and verify into the release's slot; returns at once when it is there."""

    async def fetch_early(self, release: Release) -> None:
        """The same for a release that is not final yet; only a verified folder comes of it."""

    async def slot_is_good(self, enclave_id: str) -> bool:
        """Whether the version's files are there and are what they were when they were verified."""

    async def staged(self) -> list[str]:
        """Enclave ids of the versions whose files are here."""

    async def remove_slot(self, enclave_id: str) -> None:
        """Delete the version's files; one that runs is refused."""

    async def discover(self) -> Release | None:
        """The version that owns the data, as far as files and processes tell: for a start with an empty journal."""


class ProcessesPort(Protocol):
    """Processes of node versions. At most one runs at a time; starting one while another lives is refused."""

    async def start(self, release: Release, *, first_install: bool) -> RunningNode:
        """Have the version's process run: one that lives already is taken over, else it is started."""

    async def is_alive(self, enclave_id: str) -> bool:
        """Whether the version's process lives."""

    async def wait_exit(self, enclave_id: str) -> NodeExit:
        """Return when the version's process is gone."""

    async def why_silent(self, enclave_id: str) -> str:
        """What keeps a living process from answering, as far as the host tells; empty where nothing is to be seen."""

    async def stop(self, enclave_id: str) -> None:
        """Stop the version's process (TERM, grace, KILL); returns when it is gone, its port and data lock free."""

    async def key_set_id(self) -> str:
        """The id of the key set that the data folder belongs to, as its marker says; "" when there is none."""


class NodeHttpPort(Protocol):
    """The HTTP interface of the node that runs."""

    async def health(self, enclave_id: str) -> NodeHealth:
        """Ask the node; never raises, an unreachable node is "silent"."""

    async def commit(self, enclave_id: str) -> None:
        """Report the commit to the node. Raises unless the node acknowledges it."""


class HostPort(Protocol):
    """The machine that everything runs on."""

    async def preflight(self, target: Release, source_id: str, first_install: bool) -> list[Shut]:
        """Return every reason against an upgrade now. `source_id` is "" for a first install."""


class FleetPort(Protocol):
    """This node's place among the nodes that may upgrade at once. Asked only while the old node runs."""

    async def take(self, release: Release) -> tuple[Shut, ...]:
        """Hold a place for an upgrade to this release; returns the reasons against it. Safe to ask again."""

    async def give_back(self) -> None:
        """Give the place to others, because another gate is shut. Never raises."""


class NoFleet:
    """The fleet of a node that belongs to none: it may always upgrade."""

    async def take(self, _release: Release) -> tuple[Shut, ...]:
        """See `FleetPort`."""
        return ()

    async def give_back(self) -> None:
        """See `FleetPort`."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The whole world of the orchestrator, apart from its journal."""

    chain: ChainPort
    vault: VaultPort
    slots: SlotsPort
    processes: ProcessesPort
    node_http: NodeHttpPort
    host: HostPort
    clock: ClockPort
    fleet: FleetPort = field(default_factory=NoFleet)
