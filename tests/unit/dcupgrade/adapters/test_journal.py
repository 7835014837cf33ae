"""The journal: entries survive a restart, damage is reported, operator commands are executed once."""

import hashlib
import json
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from dcupgrade.adapters.journal import Journal
from dcupgrade.adapters.journal_file import EVENTS, SCHEMA_VERSION, SIGNED
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.events import ChainSeen, NodeExited, NodeServing, RevertCommand, Settled, UpgradeBegun
from dcupgrade.machine.operator_commands import Outcome
from dcupgrade.machine.state import STATE_FORMAT, ChainFacts, Name, Release, State
from dcupgrade.machine.table import activity, step
from dcupgrade.upgrade.ports import Entry
from tests.doubles.journal_entries import FULL, entries
from tests.doubles.memory_journal import MemoryJournal

A, B = (Release(letter * 64, f"1.{n}.0", added_height=n + 1) for n, letter in enumerate("ab"))
IDLE = State(running=A, chain=ChainFacts(B, ((A.enclave_id, 1), (B.enclave_id, 2))))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


def beginning(command_id: int = 0) -> Entry:
    event = UpgradeBegun(B.enclave_id, at_unix_s=100.0)
    after, _ = step(IDLE, event)
    return Entry(IDLE, event, replace(after, reason="why"), activity(after), command_id)


def begin(journal: Journal, command_id: int = 0) -> State:
    entry = beginning(command_id)
    journal.append(entry)
    return entry.after


def test_a_restart_finds_state_and_intents(path: Path) -> None:
    journal = Journal(path)
    assert journal.load() is None
    state = begin(journal)
    journal.close()
    again = Journal(path)
    assert again.load() == state
    assert again.intents() == [effect.to_json() for effect in activity(state)]
    again.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_is_as_durable_as_sqlite_gets(path: Path) -> None:
    journal = Journal(path)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    journal.close()


def test_history_tells_when_what_and_why(path: Path) -> None:
    journal = Journal(path)
    begin(journal)
    (row,) = journal.history()
    assert row == {
        "seq": 1, "at_unix_s": 100.0, "from": "idle", "to": "staging", "event": "begin", "reason": "why", "detail": "",
        "running": A.enclave_id, "target": B.enclave_id, "version": B.version,
    }  # fmt: skip
    same = NodeServing(A.enclave_id)
    journal.append(Entry(IDLE, same, IDLE, activity(IDLE)))
    assert len(journal.history()) == 1
    assert len(journal.history(all_events=True)) == 2
    assert journal.counts()["idle>staging"] == 1
    journal.close()


def test_downtime_is_counted_from_the_stop_until_the_keys_are_there(path: Path) -> None:
    journal = Journal(path)
    for at, before, after in (
        (10, "sealed", "stopping"),
        (11, "stopping", "launching"),
        (14, "delivering", "probation"),
    ):
        event = Settled(A.enclave_id, at_unix_s=at)
        journal.append(Entry(replace(IDLE, name=Name(before)), event, replace(IDLE, name=Name(after)), ()))
    assert journal.counts()["downtime_s"] == 4.0
    journal.close()


def test_what_a_scrape_costs_does_not_grow_with_the_journal(path: Path) -> None:
    journal = Journal(path)

    def work_of_a_scrape() -> int:
        """Steps of SQLite's machine."""
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        journal._db.set_progress_handler(count, 1)
        journal.counts()
        journal._db.set_progress_handler(None, 1)
        return steps

    begin(journal)
    journal.counts()
    small = work_of_a_scrape()
    rows = (
        "INSERT INTO events SELECT NULL, at_unix_s, state_before, state_after, kind, reason, detail, running, target, "
    )
    for _ in range(12):
        journal._db.execute(rows + ", ".join(columns_after_target(journal)) + " FROM events")
    journal._db.execute("BEGIN")
    for (seq,) in journal._db.execute("SELECT seq FROM events").fetchall():
        EVENTS.sign(journal._db, seq)
    journal._db.execute("COMMIT")
    assert journal.counts()["idle>staging"] == 4096
    assert work_of_a_scrape() <= small + 10
    begin(journal)
    assert journal.counts()["idle>staging"] == 4097
    journal.close()


