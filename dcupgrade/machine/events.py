"""Events go into the machine, effects come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .state import ChainFacts, Hold, value_to_json


class EventKind(StrEnum):
    """What can happen to the machine: from the chain, from an operator, or as the end of an effect."""

    CHAIN = "chain"
    HOLD = "hold"
    UNHOLD = "unhold"
    APPROVE = "approve"
    OVERRIDE = "override"
    RESUME = "resume"
    REVERT = "revert"
    RETRY = "retry"
    NODE_SERVING = "node_serving"
    NODE_EXITED = "node_exited"
    NODE_START_FAILED = "node_start_failed"
    BEGIN = "begin"
    BACKOFF_OVER = "backoff_over"
    RETIRED = "retired"
    STAGED = "staged"
    STAGE_FAILED = "stage_failed"
    GATES_OPEN = "gates_open"
    GATES_SHUT = "gates_shut"
    COLLECTED = "collected"
    COLLECT_FAILED = "collect_failed"
    PERMITTED = "permitted"
    PERMIT_FAILED = "permit_failed"
    NODE_STOPPED = "node_stopped"
    STOP_FAILED = "stop_failed"
    LAUNCHED = "launched"
    LAUNCH_FAILED = "launch_failed"
    DELIVERED = "delivered"
    DELIVERY_FAILED = "delivery_failed"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    COMMIT_DONE = "commit_done"
    SOURCE_SERVING = "source_serving"
    SOURCE_FAILED = "source_failed"
    SETTLED = "settled"
    ADOPTED = "adopted"
    """A node was found beside an empty journal; written once at start-up, before the machine runs."""
    WORD_REFUSED = "word_refused"
    """An operator command that cannot be carried out: journalled as taken, never given to the machine."""
    RESTART = "restart"
    """An operator wants the running node stopped and started again; it changes nothing that the machine wants."""


BESIDE_THE_MACHINE = (EventKind.WORD_REFUSED, EventKind.RESTART)
"""Operator commands that are journalled and never given to the machine."""


class EffectKind(StrEnum):
    """What the orchestrator is asked to do. Each is idempotent: doing it twice is as good as doing it once."""

    KEEP_NODE = "keep_node"
    BEGIN = "begin"
    BACKOFF = "backoff"
    RETIRE = "retire"
    STAGE = "stage"
    GATES = "gates"
    COLLECT = "collect"
    PERMIT = "permit"
    STOP_NODE = "stop_node"
    LAUNCH = "launch"
    DELIVER = "deliver"
    PROBATION = "probation"
    COMMIT = "commit"
    AWAIT_SOURCE = "await_source"
    START_SOURCE = "start_source"
    SETTLE = "settle"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. Which fields are set depends on `kind`; `at_unix_s` is the wall clock, for the record.

    `failure` is the error's kind: "transient", "rejected" or "invariant".
    """

    kind: EventKind
    enclave_id: str = ""
    code: str = ""
    detail: str = ""
    failure: str = ""
    key_set_id: str = ""
    expires_unix_s: int = 0
    chain: ChainFacts | None = None
    hold: Hold | None = None
    who: str = ""
    at_unix_s: float = field(default=0.0, compare=False)

    def to_json(self) -> dict[str, Any]:
        """JSON form with the empty fields left out."""
        out: dict[str, Any] = {"kind": self.kind.value}
        for key in ("enclave_id", "code", "detail", "failure", "key_set_id", "expires_unix_s", "who", "at_unix_s"):
            if value := getattr(self, key):
                out[key] = value
        if self.chain is not None:
            out["chain"] = value_to_json(self.chain)
        if self.hold is not None:
            out["hold"] = value_to_json(self.hold)
        return out


@dataclass(frozen=True, slots=True)
class Effect:
    """Something to do. Two equal effects are the same piece of work, which is how a running one is recognised.

    `enclave_id` is the node or release it is about. `words` is what else it depends on, so that a change starts it
    afresh: for GATES what operators said, for STAGE the addresses.
    """

    kind: EffectKind
    enclave_id: str = ""
    key_set_id: str = ""
    words: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON form with the empty fields left out."""
        out: dict[str, Any] = {"kind": self.kind.value}
        if self.enclave_id:
            out["enclave_id"] = self.enclave_id
        if self.key_set_id:
            out["key_set_id"] = self.key_set_id
        if self.words:
            out["words"] = list(self.words)
        return out
