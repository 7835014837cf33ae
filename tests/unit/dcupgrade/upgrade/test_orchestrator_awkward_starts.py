"""Difficult situations at a start or during an upgrade, on a simulated clock, with the real orchestrator."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from dcupgrade.machine.events import ChainSeen
from dcupgrade.machine.state import ChainFacts, Hold, Name, Release, State
from dcupgrade.upgrade.ports import Entry
from tests.doubles.scene import Scene
from tests.simulation.simulator.nodes import Node

Act = Callable[[Scene], Awaitable[None]]
STRAIGHT = [
    *("staging", "staged", "collecting", "sealed", "stopping"),
    *("launching", "delivering", "probation", "committed", "idle"),
]  # fmt: skip


@pytest.fixture
def scene() -> Scene:
    return Scene()


def only_node(scene: Scene) -> Node:
    (node,) = scene.world.nodes.all_living()
    return node


def test_a_fresh_host_installs_the_first_version_without_keys_from_anybody(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        assert scene.passed() == ["staging", "staged", "launching", "probation", "committed", "idle"]
        assert only_node(scene).committed

    scene.play(act)


def test_an_upgrade_goes_the_straight_way(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        key = only_node(scene).key
        second = scene.publish()
        await scene.until_idle(second)
        assert scene.passed()[-10:] == STRAIGHT
        assert only_node(scene).key == key
        assert scene.state.previous is not None
        assert scene.state.previous.enclave_id == first.enclave_id
        assert [fact["to"] for fact in scene.notes if fact["type"] == "state" and fact["from"] != fact["to"]][
            -10:
        ] == STRAIGHT

    scene.play(act)


def test_an_old_node_that_is_dead_is_started_again_to_collect_its_keys(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        await scene.kill_agent()
        only_node(scene).kill("signal 9")
        second = scene.publish()
        scene.start_agent()
        await scene.until_idle(second)
        assert "collecting" in scene.passed()[-9:]

    scene.play(act)


def broken(scene: Scene, enclave_id: str) -> None:
    """Let this version end at its start from now on."""
    release = scene.world.chain.releases[enclave_id]
    scene.world.chain.releases[enclave_id] = replace(release, trait="dies")


def test_an_old_node_that_cannot_start_and_has_no_sealed_copy_halts_with_the_truth(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        broken(scene, first.enclave_id)
        only_node(scene).kill("signal 9")
        scene.publish()
        state = await scene.until_state(Name.HALTED)
        assert state.halted == "SOURCE_WONT_START"
        # it comes up again by itself, and then nobody is needed any more
        scene.world.chain.releases[first.enclave_id] = replace(first, trait="good")
        await scene.until(lambda state: state.name is not Name.HALTED)

    scene.play(act)


def test_keys_sealed_in_an_earlier_try_are_used_when_the_old_node_is_dead(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        second = scene.publish()
        await scene.until_state(Name.SEALED)
        await scene.kill_agent()
        broken(scene, first.enclave_id)
        only_node(scene).kill("signal 9")
        scene.say("hold", reason="back to staged, and through collecting again")
        scene.start_agent()
        scene.say("unhold")
        await scene.until_idle(second)

    scene.play(act)


def test_a_node_that_waits_for_keys_that_nobody_has_halts_with_the_truth(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        await scene.kill_agent()
        only_node(scene).kill("signal 9")
        scene.world.disk.safe[f"node/{first.enclave_id}"] = None
        scene.world.data_key = ""
        scene.publish()
        scene.start_agent()
        state = await scene.until_state(Name.HALTED)
        assert state.halted == "NO_KEYS_ANYWHERE"

    scene.play(act)


@pytest.mark.parametrize("name", [Name.STAGED, Name.COLLECTING, Name.SEALED])
def test_a_newer_release_before_the_stop_abandons_the_one_under_way(scene: Scene, name: Name) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish()
        await scene.until_state(name)
        third = scene.publish()
        await scene.until_idle(third)
        assert "abandoned" in scene.passed()
        assert scene.state.previous is not None
        assert scene.state.previous.enclave_id == first.enclave_id

    scene.play(act)


@pytest.mark.parametrize("name", [Name.LAUNCHING, Name.DELIVERING, Name.PROBATION])
def test_a_newer_release_after_the_stop_waits_until_the_one_under_way_is_finished(scene: Scene, name: Name) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        scene.publish()
        await scene.until_state(name)
        third = scene.publish()
        await scene.until_idle(third)
        assert scene.passed().count("committed") == 3

    scene.play(act)


def test_revocation_of_the_running_version_raises_an_alarm_and_it_goes_on_serving(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.world.chain.revoke(first.enclave_id)
        await scene.until(lambda state: state.revoked(state.running))
        assert scene.alarms() == ["RUNNING_REVOKED"]
        assert scene.serving() == "1.0.0"
        second = scene.publish()  # collecting from a revoked node is allowed
        await scene.until_idle(second)

    scene.play(act)


@pytest.mark.parametrize("name", [Name.STAGING, Name.STAGED, Name.COLLECTING, Name.SEALED])
def test_a_target_revoked_before_the_stop_is_abandoned_and_the_old_node_never_notices(scene: Scene, name: Name) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        node = only_node(scene)
        second = scene.publish()
        await scene.until_state(name)
        scene.world.chain.revoke(second.enclave_id)
        await scene.until_idle(first)
        assert only_node(scene) is node
        assert "stopping" not in scene.passed()

    scene.play(act)


@pytest.mark.parametrize("name", [Name.STOPPING, Name.LAUNCHING, Name.DELIVERING, Name.PROBATION])
def test_a_target_revoked_after_the_stop_is_reverted(scene: Scene, name: Name) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        second = scene.publish()
        await scene.until_state(name)
        scene.world.chain.revoke(second.enclave_id)
        await scene.until_idle(first)
        assert scene.passed()[-3:] == ["reverting", "reverted", "idle"]

    scene.play(act)


def test_a_revert_to_a_revoked_version_waits_for_an_operator(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish("blind")
        await scene.until_state(Name.DELIVERING)
        scene.world.chain.revoke(first.enclave_id)
        state = await scene.until_state(Name.HALTED)
        assert state.halted == "PREVIOUS_REVOKED"
        scene.say("revert")
        await asyncio.sleep(5)
        assert scene.state.name is Name.HALTED
        scene.say("resume")
        await scene.until_idle(first)

    scene.play(act)


def test_an_expired_permit_reverts_and_the_source_runs_on_its_own_keys(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish()
        await scene.until_state(Name.STOPPING)
        scene.world.wall_offset_s += 10_000
        await scene.until_idle(first)
        assert "reverting" in scene.passed()
        assert any("PERMIT_EXPIRED" in str(fact) for fact in scene.notes)

    scene.play(act)


def test_a_vault_that_restarts_between_sealed_and_delivering_changes_nothing(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        await scene.until_state(Name.SEALED)
        scene.world.vault.up = False
        asyncio.get_running_loop().call_later(0.8, setattr, scene.world.vault, "up", True)
        await scene.until_state(Name.DELIVERING)
        scene.world.vault.up = False
        asyncio.get_running_loop().call_later(4.0, setattr, scene.world.vault, "up", True)
        await scene.until_idle(second)

    scene.play(act)


def test_a_vault_replaced_before_the_stop_halts_with_the_old_node_serving(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        scene.world.vault.replaced = True
        second = scene.publish()
        state = await scene.until_state(Name.HALTED)
        assert state.halted == "VAULT_REPLACED"
        assert scene.serving() == "1.0.0"
        scene.world.vault.replaced = False
        scene.say("resume")
        await scene.until_idle(second)

    scene.play(act)


def test_a_vault_replaced_while_delivering_reverts_without_it(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish()
        await scene.until_state(Name.DELIVERING)
        scene.world.vault.replaced = True
        scene.world.vault.up = False
        await scene.until_idle(first)

    scene.play(act)


def test_a_chain_unreachable_from_the_stop_on_is_not_needed(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        await scene.until_state(Name.STOPPING)
        scene.world.chain.reachable = False
        await scene.until_idle(second)
        scene.world.chain.reachable = True

    scene.play(act)


def test_a_revert_needs_no_chain(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish("blind")
        await scene.until_state(Name.STOPPING)
        scene.world.chain.reachable = False
        await scene.until_idle(first)

    scene.play(act)


def test_a_new_node_that_dies_between_receiving_and_sealing_is_started_again(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish("hungry")
        await scene.until_idle(second)
        assert scene.passed().count("delivering") == 2

    scene.play(act)


@pytest.mark.parametrize("trait", ["dies", "mute", "blind", "frail"])
def test_a_bad_release_is_reverted_and_quarantined_until_an_operator_says_otherwise(scene: Scene, trait: str) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        second = scene.publish(trait)
        await scene.until_state(Name.REVERTED)
        state = await scene.until_idle(first)
        assert state.record(second.enclave_id).quarantine == "BUDGET_SPENT"
        await asyncio.sleep(60)
        assert scene.state.name is Name.IDLE
        scene.world.chain.releases[second.enclave_id] = replace(second, trait="good")
        scene.say("retry", enclave_id=second.enclave_id)
        await scene.until_idle(second)

    scene.play(act)


def test_a_full_disk_delays_and_loses_nothing(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        scene.world.disk.full = True
        await asyncio.sleep(3)
        assert scene.serving() == "1.0.0"
        scene.world.disk.full = False
        await scene.until_idle(second)

    scene.play(act)


def test_nothing_is_done_that_the_journal_could_not_store(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        scene.journal.fail_writes = True
        second = scene.publish()
        await asyncio.sleep(20)
        assert scene.passed()[-1] == "idle"
        assert f"slot/{second.enclave_id}" not in scene.world.disk.safe
        scene.journal.fail_writes = False
        await scene.until_idle(second)

    scene.play(act)


@pytest.mark.parametrize("jump_s", [-7200.0, 7200.0, 86400.0 * 400])
def test_clock_jumps_do_not_matter(scene: Scene, jump_s: float) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        scene.world.wall_offset_s += jump_s
        second = scene.publish()
        await scene.until_state(Name.PROBATION)
        scene.world.wall_offset_s -= jump_s
        await scene.until_idle(second)

    scene.play(act)


def test_a_taken_port_keeps_the_gates_shut_and_the_old_node_up(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        scene.world.nodes.port_taken = True
        second = scene.publish()
        await scene.until_state(Name.STAGED)
        await asyncio.sleep(20)
        assert scene.state.name is Name.STAGED
        assert scene.agent.feed.snapshot(scene.state)["progress"]["gates"]["shut"][0]["code"] == "PORT_TAKEN"
        scene.world.nodes.port_taken = False
        await scene.until_idle(second)

    scene.play(act)


def test_a_port_taken_at_the_launch_reverts(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish()
        await scene.until_state(Name.STOPPING)
        scene.world.nodes.port_taken = True
        await scene.until_state(Name.REVERTING)
        scene.world.nodes.port_taken = False
        await scene.until_idle(first)

    scene.play(act)


def test_data_locked_by_another_process_halts_and_resumes(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        await scene.until_state(Name.STOPPING)
        scene.world.nodes.locked_by_other = True
        state = await scene.until_state(Name.HALTED)
        assert state.halted == "DATA_LOCKED"
        scene.world.nodes.locked_by_other = False
        scene.say("resume")
        await scene.until(lambda state: state.name is Name.IDLE)
        scene.say("retry", enclave_id=second.enclave_id)
        await scene.until_idle(second)

    scene.play(act)


@pytest.mark.parametrize("name", list(Name)[1:10])
def test_the_agents_death_at_any_state_changes_nothing_and_touches_no_node(scene: Scene, name: Name) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        await scene.until_state(name)
        before = {id(node): node for node in scene.world.nodes.all_living()}
        await scene.kill_agent()
        await asyncio.sleep(0.05)
        after = {id(node): node for node in scene.world.nodes.all_living()}
        assert name is Name.STOPPING or set(before) == set(after)
        scene.start_agent()
        await scene.until_idle(second)

    scene.play(act)


def test_a_revert_by_hand_within_retention_brings_the_previous_version_back(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        second = scene.publish()
        await scene.until_idle(second)
        scene.say("revert", reason="too slow")
        state = await scene.until_idle(first)
        assert state.record(second.enclave_id).quarantine == "OPERATOR_REVERT"
        assert scene.serving() == "1.0.0"

    scene.play(act)


def test_a_revert_by_hand_after_retention_is_refused(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        await scene.until_idle(second)
        await asyncio.sleep(BUDGET_RETENTION_S + 5)
        assert scene.state.previous is None
        outcome = await scene.outcome(scene.say("revert"))
        assert (outcome.accepted, outcome.code) == (False, "REVERT_IMPOSSIBLE")
        assert scene.serving() == "1.1.0"

    scene.play(act)


BUDGET_RETENTION_S = 50.0


def test_the_previous_slot_stays_until_retention_and_goes_only_if_settings_say_so(scene: Scene) -> None:
    scene.with_limits(remove_previous=True)

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        second = scene.publish()
        await scene.until_idle(second)
        assert f"slot/{first.enclave_id}" in scene.world.disk.safe
        await asyncio.sleep(BUDGET_RETENTION_S + 5)
        assert f"slot/{first.enclave_id}" not in scene.world.disk.safe
        assert scene.serving() == "1.1.0"

    scene.play(act)


def test_a_hold_sends_an_upgrade_back_to_the_gates_before_the_stop(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        scene.world.vault.up = False
        second = scene.publish()
        await scene.until_state(Name.COLLECTING)
        scene.say("hold", reason="a holiday")
        await scene.until_state(Name.STAGED)
        scene.world.vault.up = True
        await asyncio.sleep(100)
        assert scene.state.name is Name.STAGED
        assert scene.serving() == "1.0.0"
        scene.say("unhold")
        await scene.until_idle(second)

    scene.play(act)


def test_a_crashing_node_is_restarted_outside_upgrades(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        for _ in range(6):
            only_node(scene).kill("signal 11")
            await asyncio.sleep(30)
            await scene.until_idle(first)

    scene.play(act)


def test_a_crash_loop_raises_an_alarm_until_the_node_is_steady(scene: Scene) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.world.chain.releases[first.enclave_id] = replace(first, trait="frail")
        only_node(scene).kill("signal 11")
        await scene.until(lambda state: state.crashes == scene.budgets.crashes)
        assert scene.alarms() == ["NODE_CRASH_LOOP"]
        scene.world.chain.releases[first.enclave_id] = replace(first, trait="good")
        await scene.until(lambda state: state.crashes == 0)
        assert scene.alarms() == []

    scene.play(act)


@pytest.mark.parametrize("alive", [True, False])
def test_a_node_of_somebody_else_is_taken_over_while_it_runs(scene: Scene, alive: bool) -> None:
    """An agent whose first install was refused, and which then got the node by `adopt`."""

    async def act(scene: Scene) -> None:
        await scene.installed()
        first = scene.state.running
        assert first is not None
        await scene.kill_agent()
        if not alive:
            only_node(scene).kill("signal 9")
        await scene.journal.append(
            Entry(State(), ChainSeen(ChainFacts()), State(Name.STAGED, target=first, hold=Hold("kept", "ann")), ())
        )

        async def discover() -> Release | None:
            return first

        scene.world.nodes.discover = discover  # type: ignore[method-assign]
        scene.start_agent()
        if not alive:
            await scene.until(lambda state: state.name is Name.STAGED)
            assert scene.state.running is None
            return
        await scene.until(lambda state: state.running is not None)
        assert scene.state.name is Name.IDLE
        assert scene.state.hold == Hold("kept", "ann")
        assert only_node(scene).release.enclave_id == first.enclave_id

    scene.play(act)
