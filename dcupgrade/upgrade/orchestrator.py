"""The orchestrator: performs what the machine wants, and feeds back what happened. One task owns the machine.

Order is everything here: an event is taken, the machine steps, the journal stores state and intents, and only then work
that is no longer wanted is cancelled and newly wanted work begins. Results of work no longer wanted are dropped.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from dcupgrade.errors import DcupgradeError, failure_of
from dcupgrade.machine import gates
from dcupgrade.machine.events import Effect, Event, EventKind
from dcupgrade.machine.guards import Budgets
from dcupgrade.machine.operator_commands import Command, event_of
from dcupgrade.machine.state import Name, State
from dcupgrade.machine.table import activity, step

from .feed import Feed
from .performer import perform
from .ports import Entry, JournalPort, Ports
from .tools import Limits, Tools

log = logging.getLogger("dcupgrade")


@dataclass(frozen=True, slots=True)
class _Job:
    """A running effect. Its number tells results of this run from those of an earlier run of an equal effect."""

    number: int
    task: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class _Item:
    """Something in the queue: an event, and the effect's run or the operator command that it comes from."""

    event: Event
    effect: Effect | None = None
    number: int = 0
    command_id: int = 0


def has_no_node(state: State) -> bool:
    """Whether no node was ever started: nothing runs, and nothing is being launched. Then one may be taken over."""
    return state.running is None and state.name in (Name.IDLE, Name.STAGING, Name.STAGED, Name.ABANDONED)


