"""Events: what can happen to the machine. One frozen class per event, with the values that the event proves.

`kind` is the stable name of an event in the journal, on the status page and in the picture of the table. Classes
without `kind` are base classes of several events and are never created.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from dcupgrade.errors import Failure

from .gates import Shut
from .stages import AttestedNode, Permit, RunningNode, SealedKeys, StagedRelease
from .state import ChainFacts, Hold, value_to_json

# --- families --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `at_unix_s` is the wall clock, for the journal only; comparisons ignore it."""

    kind: ClassVar[str] = ""
    at_unix_s: float = field(default=0.0, compare=False, kw_only=True)

    @property
    def code(self) -> str:
        """The stable code of the failure; empty if there is none."""
        return ""

    @property
    def detail(self) -> str:
        """Details for an operator; may be empty."""
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return the journal form: one flat object without empty fields."""
        values = {"code": self.code, "detail": self.detail, **self._values(), "at_unix_s": self.at_unix_s}
        return {"kind": self.kind, **{name: value for name, value in values.items() if value}}

    def _values(self) -> dict[str, Any]:
        """Return the fields of this event by their names in the journal."""
        return {}


@dataclass(frozen=True, slots=True)
class ReleaseEvent(Event):
    """An event whose only value is the version it is about."""

    enclave_id: str

    def _values(self) -> dict[str, Any]:
        return {"enclave_id": self.enclave_id}


@dataclass(frozen=True, slots=True)
class FailureEvent(Event):
    """An effect failed, for one version. `failure.kind` is "transient", "rejected" or "invariant"."""

    enclave_id: str
    failure: Failure

    @property
    def code(self) -> str:
        """See `Event.code`."""
        return self.failure.code

    @property
    def detail(self) -> str:
        """See `Event.detail`."""
        return self.failure.detail

    def _values(self) -> dict[str, Any]:
        return {"enclave_id": self.enclave_id, "failure": self.failure.kind}


@dataclass(frozen=True, slots=True)
class CommandEvent(Event):
    """An operator command. `reason` is the operator's own text."""

    who: str = ""
    reason: str = ""

    @property
    def detail(self) -> str:
        """See `Event.detail`."""
        return self.reason

    def _values(self) -> dict[str, Any]:
        return {"who": self.who}


@dataclass(frozen=True, slots=True)
class ReleaseCommand(CommandEvent):
    """An operator command about one version. `enclave_id`: empty if none was given and the chain names none."""

    enclave_id: str = ""

    def _values(self) -> dict[str, Any]:
        return {"enclave_id": self.enclave_id, "who": self.who}


@dataclass(frozen=True, slots=True)
class StartingCommand(CommandEvent):
    """An operator command that starts a version. `files_damaged`: why that would fail; empty if it would not."""

    files_damaged: str = ""

    @property
    def code(self) -> str:
        """See `Event.code`."""
        return "SOURCE_SLOT_DAMAGED" if self.files_damaged else ""

    @property
    def detail(self) -> str:
        """See `Event.detail`."""
        return self.files_damaged or self.reason


# --- the chain and the operators -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChainSeen(Event):
    """The finalized chain has these facts now."""

    kind: ClassVar[str] = "chain"
    facts: ChainFacts

    def _values(self) -> dict[str, Any]:
        return {"chain": value_to_json(self.facts)}


@dataclass(frozen=True, slots=True)
class HoldCommand(CommandEvent):
    """`hold`: start no upgrade."""

    kind: ClassVar[str] = "hold"
    hold: Hold = field(kw_only=True)

    def _values(self) -> dict[str, Any]:
        return {"who": self.who, "hold": value_to_json(self.hold)}


@dataclass(frozen=True, slots=True)
class UnholdCommand(CommandEvent):
    """`unhold`: lift the hold."""

    kind: ClassVar[str] = "unhold"


