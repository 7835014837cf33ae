"""The fleet port over an existing engine. Kubernetes Leases or etcd decide; this code only asks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import aiohttp

from dcupgrade.errors import DcupgradeError, failure_of
from dcupgrade.machine import fleet as rules
from dcupgrade.machine.fleet import Fleet, Halt, Member, Outcome, Slot, Take
from dcupgrade.machine.gates import Shut
from dcupgrade.machine.state import Name, Release, State
from dcupgrade.upgrade.ports import ClockPort

log = logging.getLogger("dcupgrade")

KEEP_POLL_S = 15.0
MEMBERS_EVERY = 20
"""In how many rounds of `KEEP_POLL_S` the versions of all nodes are read once: there may be thousands."""
VALUE_BYTES_MAX = 65_536
ANSWER_BYTES_MAX = 4 * 1024 * 1024
TAKES_MAX = 3
"""How often a slot is tried for that somebody else took first, within one question."""


class FleetEngine(Protocol):
    """One fleet in an engine. Every call raises FLEET_UNREACHABLE if the engine does not answer."""

    async def read(self) -> Fleet:
        """Return the whole fleet."""

    async def put(self, number: int, slot: Slot) -> bool:
        """Take a free slot. Return False if another node was first, or if the fleet is halted."""

    async def clear(self, number: int, holder: str, outcome: Outcome | None) -> None:
        """Free a slot that `holder` holds, and store how its upgrade ended. Does nothing if another node holds it."""

    async def set_halt(self, halt: Halt | None) -> None:
        """Halt the fleet, or (with None) let it continue; then the count of reverts restarts at zero."""

    async def publish(self, member: Member) -> None:
        """Publish what this node runs and waits for, if the engine lets agents write that."""

    async def members(self) -> tuple[Member, ...]:
        """Return what the nodes of the fleet last published about themselves."""

    async def aclose(self) -> None:
        """Close connections."""


class FleetGate:
    """This node's slot in its fleet. `take` is called only before the old node stops."""

    def __init__(
        self,
        engine: FleetEngine,
        node_id: str,
        reverts_max: int,
        clock: ClockPort,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._engine, self._node, self._reverts_max = engine, node_id, reverts_max
        self._clock, self._draw = clock, draw
        self.last: Fleet | None = None
        self._members: tuple[Member, ...] = ()
        self._waits_for = ""
        self._published: Member | None = None
        self._rounds = 0
        self._may_hold = True  # an earlier run of the agent may have taken one
        self._turn = asyncio.Lock()
        """Taking and freeing exclude each other: what frees a slot has judged it before the engine answered."""

    async def take(self, release: Release) -> tuple[Shut, ...]:
        """Take a slot for an upgrade to this release; return the reasons if refused.

        Safe to repeat: a slot that this node already holds is found by the node's name, also after a crash.
        """
        async with self._turn:
            return await self._take(release)

    async def _take(self, release: Release) -> tuple[Shut, ...]:
        self._waits_for = ""
        for _ in range(TAKES_MAX):
            try:
                self.last = fleet = await self._engine.read()
                found = rules.decide(
                    fleet, self._node, release.enclave_id, reverts_max=self._reverts_max, draw=self._draw()
                )
                if not isinstance(found, Take):
                    self._waits_for = (release.version or release.enclave_id) if found.code == "FLEET_FULL" else ""
                    return (found,)
                slot = Slot(self._node, release.enclave_id, release.version, self._clock.now())
                self._may_hold = True
                if found.held or await self._engine.put(found.number, slot):
                    return ()
            except DcupgradeError as error:
                return (Shut(error.code, error.why),)
        return (Shut("FLEET_FULL", "others were quicker each time"),)

    async def give_back(self) -> None:
        """Free a slot that is not used yet. If that fails, others cannot use the slot until the next try."""
        self._waits_for = ""
        if self._may_hold:
            with contextlib.suppress(DcupgradeError):
                async with self._turn:
                    await self._free_unused()

    async def _free_unused(self) -> None:
        fleet = await self._engine.read()
        number = fleet.slot_of(self._node)
        if number is not None:
            await self._engine.clear(number, self._node, None)
        self._may_hold = False

    async def keep(self, state: Callable[[], State]) -> None:
        """Free this node's slot whenever its upgrade has ended, and publish what the node runs. Never returns.

        The machine's state alone shows whether the upgrade has ended, so a crash between two steps loses nothing.
        """
        problem = ""
        while True:
            try:
                async with self._turn:
                    await self._free_if_idle(state())
                await self._exchange(state())
                problem = ""
            except Exception as error:
                failure = failure_of(error)
                if failure.detail != problem:
                    log.warning("the fleet: %s", failure.detail, extra={"event": "fleet", "code": failure.code})
                problem = failure.detail
            await self._clock.sleep(KEEP_POLL_S * (0.75 + self._draw() / 2))

    async def _free_if_idle(self, state: State) -> None:
        if state.name is not Name.IDLE:
            return
        self.last = fleet = await self._engine.read()
        number = fleet.slot_of(self._node)
        slot = fleet.slots[number] if number is not None else None
        if number is None or slot is None:
            return
        record = state.record(slot.enclave_id)
        if state.running is not None and state.running.enclave_id == slot.enclave_id:
            ended = "committed"
        else:
            ended = "reverted" if record.reverted else "abandoned"
        outcome = Outcome(self._node, slot.enclave_id, slot.version, ended, self._clock.now())
        await self._engine.clear(number, self._node, outcome)
        log.info("fleet slot %d is free again: %s", number, ended, extra={"event": "fleet"})

    async def _exchange(self, state: State) -> None:
        """Publish what this node runs if that has changed, and read the facts of other nodes that change slowly."""
        if state.name not in (Name.IDLE, Name.STAGED):
            return  # the engine is not asked while the node is away
        version = (state.running.version or state.running.enclave_id) if state.running else ""
        member = Member(self._node, version, self._waits_for, 0.0)
        if member != self._published:
            await self._engine.publish(replace(member, at_unix_s=self._clock.now()))
            self._published = member
        if self._rounds % MEMBERS_EVERY == 0:
            self._members = await self._engine.members()
        self._rounds += 1

    def facts(self) -> Mapping[str, Any]:
        """Return the known facts about the fleet, for status, page and metrics; empty before the first answer."""
        return {} if self.last is None else rules.summary(self.last, self._members)


def unreachable(engine: str, why: str) -> DcupgradeError:
    """Make the error FLEET_UNREACHABLE."""
    return DcupgradeError(
        code="FLEET_UNREACHABLE",
        what=f"the fleet's engine {engine}",
        why=why,
        action="No upgrade begins meanwhile; the node continues to serve. Look at the engine and at [fleet].",
        kind="transient",
    )


async def read_answer(answer: aiohttp.ClientResponse) -> bytes:
    """Return the body of an engine's answer. Raises ValueError if it has more than 4 MiB."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise ValueError(f"it answered more than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)


def decode(text: str | bytes) -> Any:
    """Decode JSON of an engine. Raises ValueError, also if it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def decode_value(text: str | bytes) -> Mapping[str, Any]:
    """Decode a JSON value that a person may have edited. Raises ValueError unless it is a small object."""
    value = decode(text) if len(text) <= VALUE_BYTES_MAX else None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value
