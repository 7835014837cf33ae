"""A hanging node and a vault that cannot start again are reported within a minute: status, alarm, metric, log."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterable
from typing import Any

import pytest

from devnet.world import World, WorldError

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WITHIN_S = 60.0


async def status_when(world: World, wanted: Any, within_s: float = WITHIN_S) -> dict[str, Any]:
    """The first status that `wanted` accepts."""
    deadline = time.monotonic() + within_s
    while True:
        status = await world.status()
        if status is not None and wanted(status):
            return status
        assert time.monotonic() < deadline, f"{status and status['overview']}\n{world.tail()}"
        await asyncio.sleep(0.2)


async def metrics(world: World) -> list[str]:
    async with world.session.get(f"http://127.0.0.1:{world.ports['agent']}/metrics") as answer:
        return (await answer.text()).splitlines()


def send(number: int, pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, number)


def alarms(status: dict[str, Any]) -> set[str]:
    return {alarm["code"] for alarm in status["alarms"]}


async def test_a_node_that_hangs_is_told_and_so_is_its_return(world: World) -> None:
    await world.install(world.builder.good("1.0.0"))
    config = ["--config", str(world.settings_path)]
    up = await status_when(world, lambda status: status["node"] and status["node"]["status"] == "serving")
    assert up["node"]["process"].startswith("pid ")
    assert "dcupgrade_node_up 1.0" in await metrics(world)
    node = world.enclaves()["node"]
    send(signal.SIGSTOP, node)
    try:
        hangs = await status_when(world, lambda status: status["overview"]["level"] == "bad")
        assert hangs["overview"]["headline"] == "The node is down: does not answer."
        told = await world.dcupgrade(*config, "status")
        assert told.startswith("The node is down: does not answer.\n")
        assert "stopped by a signal" in told, "status alone names the cause"
        assert re.search(rf"kill -CONT [\d ]*\b{node[0]}\b", told)
        assert "dcupgrade_node_up 0.0" in await metrics(world)
        alarmed = await status_when(world, lambda status: "NODE_NOT_READY" in alarms(status))
        [need] = alarmed["overview"]["attention"]
        assert need["remedy"]
        assert 'dcupgrade_alarm{code="NODE_NOT_READY"} 1.0' in await metrics(world)
        assert "the node 1.0.0 is silent" in world.tail()
    finally:
        send(signal.SIGCONT, node)
    back = await status_when(world, lambda status: status["overview"]["level"] == "good")
    assert alarms(back) == set()
    assert "dcupgrade_node_up 1.0" in await metrics(world)


async def test_a_node_that_hangs_is_restarted_by_command_and_without_the_agent_it_is_started_by_one(
    world: World,
) -> None:
    await world.install(world.builder.good("1.0.0"))
    node = ["--config", str(world.settings_path), "node"]
    hung = world.enclaves()["node"]
    send(signal.SIGSTOP, hung)
    assert (await world.dcupgrade(*node, "restart", "--reason", "it hangs")).startswith("node 1.0.0: serves, as pid ")
    assert not set(world.enclaves()["node"]) & set(hung)
    assert not [row for row in world.history() if row["kind"] == "node_exited"]
    [row] = [row for row in world.history() if row["kind"] == "restart"]
    assert row["state_after"] == "idle"
    with pytest.raises(WorldError, match="AGENT_ALREADY_RUNNING"):
        await world.dcupgrade(*node, "start")
    await world.stop_agent()
    assert "node 1.0.0: ended" in await world.dcupgrade(*node, "stop", "--vault")
    assert world.enclaves()["node"] == world.enclaves()["vault"] == []
    started = await world.dcupgrade(*node, "start")
    assert "serves, as pid " in started
    by_hand = world.enclaves()
    assert by_hand["vault"] == [], "a node that has sealed its keys needs no vault"
    await world.start_agent()
    await status_when(world, lambda status: status["overview"]["level"] == "good")
    assert world.enclaves()["node"] == by_hand["node"], "the agent takes over what was started by hand"


async def test_a_vault_that_cannot_come_back_is_told(world: World) -> None:
    await world.install(world.builder.good("1.0.0"))
    await status_when(world, lambda status: status["vault"]["reachable"])
    image = world.folder / "vault-image" / "vault.pyz"
    image.rename(image.with_suffix(".away"))
    send(signal.SIGKILL, world.enclaves()["vault"])
    away = await status_when(world, lambda status: status["vault"]["reachable"] is False)
    [card] = [card for card in away["overview"]["cards"] if card["name"] == "vault"]
    assert (card["level"], card["headline"]) == ("attention", "does not answer")
    assert "dcupgrade_vault_up 0.0" in await metrics(world)
    alarmed = await status_when(world, lambda status: any(code.startswith("VAULT_") for code in alarms(status)))
    assert alarmed["overview"]["headline"].startswith("Up to date: 1.0.0 serves.")
    image.with_suffix(".away").rename(image)
    back = await status_when(world, lambda status: status["overview"]["level"] == "good")
    assert back["vault"]["reachable"]
