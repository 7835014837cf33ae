"""The journal in its own thread, which owns the connection, so that a slow disk does not block the event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.operator_commands import Command
from dcupgrade.machine.state import State
from dcupgrade.upgrade.ports import Entry

from .journal import Journal

P = ParamSpec("P")
T = TypeVar("T")
WAITING_MAX = 64
"""Calls of everybody but the machine that may wait: readers, operator commands, webhooks."""
log = logging.getLogger("dcupgrade")


@asynccontextmanager
async def open_journal(path: Path) -> AsyncIterator[JournalThread]:
    """Open the journal in its own thread. On exit, finish all calls that were begun, and close the file.

    Raises what `Journal` raises.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
    try:
        opened = JournalThread(thread, await asyncio.get_running_loop().run_in_executor(thread, Journal, path))
        try:
            yield opened
        finally:
            await opened.close()
    finally:
        thread.shutdown(wait=False)


class _Turns:
    """Lets one call after another through: the machine's before all others, each kind in its order."""

    def __init__(self) -> None:
        self._is_taken = False
        self._machine: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    async def take(self, *, for_machine: bool) -> None:
        """Wait for a turn, which the caller ends by `end`. Raises JOURNAL_BUSY if too many others wait."""
        if not self._is_taken:
            self._is_taken = True
            return
        if not for_machine and len(self._others) >= WAITING_MAX:
            raise DcupgradeError(
                code="JOURNAL_BUSY",
                what="journal",
                why=f"{WAITING_MAX} calls wait for it already",
                action="Try again later; look for a program that asks the agent without end.",
                kind="transient",
            )
        queue = self._machine if for_machine else self._others
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):
                    queue.remove(turn)
            else:
                self.end()  # the turn came together with the cancellation
            raise

    def end(self) -> None:
        """End a turn: the next one who still waits gets it."""
        for queue in (self._machine, self._others):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._is_taken = False


class JournalThread:
    """The journal, as the agent uses it: calls are done one after another, and each is awaited until it is done.

    A call of the machine waits for the one under way at most, however many others wait. If a caller is cancelled, the
    result is as after a crash: its entry is stored completely or not at all.
    """

    def __init__(self, thread: ThreadPoolExecutor, journal: Journal) -> None:
        self._thread, self._journal = thread, journal
        self._turns = _Turns()
        self._progress: Mapping[str, Any] | None = None
        self._storing_progress: asyncio.Task[None] | None = None

    async def run(self, work: Callable[Concatenate[Journal, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work with the journal, in its thread. Example: `await thread.run(Journal.history, 50)`.

        Raises JOURNAL_BUSY if too many calls wait.
        """
        return await self._do(functools.partial(work, self._journal, *args, **kwargs), for_machine=False)

    async def _do(self, call: Callable[[], T], *, for_machine: bool) -> T:
        await self._turns.take(for_machine=for_machine)
        loop = asyncio.get_running_loop()
        done = self._thread.submit(call)
        # the turn ends with the work in the thread, also if the caller is cancelled before that
        done.add_done_callback(lambda _: loop.call_soon_threadsafe(self._turns.end))
        return await asyncio.wrap_future(done)

    async def close(self) -> None:
        """Finish what was begun, and close the file."""
        if self._storing_progress is not None:
            await self._storing_progress
        await asyncio.get_running_loop().run_in_executor(self._thread, self._journal.close)

    async def load(self) -> State | None:
        """See `JournalPort`."""
        return await self._do(self._journal.load, for_machine=True)

    async def intents(self) -> list[dict[str, Any]]:
        """See `JournalPort`."""
        return await self._do(self._journal.intents, for_machine=True)

    async def append(self, entry: Entry) -> None:
        """See `JournalPort`."""
        await self._do(functools.partial(self._journal.append, entry), for_machine=True)

    async def commands(self) -> list[Command]:
        """See `JournalPort`."""
        return await self._do(self._journal.commands, for_machine=True)

    async def history_after(self, seq: int, limit: int) -> list[dict[str, Any]]:
        """See `dcupgrade.surfaces.webhooks.Queue`."""
        return await self.run(Journal.history_after, seq, limit)

    async def webhook_seq(self, url: str) -> int:
        """See `dcupgrade.surfaces.webhooks.Queue`."""
        return await self.run(Journal.webhook_seq, url)

    async def set_webhook_seq(self, url: str, seq: int) -> None:
        """See `dcupgrade.surfaces.webhooks.Queue`."""
        await self.run(Journal.set_webhook_seq, url, seq)

    def set_chain_progress(self, facts: Mapping[str, Any]) -> None:
        """Store the watcher's progress soon; of several only the newest. Losing it costs little, so nobody waits."""
        self._progress = facts
        if self._storing_progress is None or self._storing_progress.done():
            self._storing_progress = asyncio.create_task(self._store_progress())

    async def _store_progress(self) -> None:
        while (facts := self._progress) is not None:
            self._progress = None
            try:
                await self.run(Journal.set_chain_progress, facts)
            except Exception as error:
                log.warning("the chain's progress was not stored: %s", error)
