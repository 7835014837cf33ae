"""What the agent tells people: transitions and progress as they happen, a snapshot, alarms."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from dcupgrade.machine.events import Event
from dcupgrade.machine.state import Name, State
from dcupgrade.machine.table import activity

from .ports import ClockPort

log = logging.getLogger("dcupgrade")

SUBSCRIBER_QUEUE_MAX = 1000
RECENT_MAX = 50
LOGGED_NOTES = ("retry", "journal_failed", "chain_lost")


class Feed:
    """Collects what happens and passes it on to subscribers. `crashes_max` is the budget of the running version."""

    def __init__(self, clock: ClockPort, crashes_max: int) -> None:
        self._clock, self._crashes_max = clock, crashes_max
        self._subscribers: list[asyncio.Queue[dict[str, Any]]] = []
        self._progress: dict[str, Mapping[str, Any]] = {}
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_MAX)
        self._since_unix_s = clock.now()
        self.block_number = 0

    def begin(self) -> None:
        """The machine takes up its state now."""
        self._since_unix_s = self._clock.now()

    def subscribe(self) -> AsyncIterator[dict[str, Any]]:
        """A stream of JSON-able facts: {"type": "state" | "progress", ...}. A slow reader loses the oldest ones.

        It is registered on creation and removed by `aclose`, even if never iterated.
        """
        return _Stream(self._subscribers)

    def snapshot(self, state: State) -> dict[str, Any]:
        """Everything a status page shows: state, work under way, its progress, the chain's height."""
        return {
            "state": state.to_json(),
            "since_unix_s": self._since_unix_s,
            "now_unix_s": self._clock.now(),
            "block_number": self.block_number,
            "wanted": [effect.to_json() for effect in activity(state)],
            "progress": {name: dict(facts) for name, facts in self._progress.items()},
            "recent": list(self._recent),
            "alarms": self.alarms(state),
        }

    def alarms(self, state: State) -> list[dict[str, str]]:
        """Conditions that an operator should know of, each with its code."""
        out = []
        if state.halted:
            out.append({"code": state.halted, "detail": state.detail})
        if state.revoked(state.running):
            out.append({"code": "RUNNING_REVOKED", "detail": state.running.enclave_id if state.running else ""})
        if state.crashes >= self._crashes_max:
            out.append({"code": "NODE_CRASH_LOOP", "detail": state.detail})
        waits = self._progress.get("retry", {})
        if state.name is Name.COMMITTED and waits.get("what") == "commit":
            out.append({"code": "COMMIT_NOT_ACKNOWLEDGED", "detail": str(waits["detail"])})
        out += [{"code": item.quarantine, "detail": item.enclave_id} for item in state.records if item.quarantine]
        return out

    def note(self, name: str, facts: Mapping[str, Any]) -> None:
        """Progress of the work under way."""
        self._progress[name] = facts
        if name in LOGGED_NOTES:
            log.warning("%s: %s", name, dict(facts), extra={"event": name})
        self._publish({"type": "progress", "name": name, "at_unix_s": self._clock.now(), "facts": dict(facts)})

    def transition(self, before: State, event: Event, after: State) -> None:
        """One step of the machine."""
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
            log.error("RUNNING_REVOKED: the network has revoked the running version; it continues to serve")
        self._publish(fact)

    def _publish(self, fact: dict[str, Any]) -> None:
        for queue in self._subscribers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(fact)


class _Stream:
    """One subscriber's facts."""

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
