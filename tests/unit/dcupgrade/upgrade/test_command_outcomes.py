"""What became of an operator command: done, nothing to do, refused with a code, expired, cancelled."""

import asyncio
from dataclasses import replace

import pytest

from dcupgrade.errors import CODES
from dcupgrade.machine.gates import GateRules
from dcupgrade.machine.operator_commands import LIFETIME_S
from dcupgrade.machine.state import Name
from tests.doubles.scene import Scene


def test_a_revert_that_works_is_told_apart_from_one_that_has_nothing_to_go_back_to() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        await scene.until_idle(scene.publish())
        told = await scene.outcome(scene.say("revert"))
        assert (told.accepted, told.code, told.text) == (True, "", "goes back now")
        await scene.until_idle(first)
        told = await scene.outcome(scene.say("revert"))
        assert (told.accepted, told.code) == (False, "REVERT_IMPOSSIBLE")

    Scene().play(act)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("unhold", "nothing was held"), ("resume", "nothing was halted"), ("retry", "nothing was in quarantine")],
)
def test_a_command_with_nothing_to_do_says_so(kind: str, text: str) -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        told = await scene.outcome(scene.say(kind))
        assert (told.accepted, told.code, told.text) == (True, "", text)

    Scene().play(act)


@pytest.mark.parametrize("kind", ["approve", "override"])
@pytest.mark.parametrize("approval", [False, True])
def test_neither_approve_nor_override_lifts_a_quarantine_and_both_say_what_does(kind: str, approval: bool) -> None:
    """Case F1: `revert`, then `approve` installed the release again at once."""

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        await scene.kill_agent()
        scene.rules = GateRules("scene", approval=approval)
        scene.start_agent()
        second = scene.publish()
        if approval:
            await scene.until_state(Name.STAGED)
            scene.say("approve", enclave_id=second.enclave_id)
        await scene.until_idle(second)
        scene.say("revert")
        await scene.until_idle(first)
        told = await scene.outcome(scene.say(kind, enclave_id=second.enclave_id))
        assert (told.accepted, told.code) == (False, "RELEASE_QUARANTINED")
        assert "`retry`" in told.text
        await asyncio.sleep(60)
        assert scene.serving() == first.version
        assert (await scene.outcome(scene.say("retry", enclave_id=second.enclave_id))).accepted
        if approval:
            await scene.until_state(Name.STAGED)
            scene.say("approve", enclave_id=second.enclave_id)
        await scene.until_idle(second)

    Scene().play(act)


@pytest.mark.parametrize("kind", ["revert", "approve", "override", "retry", "resume"])
def test_a_command_that_waited_while_the_agent_was_down_expires(kind: str) -> None:
    """Case F3: a revert given while the agent was down interrupted the service twice, minutes later."""

    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        await scene.until_idle(second)
        await scene.kill_agent()
        number = scene.say(kind)
        await asyncio.sleep(LIFETIME_S + 1)
        # the retention time of the scene is short, and must not be what keeps it
        scene.journal.durable = (scene.journal.durable or "").replace(
            f'"previous_until_unix_s": {scene.agent.state.previous_until_unix_s}', '"previous_until_unix_s": 9e9'
        )
        scene.start_agent()
        told = await scene.outcome(number)
        assert (told.accepted, told.code) == (False, "COMMAND_EXPIRED")
        await asyncio.sleep(5)
        assert scene.serving() == second.version

    Scene().play(act)


def test_a_command_that_waited_behind_a_journal_that_could_not_be_written_expires() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.journal.fail_writes = True
        blocking = scene.say("unhold")
        await asyncio.sleep(5)
        number, hold = scene.say("restart"), scene.say("hold", reason="a holiday")
        await asyncio.sleep(LIFETIME_S + 1)
        scene.journal.fail_writes = False
        assert (await scene.outcome(blocking)).accepted
        told = await scene.outcome(number)
        assert (told.accepted, told.code) == (False, "COMMAND_EXPIRED")
        assert "restart: it waited for longer than 300 s" in told.text
        assert (await scene.outcome(hold)).accepted
        assert scene.serving() == first.version

    Scene().play(act)


