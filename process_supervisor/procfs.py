"""What Linux says of processes: identity beyond the pid, and who belongs to a session. proc(5)."""

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """Of /proc/<pid>/stat: pid, state letter, process group, session, start time in clock ticks since boot."""

    pid: int
    state: str
    group: int
    session: int
    start_time_ticks: int

    @property
    def alive(self) -> bool:
        """Whether it still executes: zombies and dead ones hold nothing but their exit status."""
        return self.state not in ("Z", "X", "x")


def process_facts(pid: int) -> ProcessFacts | None:
    """Facts about `pid`, or None if there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes().decode("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name, in brackets, may itself hold brackets and spaces: the last one ends it.
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessFacts(pid, fields[0], int(fields[2]), int(fields[3]), int(fields[19]))


def session_members(session: int) -> list[ProcessFacts]:
    """Every living process of a session, whatever process group it moved to."""
    found = []
    for name in os.listdir(PROC):
        if name.isdigit():
            facts = process_facts(int(name))
            if facts is not None and facts.session == session and facts.alive:
                found.append(facts)
    return found


def boot_id() -> str:
    """This boot's random id: pids and start times say nothing across boots."""
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
