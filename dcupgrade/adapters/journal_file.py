"""The journal's file: its schema, how an older one is brought up to date, and the checksum that each row carries.

Schema 2 added the checksums of history, intents and commands; the state always had one. They detect damage. They do not
protect against deliberate changes.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcupgrade.errors import DcupgradeError, Kind

SCHEMA_VERSION = 2
_SCHEMA_1 = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, json TEXT NOT NULL,"
    " sha256 TEXT NOT NULL)",
    "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at_unix_s REAL NOT NULL, state_before TEXT NOT NULL,"
    " state_after TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,"
    " running TEXT NOT NULL, target TEXT NOT NULL, json TEXT NOT NULL)",
    "CREATE TABLE intents (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, json TEXT NOT NULL)",
    "CREATE TABLE commands (id INTEGER PRIMARY KEY AUTOINCREMENT, at_unix_s REAL NOT NULL, kind TEXT NOT NULL,"
    " who TEXT NOT NULL, json TEXT NOT NULL, taken_seq INTEGER)",
    "CREATE TABLE webhooks (url TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID",
)
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows carry a checksum over `columns`, of which the first is the row's number.

    The `unsigned` columns are read with them. A program of schema 1 that runs on the file may still change those.
    """

    name: str
    columns: tuple[str, ...]
    unsigned: tuple[str, ...] = ()

    def select(self, rest: str) -> str:
        """The statement that reads whole rows: the columns, the unsigned ones, then the checksum."""
        return f"SELECT {', '.join((*self.columns, *self.unsigned))}, sha256 FROM {self.name} {rest}"  # noqa: S608 - names of our own

    def sign(self, db: sqlite3.Connection, number: int | None) -> None:
        """Update the checksum of a row after a change."""
        key = self.columns[0]
        row = db.execute(self.select(f"WHERE {key} = ?"), (number,)).fetchone()
        db.execute(f"UPDATE {self.name} SET sha256 = ? WHERE {key} = ?", (self._checksum(row), number))  # noqa: S608

    def content(self, row: Sequence[Any]) -> dict[str, Any] | None:
        """The JSON object in a whole row; None where the row is not what was written."""
        if row[-1] != self._checksum(row):
            return None
        try:
            content = json.loads(row[self.columns.index("json")])
        except (TypeError, ValueError, RecursionError):  # a row of schema 1 may have been damaged before it was signed
            return None
        return content if isinstance(content, dict) else None

    def _checksum(self, row: Sequence[Any]) -> str:
        values = [self.name, *row[: len(self.columns)]]
        return hashlib.sha256(json.dumps(values, default=repr).encode()).hexdigest()


EVENTS = Table(
    "events",
    ("seq", "at_unix_s", "state_before", "state_after", "kind", "reason", "detail", "running", "target", "json"),
)
INTENTS = Table("intents", ("id", "seq", "json"))
COMMANDS = Table("commands", ("id", "at_unix_s", "kind", "who", "json"), unsigned=("taken_seq",))
SIGNED = (EVENTS, INTENTS, COMMANDS)


def damaged_rows(db: sqlite3.Connection) -> Iterator[tuple[str, int]]:
    """Table and number of each row that is not what was written. Reads everything."""
    for table in SIGNED:
        for row in db.execute(table.select("")):
            if table.content(row) is None:
                yield table.name, row[0]


def open_file(path: Path) -> sqlite3.Connection:
    """Open the file, or make it. Raises JOURNAL_UNREADABLE, JOURNAL_CORRUPT, JOURNAL_TOO_NEW."""
    new = not path.exists()
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=10)
    except sqlite3.Error as error:
        raise unreadable(path, error) from error
    try:
        if new:
            path.chmod(0o600)
        # invalid UTF-8 is damage, which the checksums detect; reading it must not fail
        db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA trusted_schema=OFF")
        found = [line for (line,) in db.execute("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            raise corrupt(path, f"SQLite finds it damaged ({found[0] if found else 'no answer'})")
        _bring_up_to_date(db, path)
    except sqlite3.DatabaseError as error:
        db.close()
        if isinstance(error, sqlite3.OperationalError):
            raise unreadable(path, error) from error
        raise corrupt(path, str(error)) from error
    except DcupgradeError:
        db.close()
        raise
    return db


def _bring_up_to_date(db: sqlite3.Connection, path: Path) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            for statement in _SCHEMA_1:
                db.execute(statement)
            db.execute("INSERT INTO meta VALUES ('schema', '1')")
        elif "meta" not in tables:
            raise corrupt(path, "it is a database of something else")
        (version,) = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() or ("none",)
        if not version.isdecimal() or int(version) < 1:
            raise corrupt(path, f"its schema version is {version!r}")
        if int(version) > SCHEMA_VERSION:
            raise too_new(path, f"it has schema {version}, this program knows {SCHEMA_VERSION}")
        _add_checksums(db)
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema' AND value = '1'", (str(SCHEMA_VERSION),))
    except BaseException:
        if db.in_transaction:  # a full disk makes SQLite roll back by itself
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _add_checksums(db: sqlite3.Connection) -> None:
    """Sign every row without a checksum: those of schema 1, and of an older program that still runs on this file."""
    for table in SIGNED:
        if "sha256" not in {column for _, column, *_ in db.execute(f"PRAGMA table_info({table.name})")}:
            db.execute(f"ALTER TABLE {table.name} ADD COLUMN sha256 TEXT NOT NULL DEFAULT ''")
        key, last = table.columns[0], -1
        query = f"SELECT {key} FROM {table.name} WHERE sha256 = '' AND {key} > ? ORDER BY {key} LIMIT {_BATCH}"  # noqa: S608
        while numbers := [number for (number,) in db.execute(query, (last,))]:
            for last in numbers:
                table.sign(db, last)


def unreadable(path: Path, error: sqlite3.Error, *, kind: Kind = "invariant") -> DcupgradeError:
    """Make the error for a journal that this host does not let the program read."""
    return DcupgradeError(
        code="JOURNAL_UNREADABLE",
        what=f"journal {path}",
        why=str(error),
        action="Check the disk, the owner of the folder and the file, and which other programs have the file open.",
        kind=kind,
    )


def too_new(path: Path, why: str) -> DcupgradeError:
    """Make the error for a journal of a newer program."""
    return DcupgradeError(
        code="JOURNAL_TOO_NEW",
        what=f"journal {path}",
        why=why,
        action="Run the version of the program that wrote it, or a newer one.",
        kind="invariant",
    )


def corrupt(path: Path, why: str) -> DcupgradeError:
    """Make the error for a damaged journal."""
    return DcupgradeError(
        code="JOURNAL_CORRUPT",
        what=f"journal {path}",
        why=why,
        action="Do not delete it: follow `dcupgrade explain JOURNAL_CORRUPT`. The running node is left as it is.",
        kind="invariant",
    )
