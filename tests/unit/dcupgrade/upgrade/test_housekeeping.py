"""Disk use does not grow with the number of upgrades, and no file that may be needed is removed (case G1)."""

import asyncio
from dataclasses import replace

import pytest

from dcupgrade.machine.state import Name
from dcupgrade.upgrade.housekeeping import needed
from tests.doubles.scene import Scene
from tests.simulation.simulator.driver import BUDGETS


async def slots(scene: Scene) -> set[str]:
    return set(await scene.world.nodes.staged())


def test_two_upgrades_within_the_retention_time_leave_the_running_version_and_the_one_before_it() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        await scene.until_idle(scene.publish())
        third = scene.publish()
        await scene.until_idle(third)
        fourth = scene.publish()
        await scene.until_idle(fourth)
        await asyncio.sleep(60)
        assert await slots(scene) == {third.enclave_id, fourth.enclave_id}
        assert needed(scene.state) == {third.enclave_id, fourth.enclave_id}

    Scene(budgets=replace(BUDGETS, retention_s=1e6)).play(act)


def test_a_version_that_failed_goes_once_the_chain_names_another_one() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        second = scene.publish("blind")
        await scene.until_state(Name.REVERTED)
        await scene.until_idle(first)
        await asyncio.sleep(60)
        assert second.enclave_id in await slots(scene)  # it may be tried again
        third = scene.publish()
        await scene.until_idle(third)
        await asyncio.sleep(200)
        assert await slots(scene) == {third.enclave_id}

    Scene().play(act)


@pytest.mark.parametrize("removes", [True, False])
def test_a_hundred_upgrades_keep_a_bounded_number_of_versions_unless_the_settings_keep_all(removes: bool) -> None:
    scene = Scene()
    scene.with_limits(remove_previous=removes)

    async def act(scene: Scene) -> None:
        await scene.installed()
        most = 0
        for _ in range(30):
            await scene.until_idle(scene.publish())
            await asyncio.sleep(20)
            most = max(most, len(await slots(scene)))
        assert most <= 3 if removes else most == 31

    scene.play(act)


def test_an_agent_that_is_restarted_often_removes_files_too() -> None:
    scene = Scene(budgets=replace(BUDGETS, retention_s=1e6))
    scene.with_limits(tidy_every_s=1e9, tidy_soon_s=10.0)

    async def act(scene: Scene) -> None:
        await scene.installed()
        for _ in range(4):
            last = scene.publish()
            await scene.until_idle(last)
            await scene.kill_agent()
            scene.start_agent()
            await asyncio.sleep(20)
        assert last.enclave_id in await slots(scene)
        assert len(await slots(scene)) == 2

    scene.play(act)


def test_a_machine_that_was_at_work_when_files_were_due_for_removal_is_looked_at_again_soon() -> None:
    scene = Scene(budgets=replace(BUDGETS, retention_s=1e6))
    scene.with_limits(tidy_every_s=1e9, tidy_soon_s=10.0)

    async def act(scene: Scene) -> None:
        await scene.installed()
        for _ in range(3):
            await scene.until_idle(scene.publish())
        scene.say("hold", reason="a holiday")
        await scene.until(lambda state: state.hold is not None)
        scene.publish()
        await scene.until_state(Name.STAGED)
        await scene.kill_agent()
        scene.start_agent()
        await asyncio.sleep(100)
        assert len(await slots(scene)) > 3
        scene.say("unhold")
        await scene.until_state(Name.COLLECTING)
        await scene.until_state(Name.IDLE)
        await asyncio.sleep(20)
        assert len(await slots(scene)) == 2

    scene.play(act)


def test_a_slot_that_cannot_be_removed_is_tried_again_later_and_stops_nothing() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        real, asked = scene.world.nodes.remove_slot, []

        async def refuses(enclave_id: str) -> None:
            asked.append(enclave_id)
            raise OSError(30, "Read-only file system")

        scene.world.nodes.remove_slot = refuses  # type: ignore[method-assign]
        for _ in range(3):
            last = scene.publish()
            await scene.until_idle(last)
        await asyncio.sleep(200)
        assert asked
        scene.world.nodes.remove_slot = real  # type: ignore[method-assign]
        await asyncio.sleep(60)
        assert await slots(scene) == {last.enclave_id}

    Scene().play(act)


def test_what_is_on_its_way_in_is_kept() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        scene.say("hold", reason="a holiday")
        await scene.until(lambda state: state.hold is not None)
        second = scene.publish()
        await scene.until_state(Name.STAGED)
        await asyncio.sleep(300)
        assert second.enclave_id in await slots(scene)

    Scene().play(act)
