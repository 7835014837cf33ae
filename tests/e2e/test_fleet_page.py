"""The operators' page "Running a fleet": its commands give the output that it shows."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dcupgrade.adapters.fleet import FleetGate
from dcupgrade.adapters.fleet_etcd import EtcdFleet
from dcupgrade.machine.state import Name, Record, Release, State
from devnet.etcd import EtcdServer
from devnet.tools import find_tool
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_tool("etcd") is None, reason="etcd is not installed (apt-get install etcd-server)"),
]
PAGE = (ROOT / "docs" / "operators" / "fleet.md").read_text()
OLD, GOOD, BAD, LAST = (Release(f"{n:064x}", f"1.{n}.0", added_height=n + 1) for n in range(4))
STEPS = r"^\*\*(.+?)\*\*|^```(\w*)\n(.*?)^```"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


@dataclass
class Clock:
    def now(self) -> float:
        return NOON

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, _seconds: float) -> None:
        raise asyncio.CancelledError  # one round of `keep`


@dataclass
class Host:
    """An agent's requests to the fleet, without the agent."""

    gate: FleetGate
    running: Release = OLD

    async def shows(self, state: State) -> None:
        with pytest.raises(asyncio.CancelledError):
            await self.gate.keep(lambda: state)

    async def asks(self, release: Release) -> list[str]:
        codes = [item.code for item in await self.gate.take(release)]
        await self.shows(State(Name.STAGED if codes else Name.SEALED, running=self.running, target=release))
        return codes

    async def upgrades(self, release: Release) -> None:
        self.running = release
        await self.shows(State(running=release))

    async def goes_back(self, release: Release) -> None:
        await self.shows(State(running=self.running, records=(Record(release.enclave_id, reverted=1),)))


@dataclass
class Story:
    """Events between the page's commands, by the bold words that describe them there."""

    one: Host
    two: Host
    told: list[str] = field(default_factory=list)

    def events(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {
            "1.1.0 is published.": self.good_release,
            "Both hosts have upgraded": self.both_upgraded,
            "1.2.0 is published": self.bad_release,
            "host-2 does not begin": self.halted,
            "host-1 died in the middle of an upgrade": self.died,
        }

    async def good_release(self) -> None:
        for host in (self.one, self.two):
            await host.shows(State(running=OLD))
        assert await self.one.asks(GOOD) == []
        assert await self.two.asks(GOOD) == ["FLEET_FULL"]

    async def both_upgraded(self) -> None:
        await self.one.upgrades(GOOD)
        assert await self.two.asks(GOOD) == []
        await self.two.upgrades(GOOD)

    async def bad_release(self) -> None:
        assert await self.one.asks(BAD) == []
        assert await self.two.asks(BAD) == ["FLEET_FULL"]

    async def halted(self) -> None:
        assert await self.two.asks(BAD) == ["FLEET_HALTED"]
        await self.one.goes_back(BAD)
        assert await self.two.asks(BAD) == ["FLEET_HALTED"]

    async def died(self) -> None:
        assert await self.two.asks(BAD) == []
        await self.two.gate.give_back()
        assert await self.one.asks(LAST) == []


def settings(folder: Path, url: str) -> Path:
    """A host's settings with the page's table of the fleet."""
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = folder / "dcupgrade.toml"
    path.write_text(
        f'[agent]\nstate_dir = "{folder}/state"\n[chain]\nendpoints = ["ws://127.0.0.1:1"]\nfinality = "single"\n'
        'network_keys = ["bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"]\n'
        f'[node]\nid = "host-1"\ndata_dir = "{folder}/data"\n[vault]\nstart = false\n'
        + table.replace("http://etcd-1.example:2379", url)
    )
    return path


def run(block: str, config: Path) -> str:
    """The commands of a block by the shell, as alice, with times that the page cannot know made equal."""
    program = f'dcupgrade() {{ {sys.executable} -m dcupgrade --config {config} "$@"; }}\n'
    env = {**os.environ, "LOGNAME": "alice"}
    argv = ["bash", "-c", program + block]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return timeless(done.stdout)


def timeless(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2026-01-31T12:00:00Z", text).strip()


@pytest.mark.slow
async def test_the_commands_of_the_page_give_what_it_shows(tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "etcd") as etcd:
        engines = [EtcdFleet("storage", [etcd.url]) for _ in range(2)]
        try:
            hosts = [FleetGate(engine, f"host-{n}", 2, Clock()) for n, engine in enumerate(engines, 1)]
            one, two = map(Host, hosts)
            story = Story(one, two)
            await follow(story, settings(tmp_path, etcd.url))
            assert story.told == list(story.events())
        finally:
            for engine in engines:
                await engine.aclose()


async def follow(story: Story, config: Path) -> None:
    """Follow the page: play what it describes, run each block of commands, compare their output with the next block."""
    part = PAGE[PAGE.index("## Two hosts with etcd") : PAGE.index("## Kubernetes")]
    events, printed = story.events(), ""
    for bold, language, block in re.findall(STEPS, part, re.DOTALL | re.MULTILINE):
        if bold in events:
            story.told.append(bold)
            await events[bold]()
        elif block.startswith("dcupgrade "):
            printed = await asyncio.to_thread(run, block, config)
        elif block and not language:
            assert block.strip() == printed
