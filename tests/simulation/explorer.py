"""Exhaustive explorer: every reachable state of the real machine against the model world.

A place is (journalled state, world, what may still go wrong). From each place the explorer tries every move of the
world, every way in which every wanted effect can end, a crash of the agent after every small step of every effect (the
world has moved, the journal has not), and every operator command. Every journalled state goes through the journal's
own codec. Judges look at the world after every step; the graph of fault-free moves is then searched for runs that do
not come to rest.

    python -m tests.simulation.explorer
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dcupgrade.conditions import HALTED_CODES
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine import events as e
from dcupgrade.machine import table as machine
from dcupgrade.machine.guards import Budgets
from dcupgrade.machine.operator_commands import OF_A_RELEASE
from dcupgrade.machine.state import Hold, Name, State, state_from_json

from .model import HEIGHTS, REVOKED_START, Traits, World, agent_moves, beginning, effect_moves, faults, own_moves

BUDGETS = Budgets(attempts=2, failures=2, launches=2, crashes=2, retention_s=100.0)
COMMANDS = ("hold", "unhold", "approve", "override", "resume", "revert", "retry")


@dataclass(frozen=True, slots=True)
class Scenario:
    """Where to begin and how much may go wrong: crashes of the agent, faults of the world, operator commands."""

    traits: Traits
    crashes: int = 0
    faults: int = 0
    commands: int = 0

    def __str__(self) -> str:
        traits = self.traits
        named = {" dead": traits.source_dead, " remove": traits.remove_previous, " lags": traits.lags}
        extra = "".join(text for text, holds in {**named, " fleet": traits.fleet}.items() if holds)
        return f"target {traits.target}, source {traits.source}{extra}: {self.crashes}c {self.faults}f {self.commands}w"


class Place(NamedTuple):
    """One node of the graph: numbers of the state and the world, and what may still go wrong."""

    state: int
    world: int
    crashes: int
    faults: int
    commands: int
    given: frozenset[str] = frozenset()


class Option(NamedTuple):
    """One way on from a (state, world), whatever may still go wrong: the steps at which a crash would leave the world,
    where it ends, what it costs, and what it needs."""

    label: str
    steps: tuple[int, ...]
    state: int
    world: int
    fault: bool
    command: str
    calm: bool


@dataclass(slots=True)
class Report:
    """What was covered and what was found."""

    places: int = 0
    moves: int = 0
    crash_points: set[tuple[Name, str, int]] = field(default_factory=set)
    crashes: int = 0
    rows: set[machine.Row] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)
    endings: dict[str, int] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        """Take another scenario's report in."""
        self.places += other.places
        self.moves += other.moves
        self.crashes += other.crashes
        self.crash_points |= other.crash_points
        self.rows |= other.rows
        self.violations += other.violations
        for name, count in other.endings.items():
            self.endings[name] = self.endings.get(name, 0) + count