def columns_after_target(journal: Journal) -> list[str]:
    names = [name for _, name, *_ in journal._db.execute("PRAGMA table_info(events)")]
    return names[names.index("target") + 1 :]


def test_operator_commands_wait_until_an_entry_takes_them_up(path: Path) -> None:
    agent, command_line = Journal(path), Journal(path)
    number = command_line.enqueue("hold", "somebody", {"reason": "a holiday"})
    (command,) = agent.commands()
    assert (command.id, command.kind, command.who, command.arguments) == (
        number,
        "hold",
        "somebody",
        {"reason": "a holiday"},
    )
    assert not command_line.command_taken(number)
    begin(agent, command_id=number)
    assert agent.commands() == []
    assert command_line.command_taken(number)
    agent.close()
    command_line.close()


def test_a_command_that_waits_can_be_cancelled_and_one_that_was_taken_up_cannot(path: Path) -> None:
    agent, command_line = Journal(path), Journal(path)
    first, second = (command_line.enqueue(kind, "ann", {}) for kind in ("revert", "hold"))
    assert command_line.outcome(first) is None
    assert command_line.cancel(first, "bob")
    assert [command.id for command in agent.commands()] == [second]
    assert command_line.outcome(first) == Outcome(False, "COMMAND_CANCELLED", "cancelled by bob")
    begin(agent, command_id=second)
    assert not command_line.cancel(second, "bob")
    assert not command_line.cancel(first, "bob")
    assert not command_line.cancel(99, "bob")
    agent.close()
    command_line.close()


def test_a_command_that_is_cancelled_while_the_agent_is_about_to_take_it_up_changes_nothing(path: Path) -> None:
    agent, command_line = Journal(path), Journal(path)
    state = begin(agent)
    number = command_line.enqueue("revert", "ann", {})
    command_line.cancel(number, "ann")
    entry = Entry(state, RevertCommand(), replace(state, name=Name.ABANDONED), (), number)
    with pytest.raises(DcupgradeError) as caught:
        agent.append(entry)
    assert caught.value.code == "COMMAND_CANCELLED"
    assert agent.load() == state
    assert len(agent.history(all_events=True)) == 1
    agent.close()
    command_line.close()


def test_the_outcome_of_a_command_is_told_to_whoever_asks_for_its_number(path: Path) -> None:
    journal = Journal(path)
    number = journal.enqueue("revert", "ann", {})
    outcome = Outcome(False, "REVERT_IMPOSSIBLE", "there is nothing to go back to")
    journal.append(Entry(IDLE, RevertCommand("ann"), IDLE, (), number, outcome))
    assert journal.outcome(number) == outcome
    (row,) = journal.history(all_events=True)
    assert row["reason"] == "REVERT_IMPOSSIBLE"
    journal.close()


def test_rows_of_a_machine_that_rests_carry_no_reason_of_the_last_upgrade(path: Path) -> None:
    journal = Journal(path)
    rests = replace(IDLE, reason="OPERATOR_REVERT")
    journal.append(Entry(replace(rests, name=Name.REVERTED), Settled(A.enclave_id), rests, ()))
    journal.append(Entry(rests, NodeServing(A.enclave_id), replace(rests, crashes=1), ()))
    assert [row["reason"] for row in journal.history(all_events=True)] == ["OPERATOR_REVERT", ""]
    journal.close()


def damaged(path: Path, sql: str) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(sql)
    db.close()


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("UPDATE state SET json = replace(json, '1.1.0', '6.6.6')", "JOURNAL_CORRUPT"),
        ("UPDATE meta SET value = '999'", "JOURNAL_TOO_NEW"),
        ("UPDATE meta SET value = 'x'", "JOURNAL_CORRUPT"),
        ("DROP TABLE meta", "JOURNAL_CORRUPT"),
        ("DROP TABLE state", "JOURNAL_CORRUPT"),
    ],
)
def test_damage_is_named(path: Path, sql: str, code: str) -> None:
    journal = Journal(path)
    begin(journal)
    journal.close()
    damaged(path, sql)
    with pytest.raises(DcupgradeError) as caught:
        Journal(path).load()
    assert caught.value.code == code
    assert caught.value.kind == "invariant"