def test_a_hold_never_expires() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        await scene.kill_agent()
        number = scene.say("hold", reason="a holiday")
        await asyncio.sleep(100 * LIFETIME_S)
        scene.start_agent()
        assert (await scene.outcome(number)).accepted
        assert scene.state.hold is not None

    Scene().play(act)


def test_commands_that_wait_are_listed_and_one_that_is_cancelled_is_not_carried_out() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        second = scene.publish()
        await scene.until_idle(second)
        scene.journal.fail_writes = True
        number = scene.say("revert", reason="a mistake")
        await asyncio.sleep(3)
        (waiting,) = scene.agent.feed.snapshot(scene.state)["commands"]
        assert (waiting["id"], waiting["kind"], waiting["arguments"]) == (number, "revert", {"reason": "a mistake"})
        assert waiting["expires_unix_s"] == waiting["at_unix_s"] + LIFETIME_S
        scene.journal.queue.clear()
        scene.journal.fail_writes = False
        await asyncio.sleep(20)
        assert scene.serving() == second.version
        assert scene.agent.feed.snapshot(scene.state)["commands"] == []

    Scene().play(act)


def test_a_resume_given_before_the_version_was_revoked_does_not_accept_that() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish("blind")
        await scene.until_state(Name.DELIVERING)
        await scene.kill_agent()
        scene.world.chain.revoke(first.enclave_id)
        number = scene.say("resume")
        scene.start_agent()
        await scene.until_state(Name.HALTED)
        early = await scene.outcome(number)
        if scene.state.halted:
            assert early.code in ("", "PREVIOUS_REVOKED")
            await asyncio.sleep(10)
            assert scene.state.halted == "PREVIOUS_REVOKED"
        assert (await scene.outcome(scene.say("resume"))).accepted
        await scene.until_idle(first)

    Scene().play(act)


@pytest.mark.parametrize("trait", ["good", "blind"])
def test_a_reason_ends_with_what_it_explains(trait: str) -> None:
    """Case F6: after a revert every row of the next upgrade carried OPERATOR_REVERT."""

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        await scene.until_idle(scene.publish())
        scene.say("revert", reason="slow")
        state = await scene.until_idle(first)
        assert state.reason == "OPERATOR_REVERT"
        third = scene.publish(trait)
        state = await scene.until_state(Name.STAGING)
        assert (state.reason, state.detail) == ("", "")
        if trait == "good":
            state = await scene.until_idle(third)
            assert (state.reason, state.detail) == ("", "")
        else:
            state = await scene.until_state(Name.REVERTED)
            assert state.reason == "CANARY_FAILED"

    Scene().play(act)


def test_every_code_of_an_outcome_has_an_entry() -> None:
    for code in ("COMMAND_EXPIRED", "COMMAND_CANCELLED", "COMMAND_INVALID", "RELEASE_QUARANTINED", "REVERT_IMPOSSIBLE"):
        assert code in CODES


def test_a_command_that_means_nothing_is_refused_by_a_code() -> None:
    async def act(scene: Scene) -> None:
        await scene.installed()
        told = await scene.outcome(scene.say("sing"))
        assert (told.accepted, told.code) == (False, "COMMAND_INVALID")

    Scene().play(act)


def test_a_revert_while_the_old_version_stops_says_when_it_happens() -> None:
    scene = Scene()
    scene.with_limits(attempts=100)

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish()
        await scene.until_state(Name.STOPPING)
        scene.world.nodes.locked_by_other = True
        told = await scene.outcome(scene.say("revert"))
        assert told.text == "goes back once the old version has stopped"
        scene.world.nodes.locked_by_other = False
        await scene.until_idle(first)

    scene.play(act)


def test_a_revert_of_what_cannot_be_reverted_is_refused_by_the_condition() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        scene.publish("blind")
        await scene.until_state(Name.DELIVERING)
        scene.world.chain.revoke(first.enclave_id)
        await scene.until_state(Name.HALTED)
        told = await scene.outcome(scene.say("revert"))
        assert (told.accepted, told.code) == (False, "PREVIOUS_REVOKED")

    Scene(budgets=replace(Scene().budgets, launches=1)).play(act)
