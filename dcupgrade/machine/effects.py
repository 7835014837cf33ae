"""Effects: the work that the machine wants from the orchestrator."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class EffectKind(StrEnum):
    """The kinds of work. Each is idempotent: doing it twice has the same result as doing it once."""

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
class Effect:
    """One piece of work. Equal effects are the same work, so a running one is found by equality.

    `enclave_id`: the node or release that it is about. `depends_on`: other inputs, whose change restarts the work: for
    GATES the operator commands in force, for STAGE the addresses of the release.
    """

    kind: EffectKind
    enclave_id: str = ""
    key_set_id: str = ""
    depends_on: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the journal form, without empty fields. `depends_on` is named "words", as in journal schema 1."""
        out: dict[str, Any] = {"kind": self.kind.value}
        if self.enclave_id:
            out["enclave_id"] = self.enclave_id
        if self.key_set_id:
            out["key_set_id"] = self.key_set_id
        if self.depends_on:
            out["words"] = list(self.depends_on)
        return out
