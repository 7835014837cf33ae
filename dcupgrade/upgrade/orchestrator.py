"""The orchestrator: performs what the machine wants, and feeds back what happened. One task owns the machine.

Order is everything here: an event is taken, the machine steps, the journal stores state and intents, and only then work
that is wanted no more is cancelled and newly wanted work begins. A result of work that is wanted no more is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dcupgrade.errors import DcupgradeError, failure_of
from dcupgrade.machine import gates
from dcupgrade.machine.events import Effect, Event, EventKind
from dcupgrade.machine.guards import Budgets, newer
from dcupgrade.machine.operator_commands import WORDS, Command
from dcupgrade.machine.state import Hold, Name, State
from dcupgrade.machine.table import activity, step

from .performer import Performer
from .ports import ChainPort, ClockPort, Entry, JournalPort, NodesPort, VaultPort
from .tools import Limits

log = logging.getLogger("dcupgrade")

SUBSCRIBER_QUEUE_MAX = 1000


@dataclass(frozen=True, slots=True)
class _Job:
    """A running effect. Its number tells results of this run from those of an earlier run of an equal effect."""

    number: int
    task: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class _Item:
    """Something in the queue: an event, and the effect's run or the operator's word that it comes from."""

    event: Event
    effect: Effect | None = None
    number: int = 0
    command_id: int = 0


class _Stream:
    """One subscriber's facts. It is heard of from the start, and forgotten by `aclose`, whether it was read or not."""

    def __init__(self, subscribers: list[asyncio.Queue[dict[str, Any]]]) -> None:
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(SUBSCRIBER_QUEUE_MAX)
        self._subscribers = subscribers
        subscribers.append(self._queue)

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> dict[str, Any]:
        return await self._queue.get()

    async def aclose(self) -> None:
        """End it; safe to do twice."""
        if self._queue in self._subscribers:
            self._subscribers.remove(self._queue)


def has_no_node(state: State) -> bool:
    """Whether no node was ever started: nothing runs, and nothing is being launched. Then one may be taken over."""
    return state.running is None and state.name in (Name.IDLE, Name.STAGING, Name.STAGED, Name.ABANDONED)


