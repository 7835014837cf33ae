"""A fleet of a thousand nodes in simulated time: the real gate and its rules, a simulated engine, made-up durations.

    python -m tests.simulation.fleet

writes docs/pictures/fleet.svg and prints the table of docs/operators/fleet.md.

A bad release is published at the start, and a corrected one after half an hour, when an operator lets the fleet
continue. Each node polls as `dcupgrade.upgrade.before_stop` does. Nothing depends on the machine: the same seed gives
the same plot.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path

from dcupgrade.adapters.fleet import FleetGate
from dcupgrade.machine.fleet import Outcome
from dcupgrade.machine.state import Release
from dcupgrade.upgrade.before_stop import FLEET_PAUSE_S
from tests.doubles.memory_fleet import MemoryFleet
from tests.simulation.simulator.loop import SimulatedLoop

NODES, LIMITS, SEED = 1000, (1, 10, 100), 15
DOWNTIME_S, PROBATION_S, TRIES = 1.0, 300.0, 3
CORRECTED_AFTER_S, SHOWN_S, STEP_S = 1800.0, 7200.0, 30.0
BAD, GOOD = Release("b" * 64, "1.1.0", added_height=2), Release("c" * 64, "1.2.0", added_height=3)


@dataclass
class Result:
    """`upgraded[i]`: nodes that run the good release at `i * STEP_S` seconds; `fewest`: that served at any moment."""

    limit: int
    spoiled: int = 0
    most_at_once: int = 0
    fewest: int = 0
    asked: int = 0
    upgraded: list[int] = field(default_factory=list)


@dataclass
class Clock:
    loop: SimulatedLoop

    def now(self) -> float:
        return self.loop.time()

    def monotonic(self) -> float:
        return self.loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class Fleet:
    """All nodes of one run."""

    engine: MemoryFleet
    clock: Clock
    draw: random.Random
    down: set[int] = field(default_factory=set)
    most_down: int = 0
    good: set[int] = field(default_factory=set)
    spoiled: set[int] = field(default_factory=set)
    corrected: asyncio.Event = field(default_factory=asyncio.Event)

    async def node(self, number: int) -> None:
        """One node's life: the bad release if it is let, then the good one."""
        name = f"node-{number}"
        gate = FleetGate(self.engine, name, 2, self.clock, self.draw.random)
        await asyncio.sleep(self.draw.uniform(0, 6))  # blocks arrive every six seconds
        while not self.corrected.is_set():
            if await gate.take(BAD) == ():
                await self.fails(number)
                await self.free(name, BAD, "reverted")
                await self.corrected.wait()
            else:
                await self.pause()
        while await gate.take(GOOD) != ():
            await self.pause()
        await self.out(number, DOWNTIME_S)
        self.good.add(number)
        await asyncio.sleep(PROBATION_S)
        await self.free(name, GOOD, "committed")

    async def fails(self, number: int) -> None:
        """The release does not serve: it is started some times, then the old version is started again."""
        self.spoiled.add(number)
        await self.out(number, DOWNTIME_S * TRIES + self.draw.uniform(5, 15))

    async def out(self, number: int, seconds: float) -> None:
        self.down.add(number)
        self.most_down = max(self.most_down, len(self.down))
        await asyncio.sleep(seconds)
        self.down.remove(number)

    async def pause(self) -> None:
        await asyncio.sleep(FLEET_PAUSE_S * (0.5 + self.draw.random()))

    async def free(self, name: str, release: Release, outcome: str) -> None:
        held = self.engine.fleet.slot_of(name)
        assert held is not None
        ended = Outcome(name, release.enclave_id, release.version, outcome, self.clock.now())
        await self.engine.clear(held, name, ended)


def simulate(limit: int, nodes: int = NODES, shown_s: float = SHOWN_S) -> Result:
    """One run with so many slots."""
    loop = SimulatedLoop()
    engine, result = MemoryFleet(limit=limit), Result(limit)

    async def run() -> None:
        fleet = Fleet(engine, Clock(loop), random.Random(SEED))
        tasks = [asyncio.ensure_future(fleet.node(number)) for number in range(nodes)]
        while loop.time() < shown_s:
            result.upgraded.append(len(fleet.good))
            if loop.time() >= CORRECTED_AFTER_S and not fleet.corrected.is_set():
                await engine.set_halt(None)
                fleet.corrected.set()
            await asyncio.sleep(STEP_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        result.spoiled, result.fewest = len(fleet.spoiled), nodes - fleet.most_down
        result.most_at_once, result.asked = engine.most_held, engine.asked

    loop.run_until_complete(run())
    loop.close()
    return result


def table(results: list[Result]) -> str:
    """The results as Markdown."""
    rows = [
        "| slots | nodes that the bad release reached | fewest that served | upgraded 90 minutes after the correction |"
    ]
    rows.append("|---|---|---|---|")
    for item in results:
        rows.append(f"| {item.limit} | {item.spoiled} | {item.fewest} | {item.upgraded[-1]} |")
    return "\n".join(rows)


WIDTH, HEIGHT, LEFT, BOTTOM = 820, 360, 60, 40
COLOURS = ("#1b6ca8", "#b5651d", "#2e7d32")


def plot(results: list[Result], nodes: int = NODES) -> str:
    """Nodes that run the good release over time, one line for each limit, as SVG."""

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - 20) * seconds / SHOWN_S

    def y(count: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 20) * count / nodes

    limits = ", ".join(str(item.limit) for item in results)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Nodes on the good release over time, for {limits} slots">',
        "<style>svg{background:#fff}text{font:13px sans-serif;fill:#333}path{fill:none;stroke-width:2}"
        "line{stroke:#ccc}</style>",
    ]
    for half in range(5):
        at = x(half * 1800)
        parts.append(f'<line x1="{at:.0f}" y1="20" x2="{at:.0f}" y2="{HEIGHT - BOTTOM}"/>')
        anchor = "end" if half == 4 else "middle"  # the last label ends where the plot does
        parts.append(f'<text x="{at:.0f}" y="{HEIGHT - 18}" text-anchor="{anchor}">{half * 30} min</text>')
    for count in range(0, nodes + 1, nodes // 4):
        parts.append(f'<line x1="{LEFT}" y1="{y(count):.0f}" x2="{WIDTH - 20}" y2="{y(count):.0f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(count) + 4:.0f}" text-anchor="end">{count}</text>')
    parts.append(f'<text x="{x(CORRECTED_AFTER_S) + 6:.0f}" y="34">corrected release</text>')
    for place, (item, colour) in enumerate(zip(results, COLOURS, strict=True)):
        points = [(x(n * STEP_S), y(count)) for n, count in enumerate(item.upgraded)]
        path = "M" + " L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        parts.append(f'<path d="{path}" stroke="{colour}"/>')
        label = f"{item.limit} slot{'s' * (item.limit != 1)}: the bad release reached {item.spoiled}"
        parts.append(f'<text x="{LEFT + 14}" y="{56 + 20 * place}" style="fill:{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Write the plot and print the table."""
    results = [simulate(limit) for limit in LIMITS]
    picture = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "fleet.svg"
    picture.write_text(plot(results), encoding="utf-8")
    print(table(results))  # noqa: T201 - the command's output


if __name__ == "__main__":
    main()
