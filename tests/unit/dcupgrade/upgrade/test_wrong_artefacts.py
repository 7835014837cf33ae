"""Wrong artefacts: a bad mirror looks the same, so only a failure of every attempt condemns a release (case C1)."""

from collections.abc import Awaitable, Callable

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.stages import StagedRelease
from dcupgrade.machine.state import Release
from dcupgrade.upgrade.ports import Progress
from tests.doubles.scene import Scene


def wrong(kind: str) -> DcupgradeError:
    return DcupgradeError(code="STAGING_ENCLAVE_ID_MISMATCH", what="artefact", why="another", kind=kind)  # type: ignore[arg-type]


def mirror(scene: Scene, failures: list[DcupgradeError]) -> list[str]:
    """A mirror that first gives these; returns what was asked for."""
    real: Callable[[Release, Progress], Awaitable[StagedRelease]] = scene.world.nodes.stage
    asked: list[str] = []

    async def stage(release: Release, progress: Progress) -> StagedRelease:
        asked.append(release.enclave_id)
        if failures:
            raise failures.pop(0)
        return await real(release, progress)

    scene.world.nodes.stage = stage  # type: ignore[method-assign]
    return asked


def test_a_mirror_that_is_wrong_less_often_than_there_are_attempts_condemns_nothing() -> None:
    scene = Scene()

    async def act(scene: Scene) -> None:
        await scene.installed()
        attempts = scene.limits.attempts
        asked = mirror(scene, [wrong("rejected" if number % 2 else "transient") for number in range(attempts - 1)])
        second = scene.publish()
        await scene.until_idle(second)
        assert len(asked) == attempts
        assert scene.state.records == ()

    scene.play(act)


def test_one_wrong_artefact_after_downloads_that_broke_off_condemns_nothing() -> None:
    """A staging may have had other failures than its last one."""
    scene = Scene()

    async def act(scene: Scene) -> None:
        await scene.installed()
        attempts = scene.limits.attempts
        asked = mirror(scene, [*([wrong("transient")] * (attempts - 1)), wrong("rejected")])
        second = scene.publish()
        await scene.until_idle(second)
        assert len(asked) == attempts + 1

    scene.play(act)


def test_a_release_is_quarantined_once_every_attempt_brought_what_contradicts_the_chain() -> None:
    scene = Scene()

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        asked = mirror(scene, [wrong("rejected")] * 1000)
        second = scene.publish()
        await scene.until(lambda state: bool(state.record(second.enclave_id).quarantine), "the quarantine")
        assert len(asked) == scene.limits.attempts
        assert scene.state.record(second.enclave_id).quarantine == "STAGING_ENCLAVE_ID_MISMATCH"
        assert scene.serving() == first.version

    scene.play(act)


def test_a_mirror_that_gives_something_else_for_long_never_condemns() -> None:
    scene = Scene()

    async def act(scene: Scene) -> None:
        await scene.installed()
        asked = mirror(scene, [wrong("transient")] * (4 * scene.limits.attempts))
        second = scene.publish()
        await scene.until_idle(second)
        assert len(asked) == 4 * scene.limits.attempts + 1
        assert not scene.state.record(second.enclave_id).quarantine

    scene.play(act)