def test_a_state_of_a_newer_program_is_refused_by_that_name(path: Path) -> None:
    journal = Journal(path)
    text = json.dumps({**begin(journal).to_json(), "format": STATE_FORMAT + 1})
    journal._db.execute("UPDATE state SET json = ?, sha256 = ?", (text, hashlib.sha256(text.encode()).hexdigest()))
    with pytest.raises(DcupgradeError) as caught:
        journal.load()
    assert (caught.value.code, caught.value.kind) == ("JOURNAL_TOO_NEW", "invariant")
    journal.close()


def test_a_journal_that_another_program_locks_is_not_called_damaged(path: Path) -> None:
    journal = Journal(path)
    begin(journal)
    journal.close()
    reader, another = Journal(path), sqlite3.connect(path, isolation_level=None)
    reader._db.execute("PRAGMA journal_mode=DELETE")
    reader._db.execute("PRAGMA busy_timeout=0")
    another.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DcupgradeError) as caught:
        reader.history()
    assert (caught.value.code, caught.value.kind) == ("JOURNAL_UNREADABLE", "transient")
    another.close()
    assert len(reader.history()) == 1
    reader.close()


def test_a_file_that_is_no_database_is_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(DcupgradeError, match="JOURNAL_CORRUPT"):
        Journal(path)
    assert path.read_bytes() == b"not a database at all" * 100


def test_torn_pages_are_noticed_at_start_up(path: Path) -> None:
    journal = Journal(path)
    for _ in range(50):
        begin(journal)
    journal.close()
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 2 + 2000] = os.urandom(2000)
    path.write_bytes(content)
    with pytest.raises(DcupgradeError, match="JOURNAL_"):
        Journal(path).load()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DcupgradeError, match="JOURNAL_UNREADABLE"):
        Journal(tmp_path / "none" / "journal.sqlite3")


def test_a_write_that_fails_stores_nothing_and_may_be_repeated(path: Path) -> None:
    journal = Journal(path)
    state = begin(journal)
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    full = NodeExited(A.enclave_id, "x" * 50_000)
    entry = Entry(state, full, replace(state, detail="x" * 50_000), activity(state))
    with pytest.raises(DcupgradeError) as caught:
        journal.append(entry)
    assert (caught.value.code, caught.value.kind) == ("JOURNAL_WRITE_FAILED", "transient")
    assert journal.load() == state
    assert len(journal.history(all_events=True)) == 1
    journal._db.execute("PRAGMA max_page_count = 100000")
    journal.append(entry)
    assert journal.load() == entry.after
    journal.close()


@pytest.mark.parametrize("text", ["\ud800", "a node\udcfcs report", "\udfff" * 3])
def test_text_that_has_no_utf_8_form_is_stored_escaped(path: Path, text: str) -> None:
    """JSON of a node may hold a surrogate that stands alone, and so may the state that comes of it."""
    journal = Journal(path)
    state = replace(IDLE, running=Release(text), target=Release(text), reason=text, detail=text)
    journal.append(Entry(state, NodeExited(text, text), state, activity(state)))
    assert journal.load() == state
    (row,) = journal.history(all_events=True)
    escaped = text.encode("utf-8", "backslashreplace").decode()
    assert (row["detail"], row["running"], row["target"]) == (escaped, escaped, escaped)
    assert journal.damaged_rows() == []
    journal.close()


def test_a_value_that_sqlite_never_takes_is_a_fault_that_trying_again_does_not_repair(path: Path) -> None:
    journal = Journal(path)
    state = begin(journal)
    for entry in (replace(beginning(), event=Settled("", at_unix_s=10**30)), replace(beginning(), command_id=10**30)):
        with pytest.raises(DcupgradeError) as caught:
            journal.append(entry)
        assert (caught.value.code, caught.value.kind) == ("JOURNAL_WRITE_FAILED", "invariant")
    with pytest.raises(DcupgradeError) as caught:
        journal.enqueue("hold", "\ud800", {})
    assert (caught.value.code, caught.value.kind) == ("JOURNAL_WRITE_FAILED", "invariant")
    assert journal.load() == state
    assert journal.commands() == []
    assert len(journal.history(all_events=True)) == 1
    journal.close()