class Explorer:
    """Explores one scenario. `stop_early` ends at the first violation."""

    def __init__(self, scenario: Scenario, *, stop_early: bool = False, places_max: int = 2_000_000) -> None:
        self.scenario, self.stop_early, self.places_max = scenario, stop_early, places_max
        self.report = Report()
        self._parents: dict[Place, tuple[Place | None, str]] = {}
        self._calm: dict[Place, list[Place]] = {}
        self._states: dict[State, int] = {}
        self._worlds: dict[World, int] = {}
        self._state_of: list[State] = []
        self._world_of: list[World] = []
        self._options: dict[tuple[int, int], list[Option]] = {}
        self._problems: set[str] = set()

    def run(self) -> Report:
        """Explore everything that can be reached; returns the report."""
        state, world = beginning(self.scenario.traits)
        chosen = self.scenario
        first = Place(self._journalled(state), self._number(world), chosen.crashes, chosen.faults, chosen.commands)
        self._parents[first] = (None, "begin")
        queue = deque([first])
        while queue:
            place = queue.popleft()
            calm: list[Place] = []
            self._calm[place] = calm
            for label, after, is_calm in self._next(place):
                self.report.moves += 1
                if is_calm and after != place:
                    calm.append(after)
                if after not in self._parents:
                    self._parents[after] = (place, label)
                    queue.append(after)
                    for problem in judge(self._state_of[after.state], self._world_of[after.world], after.given):
                        self._complain(problem, after)
            if self.report.violations and self.stop_early:
                break
            if len(self._parents) > self.places_max:
                raise RuntimeError(f"{self.scenario}: more than {self.places_max} places")
        if not (self.report.violations and self.stop_early):
            self._search_for_unrest()
        self.report.places = len(self._parents)
        return self.report

    # --- moves -------------------------------------------------------------------------------------------------------

    def _next(self, place: Place) -> Iterator[tuple[str, Place, bool]]:
        key = (place.state, place.world)
        options = self._options.get(key)
        if options is None:
            options = self._options[key] = list(self._find_options(place))
        _, _, crashes, faults_left, commands, given = place
        for option in options:
            if (option.fault and not faults_left) or (option.command and not commands):
                continue
            left = faults_left - option.fault
            if crashes:
                for world in option.steps:
                    # the agent dies here: the world keeps what was done, the journal keeps the state of before
                    self.report.crashes += 1
                    yield (
                        f"crash in: {option.label}",
                        Place(place.state, world, crashes - 1, left, commands, given),
                        False,
                    )
            now_given = given | {option.command} if option.command else given
            rest = commands - 1 if option.command else commands
            yield option.label, Place(option.state, option.world, crashes, left, rest, now_given), option.calm

    def _find_options(self, place: Place) -> Iterator[Option]:
        number, state, world = place.state, self._state_of[place.state], self._world_of[place.world]
        for move in (*own_moves(world), *agent_moves(state, world)):
            yield Option(move.name, (), number, self._number(move.worlds[-1]), False, "", True)
        for move in faults(world) if self.scenario.faults else ():
            yield Option(move.name, (), number, self._number(move.worlds[-1]), True, "", False)
        yield from self._observe_chain(place, state, world)
        for effect in machine.activity(state):
            for move in effect_moves(effect, state, world):
                steps = tuple(self._number(replace(item, unseen_exit="")) for item in move.worlds)
                self.report.crash_points |= {(state.name, move.name, index) for index in range(len(steps))}
                ends = number if move.event is None else self._step(place, state, move.event, move.name)
                if ends is not None:
                    end = self._number(move.worlds[-1])
                    yield Option(move.name, steps, ends, end, move.fault, "", not move.fault)
        for command in COMMANDS if self.scenario.commands else ():
            ends = self._step(place, state, command_event(command, state, world), f"operator: {command}")
            if ends is not None:
                # what is accepted by a `resume` is what the operator was shown
                given = f"{command} {state.halted}".strip() if command == "resume" else command
                yield Option(f"operator: {command}", (), ends, place.world, False, given, False)

    def _observe_chain(self, place: Place, state: State, world: World) -> Iterator[Option]:
        for label, facts, calm in (
            ("the agent sees the chain", world.facts(), True),
            ("the agent sees the chain as it was", world.older, False),
        ):
            ends = self._step(place, state, e.ChainSeen(facts), label) if facts is not None else None
            if facts is not None and ends is not None and ends != place.state:
                gone = frozenset(name for name in "ab" if not facts.lists(name))
                end = self._number(replace(world, knew_revoked=gone))
                yield Option(label, (), ends, end, not calm, "", calm)

    def _step(self, place: Place, state: State, event: e.Event, label: str) -> int | None:
        try:
            row = machine.find_row(state, event, BUDGETS)
            after, _ = machine.step(state, event, BUDGETS)
        except DcupgradeError as error:
            self._complain(f"{label}: {error}", place)
            return None
        self.report.rows.add(row)
        return self._journalled(after)

    def _journalled(self, state: State) -> int:
        """The number of a state as a restart would find it: it has gone through the journal's codec."""
        number = self._states.get(state)
        if number is None:
            if state_from_json(json.loads(json.dumps(state.to_json()))) != state:
                raise AssertionError(f"the journal would give back another state than {state}")
            number = self._states[state] = len(self._state_of)
            self._state_of.append(state)
        return number

    def _number(self, world: World) -> int:
        number = self._worlds.get(world)
        if number is None:
            number = self._worlds[world] = len(self._world_of)
            self._world_of.append(world)
        return number

    # --- rest --------------------------------------------------------------------------------------------------------

    def _search_for_unrest(self) -> None:
        """Without faults, every run comes to rest, and rests well. A cycle of calm moves would be a run without end."""
        done: set[Place] = set()
        for root in self._calm:
            if root in done:
                continue
            path = {root}
            stack: list[tuple[Place, Iterator[Place]]] = [(root, iter(self._calm[root]))]
            while stack:
                place, after = stack[-1]
                step = next(after, None)
                if step is None:
                    stack.pop()
                    path.discard(place)
                    done.add(place)
                    if not self._calm[place]:
                        self._judge_rest(place)
                elif step in path:
                    self._complain("a run without faults does not come to rest", step)
                    return
                elif step not in done:
                    path.add(step)
                    stack.append((step, iter(self._calm[step])))

    def _judge_rest(self, place: Place) -> None:
        state, world = self._state_of[place.state], self._world_of[place.world]
        running = state.running.enclave_id if state.running else ""
        ending = f"halted {state.halted}" if state.halted else f"{state.name.value} {running or '-'}"
        self.report.endings[ending] = self.report.endings.get(ending, 0) + 1
        cannot_run = running == "a" and world.traits.source in ("broken", "forgetful")
        if world.slot and (state.name is Name.IDLE or state.hold is not None):
            self._complain("keeps a slot of the fleet while nothing is upgraded", place)
        serves = world.phase(running) == "serving" if running else not world.nodes
        if state.name is Name.HALTED:
            if state.halted not in HALTED_CODES:
                self._complain(f"halted without a name ({state.halted!r})", place)
            if state.halted in ("TARGET_WONT_STOP", "DATA_LOCKED", "SOURCE_SLOT_DAMAGED") and not cannot_run:
                self._complain(f"waits for a person over {state.halted}, which has passed", place)
        elif state.name is Name.STAGED and state.hold is not None:
            if not serves and not cannot_run and not world.locked:
                self._complain("waits behind a hold without a running node", place)
        elif state.name is Name.STAGED and state.first_install and world.sealed:
            return  # a first install is refused beside what an earlier one left; the gates say so
        elif state.name is Name.IDLE and running == "a" and self._can_be_installed(state, world):
            self._complain("does not try a release again that was published under other addresses", place)
        elif state.name in (Name.IDLE, Name.ABANDONED):
            if not serves and not cannot_run and not state.record(running).reverted:
                self._complain("rests without a running node", place)
        else:
            self._complain(f"is stuck in {state.name.value}", place)

    def _can_be_installed(self, state: State, world: World) -> bool:
        """Whether release "b" failed by its first addresses only, and may be had from those that it has now."""
        of_addresses = state.record("b").quarantine not in ("", "OPERATOR_REVERT") and not state.record("b").reverted
        right = world.traits.target == "misplaced" and world.moved and world.program == "b" and "b" in world.listed
        return right and of_addresses

    def _complain(self, problem: str, place: Place) -> None:
        if problem not in self._problems:
            self._problems.add(problem)
            trace = " | ".join(self._trace(place))
            state, world = self._state_of[place.state], self._world_of[place.world]
            self.report.violations.append(f"{self.scenario}: {problem}\n    after {trace}\n    in {state}\n    {world}")

    def _trace(self, place: Place | None) -> Sequence[str]:
        labels: list[str] = []
        while place is not None and place in self._parents:
            before, label = self._parents[place]
            labels.append(label)
            place = before
        return labels[::-1]


