"""A journal in memory, with the codec of the real one."""

from __future__ import annotations

import json
from typing import Any

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.operator_commands import Command, Outcome
from dcupgrade.machine.state import State, state_from_json
from dcupgrade.upgrade.ports import Entry


class MemoryJournal:
    """A journal for simulations: the same entries and the same codec, kept in memory.

    `durable` is the encoded state that a crash leaves behind. `fail_writes` makes writes fail as a full disk does.
    """

    def __init__(self, durable: str | None = None) -> None:
        self.durable = durable
        self.wanted = "[]"
        self.entries = 0
        self.fail_writes = False
        self.queue: list[Command] = []
        self.outcomes: dict[int, Outcome | None] = {}

    async def load(self) -> State | None:
        """The last state that was appended."""
        return None if self.durable is None else state_from_json(json.loads(self.durable))

    async def intents(self) -> list[dict[str, Any]]:
        """The work of the last state that was appended."""
        return list(json.loads(self.wanted))

    async def append(self, entry: Entry) -> None:
        """Keep the state."""
        if self.fail_writes:
            raise DcupgradeError(
                code="JOURNAL_WRITE_FAILED",
                what="journal in memory",
                why="the simulated disk is full",
                kind="transient",
            )
        if entry.command_id and entry.command_id not in {item.id for item in self.queue}:
            raise DcupgradeError(code="COMMAND_CANCELLED", what=f"command {entry.command_id}", why="it was cancelled")
        self.outcomes[entry.command_id] = entry.outcome
        self.durable = json.dumps(entry.after.to_json())
        self.wanted = json.dumps([effect.to_json() for effect in entry.wanted])
        self.entries += 1
        self.queue = [item for item in self.queue if item.id != entry.command_id]

    async def commands(self) -> list[Command]:
        """Operator commands that wait."""
        return list(self.queue)
