"""Operator commands: they are accepted in every state and apply to the release that they name."""

import asyncio
from typing import Any

import pytest

from dcupgrade.machine.gates import GateRules
from dcupgrade.machine.state import Name
from tests.doubles.scene import Scene

ASKS = GateRules("scene", approval=True)


@pytest.mark.parametrize(
    ("word", "arguments"),
    [
        ("hold", {"until_unix_s": "tomorrow"}),
        ("hold", {"until_unix_s": float("nan")}),
        ("hold", {"until_unix_s": 10**400}),
        ("sing", {}),
    ],
)
def test_a_word_that_means_nothing_keeps_no_later_one_from_being_heard(word: str, arguments: dict[str, Any]) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        scene.say(word, reason="?", **arguments)
        await asyncio.sleep(3)
        scene.say("hold", reason="a holiday")
        await scene.until(lambda state: state.hold is not None and state.hold.reason == "a holiday")
        assert scene.journal.queue == []  # nor does a restart read it again
        assert scene.state.name is Name.IDLE

    Scene().play(act)


@pytest.mark.parametrize("word", ["approve", "override"])
def test_a_word_for_a_release_outlives_a_try_that_came_to_nothing(word: str) -> None:
    """The release waits in its backoff; nobody is to be asked again at the next try."""

    async def act(scene: Scene) -> None:
        first = scene.publish()
        scene.start_agent()
        await scene.until_state(Name.STAGED)
        scene.say(word, enclave_id=first.enclave_id)
        await scene.until_idle(first)
        scene.world.nodes.downloads_fail = 1.0
        second = scene.publish()
        await scene.until_state(Name.ABANDONED)
        scene.say(word, enclave_id=second.enclave_id)
        scene.world.nodes.downloads_fail = 0.0
        await scene.until_idle(second)
        assert (scene.state.approved, scene.state.override) == ("", "")

    Scene(rules=ASKS).play(act)


def test_an_approval_is_for_one_release_and_one_failure_of_it() -> None:
    async def act(scene: Scene) -> None:
        first = scene.publish()
        scene.start_agent()
        await scene.until_state(Name.STAGED)
        scene.say("approve", enclave_id=first.enclave_id)
        await scene.until_idle(first)
        second = scene.publish("blind")
        await scene.until_state(Name.STAGED)
        scene.say("approve", enclave_id=second.enclave_id)
        await scene.until_state(Name.REVERTED)
        assert scene.state.approved == ""
        scene.publish()
        await scene.until_state(Name.STAGED)
        await asyncio.sleep(60)
        assert scene.state.name is Name.STAGED
        scene.say("revert")
        await scene.until_idle(first)

    Scene(rules=ASKS).play(act)


def test_a_version_that_never_takes_the_commit_can_be_gone_back_from() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()

        async def refuses(enclave_id: str) -> None:
            raise RuntimeError(f"HTTP 500 from {enclave_id}")

        scene.world.nodes.commit = refuses  # type: ignore[method-assign]
        second = scene.publish()
        await scene.until_state(Name.COMMITTED)
        await asyncio.sleep(30)
        assert scene.state.name is Name.COMMITTED
        assert scene.alarms() == ["COMMIT_NOT_ACKNOWLEDGED"]
        scene.say("revert", reason="it never takes the commit")
        state = await scene.until_idle(first)
        assert state.record(second.enclave_id).quarantine == "OPERATOR_REVERT"

    Scene().play(act)


def test_a_first_install_that_never_comes_up_can_be_given_up_for_a_newer_release() -> None:
    async def act(scene: Scene) -> None:
        scene.publish("dies")
        scene.start_agent()
        state = await scene.until_state(Name.HALTED)
        assert state.halted == "FIRST_INSTALL_FAILED"
        scene.say("revert")
        await asyncio.sleep(5)
        assert scene.state.name is Name.HALTED  # there is nothing else to install
        second = scene.publish()
        await asyncio.sleep(5)
        assert scene.state.name is Name.HALTED  # and what the failed one left is for a person to judge
        scene.say("revert", reason="the newer one is to be installed")
        await scene.until_idle(second)

    Scene().play(act)


def test_a_revert_to_files_that_are_gone_leaves_the_running_version_alone() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        second = scene.publish()
        await scene.until_idle(second)
        (node,) = scene.world.nodes.all_living()
        scene.world.disk.remove(f"slot/{first.enclave_id}")
        outcome = await scene.outcome(scene.say("revert"))
        assert outcome.code == "REVERT_IMPOSSIBLE"
        assert first.enclave_id in outcome.text
        assert scene.world.nodes.all_living() == [node]
        assert scene.state.name is Name.IDLE

    Scene().play(act)


@pytest.mark.parametrize("to_be_had", [True, False])
def test_files_that_vanished_during_an_upgrade_are_fetched_again_for_the_way_back(to_be_had: bool) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish("blind")
        await scene.until_state(Name.DELIVERING)
        scene.world.disk.remove(f"slot/{first.enclave_id}")
        scene.world.nodes.downloads_fail = 0.0 if to_be_had else 1.0
        if not to_be_had:
            state = await scene.until_state(Name.HALTED)
            assert state.halted == "SOURCE_SLOT_DAMAGED"
            scene.world.nodes.downloads_fail = 0.0
            scene.say("resume")
        await scene.until_idle(first)

    Scene().play(act)


def test_a_subscriber_that_left_before_it_read_anything_is_forgotten() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        before = len(scene.agent.feed._subscribers)
        stream = scene.agent.feed.subscribe()
        assert len(scene.agent.feed._subscribers) == before + 1
        await stream.aclose()  # type: ignore[attr-defined]
        assert len(scene.agent.feed._subscribers) == before

    Scene().play(act)