def command_event(command: str, state: State, world: World) -> e.Event:
    """An operator command as an event; a revert is marked where there are no files to go back to."""
    match command:
        case "hold":
            return e.HoldCommand(hold=Hold("a reason", "an operator"))
        case "unhold":
            return e.UnholdCommand()
        case "resume":
            return e.ResumeCommand()
        case "revert":
            damaged = state.previous is not None and state.previous.enclave_id not in world.slots
            return e.RevertCommand(files_damaged="its files are gone" if damaged else "")
        case _:
            return OF_A_RELEASE[command](enclave_id="b")


def judge(state: State, world: World, given: frozenset[str]) -> Iterator[str]:
    """The invariants of the design's section 4, from the world alone."""
    ways = world.sealed & (world.slots | world.lost)
    if world.sealed and not ways and not world.vault_keys_of:
        yield "1: the keys cannot be recovered"
    if len(world.nodes) > 1:
        yield "2: two nodes at work on the same data"
    for name in world.given_to:
        if name != world.vault_keys_of and name not in ("b", "c"):
            yield "3: keys went to another than the permitted target or their source"
    if world.broken_rule and not (world.broken_rule == REVOKED_START and "resume PREVIOUS_REVOKED" in given):
        yield f"4: {world.broken_rule}"
    if "b" in world.told_commit and world.traits.target == "blind":
        yield "8: a version that cannot decrypt the old data was told to commit"
    running, target = state.running, state.target
    if running and target and state.name in BEGUN and HEIGHTS[target.enclave_id] < HEIGHTS[running.enclave_id]:
        yield "12: an upgrade to an older version was begun"
    if running and running.enclave_id not in world.slots | world.lost:
        yield "9: the files of the running version are gone"
    if running and running.enclave_id < max(world.told_commit, default="") and "revert" not in given:
        yield "8: the machine went back behind a commit without an operator command"
    if "revert" in given and state.revert_requested and state.name in (Name.LAUNCHING, Name.DELIVERING):
        yield "10: an operator's revert was ignored"
    by_hand = state.record("b").quarantine == "OPERATOR_REVERT"
    if "b" in world.told_commit and running and running.enclave_id == "a" and "revert" in given:
        begun = target is not None and target.enclave_id == "b" and state.name in BEGUN
        if begun and "retry" not in given and not by_hand and not state.revert_requested:
            yield "11: what an operator went back from was begun again without `retry`"
    if world.went_back and "revert" not in given:
        yield "8: an older node was started after the commit without an operator command"