class Orchestrator:
    """Runs the upgrade machine over the ports. `run()` returns only when cancelled; it raises on a broken invariant."""

    def __init__(
        self,
        ports: Ports,
        journal: JournalPort,
        *,
        limits: Limits,
        budgets: Budgets,
        rules: gates.GateRules,
        commands_poll_s: float = 1.0,
    ) -> None:
        self._journal, self._chain, self._slots, self._processes = journal, ports.chain, ports.slots, ports.processes
        self._clock, self._budgets, self._commands_poll_s = ports.clock, budgets, commands_poll_s
        self.feed = Feed(ports.clock, budgets.crashes)
        self._tools = Tools(ports, limits, rules, self.feed.note)
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._jobs: dict[Effect, _Job] = {}
        self._numbers = 0
        self._seen_commands: set[int] = set()
        self.state = State()

    async def run(self) -> None:
        """Take up the journalled state and work until cancelled.

        Raises DcupgradeError: JOURNAL_CORRUPT from start-up, MACHINE_NO_TRANSITION for a fault of the program. Nodes
        are never touched by the end of this task.
        """
        stored = self._journal.load()
        self.state = await self._begin(stored) if stored is None or has_no_node(stored) else stored
        self.feed.begin()
        log.info("taking up state %s", self.state.name, extra={"event": "start", "state": self.state.name.value})
        sources = [asyncio.ensure_future(self._follow_chain()), asyncio.ensure_future(self._follow_commands())]
        try:
            await self._reconcile()
            while True:
                await self._take(await self._queue.get())
        finally:
            tasks = [*sources, *(job.task for job in self._jobs.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._jobs.clear()

    async def _begin(self, stored: State | None) -> State:
        """Where the journal knows of no node, one that is here already is taken over.

        Without a journal this is also one that is down; with a journal that never had a node, only one that runs.
        """
        before = stored or State()
        found = await self._slots.discover()
        if found is None or (stored is not None and not await self._processes.is_alive(found.enclave_id)):
            return before
        state = State(running=found, hold=before.hold, records=before.records)
        event = Event(EventKind.ADOPTED, found.enclave_id, at_unix_s=self._clock.now(), detail="no node was known")
        await self._store(Entry(before, event, state, activity(state)))
        return state

    async def _take(self, item: _Item) -> None:
        if item.effect is not None:
            job = self._jobs.get(item.effect)
            if job is None or job.number != item.number:
                return  # that work is no longer wanted
        before, event = self.state, replace(item.event, at_unix_s=self._clock.now())
        after = before if event.kind is EventKind.WORD_REFUSED else step(before, event, self._budgets)[0]
        if after != before or item.command_id:
            await self._store(Entry(before, event, after, activity(after), item.command_id))
        self.state = after
        if item.effect is not None and self._jobs[item.effect].task.done():
            del self._jobs[item.effect]
        if after != before:
            self.feed.transition(before, event, after)
        await self._reconcile()

    async def _store(self, entry: Entry) -> None:
        """Nothing may happen that the journal does not hold: a failing write is repeated until it succeeds."""
        tries = 0
        while True:
            try:
                self._journal.append(entry)
                return
            except DcupgradeError as error:
                if error.kind != "transient":
                    raise
                tries += 1
                self.feed.note("journal_failed", {"code": error.code, "detail": str(error)})
                await self._clock.sleep(self._tools.pause_s(tries))

    async def _reconcile(self) -> None:
        """Cancel work that is no longer wanted and wait for its end, then start what is wanted and does not run."""
        wanted = activity(self.state)
        ending = [self._jobs.pop(effect).task for effect in list(self._jobs) if effect not in wanted]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.gather(*ending, return_exceptions=True)
        for effect in wanted:
            if effect not in self._jobs:
                self._numbers += 1
                task = asyncio.ensure_future(self._perform(effect, self._numbers, self.state))
                self._jobs[effect] = _Job(self._numbers, task)

    async def _perform(self, effect: Effect, number: int, state: State) -> None:
        def emit(event: Event) -> None:
            self._queue.put_nowait(_Item(event, effect, number))

        while True:
            try:
                emit(await perform(self._tools, effect, state, emit))
                return
            except Exception as error:
                # performers turn every expected failure into an event; what gets here is a fault of the program
                failure = failure_of(error)
                log.exception("effect %s failed unexpectedly", effect.kind.value)
                self.feed.note("retry", {"what": effect.kind.value, "code": failure.code, "detail": failure.detail})
                await self._clock.sleep(self._tools.pause_s(3))

    async def _follow_chain(self) -> None:
        tries = 0
        while True:
            try:
                async for facts in self._chain.views():
                    tries = 0
                    self.feed.block_number = facts.block_number
                    self._queue.put_nowait(_Item(Event(EventKind.CHAIN, chain=facts)))
            except Exception as error:
                failure = failure_of(error)
                log.warning("the chain cannot be followed: %s", failure.detail, extra={"code": failure.code})
                self.feed.note("chain_lost", {"code": failure.code, "detail": failure.detail})
            tries += 1
            await self._clock.sleep(self._tools.pause_s(tries))

    async def _follow_commands(self) -> None:
        while True:
            try:
                waiting = self._journal.commands()
            except Exception as error:
                failure = failure_of(error)
                log.warning("operator commands cannot be read: %s", failure.detail, extra={"code": failure.code})
                waiting = []
            for command in waiting:
                if command.id not in self._seen_commands:
                    self._seen_commands.add(command.id)
                    event = await self._with_files(self._understood(command))
                    self._queue.put_nowait(_Item(event, command_id=command.id))
            await self._clock.sleep(self._commands_poll_s)

    def _understood(self, command: Command) -> Event:
        event = event_of(command, self.state)
        if event.kind is EventKind.WORD_REFUSED:
            log.warning("operator command %r of %s is refused: %s", command.kind, command.who, event.detail)
        return event

    async def _with_files(self, event: Event) -> Event:
        """A revert command, marked where the previous version's files are not good.

        What serves now must not be stopped for a version that could not be started then.
        """
        previous = self.state.previous
        if (
            event.kind is not EventKind.REVERT
            or previous is None
            or await self._slots.slot_is_good(previous.enclave_id)
        ):
            return event
        why = f"the files of {previous.enclave_id} are missing or were changed"
        return replace(event, code="SOURCE_SLOT_DAMAGED", detail=why)
