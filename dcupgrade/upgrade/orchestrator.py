"""The orchestrator performs the effects that the machine wants, and gives it the events. One task owns the machine.

The order matters: take an event, step the machine, store state and intents in the journal. Only then cancel work that
is no longer wanted and begin newly wanted work. Results of cancelled work are dropped.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from dcupgrade.errors import DcupgradeError, failure_of
from dcupgrade.machine import gates
from dcupgrade.machine.effects import Effect
from dcupgrade.machine.events import (
    BESIDE_THE_MACHINE,
    Adopted,
    ChainSeen,
    CommandEvent,
    CommandRefused,
    Event,
    RestartCommand,
    ResumeCommand,
    RevertCommand,
    StartingCommand,
)
from dcupgrade.machine.guards import Budgets
from dcupgrade.machine.operator_commands import Command, event_of, in_time, outcome_of
from dcupgrade.machine.state import Name, Release, State
from dcupgrade.machine.table import activity, state_after

from .early_fetch import EarlyFetch
from .event_queue import EventQueue, Item
from .feed import Feed
from .health import watch_node, watch_vault
from .housekeeping import keep_tidy
from .performer import failure_event, perform
from .ports import Announcement, Entry, JournalPort, Ports
from .tools import Limits, Tools

log = logging.getLogger("dcupgrade")


@dataclass(frozen=True, slots=True)
class _Job:
    """A running effect. Its number distinguishes this run from an earlier run of an equal effect."""

    number: int
    task: asyncio.Task[None]


def has_no_node(state: State) -> bool:
    """Return whether no node was ever started: none runs and none is being launched. Then one may be taken over."""
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
        self._early = EarlyFetch(ports.slots, ports.clock, lambda: self.state, limits.early_hosts)
        self._tools = Tools(
            ports, limits, rules, self._early,
            note=self.feed.note, show_gates=self.feed.show_gates, alarm=self.feed.alarm,
        )  # fmt: skip
        self._queue = EventQueue()
        self._jobs: dict[Effect, _Job] = {}
        self._numbers = 0
        self._seen_commands: set[int] = set()
        self._condition_since_unix_s = 0.0
        self.state = State()

    async def run(self) -> None:
        """Continue from the journalled state and work until cancelled.

        Raises DcupgradeError: JOURNAL_CORRUPT at start-up, MACHINE_NO_TRANSITION for a fault of the program. The end of
        this task never stops a node.
        """
        stored = await self._journal.load()
        if stored is not None:
            await self._compare_work(stored)
        self.state = await self._begin(stored) if stored is None or has_no_node(stored) else stored
        self.feed.begin()
        self._condition_since_unix_s = self._clock.now()
        log.info("taking up state %s", self.state.name, extra={"event": "start", "state": self.state.name.value})
        work = (
            self._follow_chain(),
            self._follow_commands(),
            watch_node(self._tools, self.feed, lambda: self.state),
            watch_vault(self._tools, self.feed),
            keep_tidy(self._tools, self._early, lambda: self.state),
        )
        sources = [asyncio.ensure_future(item) for item in work]
        try:
            await self._reconcile()
            while True:
                await self._take(await self._queue.get())
        finally:
            tasks = [*sources, *(job.task for job in self._jobs.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._early.close()
            self._jobs.clear()

    async def _compare_work(self, stored: State) -> None:
        """Report if the state wants other work now than the stored intents. The state decides."""
        before, now = await self._journal.intents(), [effect.to_json() for effect in activity(stored)]
        if before != now:
            log.warning("JOURNAL_WORK_DIFFERS: stored was %s, wanted is %s", before, now)

    async def _begin(self, stored: State | None) -> State:
        """If the journal names no node, take over a node that is already on this host.

        Without a journal, the node may also be down. With a journal that never had a node, it must run.
        """
        before = stored or State()
        found = await self._discover(stored)
        if found is None:
            return before
        state = State(running=found, hold=before.hold, records=before.records)
        event = Adopted(found.enclave_id, at_unix_s=self._clock.now())
        await self._store(Entry(before, event, state, activity(state)))
        return state

    async def _discover(self, stored: State | None) -> Release | None:
        tries = 0
        with self.feed.alarm() as alarm:
            while True:
                try:
                    found = await self._slots.discover()
                    if found is not None and stored is not None:
                        return found if await self._processes.is_alive(found.enclave_id) else None
                    return found
                except Exception as error:
                    tries += 1
                    failure = failure_of(error)
                    alarm(failure.code, failure.detail)
                    await self._clock.sleep(self._tools.pause_s(tries))

    async def _take(self, item: Item) -> None:
        if item.effect is not None:
            job = self._jobs.get(item.effect)
            if job is None or job.number != item.number:
                return  # that work is no longer wanted
            self.feed.ask_again.set()
        before, event = self.state, replace(self._informed(item), at_unix_s=self._clock.now())
        after = before if isinstance(event, BESIDE_THE_MACHINE) else state_after(before, event, self._budgets)
        outcome = outcome_of(before, event, after) if item.command_id else None
        if after != before or outcome is not None:
            try:
                await self._store(Entry(before, event, after, activity(after), item.command_id, outcome))
            except DcupgradeError as error:
                if error.code != "COMMAND_CANCELLED":
                    raise
                log.info("operator command %d was cancelled", item.command_id)
                return
        if outcome is not None and isinstance(event, CommandEvent):
            log.info("operator command %s of %s: %s %s", event.kind, event.who, outcome.code, outcome.text)
            if isinstance(event, RestartCommand) and outcome.accepted:
                self._tools.restart.set()
        if after.halted != before.halted:
            self._condition_since_unix_s = event.at_unix_s
        self.state = after
        if item.effect is not None and self._jobs[item.effect].task.done():
            del self._jobs[item.effect]
        if after != before:
            self.feed.transition(before, event, after)
        await self._reconcile()

    def _informed(self, item: Item) -> Event:
        """Return the item's event. A command that waited too long for the machine is refused.

        A `resume` accepts a revoked version only if it was given once the revocation was known.
        """
        event = item.event
        if isinstance(event, CommandEvent):
            event = in_time(event, item.given_unix_s, self._clock.now())
        revoked = self.state.halted == "PREVIOUS_REVOKED"
        if not isinstance(event, ResumeCommand) or not revoked or item.given_unix_s >= self._condition_since_unix_s:
            return event
        why = "it was given before this condition was known; check the condition, and give it again if you accept it"
        return CommandRefused(event.who, refusal=self.state.halted, why=f"resume: {why}")

    async def _store(self, entry: Entry) -> None:
        """Store the entry; repeat a failing write until it succeeds, because work may begin only once it is stored."""
        tries = 0
        while True:
            try:
                await self._journal.append(entry)
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
            self._queue.put(Item(event, effect, number))

        tries = 0
        with self.feed.alarm() as alarm:
            while True:
                try:
                    emit(await perform(self._tools, effect, state, emit))
                    return
                except Exception as error:
                    # performers turn every expected failure into an event, so this error is a fault of the program
                    tries += 1
                    failure = failure_of(error)
                    log.exception("effect %s failed unexpectedly", effect.kind.value)
                    ended = failure_event(effect, state, error) if tries >= self._tools.limits.attempts else None
                    if ended is not None:
                        emit(ended)
                        return
                    alarm(failure.code, f"{effect.kind.value}: {failure.detail}")
                    await self._clock.sleep(self._tools.pause_s(tries))

    async def _follow_chain(self) -> None:
        tries = 0
        listed: dict[str, int] = {}
        while True:
            try:
                async for news in self._chain.news():
                    tries = 0
                    if isinstance(news, Announcement):
                        self._early.announced(news.release, listed)
                        continue
                    listed = dict(news.listed)
                    self.feed.block_number = news.block_number
                    self._queue.put(Item(ChainSeen(news)))
            except Exception as error:
                failure = failure_of(error)
                log.warning("the chain cannot be followed: %s", failure.detail, extra={"code": failure.code})
                self.feed.note("chain_lost", {"code": failure.code, "detail": failure.detail})
            tries += 1
            await self._clock.sleep(self._tools.pause_s(tries))

    async def _follow_commands(self) -> None:
        while True:
            try:
                self.feed.waiting_commands = await self._journal.commands()
                for command in self.feed.waiting_commands:
                    if command.id not in self._seen_commands:
                        event = await self._understood(command)
                        self._seen_commands.add(command.id)
                        self._queue.put(Item(event, command_id=command.id, given_unix_s=command.at_unix_s))
                self._seen_commands &= {command.id for command in self.feed.waiting_commands}
            except Exception as error:
                failure = failure_of(error)
                log.warning("operator commands cannot be read: %s", failure.detail, extra={"code": failure.code})
            await self._clock.sleep(self._commands_poll_s)

    async def _understood(self, command: Command) -> Event:
        """Return the event of the command.

        A revert or restart is marked if the files of the version to be started are damaged. The serving version must
        not be stopped for a version that cannot be started.
        """
        event = event_of(command, self.state, self._clock.now())
        if not isinstance(event, StartingCommand):
            return event
        to_start = self.state.previous if isinstance(event, RevertCommand) else self.state.running
        if to_start is None or await self._slots.slot_is_good(to_start.enclave_id):
            return event
        return replace(event, files_damaged=f"the files of {to_start.enclave_id} are missing or were changed")