class Orchestrator:
    """Runs the upgrade machine over the ports. `run()` returns only when cancelled; it raises on a broken invariant."""

    def __init__(
        self,
        *,
        journal: JournalPort,
        chain: ChainPort,
        vault: VaultPort,
        nodes: NodesPort,
        clock: ClockPort,
        limits: Limits,
        budgets: Budgets,
        rules: gates.GateRules,
        commands_poll_s: float = 1.0,
    ) -> None:
        self._journal, self._chain, self._nodes = journal, chain, nodes
        self._clock, self._budgets = clock, budgets
        self._performer = Performer(
            nodes=nodes, vault=vault, chain=chain, clock=clock, limits=limits, rules=rules, note=self._note
        )
        self._commands_poll_s = commands_poll_s
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._jobs: dict[Effect, _Job] = {}
        self._numbers = 0
        self._subscribers: list[asyncio.Queue[dict[str, Any]]] = []
        self._progress: dict[str, Mapping[str, Any]] = {}
        self._block_number = 0
        self._since_unix_s = clock.now()
        self._recent: deque[dict[str, Any]] = deque(maxlen=50)
        self._seen_commands: set[int] = set()
        self.state = State()

    # --- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take up the journalled state and work until cancelled.

        Raises DcupgradeError: JOURNAL_CORRUPT from start-up, MACHINE_NO_TRANSITION for a fault of the program. Nodes
        are never touched by the end of this task.
        """
        stored = self._journal.load()
        self.state = await self._begin(stored) if stored is None or has_no_node(stored) else stored
        self._since_unix_s = self._clock.now()
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
        found = await self._nodes.discover()
        if found is None or (stored is not None and not await self._nodes.is_alive(found.enclave_id)):
            return before
        state = State(running=found, hold=before.hold, records=before.records)
        event = Event(EventKind.ADOPTED, found.enclave_id, at_unix_s=self._clock.now(), detail="no node was known")
        await self._store(Entry(before, event, state, activity(state)))
        return state

    async def _take(self, item: _Item) -> None:
        if item.effect is not None:
            job = self._jobs.get(item.effect)
            if job is None or job.number != item.number:
                return  # that work is wanted no more
        before, event = self.state, replace(item.event, at_unix_s=self._clock.now())
        after = before if event.kind is EventKind.WORD_REFUSED else step(before, event, self._budgets)[0]
        if after != before or item.command_id:
            await self._store(Entry(before, event, after, activity(after), item.command_id))
        self.state = after
        if item.effect is not None and self._jobs[item.effect].task.done():
            del self._jobs[item.effect]
        if after != before:
            self._tell_step(before, event, after)
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
                self._note("journal_failed", {"code": error.code, "detail": str(error)})
                await self._clock.sleep(self._performer.pause_s(tries))

    async def _reconcile(self) -> None:
        """Cancel the work that is wanted no more and see it end, then start what is wanted and does not run."""
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
                emit(await self._performer.perform(effect, state, emit))
                return
            except Exception as error:
                # performers turn every expected failure into an event; what gets here is a fault of the program
                failure = failure_of(error)
                log.exception("effect %s failed unexpectedly", effect.kind.value)
                self._note("retry", {"what": effect.kind.value, "code": failure.code, "detail": failure.detail})
                await self._clock.sleep(self._performer.pause_s(3))

    async def _follow_chain(self) -> None:
        tries = 0
        while True:
            try:
                async for facts in self._chain.views():
                    tries = 0
                    self._block_number = facts.block_number
                    self._queue.put_nowait(_Item(Event(EventKind.CHAIN, chain=facts)))
            except Exception as error:
                failure = failure_of(error)
                log.warning("the chain cannot be followed: %s", failure.detail, extra={"code": failure.code})
                self._note("chain_lost", {"code": failure.code, "detail": failure.detail})
            tries += 1
            await self._clock.sleep(self._performer.pause_s(tries))

    async def _follow_commands(self) -> None:
        while True:
            try:
                waiting = self._journal.commands()
            except Exception as error:
                failure = failure_of(error)
                log.warning("operators' words cannot be read: %s", failure.detail, extra={"code": failure.code})
                waiting = []
            for command in waiting:
                if command.id not in self._seen_commands:
                    self._seen_commands.add(command.id)
                    event = await self._with_files(self._event_of(command))
                    self._queue.put_nowait(_Item(event, command_id=command.id))
            await self._clock.sleep(self._commands_poll_s)

    async def _with_files(self, event: Event) -> Event:
        """A wish to go back, marked where the previous version's files are not good.

        What serves now must not be stopped for a version that could not be started then.
        """
        previous = self.state.previous
        if (
            event.kind is not EventKind.REVERT
            or previous is None
            or await self._nodes.slot_is_good(previous.enclave_id)
        ):
            return event
        why = f"the files of {previous.enclave_id} are missing or were changed"
        return replace(event, code="SOURCE_SLOT_DAMAGED", detail=why)

    def _event_of(self, command: Command) -> Event:
        """The event that a word means. One that means nothing must not keep the words after it from being heard."""
        try:
            return self._meaning_of(command)
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            log.warning("operator's word %r of %s is refused: %s", command.kind, command.who, error)
            return Event(EventKind.WORD_REFUSED, who=command.who, detail=f"{command.kind}: {error}")

    def _meaning_of(self, command: Command) -> Event:
        arguments = command.arguments
        detail = str(arguments.get("reason", ""))
        if command.kind not in WORDS:
            raise ValueError("there is no such word")
        kind = WORDS[command.kind]
        if kind is EventKind.HOLD:
            until_unix_s = float(arguments.get("until_unix_s") or 0.0)
            if not math.isfinite(until_unix_s):
                raise ValueError(f"until_unix_s is {until_unix_s}")
            return Event(kind, who=command.who, detail=detail, hold=Hold(detail, command.who, until_unix_s))
        if kind in (EventKind.APPROVE, EventKind.OVERRIDE):
            about = self.state.target or newer(self.state)
            enclave_id = str(arguments.get("enclave_id") or (about.enclave_id if about else ""))
            return Event(kind, enclave_id, who=command.who, detail=detail)
        return Event(kind, who=command.who, detail=detail)

    # --- for people --------------------------------------------------------------------------------------------------

    def subscribe(self) -> AsyncIterator[dict[str, Any]]:
        """A stream of JSON-able facts: {"type": "state" | "progress", ...}. A slow reader loses the oldest ones."""
        return _Stream(self._subscribers)

    def snapshot(self) -> dict[str, Any]:
        """Everything a status page shows: state, work under way, its progress, the chain's height."""
        return {
            "state": self.state.to_json(),
            "since_unix_s": self._since_unix_s,
            "now_unix_s": self._clock.now(),
            "block_number": self._block_number,
            "wanted": [effect.to_json() for effect in activity(self.state)],
            "progress": {name: dict(facts) for name, facts in self._progress.items()},
            "recent": list(self._recent),
            "alarms": self.alarms(),
        }

    def alarms(self) -> list[dict[str, str]]:
        """Conditions that an operator should know of, each with its code."""
        state, out = self.state, []
        if state.halted:
            out.append({"code": state.halted, "detail": state.detail})
        if state.revoked(state.running):
            out.append({"code": "RUNNING_REVOKED", "detail": state.running.enclave_id if state.running else ""})
        if state.crashes >= self._budgets.crashes:
            out.append({"code": "NODE_CRASH_LOOP", "detail": state.detail})
        waits = self._progress.get("retry", {})
        if state.name is Name.COMMITTED and waits.get("what") == "commit":
            out.append({"code": "COMMIT_NOT_ACKNOWLEDGED", "detail": str(waits["detail"])})
        out += [{"code": item.quarantine, "detail": item.enclave_id} for item in state.records if item.quarantine]
        return out

    def _note(self, name: str, facts: Mapping[str, Any]) -> None:
        self._progress[name] = facts
        if name in ("retry", "journal_failed", "chain_lost"):
            log.warning("%s: %s", name, dict(facts), extra={"event": name})
        self._publish({"type": "progress", "name": name, "at_unix_s": self._clock.now(), "facts": dict(facts)})

    def _tell_step(self, before: State, event: Event, after: State) -> None:
        fact = {
            "type": "state",
            "at_unix_s": event.at_unix_s,
            "from": before.name.value,
            "to": after.name.value,
            "event": event.kind.value,
            "code": event.code or after.halted,
            "detail": event.detail,
            "target": after.target.enclave_id if after.target else "",
            "version": after.target.version if after.target else "",
        }
        if after.name is not before.name:
            self._since_unix_s = event.at_unix_s
            self._progress.clear()
        self._recent.append(fact)
        level = logging.ERROR if after.halted and not before.halted else logging.INFO
        log.log(level, "%s -> %s on %s %s %s", fact["from"], fact["to"], fact["event"], fact["code"], fact["detail"])
        if after.revoked(after.running) and not before.revoked(before.running):
            log.error("RUNNING_REVOKED: the network has revoked the running version; it goes on serving")
        self._publish(fact)

    def _publish(self, fact: dict[str, Any]) -> None:
        for queue in self._subscribers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(fact)
