"""An agent without its journal, and two agents at once: the node continues undisturbed."""

import asyncio
from pathlib import Path

import pytest

from devnet.world import World, WorldError

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


async def installed(world: World) -> str:
    release = await asyncio.to_thread(world.builder.good, "1.0.0")
    await world.publish(release)
    await world.start_agent(first_install=True)
    await world.wait_committed(release.enclave_id)
    await world.node.put("kept", b"data of before")
    return release.enclave_id


def take_away(journal: Path) -> None:
    for path in journal.parent.glob(f"{journal.name}*"):
        path.unlink()


async def test_an_agent_that_lost_its_journal_takes_over_the_node_that_runs(world: World) -> None:
    first = await installed(world)
    pids = world.enclaves()["node"]
    await world.stop_agent(kill=True)
    take_away(world.state_dir / "journal.sqlite3")
    await world.start_agent()
    rows = await world.wait_for("the node taken over", lambda rows: rows != [], within_s=90)
    row = rows[0]
    assert (row["kind"], row["running"]) == ("adopted", first)
    second = await asyncio.to_thread(world.builder.good, "1.1.0")
    assert world.enclaves()["node"] == pids
    await world.publish(second)
    await world.wait_committed(second.enclave_id)
    assert await world.node.get("kept") == b"data of before"


async def test_a_second_agent_is_refused_and_the_first_goes_on(world: World) -> None:
    await installed(world)
    with pytest.raises(WorldError, match="AGENT_ALREADY_RUNNING"):
        await world.dcupgrade("--config", str(world.settings_path), "watch")
    status = await world.status()
    assert status is not None
    assert status["state"]["name"] == "idle"