@dataclass(frozen=True, slots=True)
class ApproveCommand(ReleaseCommand):
    """`approve`: the release may be installed once the other gates are open."""

    kind: ClassVar[str] = "approve"


@dataclass(frozen=True, slots=True)
class OverrideCommand(ReleaseCommand):
    """`override`: open all gates but the preflight for the release."""

    kind: ClassVar[str] = "override"


@dataclass(frozen=True, slots=True)
class RetryCommand(ReleaseCommand):
    """`retry`: forget the failures of the release."""

    kind: ClassVar[str] = "retry"


@dataclass(frozen=True, slots=True)
class ResumeCommand(CommandEvent):
    """`resume`: leave a halted condition."""

    kind: ClassVar[str] = "resume"


@dataclass(frozen=True, slots=True)
class RevertCommand(StartingCommand):
    """`revert`: go back to the previous version."""

    kind: ClassVar[str] = "revert"


@dataclass(frozen=True, slots=True)
class RestartCommand(StartingCommand):
    """`restart`: stop the running node and start it again. The machine never gets it, because it changes no state."""

    kind: ClassVar[str] = "restart"


@dataclass(frozen=True, slots=True)
class CommandRefused(CommandEvent):
    """An operator command that cannot be carried out. It is journalled with its outcome; the machine never gets it."""

    kind: ClassVar[str] = "word_refused"
    refusal: str = ""
    why: str = ""

    @property
    def code(self) -> str:
        """See `Event.code`."""
        return self.refusal

    @property
    def detail(self) -> str:
        """See `Event.detail`."""
        return self.why


BESIDE_THE_MACHINE = (CommandRefused, RestartCommand)
"""Operator commands that are journalled and never given to the machine."""

# --- the node that runs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Adopted(ReleaseEvent):
    """A node was found beside an empty journal; written once at start-up, before the machine runs."""

    kind: ClassVar[str] = "adopted"

    @property
    def detail(self) -> str:
        """See `Event.detail`."""
        return "no node was known"


@dataclass(frozen=True, slots=True)
class NodeServing(ReleaseEvent):
    """The version serves."""

    kind: ClassVar[str] = "node_serving"


@dataclass(frozen=True, slots=True)
class NodeExited(Event):
    """The version's process ended. `rebooted`: it ended because the host restarted."""

    kind: ClassVar[str] = "node_exited"
    enclave_id: str
    text: str = ""
    rebooted: bool = False

    @property
    def code(self) -> str:
        """See `Event.code`."""
        return "HOST_REBOOTED" if self.rebooted else "NODE_EXITED"

    @property
    def detail(self) -> str:
        """See `Event.detail`."""
        return self.text

    def _values(self) -> dict[str, Any]:
        return {"enclave_id": self.enclave_id}


@dataclass(frozen=True, slots=True)
class NodeStartFailed(FailureEvent):
    """The running version could not be started."""

    kind: ClassVar[str] = "node_start_failed"


# --- before the old node stops ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UpgradeBegun(ReleaseEvent):
    """The release on the chain is taken as the target."""

    kind: ClassVar[str] = "begin"


@dataclass(frozen=True, slots=True)
class BackoffOver(ReleaseEvent):
    """The pause after a failed upgrade to the release is over."""

    kind: ClassVar[str] = "backoff_over"


@dataclass(frozen=True, slots=True)
class PreviousRetired(ReleaseEvent):
    """The previous version's retention time is over."""

    kind: ClassVar[str] = "retired"


@dataclass(frozen=True, slots=True)
class Staged(Event):
    """The target is downloaded and verified."""

    kind: ClassVar[str] = "staged"
    release: StagedRelease

    def _values(self) -> dict[str, Any]:
        return {"enclave_id": self.release.enclave_id}


@dataclass(frozen=True, slots=True)
class StageFailed(FailureEvent):
    """The target could not be downloaded or verified."""

    kind: ClassVar[str] = "stage_failed"


