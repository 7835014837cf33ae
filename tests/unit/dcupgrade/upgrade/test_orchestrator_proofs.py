"""Proofs that a new version must give before commit. Each test has a version that fails exactly one of them."""

import asyncio
from dataclasses import replace

import pytest

from dcupgrade.machine.stages import RunningNode
from dcupgrade.machine.state import Name, Release
from dcupgrade.upgrade.ports import Delivery, NodeHealth
from tests.doubles.scene import Scene


@pytest.mark.parametrize("state", ["received", "waiting"])
def test_keys_that_were_not_confirmed_durable_are_not_delivered(state: str) -> None:
    """The node serves with another key set: nothing proves that it would survive a restart."""

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        real = scene.world.nodes.health

        async def health(enclave_id: str) -> NodeHealth:
            return replace(await real(enclave_id), key_set_id="another")

        async def delivery(enclave_id: str) -> Delivery:
            return Delivery(state)

        scene.world.nodes.health = health  # type: ignore[method-assign]
        scene.world.vault.delivery = delivery  # type: ignore[method-assign]
        scene.publish()
        state_then = await scene.until_state(Name.REVERTING)
        assert state_then.target is not None
        await scene.until_idle(first)
        assert any("DELIVERY_DEADLINE" in str(fact) for fact in scene.notes)
        assert "probation" not in scene.passed()[-9:]

    Scene().play(act)


def test_a_version_that_says_nothing_of_its_canary_does_not_pass_probation() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        real = scene.world.nodes.health

        async def health(enclave_id: str) -> NodeHealth:
            return replace(await real(enclave_id), canary=None)

        scene.publish()
        await scene.until_state(Name.PROBATION)
        scene.world.nodes.health = health  # type: ignore[method-assign]
        await scene.until_idle(first)
        assert any("CANARY_FAILED" in str(fact) for fact in scene.notes)

    Scene().play(act)


@pytest.mark.parametrize(("silent_s", "passes"), [(1.5, True), (30.0, False)])
def test_a_short_silence_in_probation_is_borne_and_a_long_one_is_not(silent_s: float, passes: bool) -> None:
    scene = Scene()
    scene.with_limits(probation_s=20.0)

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        real = scene.world.nodes.health

        async def silent(_: str) -> NodeHealth:
            return NodeHealth("silent")

        second = scene.publish()
        await scene.until_state(Name.PROBATION)
        await asyncio.sleep(3)
        scene.world.nodes.health = silent  # type: ignore[method-assign, assignment]
        await asyncio.sleep(silent_s)
        scene.world.nodes.health = real  # type: ignore[method-assign]
        await scene.until_idle(second if passes else first)

    scene.play(act)


def test_another_version_that_answers_on_the_port_does_not_pass_for_the_new_one() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        real = scene.world.nodes.health

        async def health(enclave_id: str) -> NodeHealth:
            return replace(await real(enclave_id), enclave_id=first.enclave_id)

        scene.publish()
        await scene.until_state(Name.DELIVERING)
        scene.world.nodes.health = health  # type: ignore[method-assign]
        await scene.until_idle(first)
        assert any("NODE_ANOTHER_VERSION" in str(fact) for fact in scene.notes)

    Scene().play(act)


def test_a_sealed_copy_of_another_key_set_does_not_stand_for_the_one_that_the_data_needs() -> None:
    """The old node made new keys after the copy was taken, and is dead: the copy would lose what they encrypt."""

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish()
        await scene.until_state(Name.SEALED)
        await scene.kill_agent()
        scene.world.chain.releases[first.enclave_id] = replace(first, trait="dies")
        for node in scene.world.nodes.all_living():
            node.kill("signal 9")
        scene.world.disk.write("node/keyset", "newer than the copy")
        before = scene.passed().count("sealed")
        scene.say("hold", reason="back to staged, and through collecting again")
        scene.start_agent()
        scene.say("unhold")
        state = await scene.until_state(Name.HALTED)
        assert state.halted == "SOURCE_WONT_START"
        assert scene.passed().count("sealed") == before

    Scene().play(act)


def test_only_a_first_install_may_make_keys() -> None:
    """A launch, a restart after a crash and the way back all start a node that has to find its keys."""

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        real, asked = scene.world.nodes.start, []

        async def start(release: Release, *, first_install: bool) -> RunningNode:
            asked.append(first_install)
            return await real(release, first_install=first_install)

        scene.world.nodes.start = start  # type: ignore[method-assign]
        for node in scene.world.nodes.all_living():
            node.kill("signal 9")
        await scene.until(lambda _: scene.serving() == first.version)
        scene.publish("blind")
        await scene.until_state(Name.REVERTED)
        await scene.until_idle(first)
        assert asked == [False] * 3

    Scene().play(act)
