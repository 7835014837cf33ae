"""The real agent, plus code that kills a process at a chosen boundary of the journal.

    python -m tests.e2e.killing_agent SETTINGS [--first-install]

What to kill is read from `kill.json` in the state folder: {"boundary": state, "when": "before" | "after",
"victim": "agent" | "vault" | "old" | "new"}. "before" is the instant at which the work is done and its event is not yet
journalled; "after" the one at which the new state is journalled and its work has not begun. The program itself knows
nothing of this: the journal is wrapped.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from dcupgrade import service
from dcupgrade.adapters.journal_thread import JournalThread
from dcupgrade.machine.operator_commands import Command
from dcupgrade.machine.state import State
from dcupgrade.settings import load
from dcupgrade.surfaces import logs
from dcupgrade.upgrade.ports import Entry
from keyvault.vault.log_writer import LogWriter


class ElbowJournal:
    """A journal that kills a process on request."""

    def __init__(self, journal: JournalThread, state_dir: Path) -> None:
        self._journal, self._state_dir = journal, state_dir

    async def load(self) -> State | None:
        return await self._journal.load()

    async def intents(self) -> list[dict[str, Any]]:
        return await self._journal.intents()

    async def commands(self) -> list[Command]:
        return await self._journal.commands()

    async def append(self, entry: Entry) -> None:
        self._look(entry, "before")
        await self._journal.append(entry)
        self._look(entry, "after")

    def _look(self, entry: Entry, when: str) -> None:
        order_path = self._state_dir / "kill.json"
        if entry.before.name is entry.after.name or not order_path.exists():
            return
        order = json.loads(order_path.read_text())
        if order["when"] != when or order["boundary"] != entry.after.name.value:
            return
        pid = self._pid_of(order["victim"], entry)
        order_path.rename(order_path.with_name("killed.json"))
        if pid:
            os.kill(pid, signal.SIGKILL)

    def _pid_of(self, victim: str, entry: Entry) -> int:
        if victim == "agent":
            return os.getpid()
        name = "vault"
        if victim != "vault":
            committed = entry.after.running == entry.after.target
            old = entry.after.previous if committed else entry.after.running
            release = old if victim == "old" else entry.after.target or entry.before.target
            name = f"node-{release.enclave_id[:20]}" if release is not None else ""
        record = self._state_dir / "run" / f"{name}.json"
        if not record.exists():
            return 0
        facts = json.loads(record.read_text())
        try:
            started = Path(f"/proc/{facts['pid']}/stat").read_text().rsplit(")", 1)[1].split()[19]
        except OSError:
            return 0
        return int(facts["pid"]) if int(started) == facts["start_time_ticks"] else 0


def main() -> None:
    """Run the agent."""
    loaded = load.load(Path(sys.argv[1]))
    logs.configure(LogWriter(), "human", "info")

    def wrap(journal: JournalThread) -> ElbowJournal:
        return ElbowJournal(journal, loaded.agent.state_dir)

    asyncio.run(service.serve(loaded, first_install="--first-install" in sys.argv, wrap_journal=wrap))


if __name__ == "__main__":
    main()
