"""The orchestrator in the simulator's world, without random faults: each test decides what happens."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from dcupgrade.machine.gates import GateRules
from dcupgrade.machine.guards import Budgets
from dcupgrade.machine.operator_commands import Command, Outcome
from dcupgrade.machine.state import Name, State
from dcupgrade.upgrade.orchestrator import Orchestrator
from dcupgrade.upgrade.ports import Entry
from dcupgrade.upgrade.tools import Limits
from tests.simulation.simulator.driver import BUDGETS, LIMITS, SimulatedJournal
from tests.simulation.simulator.loop import SimulatedLoop
from tests.simulation.simulator.world import Published, SimulatedWorld

PATIENCE_S = 300.0


class SceneJournal(SimulatedJournal):
    """Wakes tests that wait for a state, when it is stored and before its work begins."""

    def __init__(self, world: SimulatedWorld) -> None:
        super().__init__(world)
        self.waiting: list[tuple[Name, asyncio.Future[None]]] = []

    async def append(self, entry: Entry) -> None:
        await super().append(entry)
        if entry.after.name is not entry.before.name:
            for name, future in self.waiting:
                if name is entry.after.name and not future.done():
                    future.set_result(None)


class Scene:
    """One agent in one world. `play(act)` runs an act on the simulated clock."""

    def __init__(self, *, limits: Limits = LIMITS, budgets: Budgets = BUDGETS, rules: GateRules | None = None) -> None:
        self.limits, self.budgets, self.rules = limits, budgets, rules or GateRules("scene")
        self.agent: Orchestrator
        self.notes: list[dict[str, Any]] = []
        self._task: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._numbers = 0

    def play(self, act: Callable[[Scene], Awaitable[None]]) -> None:
        """Run the act to its end; the agent's own failure fails the test."""
        loop = SimulatedLoop()
        asyncio.set_event_loop(loop)
        try:
            self.world = SimulatedWorld(random.Random(1))
            self.journal = SceneJournal(self.world)
            loop.run_until_complete(self._play(act))
        finally:
            rest = asyncio.all_tasks(loop)
            for task in rest:
                task.cancel()
            if rest:
                loop.run_until_complete(asyncio.wait(rest, timeout=1.0))
            loop.run_until_complete(loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            loop.close()
        assert self.world.violation == ""

    async def _play(self, act: Callable[[Scene], Awaitable[None]]) -> None:
        await act(self)
        await self.kill_agent()

    def start_agent(self) -> None:
        """Start the agent on the journal as it is."""
        self.agent = Orchestrator(
            self.world.ports(), self.journal, limits=self.limits, budgets=self.budgets, rules=self.rules,
            commands_poll_s=0.5,
        )  # fmt: skip
        self._task = asyncio.ensure_future(self.agent.run())
        self._listener = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        async for fact in self.agent.feed.subscribe():
            self.notes.append(fact)

    async def kill_agent(self) -> None:
        """End the agent as in a crash."""
        tasks = [task for task in (self._task, self._listener) if task is not None]
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = self._listener = None

    async def installed(self) -> Published:
        """A world in which 1.0.0 was installed and runs."""
        first = self.publish("good")
        self.start_agent()
        await self.until_idle(first)
        return first

    def publish(self, trait: str = "good") -> Published:
        """Put a newer release on the chain."""
        enclave_id = self.next_id()
        self.world.chain.publish(Published(enclave_id, f"1.{self._numbers}.0", 0, trait))
        self._numbers += 1
        release = self.world.chain.program
        assert release is not None
        return release

    def next_id(self) -> str:
        """The enclave id of the release that is published next."""
        return hashlib.sha256(f"scene {self._numbers}".encode()).hexdigest()

    def say(self, kind: str, **arguments: Any) -> int:
        """Queue an operator command; its number."""
        self._numbers += 1
        self.world.by_hand = self.world.by_hand or kind == "revert"
        self.world.restart_asked = self.world.restart_asked or kind == "restart"
        self.journal.queue.append(Command(self._numbers, kind, "an operator", arguments, self.world.now()))
        return self._numbers

    async def outcome(self, number: int) -> Outcome:
        """Wait for the outcome of a command."""
        await self.until(lambda _: number in self.journal.outcomes, "an outcome")
        outcome = self.journal.outcomes[number]
        assert outcome is not None
        return outcome

    def alarms(self) -> list[str]:
        """Codes of the alarms that an operator sees now."""
        return [alarm["code"] for alarm in self.agent.feed.alarms(self.state)]

    @property
    def state(self) -> State:
        """The machine's state."""
        return self.agent.state

    async def until(self, condition: Callable[[State], bool], what: str = "it") -> State:
        """Wait for a state. Raises the agent's failure, and an error after a limit of simulated time."""
        began = self.world.monotonic()
        while not condition(self.state):
            if self._task is not None and self._task.done():
                self._task.result()
            assert self.world.monotonic() - began < PATIENCE_S, f"{what} never came; {self.state}"
            await asyncio.sleep(0.01)
        return self.state

    async def until_state(self, name: Name) -> State:
        """Wait until the machine enters a state; returns before its work begins."""
        if self.state.name is not name:
            entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.journal.waiting.append((name, entered))
            done, _ = await asyncio.wait({entered}, timeout=PATIENCE_S)
            assert done, f"{name.value} never came; {self.state}"
        return self.state

    async def until_idle(self, running: Published) -> State:
        """Wait until that release runs and nothing is left to do."""
        state = await self.until(
            lambda state: (
                state.name is Name.IDLE and state.running is not None and state.running.enclave_id == running.enclave_id
            ),
            f"{running.version} in idle",
        )
        await self.until(lambda _: self.serving() == running.version, f"{running.version} serving")
        return state

    def serving(self) -> str:
        """The version that serves; empty when none does."""
        return next((n.release.version for n in self.world.nodes.all_living() if n.phase == "serving"), "")

    def passed(self) -> list[str]:
        """All states that were entered so far, in order."""
        names = [line.split()[0].split(">") for line in self.journal.trace]
        return [after for before, after in names if before != after]

    def with_limits(self, **changes: Any) -> None:
        """Set other limits for the next start of the agent."""
        self.limits = replace(self.limits, **changes)
