"""The journal: SQLite in WAL mode with synchronous=FULL, one transaction per transition of the machine.

A transaction holds the new state, the event that led to it, and the work that is wanted from now on (the intents).
It is on disk before any of that work begins. Start-up reads the state and begins the work that follows from it.
The command line and the HTTP API queue operator commands in the same file, and read the history.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.events import ChainSeen
from dcupgrade.machine.operator_commands import Command, Outcome
from dcupgrade.machine.state import STATE_FORMAT, Name, State, state_from_json
from dcupgrade.printable import storable
from dcupgrade.upgrade.ports import Entry

from .journal_file import COMMANDS, EVENTS, INTENTS, corrupt, damaged_rows, open_file, too_new, unreadable

HISTORY_ROWS_MAX = 100_000
"""Older transitions are dropped, a thousand at a time."""


@dataclass
class _Tally:
    """Changes of state counted so far, up to the row `seq`."""

    seq: int = 0
    changes: dict[str, float] = field(default_factory=dict)
    downtime_s: float = 0.0
    stopped_at_unix_s: float | None = None

    def add(self, seq: int, at_unix_s: float, before: str, after: str) -> None:
        """Count one change. Downtime lasts from `stopping` to the first state in which a node serves again."""
        self.seq = seq
        change = f"{before}>{after}"
        self.changes[change] = self.changes.get(change, 0.0) + 1
        if change == "sealed>stopping":
            self.stopped_at_unix_s = at_unix_s
        elif self.stopped_at_unix_s is not None and (change == "delivering>probation" or after == "reverted"):
            self.downtime_s, self.stopped_at_unix_s = at_unix_s - self.stopped_at_unix_s, None


class Journal:
    """The journal in one file. Only one agent writes transitions (the service's lock ensures this).

    Raises DcupgradeError JOURNAL_UNREADABLE, JOURNAL_CORRUPT or JOURNAL_TOO_NEW when it is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = open_file(path)
        self._tally = _Tally()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def load(self) -> State | None:
        """The last state; raises JOURNAL_CORRUPT when it is damaged."""
        with self._reading():
            row = self._db.execute("SELECT json, sha256 FROM state").fetchone()
        if row is None:
            return None
        text, digest = row
        if hashlib.sha256(str(text).encode("utf-8", "surrogateescape")).hexdigest() != digest:
            raise corrupt(self.path, "the stored state does not match its checksum")
        try:
            data = json.loads(text)
            if data["format"] > STATE_FORMAT:
                raise too_new(self.path, f"its state has format {data['format']}, this program knows {STATE_FORMAT}")
            return state_from_json(data)
        except (KeyError, TypeError, ValueError) as error:
            raise corrupt(self.path, f"the stored state cannot be decoded ({error!r})") from error

    def intents(self) -> list[dict[str, Any]]:
        """The work that was wanted when the last transition was stored; damaged rows are left out."""
        with self._reading():
            found = [INTENTS.content(row) for row in self._db.execute(INTENTS.select("ORDER BY id"))]
        return [content for content in found if content is not None]

    def damaged_rows(self) -> list[str]:
        """Each row that is not what was written, as "events 7". Reads everything."""
        with self._reading():
            return [f"{table} {number}" for table, number in damaged_rows(self._db)]

    def append(self, entry: Entry) -> None:
        """Store one transition durably. On an error the journal is as it was before.

        Raises JOURNAL_WRITE_FAILED, and COMMAND_CANCELLED for a command that was cancelled meanwhile.
        """
        text = _dump(entry.after.to_json())
        digest = hashlib.sha256(text.encode()).hexdigest()
        with self._writing():
            seq = self._db.execute(_INSERT_EVENT, _event_row(entry)).lastrowid
            EVENTS.sign(self._db, seq)
            self._db.execute("INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?)", (seq, text, digest))
            self._db.execute("DELETE FROM intents")
            for effect in entry.wanted:
                INTENTS.sign(self._db, self._db.execute(_INSERT_INTENT, (seq, _dump(effect.to_json()))).lastrowid)
            if entry.command_id and not self._end_wait(entry.command_id, seq):
                raise _cancelled(entry.command_id)
            if seq and seq % 1000 == 0:
                for statement in _DROP_OLD:
                    self._db.execute(statement, (seq - HISTORY_ROWS_MAX,))

    def _end_wait(self, number: int, seq: int | None, who: str = "") -> bool:
        """Mark a waiting command as handled, or as cancelled by `who` if given. Return False if it does not wait.

        A damaged command gets no new checksum, so that it still shows as damaged.
        """
        row = self._db.execute(COMMANDS.select("WHERE id = ? AND taken_seq IS NULL"), (number,)).fetchone()
        if row is None:
            return False
        content = COMMANDS.content(row)
        self._db.execute("UPDATE commands SET taken_seq = ? WHERE id = ?", (seq, number))
        if content is not None:
            if who:
                text = _dump({**content, "cancelled_by": who})
                self._db.execute("UPDATE commands SET json = ? WHERE id = ?", (text, number))
            COMMANDS.sign(self._db, number)
        return True

    def commands(self) -> list[Command]:
        """Operator commands that wait, oldest first; at most 100."""
        with self._reading():
            rows = self._db.execute(COMMANDS.select("WHERE taken_seq IS NULL ORDER BY id LIMIT 100")).fetchall()
        return [_command(row) for row in rows]

    def enqueue(self, kind: str, who: str, arguments: Mapping[str, Any]) -> int:
        """Queue an operator command for the agent; returns its number. Raises JOURNAL_WRITE_FAILED."""
        with self._writing():
            values = (time.time(), kind, who, _dump(dict(arguments)))
            number = self._db.execute(_INSERT_COMMAND, values).lastrowid
            COMMANDS.sign(self._db, number)
        return number or 0

    def command_taken(self, number: int) -> bool:
        """Whether the agent has taken up the command with this number."""
        with self._reading():
            row = self._db.execute("SELECT taken_seq FROM commands WHERE id = ?", (number,)).fetchone()
        return row is not None and row[0] is not None

    def cancel(self, number: int, who: str) -> bool:
        """Cancel a command that still waits; False when it is taken up, cancelled already, or there is none."""
        with self._writing():
            return self._end_wait(number, CANCELLED_SEQ, who)

    def outcome(self, number: int) -> Outcome | None:
        """Return the outcome of a command; None while it waits, or if there is no such command."""
        with self._reading():
            row = self._db.execute(COMMANDS.select("WHERE id = ?"), (number,)).fetchone()
            if row is None or row[-2] is None:
                return None
            command, taken_seq = COMMANDS.content(row), row[-2]
            event = self._db.execute(EVENTS.select("WHERE seq = ?"), (taken_seq,)).fetchone()
        if command is None:
            return Outcome(False, ROW_DAMAGED, f"command {number} is damaged in the journal; give it again")
        if taken_seq == CANCELLED_SEQ:
            return Outcome(False, "COMMAND_CANCELLED", f"cancelled by {command.get('cancelled_by')}")
        if event is not None and EVENTS.content(event) is None:
            return Outcome(False, ROW_DAMAGED, f"it was taken up, and row {taken_seq} with what it came to is damaged")
        found = (EVENTS.content(event) or {}).get("outcome") if event else None
        if found is None:
            return Outcome(True, "", "taken up")
        return Outcome(bool(found["accepted"]), str(found["code"]), str(found["text"]))

    def history(self, limit: int = 100, *, all_events: bool = False) -> list[dict[str, Any]]:
        """The newest transitions, oldest first; without `all_events` only those that changed the state's name."""
        query = _HISTORY_ALL if all_events else _HISTORY_CHANGES
        with self._reading():
            rows = self._db.execute(query, (limit,)).fetchall()
        return [_history_row(row) for row in reversed(rows)]

    def history_after(self, seq: int, limit: int) -> list[dict[str, Any]]:
        """Changes of the state's name after a sequence number, oldest first."""
        with self._reading():
            rows = self._db.execute(_HISTORY_AFTER, (seq, limit)).fetchall()
        return [_history_row(row) for row in rows]

    def webhook_seq(self, url: str) -> int:
        """The last event that a receiver of webhooks has; one never seen before begins at the end."""
        with self._reading():
            row = self._db.execute("SELECT seq FROM webhooks WHERE url = ?", (url,)).fetchone()
            if row is None or type(row[0]) is not int:
                (last,) = self._db.execute("SELECT COALESCE(MAX(seq), 0) FROM events").fetchone()
                self.set_webhook_seq(url, last)
                return int(last)
        return int(row[0])

    def set_webhook_seq(self, url: str, seq: int) -> None:
        """Remember that a receiver has everything up to ``seq``; raises JOURNAL_WRITE_FAILED."""
        with self._writing():
            self._db.execute("INSERT OR REPLACE INTO webhooks VALUES (?, ?)", (url, seq))

    def chain_progress(self) -> dict[str, Any]:
        """What the watcher had seen when the agent last ran: ``number``, ``hash``, ``chain_state``; may be empty."""
        with self._reading():
            row = self._db.execute("SELECT value FROM meta WHERE key = 'chain'").fetchone()
        try:
            found = json.loads(row[0]) if row else {}
        except (TypeError, ValueError, RecursionError):  # as in `set_chain_progress`: it costs a look further back
            return {}
        return found if isinstance(found, dict) else {}

    def set_chain_progress(self, facts: Mapping[str, Any]) -> None:
        """Remember the watcher's progress. Losing it costs a look further back, so a failing write is not an error."""
        with contextlib.suppress(sqlite3.Error), self._db:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('chain', ?)", (_dump(facts),))

    def counts(self) -> dict[str, float]:
        """How often each change of state "from>to" happened, and "downtime_s" of the last upgrade, in seconds.

        Only rows that are new since the last call are read: the cost does not grow with the journal. The first call
        reads all of it, so the service makes one before it serves anybody.
        """
        with self._reading():
            rows = self._db.execute(_CHANGES_AFTER, (self._tally.seq,)).fetchall()
        for row in rows:
            if EVENTS.content(row) is not None:
                self._tally.add(*row[:4])
        return {**self._tally.changes, "downtime_s": self._tally.downtime_s}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, stored wholly or not at all; raises JOURNAL_WRITE_FAILED."""
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield
        except (sqlite3.Error, OverflowError, ValueError) as error:
            is_passing = isinstance(error, sqlite3.Error)
            raise DcupgradeError(
                code="JOURNAL_WRITE_FAILED",
                what=f"journal {self.path}",
                why=str(error),
                action="Free some disk space or repair the disk; the agent tries again and does nothing meanwhile."
                if is_passing
                else "A value cannot be stored, now or later: report it as a fault of the program.",
                kind="transient" if is_passing else "invariant",
            ) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING:
                raise unreadable(self.path, error, kind="transient") from error
            raise corrupt(self.path, str(error)) from error


_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
"""What SQLite says of the host and of other programs; nothing of it is damage to the journal."""
_CHANGES_AFTER = EVENTS.select("WHERE seq > ? AND state_before != state_after ORDER BY seq")
CANCELLED_SEQ = 0
"""`commands.taken_seq` of a command that was cancelled: no event has this number."""
ROW_DAMAGED = "JOURNAL_ROW_DAMAGED"
_INSERT_INTENT = "INSERT INTO intents (seq, json) VALUES (?, ?)"
_INSERT_COMMAND = "INSERT INTO commands (at_unix_s, kind, who, json) VALUES (?, ?, ?, ?)"
_DROP_OLD = ("DELETE FROM events WHERE seq <= ?", "DELETE FROM commands WHERE taken_seq <= ?")
_HISTORY_KEYS = ("seq", "at_unix_s", "from", "to", "event", "reason", "detail", "running", "target")
_INSERT_EVENT = (
    "INSERT INTO events (at_unix_s, state_before, state_after, kind, reason, detail, running, target, json)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_HISTORY_AFTER = EVENTS.select("WHERE seq > ? AND state_before != state_after ORDER BY seq LIMIT ?")
_HISTORY_ALL = EVENTS.select("ORDER BY seq DESC LIMIT ?")
_HISTORY_CHANGES = EVENTS.select("WHERE state_before != state_after ORDER BY seq DESC LIMIT ?")


def _history_row(row: tuple[Any, ...]) -> dict[str, Any]:
    """A row for people and receivers; `who` is there where an operator command was the event.

    For a damaged row, only its number is given and that it is damaged.
    """
    event = EVENTS.content(row)
    if event is None:
        told = (row[0], _number(row[1]), "", "", "damaged", ROW_DAMAGED, "it is not what was written", "", "")
        return {**dict(zip(_HISTORY_KEYS, told, strict=True)), "version": ""}
    out = dict(zip(_HISTORY_KEYS, row, strict=False))
    out["version"] = str(event.get("version", ""))
    return {**out, "who": str(event["who"])} if event.get("who") else out


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _command(row: tuple[Any, ...]) -> Command:
    number, at_unix_s, kind, who, *_ = row
    arguments = COMMANDS.content(row)
    if arguments is None:
        return Command(number, "damaged", "", {}, _number(at_unix_s), is_damaged=True)
    return Command(number, kind, who, arguments, at_unix_s)


def _event_row(entry: Entry) -> tuple[Any, ...]:
    event, after = entry.event, entry.after
    texts = (
        entry.before.name.value,
        after.name.value,
        event.kind,
        _reason(entry),
        event.detail,
        after.running.enclave_id if after.running else "",
        after.target.enclave_id if after.target else "",
        _dump({**_without_the_list(entry), **_for_readers(entry)}),
    )
    return (event.at_unix_s, *map(storable, texts))


def _without_the_list(entry: Entry) -> dict[str, Any]:
    """Return the event; of the ids that a chain lists, only those that the entry is about, and the number of all.

    The list may hold ten thousand ids, and each of its changes is a row. The state, stored once, has all of them.
    """
    values = entry.event.to_json()
    if isinstance(entry.event, ChainSeen):
        facts, after = entry.event.facts, entry.after
        named = {one.enclave_id for one in (facts.program, after.running, after.target) if one is not None}
        listed = [[enclave_id, height] for enclave_id, height in facts.listed if enclave_id in named]
        if len(listed) < len(facts.listed):
            values["chain"] = {**values["chain"], "listed": listed, "listed_count": len(facts.listed)}
    return values


def _for_readers(entry: Entry) -> dict[str, Any]:
    """Return what a row has in addition to the event: the target's version, and the outcome of an operator command."""
    out: dict[str, Any] = {}
    if entry.after.target is not None and entry.after.target.version:
        out["version"] = entry.after.target.version
    if entry.outcome is not None:
        out["outcome"] = entry.outcome.to_json()
    return out


def _reason(entry: Entry) -> str:
    """Return why this row is not on the normal path: the reason of this event, or of the upgrade being given up."""
    event, before, after = entry.event, entry.before, entry.after
    if entry.outcome is not None and entry.outcome.code:
        return entry.outcome.code
    rests = before.name is Name.IDLE and after.name is Name.IDLE
    return event.code or after.halted or ("" if rests else after.reason)


def _cancelled(number: int) -> DcupgradeError:
    return DcupgradeError(code="COMMAND_CANCELLED", what=f"command {number}", why="it was cancelled, or is taken up")


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
