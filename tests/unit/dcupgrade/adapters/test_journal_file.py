"""Checksums in the journal: an older file gets them in place, and damage of any row is reported by its code."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dcupgrade.adapters.journal import Journal
from dcupgrade.adapters.journal_file import COMMANDS, EVENTS, SIGNED, Table
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.events import CommandRefused, Settled, UpgradeBegun
from dcupgrade.machine.operator_commands import Outcome, event_of
from dcupgrade.machine.state import Name, Release, State
from dcupgrade.machine.table import activity
from dcupgrade.surfaces.upgrades import path as way
from dcupgrade.surfaces.upgrades import upgrades
from dcupgrade.upgrade.ports import Entry
from tests.doubles.journal_entries import FULL, entries

GOLDEN = Path(__file__).with_name("golden_journal.sql")
GOLDEN_2 = Path(__file__).with_name("golden_journal_2.sql")
A = Release("a" * 64, "1.0.0", added_height=1)
STAGING = State(Name.STAGING, running=A, target=Release("b" * 64, "1.1.0", added_height=2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(path)
    with db:
        yield db
    db.close()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    yield journal
    journal.close()


def restored(golden: Path, path: Path) -> None:
    with raw(path) as db:
        db.executescript(golden.read_text(encoding="utf-8"))


def filled(path: Path) -> int:
    """A journal with two entries and a command that waits; the command's number."""
    with opened(path) as journal:
        number = journal.enqueue("hold", "ann", {"reason": "a holiday"})
        before = State(running=A)
        journal.append(Entry(before, UpgradeBegun("b" * 64, at_unix_s=5.0), STAGING, activity(STAGING)))
        staged = replace(STAGING, name=Name.ABANDONED)
        journal.append(Entry(STAGING, Settled("", at_unix_s=6.0), staged, activity(staged)))
    return number


def test_a_journal_of_schema_1_gets_its_checksums_in_place(path: Path) -> None:
    restored(GOLDEN, path)
    with raw(path) as db:
        db.execute("INSERT INTO commands VALUES (7, 5.0, 'hold', 'ann', '{\"reason\":\"x\"}', NULL)")
        before = db.execute("SELECT * FROM events").fetchall()
    with opened(path) as journal:
        assert journal.load() == FULL
        assert journal.damaged_rows() == []
        assert [command.arguments for command in journal.commands()] == [{"reason": "x"}]
    with raw(path) as db:
        assert db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == ("2",)
        assert [row[:-1] for row in db.execute("SELECT * FROM events")] == before
        assert all(len(row[-1]) == 64 for table in SIGNED for row in db.execute(table.select("")))


def test_a_journal_of_schema_2_is_read_and_written_as_its_first_version_did(path: Path) -> None:
    restored(GOLDEN_2, path)
    with opened(path) as journal:
        assert journal.load() == FULL
        assert journal.damaged_rows() == []
        assert len(journal.history(100, all_events=True)) == len(entries())


def test_a_command_that_an_agent_of_schema_1_took_up_is_not_damaged(path: Path) -> None:
    """The older program may still run while the command line of this one brings the file up to date."""
    number = filled(path)
    with raw(path) as db:
        db.execute("UPDATE commands SET taken_seq = 2 WHERE id = ?", (number,))
    with opened(path) as journal:
        assert journal.damaged_rows() == []
        assert journal.commands() == []
        assert journal.outcome(number) == Outcome(True, "", "taken up")


def test_a_full_disk_in_the_middle_of_the_migration_is_reported_as_what_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored(GOLDEN, path)

    def full(_table: Table, db: sqlite3.Connection, _number: int | None) -> None:
        db.execute("ROLLBACK")  # as SQLite itself does then
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Table, "sign", full)
    with pytest.raises(DcupgradeError, match=r"JOURNAL_UNREADABLE.*disk is full"):
        Journal(path)
    monkeypatch.undo()
    with opened(path) as journal:
        assert journal.load() == FULL


