"""What an idle client costs: memory, processor time, wake-ups and bytes on the wire, at blocks of 6 s.

Run: python benchmarks/bench_idle.py [--seconds 90] [--no-agent]

Nothing happens on the chain but blocks. All clients run at once beside one real node: the watcher in each mode, a bare
aiohttp client, the peers, and a whole agent that runs a node. Each client speaks to the node through a relay of its
own, which counts the bytes of both directions. A wake-up is a voluntary context switch of any of the client's threads.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import peer_clients  # noqa: E402
from benchmarks.clients import Client, other_commands, watcher_commands  # noqa: E402
from benchmarks.report import Row, emit, missing_peers  # noqa: E402
from devnet.chain import DevChain  # noqa: E402
from devnet.node_process import ensure_node_binary  # noqa: E402
from devnet.tcp_proxy import TcpProxy  # noqa: E402
from devnet.world import World  # noqa: E402

BLOCK_MS = 6000
SETTLE_S = 8.0
AGENT_MIB_AT_MOST, WATCHER_MIB_AT_MOST = 48.0, 40.0
CPU_PEER = "substrate-interface"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used since its start, and the memory that it has."""

    rss_mib: float
    cpu_s: float
    switches: int
    wire_bytes: int


def usage(pid: int, relay: TcpProxy) -> Usage:
    """Read it from /proc. Raises OSError where the process has ended."""
    process = Path(f"/proc/{pid}")
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    switches = 0
    for thread in (process / "task").iterdir():
        switches += int(_field(thread / "status", "voluntary_ctxt_switches"))
    return Usage(
        rss_mib=int(_field(process / "status", "VmRSS")) / 1024,
        cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        switches=switches,
        wire_bytes=relay.forwarded_bytes,
    )


def _field(path: Path, name: str) -> str:
    lines = (line.split() for line in path.read_text().splitlines())
    return next(words[1] for words in lines if words[0] == f"{name}:")


@dataclass(frozen=True, slots=True)
class Idle:
    """A client at work: its process, and the relay that it speaks through."""

    name: str
    pid: int
    relay: TcpProxy


@asynccontextmanager
async def agent(chain: DevChain, folder: Path) -> AsyncIterator[Idle]:
    """A whole agent that has installed a node and watches on."""
    async with World.open(folder, chain.ws_url, through_proxy=True) as world:
        await world.install(await asyncio.to_thread(world.builder.good, "1.0.0"))
        assert world.agent is not None
        assert world.proxy is not None
        yield Idle("agent", world.agent.pid, world.proxy)


async def start_clients(chain: DevChain, stack: AsyncExitStack) -> tuple[list[Idle], dict[str, str]]:
    """Start every client but the agent; also why peers are missing."""
    others, missing = other_commands(chain.ws_url)
    idle = []
    for name, command in {**await watcher_commands(chain), **others}.items():
        relay = TcpProxy(chain.port)
        await relay.start()
        stack.push_async_callback(relay.cut)
        through = [word.replace(chain.ws_url, f"ws://127.0.0.1:{relay.port}") for word in command]
        try:
            client = await Client.start_ready(through)
        except TimeoutError:
            missing[name] = "it was not ready in time"
            continue
        stack.push_async_callback(client.stop)
        idle.append(Idle(name, client.process.pid, relay))
    return idle, missing


async def measure(seconds: float, *, with_agent: bool) -> None:
    """Measure all at once, and print and report."""
    ensure_node_binary()
    peer_clients.commands()  # what has to be built is built before anything is measured
    async with DevChain("node", block_time_ms=BLOCK_MS) as chain, AsyncExitStack() as stack:
        await chain.wait_finalized(1)
        idle, missing = await start_clients(chain, stack)
        if with_agent:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-idle-"))
            idle.insert(0, await stack.enter_async_context(agent(chain, Path(folder))))
        await asyncio.sleep(SETTLE_S)
        before = [usage(one.pid, one.relay) for one in idle]
        await asyncio.sleep(seconds)
        after = [usage(one.pid, one.relay) for one in idle]
    minutes = seconds / 60
    cpu = {one.name: (b.cpu_s - a.cpu_s) / minutes for one, a, b in zip(idle, before, after, strict=True)}
    print(f"{'':<24}{'RSS MiB':>9}{'CPU s/min':>11}{'wake-ups/min':>14}{'KiB/min':>9}")
    for one, a, b in zip(idle, before, after, strict=True):
        switches, kib = (b.switches - a.switches) / minutes, (b.wire_bytes - a.wire_bytes) / 1024 / minutes
        print(f"{one.name:<24}{b.rss_mib:>9.1f}{cpu[one.name]:>11.2f}{switches:>14.0f}{kib:>9.1f}")
        report(one.name, b.rss_mib, cpu[one.name], switches, kib, cpu.get(CPU_PEER))
    emit(*missing_peers(missing, "MiB"))


def report(name: str, rss: float, cpu: float, switches: float, kib: float, peer_cpu: float | None) -> None:
    """Report one client's figures; the watcher's processor time is to stay below the peer's."""
    watcher = name.startswith("watcher")
    ours = watcher or name == "agent"
    mib_at_most = WATCHER_MIB_AT_MOST if watcher else AGENT_MIB_AT_MOST if ours else None
    emit(
        Row(f"{name}, memory", rss, "MiB", at_most=mib_at_most, peer=not ours),
        Row(
            f"{name}, processor time",
            cpu,
            "s a minute",
            at_most=peer_cpu if watcher else None,
            peer=not ours,
        ),
        Row(f"{name}, wake-ups", switches, "a minute", peer=not ours),
        Row(f"{name}, bytes on the wire", kib, "KiB a minute", peer=not ours),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--no-agent", action="store_true")
    given = parser.parse_args()
    asyncio.run(measure(given.seconds, with_agent=not given.no_agent))


if __name__ == "__main__":
    main()
