"""When the agent starts again, the work stored with a state is compared with the work that the state needs."""

import pytest

from tests.doubles.scene import Scene


def restarted(scene: Scene, wanted: str | None) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        await scene.kill_agent()
        if wanted is not None:
            scene.journal.wanted = wanted
        scene.start_agent()
        await scene.until_idle(first)

    scene.play(act)


def test_the_same_work_is_taken_up_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    restarted(Scene(), None)
    assert "JOURNAL_WORK_DIFFERS" not in caplog.text


@pytest.mark.parametrize("wanted", ["[]", '[{"kind":"stop_node","enclave_id":"x"}]'])
def test_other_work_is_reported_and_the_state_decides(wanted: str, caplog: pytest.LogCaptureFixture) -> None:
    restarted(Scene(), wanted)
    assert "JOURNAL_WORK_DIFFERS: stored was" in caplog.text