BEGUN = (Name.STAGING, Name.STAGED, Name.COLLECTING, Name.SEALED)
TARGETS = ("good", "bad", "dies", "mute", "blind", "frail")


def scenarios(*, thorough: bool) -> Iterator[Scenario]:
    """The scenarios: crashes singly and in pairs, every effect failing, every command, over all traits."""
    for target in TARGETS:
        yield Scenario(Traits(target), crashes=2, faults=1)
    yield Scenario(Traits("misplaced"), crashes=1, faults=1)
    for target in ("good", "bad", "mute"):
        yield Scenario(Traits(target), crashes=0, faults=2)
    for source in ("broken", "forgetful", "gone"):
        for target in ("good", "blind", "dies"):
            yield Scenario(Traits(target, source), crashes=2, faults=1)
    yield Scenario(Traits("good", "broken", source_dead=True), crashes=2, faults=1)
    yield Scenario(Traits("good", "good", source_dead=True), crashes=2, faults=1)
    yield Scenario(Traits("good", remove_previous=True), crashes=2, faults=1)
    yield Scenario(Traits("good", remove_previous=True), crashes=1, faults=0, commands=1)
    yield Scenario(Traits("good", lags=True), crashes=0, faults=2)
    yield Scenario(Traits("good", fleet=True), crashes=1, faults=1)
    yield Scenario(Traits("good", fleet=True), crashes=1, faults=0, commands=1)
    for target in ("good", "blind"):
        yield Scenario(Traits(target), crashes=1, faults=0, commands=1)
        yield Scenario(Traits(target), crashes=0, faults=1, commands=1)
    for source in ("gone", "broken"):
        yield Scenario(Traits("blind", source), crashes=0, faults=1, commands=1)
    yield Scenario(Traits("good", "broken", source_dead=True), crashes=0, faults=1, commands=1)
    if thorough:
        yield Scenario(Traits("blind", "forgetful"), crashes=0, faults=1, commands=1)
        yield Scenario(Traits("blind", fleet=True), crashes=2, faults=1)
        yield Scenario(Traits("good", fleet=True), crashes=1, faults=0, commands=2)
        for target in TARGETS:
            yield Scenario(Traits(target), crashes=2, faults=2)
            yield Scenario(Traits(target), crashes=0, faults=3)
            yield Scenario(Traits(target), crashes=1, faults=1, commands=1)
            yield Scenario(Traits(target), crashes=0, faults=1, commands=2)


def explore(chosen: Iterable[Scenario], *, out: object = None) -> Report:
    """Explore scenarios one after the other; a line for each goes to `out`."""
    total = Report()
    for scenario in chosen:
        began = time.monotonic()
        report = Explorer(scenario).run()
        total.add(report)
        if out is not None:
            seconds = time.monotonic() - began
            line = f"{scenario!s:<58} {report.places:>8} states {report.moves:>9} moves {seconds:6.1f} s"
            print(line, file=out)  # type: ignore[call-overload]
    return total


def summary(report: Report) -> str:
    """The report in a few lines."""
    missing = [row for row in machine.TABLE if row not in report.rows]
    lines = [
        f"{report.places} states, {report.moves} moves, {report.crashes} crashes at {len(report.crash_points)} points",
        f"table edges covered: {len(machine.TABLE) - len(missing)} of {len(machine.TABLE)}",
        *(f"  not covered: {row.source.value} -> {row.target.value} on {row.label}" for row in missing),
        f"rests: {', '.join(f'{name} {count}' for name, count in sorted(report.endings.items()))}",
        f"violations: {len(report.violations)}",
        *report.violations,
    ]
    return "\n".join(lines)


def main() -> int:
    """Explore everything and print the report."""
    report = explore(scenarios(thorough="--thorough" in sys.argv), out=sys.stdout)
    sys.stdout.write(summary(report) + "\n")
    return 1 if report.violations or any(row not in report.rows for row in machine.TABLE) else 0


if __name__ == "__main__":
    sys.exit(main())