def test_a_crash_in_the_middle_of_the_migration_leaves_schema_1(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restored(GOLDEN, path)
    sign = Table.sign

    def crash(table: Table, db: sqlite3.Connection, number: int | None) -> None:
        if table is EVENTS and number == 9:
            raise KeyboardInterrupt
        sign(table, db, number)

    monkeypatch.setattr(Table, "sign", crash)
    with pytest.raises(KeyboardInterrupt):
        Journal(path)
    monkeypatch.undo()
    with raw(path) as db:
        assert db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == ("1",)
        assert "sha256" not in str(db.execute("SELECT sql FROM sqlite_master WHERE name = 'events'").fetchone())
    with opened(path) as journal:
        assert journal.damaged_rows() == []


def test_the_way_back_to_schema_1_that_the_docs_tell_keeps_everything(path: Path) -> None:
    """What docs/stability.md says to do; the older program knows nothing of the checksums, and leaves them out."""
    filled(path)
    with raw(path) as db:
        db.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
        db.execute("INSERT INTO commands (at_unix_s, kind, who, json) VALUES (9.0, 'unhold', 'bob', '{}')")
    with opened(path) as journal:
        assert journal.damaged_rows() == []
        assert [command.kind for command in journal.commands()] == ["hold", "unhold"]


@pytest.mark.parametrize("value", ["'{}'", "'no JSON'", "CAST(x'ff7b' AS TEXT)", "x'7b7d'", "7", "''"])
def test_a_damaged_row_of_the_history_is_marked_where_it_is_and_no_other_is_lost(path: Path, value: str) -> None:
    filled(path)
    with raw(path) as db:
        db.execute(f"UPDATE events SET json = {value} WHERE seq = 1")  # noqa: S608
    with opened(path) as journal:
        damaged, good = journal.history(10)
        assert (damaged["seq"], damaged["reason"], damaged["to"]) == (1, "JOURNAL_ROW_DAMAGED", "")
        assert (good["seq"], good["to"]) == (2, "abandoned")
        assert journal.history_after(0, 10) == [damaged, good]
        assert journal.damaged_rows() == ["events 1"]
        assert journal.counts() == {"staging>abandoned": 1, "downtime_s": 0.0}
        assert journal.load() == replace(STAGING, name=Name.ABANDONED)


@pytest.mark.parametrize("table", SIGNED, ids=lambda table: str(table.name))
def test_a_change_of_any_column_is_noticed(path: Path, table: Table) -> None:
    filled(path)
    for column in (*table.columns, "sha256"):
        with opened(path) as journal:
            assert journal.damaged_rows() == []
        with raw(path) as db:
            (was,) = db.execute(f"SELECT {column} FROM {table.name} LIMIT 1").fetchone()  # noqa: S608
            db.execute(f"UPDATE {table.name} SET {column} = 99 WHERE {column} IS ?", (was,))  # noqa: S608
        with opened(path) as journal:
            assert [row.split()[0] for row in journal.damaged_rows()].count(table.name) >= 1, column
        with raw(path) as db:
            db.execute(f"UPDATE {table.name} SET {column} = ? WHERE {column} = 99", (was,))  # noqa: S608


def test_an_upgrade_with_a_damaged_row_is_shown_with_the_code(path: Path) -> None:
    filled(path)
    with raw(path) as db:
        db.execute("UPDATE events SET detail = 'x' WHERE seq = 2")
    with opened(path) as journal:
        (found,) = upgrades(journal.history(10), 10, 7.0)
    assert found["reason"] == "JOURNAL_ROW_DAMAGED"
    assert next(step["state"] for step in way(found)) == "staging"


def test_a_damaged_command_is_refused_and_never_carried_out(path: Path) -> None:
    number = filled(path)
    with raw(path) as db:
        db.execute("UPDATE commands SET kind = 'revert'")
    with opened(path) as journal:
        (command,) = journal.commands()
        event = event_of(command, State(running=A), 5.0)
        assert isinstance(event, CommandRefused)
        assert event.code == "JOURNAL_ROW_DAMAGED"
        outcome = Outcome(False, event.code, event.detail)
        journal.append(Entry(STAGING, event, STAGING, (), number, outcome))
        assert journal.commands() == []
        told = journal.outcome(number)
        assert told is not None
        assert (told.accepted, told.code) == (False, "JOURNAL_ROW_DAMAGED")
        assert journal.damaged_rows() == [f"commands {number}"], "that it was taken up does not hide the damage"


def test_a_damaged_command_can_be_cancelled_and_a_cancelled_one_is_signed(path: Path) -> None:
    first = filled(path)
    with opened(path) as journal:
        second = journal.enqueue("unhold", "ann", {})
    with raw(path) as db:
        db.execute("UPDATE commands SET json = 'not JSON' WHERE id = ?", (first,))
    with opened(path) as journal:
        assert journal.cancel(first, "bob")
        assert journal.cancel(second, "bob")
        assert journal.commands() == []
        assert journal.outcome(second) == Outcome(False, "COMMAND_CANCELLED", "cancelled by bob")
        assert journal.damaged_rows() == [f"{COMMANDS.name} {first}"]


def test_an_outcome_in_a_damaged_row_is_not_taken_for_success(path: Path) -> None:
    number = filled(path)
    with opened(path) as journal:
        refused = Outcome(False, "REVERT_IMPOSSIBLE", "there is nothing to go back to")
        journal.append(Entry(STAGING, Settled(""), STAGING, (), number, refused))
    with raw(path) as db:
        db.execute("UPDATE events SET json = '{}' WHERE seq = 3")
    with opened(path) as journal:
        told = journal.outcome(number)
        assert told is not None
        assert (told.accepted, told.code) == (False, "JOURNAL_ROW_DAMAGED")


def test_a_damaged_intent_is_left_out_and_told(path: Path) -> None:
    filled(path)
    with opened(path) as journal:
        wanted = journal.intents()
    with raw(path) as db:
        db.execute('UPDATE intents SET json = \'{"kind":"stop_node"}\' WHERE id = 1')
    with opened(path) as journal:
        assert journal.intents() == wanted[1:]
        assert journal.damaged_rows() == ["intents 1"]


@pytest.mark.parametrize("text", ["no JSON", "[]", "[" * 5000, ""])
def test_damage_to_the_chains_progress_costs_a_look_further_back(path: Path, text: str) -> None:
    with opened(path) as journal:
        journal.set_chain_progress({"number": 5})
    with raw(path) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'chain'", (text,))
    with opened(path) as journal:
        assert journal.chain_progress() == {}


def test_signing_is_stable(path: Path) -> None:
    """A checksum of today must fit tomorrow, whatever the row holds."""
    row = (1, 1.5, "a", "b", "c", "é\x00", "\U0001f600", "", "", '{"a":1}')
    digest = EVENTS._checksum(row)
    assert digest == "fc615f770bdba59dee501dd47f7053264d42c0637eb085beb9232b8a96aa1c52"
    assert EVENTS.content((*row, digest)) == json.loads(row[-1])
