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
    """How a node's process ended; `rebooted` if it ended because the machine was restarted."""

    text: str
    rebooted: bool = False


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """A node's report about itself. `status` is "starting", "waiting_for_keys", "serving", "failed" or "silent"."""

    status: str
    enclave_id: str = ""
    version: str = ""
    canary: bool | None = None
    committed: bool = False
    key_set_id: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The progress of a delivery to one target: `state` as in the vault's API, and `code` if the vault refused."""

    state: str
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One transition as it is journalled: the state before, the event, the state after, and the work now wanted.

    `command_id` and `outcome` are set if the event was an operator command.
    """

    before: State
    event: Event
    after: State
    wanted: tuple[Effect, ...]
    command_id: int = 0
    outcome: Outcome | None = None


class JournalPort(Protocol):
    """Durable storage. `append` returns only once the entry would survive a power cut."""

    async def load(self) -> State | None:
        """Return the last state, or None for a new journal."""

    async def intents(self) -> list[dict[str, Any]]:
        """Return the JSON of the work that was wanted when the last entry was stored."""

    async def append(self, entry: Entry) -> None:
        """Store one transition. Raises DcupgradeError; then nothing was stored.

        JOURNAL_WRITE_FAILED may be temporary. COMMAND_CANCELLED means that the operator command was cancelled before it
        was stored.
        """

    async def commands(self) -> list[Command]:
        """Return the operator commands that no entry has handled yet, oldest first."""


class ClockPort(Protocol):
    """Time. Waiting never uses the wall clock, so clock jumps do not matter."""

    def now(self) -> float:
        """Wall clock, Unix seconds; for records and for times shared with people or other programs."""

    def monotonic(self) -> float:
        """Seconds that never jump."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A signed release at a best block. It is not final, so it may only be fetched early."""

    release: Release


class ChainPort(Protocol):
    """The chain: final facts, and announcements that may become final."""

    def news(self) -> AsyncIterator[Announcement | ChainFacts]:
        """Yield the facts of the final chain, now and after each change, and in between what best blocks announce."""

    async def evidence(self, target_id: str, source_id: str, vault_state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the evidence that the vault needs to permit a target."""


class VaultPort(Protocol):
    """The key vault, over its agent API; every call is idempotent."""

    async def status(self) -> Mapping[str, Any]:
        """Its state: own enclave id, heights seen, key sets held."""

    async def collect(self, source_id: str, evidence: Mapping[str, Any]) -> SealedKeys:
        """Collect the running node's key set, unless that was done before; return once it is sealed.

        The evidence proves to the vault that the network lists the vault.
        """

    async def permit(self, source_id: str, target_id: str, key_set_id: str, evidence: Mapping[str, Any]) -> Permit:
        """Permit the handover of the key set to the target."""

    async def delivery(self, enclave_id: str) -> Delivery:
        """Return the progress of the handover to this enclave."""

    async def holds_keys_of(self, source_id: str, key_set_id: str) -> bool:
        """Return whether the vault has a sealed copy from this source: of that key set, or of any if the id is ""."""

    async def committed(self, target_id: str, key_set_id: str) -> None:
        """Report that the target is committed: the retention time of the sealed copy begins."""


class SlotsPort(Protocol):
    """Files of node versions on this machine: one slot per version."""

    async def stage(self, release: Release, progress: Progress) -> StagedRelease:
        """Download and verify the release into its slot; return at once if it is already there."""

    async def fetch_early(self, release: Release) -> None:
        """Stage a release that is not final yet. The only result is a verified folder."""

    async def slot_is_good(self, enclave_id: str) -> bool:
        """Return whether the version's files exist and still verify."""

    async def staged(self) -> list[str]:
        """Return the enclave ids of the versions whose files are on this machine."""

    async def remove_slot(self, enclave_id: str) -> None:
        """Delete the version's files; refused for a version that runs."""

    async def discover(self) -> Release | None:
        """Return the version that owns the data, found by files and processes; for a start with an empty journal."""


class ProcessesPort(Protocol):
    """Processes of node versions. At most one runs at a time; starting one while another lives is refused."""

    async def start(self, release: Release, *, first_install: bool) -> RunningNode:
        """Start the version's process, or take over its running one."""

    async def is_alive(self, enclave_id: str) -> bool:
        """Return whether the version's process is alive."""

    async def wait_exit(self, enclave_id: str) -> NodeExit:
        """Wait until the version's process is gone; return how it ended."""

    async def why_silent(self, enclave_id: str) -> str:
        """Return what keeps a living process from answering, as far as the host shows it; "" if nothing is found."""

    async def stop(self, enclave_id: str) -> None:
        """Stop the version's process (TERM, grace, KILL); return when it is gone and port and data lock are free."""

    async def key_set_id(self) -> str:
        """Return the id of the data folder's key set, from its marker; "" if there is no marker."""


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
    """This node's slot in a fleet that limits concurrent upgrades. Asked for only while the old node runs."""

    async def take(self, release: Release) -> tuple[Shut, ...]:
        """Take a slot for an upgrade to this release; return the reasons if refused. Safe to repeat."""

    async def give_back(self) -> None:
        """Free the slot for others, because another gate is shut. Never raises."""


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