@dataclass(frozen=True, slots=True)
class GatesOpen(ReleaseEvent):
    """No gate is shut any more."""

    kind: ClassVar[str] = "gates_open"


@dataclass(frozen=True, slots=True)
class GatesShut(Event):
    """A gate was shut again before the old node stopped."""

    kind: ClassVar[str] = "gates_shut"
    enclave_id: str
    shut: Shut

    @property
    def code(self) -> str:
        """See `Event.code`."""
        return self.shut.code

    @property
    def detail(self) -> str:
        """See `Event.detail`."""
        return self.shut.detail

    def _values(self) -> dict[str, Any]:
        return {"enclave_id": self.enclave_id}


@dataclass(frozen=True, slots=True)
class Collected(Event):
    """The vault has sealed the running node's key set."""

    kind: ClassVar[str] = "collected"
    keys: SealedKeys

    def _values(self) -> dict[str, Any]:
        return {"enclave_id": self.keys.source_id, "key_set_id": self.keys.key_set_id}


@dataclass(frozen=True, slots=True)
class CollectFailed(FailureEvent):
    """The vault could not collect the running node's key set."""

    kind: ClassVar[str] = "collect_failed"


@dataclass(frozen=True, slots=True)
class Permitted(Event):
    """The vault has issued the permit for the target."""

    kind: ClassVar[str] = "permitted"
    permit: Permit

    def _values(self) -> dict[str, Any]:
        return {"enclave_id": self.permit.target_id, "expires_unix_s": self.permit.expires_unix_s}


@dataclass(frozen=True, slots=True)
class PermitFailed(FailureEvent):
    """The vault issued no permit."""

    kind: ClassVar[str] = "permit_failed"


# --- from the stop to the commit -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeStopped(ReleaseEvent):
    """The version's process is gone; its port and its data are free."""

    kind: ClassVar[str] = "node_stopped"


@dataclass(frozen=True, slots=True)
class StopFailed(FailureEvent):
    """The version's process could not be stopped, or its data is still in use."""

    kind: ClassVar[str] = "stop_failed"


@dataclass(frozen=True, slots=True)
class Launched(Event):
    """The target's process runs."""

    kind: ClassVar[str] = "launched"
    node: RunningNode

    def _values(self) -> dict[str, Any]:
        return {"enclave_id": self.node.enclave_id}


@dataclass(frozen=True, slots=True)
class LaunchFailed(FailureEvent):
    """The target could not be started."""

    kind: ClassVar[str] = "launch_failed"


@dataclass(frozen=True, slots=True)
class Delivered(Event):
    """The target holds the keys and serves."""

    kind: ClassVar[str] = "delivered"
    node: AttestedNode

    def _values(self) -> dict[str, Any]:
        return {"enclave_id": self.node.enclave_id}


@dataclass(frozen=True, slots=True)
class DeliveryFailed(FailureEvent):
    """The target did not get the keys, or does not serve with them."""

    kind: ClassVar[str] = "delivery_failed"


@dataclass(frozen=True, slots=True)
class Healthy(ReleaseEvent):
    """The target was healthy for the whole probation."""

    kind: ClassVar[str] = "healthy"


@dataclass(frozen=True, slots=True)
class Unhealthy(FailureEvent):
    """The target failed during probation."""

    kind: ClassVar[str] = "unhealthy"


@dataclass(frozen=True, slots=True)
class CommitDone(ReleaseEvent):
    """The target knows that it is committed."""

    kind: ClassVar[str] = "commit_done"


# --- the way back ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceServing(ReleaseEvent):
    """The source serves again."""

    kind: ClassVar[str] = "source_serving"


@dataclass(frozen=True, slots=True)
class SourceFailed(FailureEvent):
    """The source could not be brought back."""

    kind: ClassVar[str] = "source_failed"


@dataclass(frozen=True, slots=True)
class Settled(ReleaseEvent):
    """The upgrade is over."""

    kind: ClassVar[str] = "settled"