def test_a_reader_never_blocks_the_agent(path: Path) -> None:
    journal = Journal(path)
    begin(journal)
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    rows = reader.execute("SELECT * FROM events")
    begin(journal)  # raises "database is locked" where a reader keeps the writer out
    assert len(rows.fetchall()) == 1, "the reader sees what was there when it began"
    assert len(reader.execute("SELECT * FROM events").fetchall()) == 2
    reader.close()
    journal.close()


def test_a_row_names_only_the_listed_ids_that_it_is_about(path: Path) -> None:
    about = ((A.enclave_id, 3), (B.enclave_id, 7))
    facts = ChainFacts(B, (*about, *((f"{number:064x}", number) for number in range(10_000))), 42)
    after = State(running=A, chain=facts)
    journal = Journal(path)
    journal.append(Entry(State(running=A), ChainSeen(facts), after, ()))
    assert journal.load() == after
    assert journal.damaged_rows() == []
    journal.close()
    db = sqlite3.connect(path)
    [(text,)] = db.execute("SELECT json FROM events").fetchall()
    db.close()
    chain = json.loads(text)["chain"]
    assert (chain["listed"], chain["listed_count"]) == ([list(pair) for pair in about], 10_002)
    assert len(text) < 2000


def test_old_events_are_dropped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcupgrade.adapters.journal.HISTORY_ROWS_MAX", 500)
    journal = Journal(path)
    journal._db.execute("PRAGMA synchronous=OFF")
    for _ in range(1000):
        begin(journal)
    assert len(journal.history(2000, all_events=True)) == 500
    journal.close()


async def test_the_journal_in_memory_speaks_the_same_codec(path: Path) -> None:
    memory, real = MemoryJournal(), Journal(path)
    begin(real)
    await memory.append(beginning())
    assert await memory.load() == real.load()
    real.close()
    memory.fail_writes = True
    with pytest.raises(DcupgradeError, match="JOURNAL_WRITE_FAILED"):
        await memory.append(beginning())


def test_the_schema_version_is_written(path: Path) -> None:
    Journal(path).close()
    db = sqlite3.connect(path)
    assert db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == (str(SCHEMA_VERSION),)
    db.close()


GOLDEN = Path(__file__).with_name("golden_journal.sql")
"""A journal of schema 1 as the first release that wrote it left it. It is never regenerated."""
EVENT_ROWS = "SELECT * FROM events ORDER BY seq"


def test_a_journal_written_by_the_first_version_is_read(path: Path) -> None:
    db = sqlite3.connect(path)
    db.executescript(GOLDEN.read_text(encoding="utf-8"))
    db.close()
    journal = Journal(path)
    assert journal.load() == FULL
    assert len(journal.history(100, all_events=True)) == len(entries())
    journal.close()


def test_what_is_written_today_is_what_the_first_version_wrote(path: Path) -> None:
    """Every kind of event and every field, but for the checksums that schema 2 added."""
    journal = Journal(path)
    for entry in entries():
        journal.append(entry)
    journal.close()
    db, golden = sqlite3.connect(path), sqlite3.connect(":memory:")
    for table in SIGNED:  # came with schema 2
        db.execute(f"ALTER TABLE {table.name} DROP COLUMN sha256")
    db.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    golden.executescript(GOLDEN.read_text(encoding="utf-8"))
    for row, written in zip(golden.execute(EVENT_ROWS).fetchall(), db.execute(EVENT_ROWS).fetchall(), strict=True):
        assert written[:-1] == row[:-1]
        told = json.loads(written[-1])
        # the version is for readers, and came later
        told.pop("version", None)
        assert told == json.loads(row[-1])
    for one in (db, golden):
        one.execute("UPDATE events SET json = ''")
    assert list(db.iterdump()) == list(golden.iterdump())
    db.close()
    golden.close()
