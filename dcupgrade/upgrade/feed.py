"""Reports of the agent for people: transitions and progress as they happen, a snapshot, alarms."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dcupgrade.machine.events import Event
from dcupgrade.machine.gates import Shut
from dcupgrade.machine.guards import newer_release
from dcupgrade.machine.operator_commands import Command
from dcupgrade.machine.state import Release, State
from dcupgrade.machine.table import KEEPS_NODE, activity

from .ports import ClockPort, NodeHealth

log = logging.getLogger("dcupgrade")

SUBSCRIBER_QUEUE_MAX = 1000
RECENT_MAX = 50
ALARM_AFTER_S = 30.0
"""Seconds for which node or vault may be away before an alarm is raised: longer than a restart takes."""
LOGGED_NOTES = ("retry", "journal_failed", "chain_lost")


class Feed:
    """Collects facts and passes them on to subscribers. `crashes_max` is the crash budget of the running version."""

    def __init__(self, clock: ClockPort, crashes_max: int) -> None:
        self._clock, self._crashes_max = clock, crashes_max
        self._subscribers: list[asyncio.Queue[dict[str, Any]]] = []
        self._progress: dict[str, Mapping[str, Any]] = {}
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_MAX)
        self._since_unix_s = clock.now()
        self._alarms: dict[int, tuple[str, str]] = {}
        self._alarm_numbers = 0
        self._node: dict[str, Any] | None = None
        self._node_code = ""
        self._node_away_since_s: float | None = None
        self._vault: dict[str, Any] = {"reachable": None, "code": "", "detail": "", "since_unix_s": clock.now()}
        self._vault_away_since_s: float | None = clock.monotonic()
        self.ask_again = asyncio.Event()
        """Set when the agent's own work had a result: the node may have changed."""
        self.shut_gates: tuple[Shut, ...] = ()
        """The gates that keep the upgrade waiting, as they were last judged; empty in any state but STAGED."""
        self.block_number = 0
        self.waiting_commands: Sequence[Command] = ()

    def begin(self) -> None:
        """Record that the machine starts from its stored state now."""
        self._since_unix_s = self._clock.now()

    def subscribe(self) -> AsyncIterator[dict[str, Any]]:
        """Return a stream of JSON-able facts: {"type": "state" | "progress", ...}. A slow reader loses the oldest ones.

        It is registered on creation and removed by `aclose`, even if never iterated.
        """
        return _Stream(self._subscribers)

    def snapshot(self, state: State) -> dict[str, Any]:
        """Return all facts that a status page shows.

        `node` is None where none is installed, else {"status", "enclave_id", "version", "canary", "detail",
        "since_unix_s"}; its status is that of NodeHealth, "stopped", or "unknown". `vault` has "reachable" (None before
        the first answer), "code", "detail" and "since_unix_s". `commands` are the operator commands that wait.
        """
        return {
            "state": state.to_json(),
            "since_unix_s": self._since_unix_s,
            "now_unix_s": self._clock.now(),
            "block_number": self.block_number,
            "wanted": [effect.to_json() for effect in activity(state)],
            "progress": {name: dict(facts) for name, facts in self._progress.items()},
            "recent": list(self._recent),
            "alarms": self.alarms(state),
            "node": self._node,
            "vault": dict(self._vault),
            "commands": [command.to_json() for command in self.waiting_commands],
        }

    def alarms(self, state: State) -> list[dict[str, str]]:
        """Return the conditions that need a person now, each with its code."""
        out: list[tuple[str, str]] = []
        if state.halted:
            out.append((state.halted, state.detail))
        if state.revoked(state.running):
            out.append(("RUNNING_REVOKED", state.running.enclave_id if state.running else ""))
        if state.crashes >= self._crashes_max:
            out.append(("NODE_CRASH_LOOP", state.detail))
        elif state.name in KEEPS_NODE and self._away(self._node_away_since_s):
            out.append(self._node_alarm())
        if self._vault["code"] and self._away(self._vault_away_since_s):
            out.append((self._vault["code"], self._vault["detail"]))
        out += self._alarms.values()
        program = newer_release(state)
        quarantine = state.record(program.enclave_id).quarantine if program else ""
        if program is not None and quarantine:
            out.append((quarantine, f"{program.enclave_id} is not tried again before `dcupgrade retry`"))
        return [{"code": code, "detail": detail} for code, detail in dict.fromkeys(out)]

    def _away(self, since_s: float | None) -> bool:
        return since_s is not None and self._clock.monotonic() - since_s >= ALARM_AFTER_S

    def _node_alarm(self) -> tuple[str, str]:
        node = self._node or {}
        code = self._node_code or ("NODE_UNHEALTHY" if node.get("status") == "failed" else "NODE_NOT_READY")
        return code, f"{node.get('status')} {node.get('detail', '')}".strip()

    @contextmanager
    def alarm(self) -> Iterator[Callable[[str, str], None]]:
        """Give a piece of work an alarm: call it with a code and a detail to raise it, with an empty code to clear it.

        Leaving the context clears it too.

        Example: `with feed.alarm() as alarm: alarm("COMMIT_NOT_ACKNOWLEDGED", "HTTP 500")`.
        """
        self._alarm_numbers += 1
        number = self._alarm_numbers

        def alarm(code: str, detail: str) -> None:
            if not code:
                self._alarms.pop(number, None)
                return
            if self._alarms.get(number, ("", ""))[0] != code:
                log.error("%s: %s", code, detail, extra={"event": "alarm", "code": code})
            self._alarms[number] = (code, detail)

        try:
            yield alarm
        finally:
            self._alarms.pop(number, None)

    def node_seen(self, release: Release | None, health: NodeHealth | None, code: str = "") -> None:
        """Record the node's health; `code` is the error's code if it is unknown whether its process is alive."""
        if release is None or health is None:
            self._node, self._node_code, self._node_away_since_s = None, "", None
            return
        before = self._node or {}
        same = (before.get("status"), before.get("enclave_id")) == (health.status, release.enclave_id)
        if not same and before:
            level = logging.INFO if health.status == "serving" else logging.WARNING
            log.log(level, "the node %s is %s %s", release.version, health.status, health.detail)
        self._node_code = code
        self._node_away_since_s = (
            None if health.status == "serving" else self._node_away_since_s or self._clock.monotonic()
        )
        self._node = {
            "status": health.status,
            "enclave_id": release.enclave_id,
            "version": health.version or release.version,
            "canary": health.canary,
            "detail": health.detail,
            "since_unix_s": before["since_unix_s"] if same else self._clock.now(),
        }

    @property
    def node_serves(self) -> bool:
        """Whether the node served when it was last asked."""
        return self._node is not None and self._node["status"] == "serving"

    @property
    def vault_reachable(self) -> bool:
        """Whether the vault answered when it was last asked."""
        return bool(self._vault["reachable"])

    def vault_seen(self, reachable: bool, code: str, detail: str) -> None:
        """Record whether the vault answers; `code` and `detail` say why not, or which condition it reports."""
        same = (self._vault["reachable"], self._vault["code"]) == (reachable, code)
        if code and not same and self._vault["reachable"] is not None:
            log.warning("the vault: %s %s", code, detail, extra={"code": code})
        self._vault_away_since_s = (self._vault_away_since_s or self._clock.monotonic()) if code else None
        since = self._vault["since_unix_s"] if same else self._clock.now()
        self._vault = {"reachable": reachable, "code": code, "detail": detail, "since_unix_s": since}

    def note(self, name: str, facts: Mapping[str, Any]) -> None:
        """Report progress of the work under way."""
        self._progress[name] = facts
        if name in LOGGED_NOTES:
            log.warning("%s: %s", name, dict(facts), extra={"event": name})
        self._publish({"type": "progress", "name": name, "at_unix_s": self._clock.now(), "facts": dict(facts)})

    def show_gates(self, shut: tuple[Shut, ...]) -> None:
        """Store and report the gates that are shut now."""
        self.shut_gates = shut
        self.note("gates", {"shut": [item.to_json() for item in shut]})

    def transition(self, before: State, event: Event, after: State) -> None:
        """Report one step of the machine."""
        fact = {
            "type": "state",
            "at_unix_s": event.at_unix_s,
            "from": before.name.value,
            "to": after.name.value,
            "event": event.kind,
            "code": event.code or after.halted,
            "detail": event.detail,
            "target": after.target.enclave_id if after.target else "",
            "version": after.target.version if after.target else "",
        }
        if after.name is not before.name:
            self._since_unix_s = event.at_unix_s
            self._progress.clear()
            self.shut_gates = ()
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
        """End the stream; safe to call twice."""
        if self._queue in self._subscribers:
            self._subscribers.remove(self._queue)
