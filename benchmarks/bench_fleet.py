"""1,000 agents on one etcd: how often it is asked, beside what docs/operators/fleet.md predicts.

Run: python benchmarks/bench_fleet.py [--agents 1000] [--seconds 60]

Every agent is the real gate with an engine and a connection of its own, all in one process; etcd is Debian's, and its
own metrics count the requests. First the agents are idle. Then all of them want the same upgrade at once, on ten slots.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import resource
import ssl
import sys
import tempfile
import time
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.report import Row, emit, percentile  # noqa: E402
from dcupgrade.adapters.clock import SystemClock  # noqa: E402
from dcupgrade.adapters.fleet import KEEP_POLL_S, FleetGate  # noqa: E402
from dcupgrade.adapters.fleet_etcd import EtcdFleet  # noqa: E402
from dcupgrade.machine.state import Name, Release, State  # noqa: E402
from devnet.etcd import EtcdServer  # noqa: E402

SLOTS = 10
CONTEXT = ssl.create_default_context()
SETTLE_S = 2.0
PREDICTION_AT_MOST = 1.1
RUNNING = State(Name.IDLE, running=Release("a" * 64, "1.0.0", added_height=1))
NEXT = Release("b" * 64, "1.1.0", added_height=2)
RANGES = re.compile(r'^grpc_server_handled_total\{.*grpc_method="Range".*\} ([0-9.e+]+)$', re.MULTILINE)
CPU = re.compile(r"^process_cpu_seconds_total ([0-9.e+]+)$", re.MULTILINE)


class Engine(EtcdFleet):
    """An agent's engine; the agents' TLS contexts, which each process makes for itself, are one here."""

    def _context(self) -> ssl.SSLContext:
        return CONTEXT


def counted(etcd: EtcdServer) -> tuple[float, float]:
    """Reads that etcd has answered, and its processor seconds."""
    with urllib.request.urlopen(f"{etcd.url}/metrics", timeout=10) as answer:  # noqa: S310 - our own loopback address
        text = answer.read().decode()
    return sum(map(float, RANGES.findall(text))), sum(map(float, CPU.findall(text)))


async def keep(gate: FleetGate) -> None:
    """An idle agent, which started at any moment before."""
    await asyncio.sleep(random.uniform(0, KEEP_POLL_S))
    await gate.keep(lambda: RUNNING)


async def idle(etcd: EtcdServer, gates: list[FleetGate], seconds: float) -> None:
    """How often idle agents ask."""
    tasks = [asyncio.create_task(keep(gate)) for gate in gates]
    await asyncio.sleep(KEEP_POLL_S + SETTLE_S)  # each has started, and has read the versions of all once
    reads, cpu = await asyncio.to_thread(counted, etcd)
    await asyncio.sleep(seconds)
    more, cpu_now = await asyncio.to_thread(counted, etcd)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    rate, predicted = (more - reads) / seconds, len(gates) / KEEP_POLL_S
    share = 100 * (cpu_now - cpu) / seconds
    print(f"{len(gates):,} idle agents: {rate:.1f} reads a second, predicted {predicted:.1f}")
    print(f"etcd: {share:.0f} % of a core")
    emit(
        Row(
            f"reads of {len(gates):,} idle agents, part of the prediction",
            rate / predicted,
            "x",
            at_most=PREDICTION_AT_MOST,
        ),
        Row(f"reads of {len(gates):,} idle agents", rate, "a second", note=f"predicted {predicted:.1f}"),
        Row("reads of one agent", rate / len(gates) * 60, "a minute"),
        Row(f"etcd's processor time, {len(gates):,} idle agents", share, "% of a core"),
    )


async def rush(gates: list[FleetGate]) -> None:
    """All want a slot at once: how long they wait for an answer, and that no more than the slots are given."""
    taken: list[float] = []

    async def ask(gate: FleetGate) -> bool:
        began = time.monotonic()
        refused = await gate.take(NEXT)
        taken.append(time.monotonic() - began)
        return not refused

    granted = sum(await asyncio.gather(*(ask(gate) for gate in gates)))
    slow = percentile(taken, 95)
    print(f"all at once: {granted} of {len(gates):,} got one of {SLOTS} slots; p95 of the answers {slow:.2f} s")
    emit(
        Row(f"slots given to {len(gates):,} agents at once, of {SLOTS}", float(granted), "", at_most=float(SLOTS)),
        Row(f"answer to one of {len(gates):,} agents that ask at once, p95", slow, "s"),
    )


async def measure(agents: int, seconds: float) -> None:
    """Run both."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * agents + 1000)), hard))
    with tempfile.TemporaryDirectory(prefix="bench-fleet-") as folder, EtcdServer(Path(folder)) as etcd:
        async with AsyncExitStack() as stack:
            gates = []
            for number in range(agents):
                engine = Engine("bench", [etcd.url])
                stack.push_async_callback(engine.aclose)
                gates.append(FleetGate(engine, f"n{number}", 2, SystemClock()))
            await gates[0]._engine.set_limit(SLOTS)  # type: ignore[attr-defined]
            await idle(etcd, gates, seconds)
            await rush(gates)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    asyncio.run(measure(given.agents, given.seconds))


if __name__ == "__main__":
    main()
