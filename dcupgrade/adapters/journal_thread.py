"""The journal in its own thread, which owns the connection, so that a slow disk does not block the event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from dcupgrade.machine.operator_commands import Command
from dcupgrade.machine.state import State
from dcupgrade.upgrade.ports import Entry

from .journal import Journal

P = ParamSpec("P")
T = TypeVar("T")
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
            await opened.run(Journal.close)
    finally:
        thread.shutdown(wait=False)


class JournalThread:
    """The journal, as the agent uses it: calls are done one after another, and each is awaited until it is done.

    If a caller is cancelled, the result is as after a crash: its entry is stored completely or not at all.
    """

    def __init__(self, thread: ThreadPoolExecutor, journal: Journal) -> None:
        self._thread, self._journal = thread, journal

    async def run(self, work: Callable[Concatenate[Journal, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work with the journal, in its thread. Example: `await thread.run(Journal.history, 50)`."""
        call = functools.partial(work, self._journal, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def load(self) -> State | None:
        """See `JournalPort`."""
        return await self.run(Journal.load)

    async def intents(self) -> list[dict[str, Any]]:
        """See `JournalPort`."""
        return await self.run(Journal.intents)

    async def append(self, entry: Entry) -> None:
        """See `JournalPort`."""
        await self.run(Journal.append, entry)

    async def commands(self) -> list[Command]:
        """See `JournalPort`."""
        return await self.run(Journal.commands)

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
        """Store the watcher's progress soon. No caller waits for it, since losing it costs little."""
        self._thread.submit(self._journal.set_chain_progress, facts).add_done_callback(_log_failure)


def _log_failure(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.warning("the chain's progress was not stored: %s", error)
