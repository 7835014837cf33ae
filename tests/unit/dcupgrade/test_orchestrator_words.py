"""Operators' words: what is said is heard, in every state, and holds for the release that it names."""

import asyncio
from typing import Any

import pytest

from dcupgrade.states import Name
from tests.unit.dcupgrade.scene import Scene


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
        assert scene.journal.commands() == []  # nor does a restart read it again
        assert scene.state.name is Name.IDLE

    Scene().play(act)
