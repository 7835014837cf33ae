"""Shared by the end-to-end trials: one chain per run, and for each trial its own keys and its own world."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from devnet.chain import DevChain
from devnet.docker.engine import PrivateEngine, missing_tools
from devnet.kube_tools import are_built
from devnet.node_process import is_built
from devnet.release_builder import ReleaseKeys
from devnet.signals import interruptible
from devnet.tools import find_tool
from devnet.world import World
from tests.doubles.loop_watch import read_reports, watch_children
from tests.doubles.vault_watch import VaultWatch
from tests.e2e.vault_parts.kit import Bench


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip trials of the real node and of Kubernetes if these are not built: a build takes too long here."""
    missing = {}
    if not is_built():
        missing["node"] = "the node is not built: python -m devnet node-build (17 minutes, once)"
    if not are_built():
        missing["kube"] = "kube-apiserver is not built: python -m devnet kube-build (10 minutes, once)"
    elif find_tool("etcd") is None:
        missing["kube"] = "etcd is not installed (apt-get install etcd-server)"
    for mark, why in missing.items():
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session", autouse=True)
def ended_by_signals() -> Iterator[None]:
    """Stop everything that a run started when SIGTERM ends it, as with Ctrl-C: nodes and vaults outlive by design."""
    with interruptible():
        yield


@pytest.fixture(scope="session")
def loop_reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every agent that is started from here on is watched; the file names what held its loop."""
    environment, reports = watch_children(tmp_path_factory.mktemp("watch"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield reports


@pytest.fixture(scope="session")
def vault_reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Every vault of this run is watched; the list names what blocked its loop."""
    reports: list[str] = []
    watch = VaultWatch(tmp_path_factory.getbasetemp(), reports.append)
    watch.start()
    yield reports
    watch.stop()


@pytest.fixture(autouse=True)
def nothing_holds_the_loop(loop_reports: Path, vault_reports: list[str]) -> Iterator[None]:
    """Fail a trial if the event loop of its agent or vault was blocked."""
    before, before_vaults = len(read_reports(loop_reports)), len(vault_reports)
    yield
    held = [*map(str, read_reports(loop_reports)[before:]), *vault_reports[before_vaults:]]
    assert not held, "\n".join(held)


@pytest.fixture(scope="session")
def shared_chain() -> Iterator[DevChain]:
    """A chain for all trials of a worker: each world has its own network keys or releases on it."""
    with DevChain(block_time_ms=500) as chain:
        yield chain


@pytest.fixture
def release_keys(tmp_path: Path) -> ReleaseKeys:
    """Network and vendor keys of one trial."""
    return ReleaseKeys.draw(tmp_path / "keys")


@pytest.fixture
async def world(shared_chain: DevChain, release_keys: ReleaseKeys, tmp_path: Path) -> AsyncIterator[World]:
    """A world on the shared chain, its vault listed, nothing installed."""
    async with World.open(tmp_path / "world", shared_chain.ws_url, keys=release_keys) as made:
        yield made


@pytest.fixture(scope="module")
def private_engine() -> Iterator[PrivateEngine]:
    """A Docker engine of our own, with the base image."""
    lacks = missing_tools()
    if lacks:
        pytest.skip(f"no Docker engine of our own: it needs {'; '.join(lacks)}")
    with PrivateEngine(keep_data=True) as started:
        started.import_base()
        yield started


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Vaults and small nodes as processes of this trial."""
    made = Bench(tmp_path)
    yield made
    made.stop()
