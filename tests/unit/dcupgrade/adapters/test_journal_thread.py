"""The journal's thread: the event loop continues during slow disk access; order and durability stay."""

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest

from dcupgrade.adapters.journal import Journal
from dcupgrade.adapters.journal_thread import WAITING_MAX, JournalThread, open_journal
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.events import Settled
from dcupgrade.machine.state import State
from dcupgrade.upgrade.ports import Entry


class SlowDisk:
    """Every entry waits at the disk until it is let through."""

    def __init__(self) -> None:
        self.reached, self.let_through = threading.Event(), threading.Event()
        self.threads: set[int] = set()

    async def until_reached(self) -> None:
        await asyncio.to_thread(self.reached.wait)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    made, append = SlowDisk(), Journal.append

    def slow(journal: Journal, entry: Entry) -> None:
        made.threads.add(threading.get_ident())
        made.reached.set()
        made.let_through.wait()
        append(journal, entry)

    monkeypatch.setattr(Journal, "append", slow)
    yield made
    made.let_through.set()


def entry(number: int) -> Entry:
    return Entry(State(), Settled(""), State(crashes=number), ())


async def test_the_loop_continues_while_the_disk_is_slow(tmp_path: Path, disk: SlowDisk) -> None:
    async with open_journal(tmp_path / "j") as journal:
        writing = asyncio.create_task(journal.append(entry(1)))
        await disk.until_reached()
        assert not writing.done()
        assert threading.get_ident() not in disk.threads
        disk.let_through.set()
        await writing
        assert await journal.load() == State(crashes=1)


async def test_entries_are_stored_one_after_another_in_their_order(tmp_path: Path, disk: SlowDisk) -> None:
    async with open_journal(tmp_path / "j") as journal:
        writing = [asyncio.create_task(journal.append(entry(number))) for number in range(20)]
        await disk.until_reached()
        disk.let_through.set()
        await asyncio.gather(*writing)
        assert await journal.load() == State(crashes=19)
        rows = await journal.run(Journal.history, 100, all_events=True)
        assert [row["seq"] for row in rows] == list(range(1, 21))
    assert len(disk.threads) == 1


async def test_an_entry_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j") as journal:
        await journal.append(entry(3))
        other = sqlite3.connect(tmp_path / "j")
        assert other.execute("SELECT COUNT(*) FROM events").fetchone() == (1,)
        other.close()


async def test_an_end_in_the_middle_of_an_entry_waits_for_it(tmp_path: Path, disk: SlowDisk) -> None:
    async with open_journal(tmp_path / "j") as journal:
        writing = asyncio.create_task(journal.append(entry(7)))
        await disk.until_reached()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        disk.let_through.set()
    left = Journal(tmp_path / "j")
    assert left.load() == State(crashes=7)
    left.close()


async def test_progress_of_the_chain_is_stored_without_anybody_waiting(tmp_path: Path) -> None:
    async with open_journal(tmp_path / "j") as journal:
        for number in range(1000):
            journal.set_chain_progress({"number": number})
    async with open_journal(tmp_path / "j") as journal:
        assert await journal.run(Journal.chain_progress) == {"number": 999}


async def test_the_machine_comes_first_and_the_number_of_others_that_wait_is_bounded(
    tmp_path: Path, disk: SlowDisk
) -> None:
    """Operator commands and webhooks are authenticated or our own, and still delay no entry of the machine."""
    order: list[str] = []

    async def told(name: str, work: Awaitable[object]) -> None:
        await work
        order.append(name)

    def command(journal: JournalThread) -> Awaitable[int]:
        return journal.run(Journal.enqueue, "hold", "eve", {})

    async with open_journal(tmp_path / "j") as journal:
        first = asyncio.create_task(told("first", journal.append(entry(1))))
        await disk.until_reached()
        others = [asyncio.create_task(told("other", command(journal))) for _ in range(WAITING_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(DcupgradeError, match="JOURNAL_BUSY"):
            await command(journal)
        machine = [asyncio.create_task(told("machine", journal.append(entry(number)))) for number in (2, 3)]
        await asyncio.sleep(0)
        disk.let_through.set()
        await asyncio.gather(first, *others, *machine)
        assert order == ["first", "machine", "machine", *["other"] * WAITING_MAX]
        assert await journal.load() == State(crashes=3)
        assert len(await journal.commands()) == WAITING_MAX


async def test_whoever_gives_up_waiting_holds_up_nobody(tmp_path: Path, disk: SlowDisk) -> None:
    async with open_journal(tmp_path / "j") as journal:
        writing = asyncio.create_task(journal.append(entry(1)))
        await disk.until_reached()
        waiting = [asyncio.create_task(journal.run(Journal.history, 1)) for _ in range(4)]
        await asyncio.sleep(0)
        for task in (writing, waiting[0], waiting[2]):
            task.cancel()
        await asyncio.wait({writing, waiting[0], waiting[2]})
        disk.let_through.set()
        assert [len(await task) for task in (waiting[1], waiting[3])] == [0, 0]
        assert await journal.load() == State(crashes=1)


async def test_errors_of_the_journal_reach_the_caller(tmp_path: Path) -> None:
    with pytest.raises(DcupgradeError, match="JOURNAL_UNREADABLE"):
        async with open_journal(tmp_path / "none" / "j"):
            pass
    async with open_journal(tmp_path / "j") as journal:
        taken = Entry(State(), Settled(""), State(), (), command_id=9)
        with pytest.raises(DcupgradeError, match="COMMAND_CANCELLED"):
            await journal.append(taken)
