"""The run of one seed: releases are published, faults happen, and in the end the machine must be idle.

Safety phase: random faults while releases follow one another; the judges of the world watch every step. Liveness phase:
no faults any more, and within a bounded time the machine must rest with a node that serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from dcupgrade.conditions import HALTED_CODES
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.gates import GateRules
from dcupgrade.machine.guards import Budgets, newer_release
from dcupgrade.machine.operator_commands import Command
from dcupgrade.machine.state import Name, State
from dcupgrade.upgrade.orchestrator import Orchestrator
from dcupgrade.upgrade.ports import Entry
from dcupgrade.upgrade.tools import Limits
from keyvault.errors import KeyvaultError
from tests.doubles.memory_journal import MemoryJournal

from .judges import ViolationError
from .loop import BusyLoopError, PowerCut, SimulatedLoop
from .nodes import ATTEMPTS
from .world import Published, SimulatedWorld

LIMITS = Limits(
    attempts=ATTEMPTS, backoff_s=0.5, backoff_max_s=8.0, ready_deadline_s=20.0, delivery_deadline_s=20.0,
    probation_s=2.0, probe_interval_s=1.0, refusal_patience_s=3.0, steady_s=2.0, tidy_every_s=15.0,
    tidy_soon_s=5.0,
)  # fmt: skip
BUDGETS = Budgets(attempts=3, failures=1, launches=3, crashes=4, retention_s=50.0)
PATIENCE_S = 60.0
REST_S_MAX = 5000.0
PASSES = ("TARGET_WONT_STOP", "DATA_LOCKED", "SOURCE_SLOT_DAMAGED", "SOURCE_WONT_START", "KEYS_UNREACHABLE")
"""Conditions that must end by themselves once there are no more faults, without an operator command."""
PORTS = (
    *[("nodes", name) for name in ("is_alive", "start", "wait_exit", "stop", "stage", "slot_is_good", "preflight")],
    *[("nodes", name) for name in ("health", "commit", "key_set_id", "remove_slot", "fetch_early")],
    *[("vault", name) for name in ("status", "collect", "permit", "delivery", "committed", "holds_keys_of")],
    ("chain", "evidence"),
    ("fleet", "take"),
    ("fleet", "give_back"),
)
"""What may raise where it is called, or answer late."""
TRAITS = ("good", "good", "good", "good", "good", "hungry", "dies", "mute", "blind", "frail")


class SimulatedJournal(MemoryJournal):
    """The journal in memory, on the disk whose power may go: an entry is stored wholly or not at all."""

    def __init__(self, world: SimulatedWorld) -> None:
        super().__init__()
        self._world = world
        self.is_slow = False
        self.trace: list[str] = []

    async def _wait(self) -> None:
        if self.is_slow:
            await asyncio.sleep(self._world.rng.uniform(0.0, 3.0))

    async def append(self, entry: Entry) -> None:
        await self._wait()
        self._world.disk.tick()
        if self._world.disk.dead:
            return
        await super().append(entry)
        self.trace.append(f"{entry.before.name.value}>{entry.after.name.value} {entry.event.kind}")
        self._world.disk.tick()
        await self._wait()


@dataclass(slots=True)
class Outcome:
    """What a seed gave: how many upgrades were published, how they ended, which faults struck, and a digest."""

    seed: int
    upgrades: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    transitions: int = 0
    simulated_s: float = 0.0
    cpu_s: float = 0.0
    digest: str = ""
    violation: str = ""


class Life:
    """Runs one seed. `plant` may put a bug into the world before it begins."""

    def __init__(self, seed: int, upgrades: int, plant: Callable[[SimulatedWorld], None] | None = None) -> None:
        self.rng = random.Random(seed)
        self.outcome = Outcome(seed)
        self.upgrades = upgrades
        self.plant = plant
        self.roughness_s = self.rng.choice((0.0, 1.5, 4.0, 10.0, 30.0))
        """Mean time between faults; 0 means a calm life."""
        self.phase = "safety"
        self.agent: Orchestrator | None = None
        self._agent_task: asyncio.Task[None] | None = None
        self._command_number = 0
        self._waited_halted = 0
        self._disturbed: set[tuple[str, str]] = set()

    def run(self) -> Outcome:
        """Live until the end or a violation."""
        now_s = 0.0
        world: SimulatedWorld | None = None
        while True:
            loop = SimulatedLoop(now_s)
            asyncio.set_event_loop(loop)
            try:
                if world is None:
                    world = self.world = SimulatedWorld(random.Random(self.rng.getrandbits(64)))
                    self.journal = SimulatedJournal(world)
                    if self.plant:
                        self.plant(world)
                loop.run_until_complete(self._live())
                break
            except PowerCut:
                if not self._survives_power_cut():
                    break
            except (ViolationError, BusyLoopError, DcupgradeError) as error:
                self.outcome.violation = str(error)
                break
            finally:
                _bury(loop, world)
                now_s = loop.now_s + 1.0
        self._finish(now_s)
        return self.outcome

    def _finish(self, now_s: float) -> None:
        self.outcome.violation = self.outcome.violation or self.world.violation
        self.outcome.simulated_s = now_s
        self.outcome.transitions = self.journal.entries
        for line in self.journal.trace:
            if line.startswith("probation>committed"):
                self.outcome.endings["committed"] += 1
            elif line.startswith(("reverting>reverted", "reverting>halted", "collecting>halted", "sealed>halted")):
                self.outcome.endings[line.split()[0].split(">")[1]] += 1
            elif ">abandoned" in line and not line.startswith("abandoned"):
                self.outcome.endings["abandoned"] += 1
        text = "\n".join([*self.journal.trace, repr(sorted(self.outcome.faults.items())), repr(now_s)])
        self.outcome.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def _survives_power_cut(self) -> bool:
        self.outcome.faults["power cut"] += 1
        world = self.world
        world.disk.cut_at = -1
        world.disk.power_cut()
        world.boot += 1
        try:
            world.judge_keys()
        except ViolationError as error:
            self.outcome.violation = str(error)
        return not self.outcome.violation

    async def _live(self) -> None:
        world = self.world
        world.chain.new_loop()
        for node in list(world.nodes.processes.values()):
            node.ended = asyncio.get_running_loop().create_future()
            node.ended.set_result("the power went")
        self._heal()
        self._start_agent()
        chaos = asyncio.ensure_future(self._chaos()) if self.roughness_s and self.phase == "safety" else None
        watch = asyncio.ensure_future(self._publish_all())
        try:
            await self._until(watch, chaos)
            if chaos is not None:
                chaos.cancel()
                await asyncio.gather(chaos, return_exceptions=True)
            self.phase = "liveness"
            self._heal()
            if self._agent_task is None:
                self._start_agent()  # the faults ended while it was down
            await self._until(asyncio.ensure_future(self._come_to_rest()), None)
            self._judge_rest()
        finally:
            await self._stop_agent()

    async def _until(self, work: asyncio.Task[None], chaos: asyncio.Task[None] | None) -> None:
        """Wait for the work, and notice when the agent or the chaos fails meanwhile."""
        while not work.done():
            agent = self._agent_task
            await asyncio.wait([task for task in (work, agent, chaos) if task is not None], timeout=60.0,
                               return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            for task in (agent, chaos):
                if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
                    work.cancel()
                    raise task.exception() or RuntimeError("it ended")
        work.result()

    # --- the agent ---------------------------------------------------------------------------------------------------

    def _start_agent(self) -> None:
        world = self.world
        self.agent = Orchestrator(
            world.ports(), self.journal, limits=LIMITS, budgets=BUDGETS, rules=GateRules("simulated"),
            commands_poll_s=2.0,
        )  # fmt: skip
        self._agent_task = asyncio.ensure_future(self.agent.run())

    async def _stop_agent(self) -> None:
        task, self._agent_task = self._agent_task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _say(self, kind: str) -> None:
        self._command_number += 1
        self.world.by_hand = self.world.by_hand or kind == "revert"
        self.world.restart_asked = self.world.restart_asked or kind == "restart"
        self.journal.queue.append(Command(self._command_number, kind, "operator", {}, self.world.now()))

    # --- releases ----------------------------------------------------------------------------------------------------

    async def _publish_all(self) -> None:
        while self.outcome.upgrades < self.upgrades:
            first = self.outcome.upgrades == 0
            if self.rng.random() < 0.5:
                await self._announce()
            self._publish("good" if first else self.rng.choice(TRAITS))
            await self._rest_or_patience(REST_S_MAX if first else PATIENCE_S)

    async def _announce(self) -> None:
        """A best block names the next release before it is final, or one that never will be."""
        number = self.rng.choice((self.outcome.upgrades, self.outcome.upgrades, -1))
        self.world.chain.announce(Published(self._id(number), f"1.{number}.0", 0, "good"))
        await asyncio.sleep(self.rng.uniform(0.0, 2.0))

    def _id(self, number: int) -> str:
        return hashlib.sha256(f"{self.outcome.seed} {number}".encode()).hexdigest()

    def _publish(self, trait: str) -> None:
        number = self.outcome.upgrades
        self.world.chain.publish(Published(self._id(number), f"1.{number}.0", 0, trait))
        self.outcome.upgrades += 1

    async def _rest_or_patience(self, patience_s: float) -> bool:
        began = self.world.monotonic()
        while self.world.monotonic() - began < patience_s:
            await asyncio.sleep(1.0)
            self.world.judge_records(self.agent.state.records if self.agent else ())
            if self._rests():
                return True
            self._look_after()
        return False

    def _rests(self) -> bool:
        """Whether the machine has nothing left to do, by its own view."""
        state = self.agent.state if self.agent else None
        if (
            state is None
            or self._agent_task is None
            or state.name is not Name.IDLE
            or state.chain is None
            or self.journal.queue
            or not self.world.chain.reachable
            or self.world.chain.lags
        ):
            return False
        program = newer_release(state)
        seen, there = state.chain.program, self.world.chain.program
        if seen is not None and there is not None and seen.enclave_id != there.enclave_id:
            return False
        node = self.world.nodes.living(state.running.enclave_id) if state.running else None
        serving = node is not None and node.phase == "serving"
        return serving and (program is None or bool(state.record(program.enclave_id).quarantine))

    def _look_after(self) -> None:
        """The operator: looks at a halted machine after a while, and lifts forgotten holds.

        And the network, in the end: where no version was ever left in place and none can be installed, it publishes a
        good one. Nothing else could bring rest.
        """
        state = self.agent.state if self.agent else None
        if state is not None and self.phase == "liveness" and self._nothing_can_be_installed(state):
            self._publish("good")
        if state is not None and state.name is Name.HALTED:
            if state.halted not in HALTED_CODES:
                self.world.violate(f"5: halted without a name: {state.halted!r}")
            self._waited_halted += 1
            passes = self.phase == "liveness" and state.halted in PASSES
            if self._waited_halted % 10 == 0 and not self.journal.queue and not passes:
                program = newer_release(state)
                superseded = state.halted == "FIRST_INSTALL_FAILED" and program not in (None, state.target)
                self._say("revert" if superseded and self.phase == "liveness" else "resume")
        elif state is not None and state.name is Name.STAGED and state.first_install and not self.world.told_commit:
            if self.world.disk.read("node/keyset") and not self.world.nodes.all_living():
                self.world.empty_data()
        elif state is not None and state.hold is not None and not self.journal.queue and self.phase == "liveness":
            self._say("unhold")

    def _nothing_can_be_installed(self, state: State) -> bool:
        chain = self.world.chain
        if state.running is not None or self.world.told_commit or state.name not in (Name.IDLE, Name.HALTED):
            return False
        return chain.program is None or chain.program.enclave_id not in chain.listed or chain.program.trait != "good"

    # --- faults ------------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        world = self.world
        world.disk.full = world.nodes.locked_by_other = world.nodes.port_taken = world.nodes.stop_hangs = False
        world.vault.replaced = world.chain.breaks = False
        for owner_name, name in sorted(self._disturbed):
            self._calm(owner_name, name)
        self._disturbed.clear()
        world.vault.up = world.chain.reachable = world.chain.knows_history = True
        world.chain.lags = world.fleet.full = world.nodes.next_is_wrong = self.journal.is_slow = False
        world.nodes.downloads_fail = 0.0
        self.journal.fail_writes = False
        if self.phase == "liveness":
            world.disk.cut_at = -1

    async def _chaos(self) -> None:
        faults: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("agent killed", self._kill_agent),
            ("node killed", self._kill_node),
            ("vault down", lambda: self._for_a_while(self.world.vault, "up", False, 15)),
            ("vault replaced", lambda: self._for_a_while(self.world.vault, "replaced", True, 5)),
            ("chain unreachable", lambda: self._for_a_while(self.world.chain, "reachable", False, 30)),
            ("disk full", lambda: self._for_a_while(self.world.disk, "full", True, 8)),
            ("journal unwritable", lambda: self._for_a_while(self.journal, "fail_writes", True, 8)),
            ("data locked", self._lock_data),
            ("port taken", lambda: self._for_a_while(self.world.nodes, "port_taken", True, 6)),
            ("downloads fail", lambda: self._for_a_while(self.world.nodes, "downloads_fail", 0.7, 20)),
            ("stop hangs", lambda: self._for_a_while(self.world.nodes, "stop_hangs", True, 4)),
            ("clock jumps", self._jump),
            ("power cut", self._cut_soon),
            ("revoked", self._revoke),
            ("operator's word", self._give_command),
            ("stranger asks", self._stranger_asks),
            ("port raises", self._port_raises),
            ("port pauses", self._port_pauses),
            ("chain breaks off", lambda: self._for_a_while(self.world.chain, "breaks", True, 10)),
            ("files lost", self._lose_files),
            ("chain lags", lambda: self._for_a_while(self.world.chain, "lags", True, 30)),
            ("chain knows no history", lambda: self._for_a_while(self.world.chain, "knows_history", False, 20)),
            ("source wrong once", lambda: self._for_a_while(self.world.nodes, "next_is_wrong", True, 60)),
            ("fleet full", lambda: self._for_a_while(self.world.fleet, "full", True, 20)),
            ("journal slow", lambda: self._for_a_while(self.journal, "is_slow", True, 20)),
        ]
        while True:
            await asyncio.sleep(self.rng.expovariate(1.0 / self.roughness_s))
            name, strike = self.rng.choice(faults)
            self.outcome.faults[name] += 1
            await strike()

    async def _for_a_while(self, owner: Any, name: str, value: Any, seconds_max: float) -> None:
        before = {"up": True, "reachable": True, "knows_history": True, "downloads_fail": 0.0}.get(name, False)
        setattr(owner, name, value)
        asyncio.get_running_loop().call_later(self.rng.uniform(0.1, seconds_max), setattr, owner, name, before)

    async def _port_raises(self) -> None:
        """A port raises where it is called, by a fault of the host, of the program, or of what it reaches."""
        error = self.rng.choice(
            (
                OSError(24, "Too many open files"),
                RecursionError("maximum recursion depth exceeded"),
                DcupgradeError(code="CONTAINER_ENGINE_UNREACHABLE", what="engine", why="away", kind="transient"),
                DcupgradeError(code="NODE_RECORD_INVALID", what="record", why="not JSON", kind="invariant"),
            )
        )

        def raises(*_: Any, **__: Any) -> Any:
            raise error

        self._disturb(lambda _: raises)

    async def _port_pauses(self) -> None:
        """A port answers, but late."""
        pause_s = self.rng.uniform(1.0, 30.0)

        def late(real: Callable[..., Any]) -> Callable[..., Any]:
            async def port(*arguments: Any, **named: Any) -> Any:
                await asyncio.sleep(pause_s)
                return await real(*arguments, **named)

            return port

        self._disturb(late)

    def _disturb(self, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put something in the place of a port for a while."""
        owner_name, name = self.rng.choice(PORTS)
        owner = getattr(self.world, owner_name)
        real = getattr(type(owner), name).__get__(owner)
        setattr(owner, name, change(real))
        self._disturbed.add((owner_name, name))
        asyncio.get_running_loop().call_later(self.rng.uniform(0.1, 20), self._calm, owner_name, name)

    def _calm(self, owner_name: str, name: str) -> None:
        vars(getattr(self.world, owner_name)).pop(name, None)

    async def _lose_files(self) -> None:
        """The files of a version that does not run are gone, or those of the running one."""
        slots = sorted(name for name in self.world.disk.safe if name.startswith("slot/"))
        if slots:
            name = self.rng.choice(slots)
            self.world.lost.add(name.removeprefix("slot/"))
            self.world.disk.safe.pop(name, None)
            self.world.disk.loose.pop(name, None)

    async def _kill_agent(self) -> None:
        nodes = {node for node in self.world.nodes.all_living()}
        await self._stop_agent()
        if any(node.ended.done() and node.ended.result() == "cancelled" for node in nodes):
            self.world.violate("7: the agent's death took a node down")
        await asyncio.sleep(self.rng.choice((0.0, 0.1, 1.0, 5.0)))
        self._start_agent()

    async def _kill_node(self) -> None:
        for node in self.world.nodes.all_living():
            node.kill("signal 9")

    async def _lock_data(self) -> None:
        if not self.world.nodes.all_living():
            await self._for_a_while(self.world.nodes, "locked_by_other", True, 6)

    async def _jump(self) -> None:
        self.world.wall_offset_s += self.rng.choice((-3600.0, -5.0, 5.0, 700.0, 7200.0))

    async def _cut_soon(self) -> None:
        self.world.disk.cut_at = self.world.disk.operations + self.rng.randint(1, 40)

    async def _revoke(self) -> None:
        chain = self.world.chain
        state = self.agent.state if self.agent else None
        some = [item.enclave_id for item in (state.running, state.target) if item] if state else []
        if some and len(chain.listed) > 2:
            chain.revoke(self.rng.choice(some))

    async def _stranger_asks(self) -> None:
        """Somebody on the host asks for a permit for any version, with true evidence, and then for the keys."""
        world = self.world
        state = self.agent.state if self.agent else None
        if state is None or state.running is None or not state.key_set_id:
            return
        enclave_id = self.rng.choice([*sorted(world.chain.releases), "f" * 64])
        # a port that raises by a fault raises at strangers too; a violation must not be suppressed
        with contextlib.suppress(KeyvaultError, DcupgradeError, OSError, RecursionError):
            if self.rng.random() < 0.5:
                evidence = await world.chain.evidence(enclave_id, state.running.enclave_id, {})
                await world.vault.permit(state.running.enclave_id, enclave_id, state.key_set_id, evidence)
            world.vault.hand_over(enclave_id)

    async def _give_command(self) -> None:
        kind = self.rng.choice(("hold", "unhold", "approve", "resume", "revert", "retry", "restart"))
        self._say(kind)
        if kind == "hold":
            asyncio.get_running_loop().call_later(self.rng.uniform(1, 20), self._say, "unhold")

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _come_to_rest(self) -> None:
        if not await self._rest_or_patience(REST_S_MAX):
            state = self.agent.state if self.agent else None
            self.world.violate(f"5: it does not come to rest: {state}")

    def _judge_rest(self) -> None:
        state = self.agent.state if self.agent else None
        self.world.judge_keys()
        self.world.judge_records(state.records if state else ())
        node = self.world.nodes.living(state.running.enclave_id) if state and state.running else None
        if node is None or node.phase != "serving" or node.key != self.world.data_key:
            self.world.violate(f"9: no node serves the data in the end: {state}")


def _bury(loop: SimulatedLoop, world: SimulatedWorld | None) -> None:
    """End what is left in a loop: the world takes no more notice of it."""
    if world is not None:
        world.disk.dead = True
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
    loop.run_until_complete(loop.shutdown_asyncgens())
    asyncio.set_event_loop(None)
    loop.close()
    if world is not None:
        world.disk.dead = False


def simulate(seed: int, upgrades: int = 10, plant: Callable[[SimulatedWorld], None] | None = None) -> Outcome:
    """Run one seed; the outcome holds the first violation, if there was one."""
    began = time.process_time()
    outcome = Life(seed, upgrades, plant).run()
    outcome.cpu_s = time.process_time() - began
    return outcome
