"""Alarms name conditions that need an operator: they appear within a minute and end with their cause."""

import asyncio
from typing import Any

import pytest

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.state import Name
from dcupgrade.upgrade.ports import NodeHealth
from tests.doubles.scene import Scene

MINUTE_S = 60.0


def test_a_bad_release_is_an_alarm_until_a_newer_one_is_there() -> None:
    """Case F4: the bad one's alarm stayed indefinitely."""

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        second = scene.publish("blind")
        await scene.until_state(Name.REVERTED)
        await scene.until_idle(first)
        (alarm,) = scene.agent.feed.alarms(scene.state)
        assert alarm["code"] == "BUDGET_SPENT"
        assert second.enclave_id in alarm["detail"]
        await scene.until_idle(scene.publish())
        assert scene.alarms() == []

    Scene().play(act)


@pytest.mark.parametrize(
    ("health", "code"),
    [
        (NodeHealth("silent", detail="no answer within 5 s"), "NODE_NOT_READY"),
        (NodeHealth("waiting_for_keys"), "NODE_NOT_READY"),
        (NodeHealth("failed", detail="disk"), "NODE_UNHEALTHY"),
    ],
)
def test_a_node_that_lives_but_does_not_serve_is_an_alarm_within_a_minute(health: NodeHealth, code: str) -> None:
    """Case F5: `kill -STOP` of the node showed nowhere."""

    async def act(scene: Scene) -> None:
        await scene.installed()
        await asyncio.sleep(MINUTE_S)
        assert scene.agent.feed.snapshot(scene.state)["node"]["status"] == "serving"
        assert scene.alarms() == []
        real = scene.world.nodes.health

        async def stuck(_: str) -> NodeHealth:
            return health

        scene.world.nodes.health = stuck  # type: ignore[method-assign, assignment]
        await asyncio.sleep(MINUTE_S)
        assert scene.alarms() == [code]
        told = scene.agent.feed.snapshot(scene.state)["node"]
        assert (told["status"], told["version"]) == (health.status, "1.0.0")
        scene.world.nodes.health = real  # type: ignore[method-assign]
        await asyncio.sleep(MINUTE_S)
        assert scene.alarms() == []

    Scene().play(act)


def test_a_node_that_is_restarted_quickly_is_no_alarm() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        for node in scene.world.nodes.all_living():
            node.kill("signal 9")
        for _ in range(60):
            await asyncio.sleep(1)
            assert scene.alarms() == []

    Scene().play(act)


def test_a_vault_that_does_not_answer_is_an_alarm_within_a_minute() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        await asyncio.sleep(MINUTE_S)
        assert scene.agent.feed.snapshot(scene.state)["vault"]["reachable"] is True
        scene.world.vault.up = False
        await asyncio.sleep(MINUTE_S)
        assert scene.alarms() == ["VAULT_UNREACHABLE"]
        told = scene.agent.feed.snapshot(scene.state)["vault"]
        assert (told["reachable"], told["code"]) == (False, "VAULT_UNREACHABLE")
        scene.world.vault.up = True
        await asyncio.sleep(MINUTE_S)
        assert scene.alarms() == []

    Scene().play(act)


def test_a_vault_that_takes_the_question_and_never_answers_is_the_same() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()

        async def stuck() -> dict[str, Any]:
            await asyncio.sleep(1e9)
            return {}

        scene.world.vault.status = stuck  # type: ignore[method-assign]
        await asyncio.sleep(MINUTE_S)
        assert scene.alarms() == ["VAULT_UNREACHABLE"]

    Scene().play(act)


def test_a_condition_that_the_vault_names_itself_is_an_alarm() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()

        async def replaced() -> dict[str, Any]:
            return {"condition": {"code": "VAULT_REPLACED", "why": "another build sealed the store"}}

        scene.world.vault.status = replaced  # type: ignore[method-assign]
        await asyncio.sleep(MINUTE_S)
        assert scene.alarms() == ["VAULT_REPLACED"]

    Scene().play(act)


def test_a_node_whose_record_is_damaged_is_an_alarm_by_its_own_code_and_no_crash() -> None:
    """Case A2: nobody can tell whether it lives. It is looked at again after pauses, and not counted as a crash."""

    async def act(scene: Scene) -> None:
        await scene.installed()
        (node,) = scene.world.nodes.all_living()
        await scene.kill_agent()
        real, looks = scene.world.nodes.is_alive, 0

        async def damaged(_: str) -> bool:
            nonlocal looks
            looks += 1
            raise DcupgradeError(code="NODE_RECORD_INVALID", what="node", why="not JSON", kind="invariant")

        scene.world.nodes.is_alive = damaged  # type: ignore[method-assign, assignment]
        scene.start_agent()
        await asyncio.sleep(600)
        assert "NODE_RECORD_INVALID" in scene.alarms()
        assert scene.state.crashes == 0
        assert looks < 200
        scene.world.nodes.is_alive = real  # type: ignore[method-assign]
        await asyncio.sleep(MINUTE_S)
        assert scene.alarms() == []
        assert scene.world.nodes.all_living() == [node]

    Scene().play(act)


def test_a_silent_node_is_shown_with_what_the_host_tells_of_it() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()

        async def silent(_: str) -> NodeHealth:
            return NodeHealth("silent", detail="no answer within 5 s")

        async def why(_: str) -> str:
            return "stopped by a signal"

        scene.world.nodes.health = silent  # type: ignore[method-assign, assignment]
        scene.world.nodes.why_silent = why  # type: ignore[method-assign]
        await asyncio.sleep(MINUTE_S)
        assert scene.agent.feed.snapshot(scene.state)["node"]["detail"] == "stopped by a signal"
        [alarm] = scene.agent.feed.alarms(scene.state)
        assert alarm["detail"] == "silent stopped by a signal"

    Scene().play(act)


def test_the_node_that_is_shown_is_the_one_that_runs_at_every_step_of_an_upgrade() -> None:
    """The card said "was not asked yet" for up to ten seconds after each change of version."""

    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        for name in (Name.DELIVERING, Name.PROBATION, Name.COMMITTED):
            await scene.until_state(name)
            await asyncio.sleep(0.05)
            assert scene.agent.feed.snapshot(scene.state)["node"]["enclave_id"] == second.enclave_id
        await scene.until_idle(second)
        await asyncio.sleep(1)
        assert scene.agent.feed.snapshot(scene.state)["node"]["status"] == "serving"

    Scene().play(act)
