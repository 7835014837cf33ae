"""A faulty file server, a stand-in for a Docker engine, and limits without waiting, for the supervisor's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiodocker
import pytest
from aiohttp import web

from process_supervisor.limits import DownloadLimits
from process_supervisor.outbound import Outbound
from tests.doubles.docker_engine import FakeEngine, served
from tests.doubles.faulty_server import FaultyServer


@pytest.fixture
async def server() -> AsyncIterator[FaultyServer]:
    faulty = FaultyServer()
    app = web.Application()
    app.router.add_get("/{path:.*}", faulty.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    faulty.url = f"http://127.0.0.1:{runner.addresses[0][1]}/release.tar"
    yield faulty
    await runner.cleanup()


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    async with Outbound() as client:
        yield client


@pytest.fixture
def limits() -> DownloadLimits:
    return DownloadLimits(
        retry_delay_s=0,
        thrown_away_pause_s=0,
        free_bytes_min=0,
        idle_s_max=5,
        total_s_max=20,
        chunk_bytes=4096,
        own_hosts=frozenset({"127.0.0.1", "localhost"}),
    )


@pytest.fixture
def slots(tmp_path: Path) -> Path:
    return tmp_path / "state" / "slots"


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def docker(fake: FakeEngine) -> AsyncIterator[aiodocker.Docker]:
    async with served(fake) as client:
        yield client
