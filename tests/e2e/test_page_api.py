"""The agent's answers against their published schemas, live, before, during and after an upgrade."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import jsonschema
import pytest

from devnet.world import World, WorldError
from tests.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def schema(name: str) -> Any:
    return json.loads((ROOT / "docs" / "schemas" / f"{name}.schema.json").read_text())


async def refused(world: World, *arguments: str) -> str:
    """Return the output of a command that must fail."""
    with pytest.raises(WorldError) as caught:
        await world.dcupgrade(*arguments)
    return str(caught.value)


async def test_live_answers_follow_the_published_schemas(world: World) -> None:
    url = f"http://127.0.0.1:{world.ports['agent']}/api/v1"

    async def answers_are_good() -> None:
        for name in ("status", "history", "upgrades", "plan", "machine"):
            async with world.session.get(f"{url}/{name}") as answer:
                jsonschema.validate(await answer.json(), schema(name))

    facts: list[dict[str, Any]] = []

    async def listen() -> None:
        async for fact in world.events():
            facts.append(fact)

    config = ["--config", str(world.settings_path)]
    await world.install(world.builder.good("1.0.0"))
    await answers_are_good()
    listener = asyncio.create_task(listen())
    new = world.builder.good("1.1.0")
    await world.publish(new)
    await world.wait_for("an upgrade", lambda rows: any(r["state_after"] == "probation" for r in rows), within_s=120)
    await answers_are_good()
    await world.wait_committed(new.enclave_id)
    await answers_are_good()
    listener.cancel()
    assert {fact["type"] for fact in facts} == {"state", "progress"}
    for fact in facts:
        jsonschema.validate(fact, schema("event"))
    told = json.loads(await world.dcupgrade(*config, "status", "--json"))
    assert told["agent"] == "running"
    jsonschema.validate(told, schema("status"))
    jsonschema.validate(json.loads(await world.dcupgrade(*config, "plan", "--json")), schema("plan"))
    rows = json.loads(await world.dcupgrade(*config, "history", "--steps", "--json"))
    jsonschema.validate({"rows": rows}, schema("history"))
    newest, first = json.loads(await world.dcupgrade(*config, "history", "--json"))["upgrades"]
    outcomes = [(one["version"], one["outcome"], one["downtime_s"] is not None) for one in (newest, first)]
    assert outcomes == [("1.1.0", "committed", True), ("1.0.0", "committed", False)]

    while (await world.status() or {})["node"]["status"] != "serving":  # noqa: ASYNC110 - the agent looks now and then
        await asyncio.sleep(0.2)
    assert told["tee"] == "simulated"
    async with world.session.get(url.removesuffix("/api/v1") + "/metrics") as answer:
        exposed = {line.split("{")[0].split(" ")[0] for line in (await answer.text()).splitlines() if line[:1] != "#"}
    documented = set(re.findall(r"^\| `(dcupgrade_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    # those that have a row only once something was refused or raised an alarm, and those of a fleet
    assert {name for name in documented - exposed if not name.startswith("dcupgrade_fleet_")} == {
        "dcupgrade_alarm",
        "dcupgrade_releases_refused_total",
    }

    assert "AGENT_ALREADY_RUNNING" in await refused(world, *config, "node", "stop")
    await world.stop_agent()
    told = json.loads(await world.dcupgrade(*config, "status", "--json"))
    assert told["agent"] == "not running"
    assert told["state"]["running"]["enclave_id"] == new.enclave_id
    jsonschema.validate(told, schema("status"))
    assert await world.node.health() is not None  # the node outlives its agent
    assert await world.dcupgrade(*config, "node", "stop", "--vault") == "node 1.1.0: ended\nvault: ended\n"
    assert await world.node.health() is None
    assert await world.dcupgrade(*config, "node", "stop") == "no node runs\n"


async def test_an_operators_hold_keeps_the_old_version_until_it_is_lifted(world: World) -> None:
    config = ["--config", str(world.settings_path)]
    old, new = world.builder.good("1.0.0"), world.builder.good("1.1.0")
    await world.install(old)
    assert await world.dcupgrade(*config, "hold", "--reason", "audit") == "hold: no upgrade is begun from now on.\n"
    seq = world.last_seq()
    await world.publish(new)
    await world.wait_for(
        "staged", lambda rows: any(r["state_after"] == "staged" for r in rows), within_s=120, after=seq
    )
    assert "GATE_HELD" in await world.dcupgrade(*config, "plan")
    assert "ok" in await world.dcupgrade(*config, "check")
    health = await world.node.health()
    assert health is not None
    assert health["enclave_id"] == old.enclave_id
    await world.dcupgrade(*config, "unhold")
    await world.wait_committed(new.enclave_id, after=seq)
