"""Missing parts of a field host or registry, and a manager that starts during an upgrade: the old node continues."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dcupgrade.commands.explain import runbook_entry
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.gates import Shut
from dcupgrade.machine.stages import RunningNode, StagedRelease
from dcupgrade.machine.state import Name, Release
from dcupgrade.upgrade.ports import Progress
from tests.doubles.scene import Scene

#: Codes while a release is fetched, by kind: a release is condemned only for content that contradicts the chain.
PASSING = (
    *("CONTAINER_REGISTRY_BUSY", "CONTAINER_REGISTRY_DENIED", "CONTAINER_REGISTRY_UNREACHABLE"),
    *("CONTAINER_IMAGE_FOREIGN", "CONTAINER_IMAGE_CHANGED", "CONTAINER_IMAGE_MISSING", "CONTAINER_IMAGE_UNMEASURED"),
    *("CONTAINER_SIGNED_ENCLAVE_MISSING", "SIGSTRUCT_NOT_FOUND", "CONTAINER_ENGINE_UNREACHABLE"),
    *("DOWNLOAD_CAR_INVALID", "DOWNLOAD_LAYOUT_UNKNOWN"),
)
LYING = ("STAGING_ENCLAVE_ID_MISMATCH", "SIGSTRUCT_SIGNATURE_BAD")
OF_FETCHING = {**dict.fromkeys(PASSING, "transient"), **dict.fromkeys(LYING, "rejected")}
OF_THE_HOST = (
    *("CONTAINER_DEVICE_MISSING", "CONTAINER_MOUNT_MISSING", "CONTAINER_PROGRAM_MISSING", "OTHER_MANAGER_RUNNING"),
    "CONTAINER_TEMPLATE_UNREADABLE",
)


def error(code: str, kind: str = "transient") -> DcupgradeError:
    return DcupgradeError(code=code, what="x", why="y", kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", OF_FETCHING)
def test_what_cannot_be_fetched_or_proven_costs_the_old_node_nothing(code: str) -> None:
    scene = Scene()

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        real: Callable[[Release, Progress], Awaitable[StagedRelease]] = scene.world.nodes.stage
        failing, asked = True, 0

        async def stage(release: Release, progress: Progress) -> StagedRelease:
            nonlocal asked
            asked += 1
            if failing:
                raise error(code, OF_FETCHING[code])
            return await real(release, progress)

        scene.world.nodes.stage = stage  # type: ignore[method-assign]
        second = scene.publish()
        await scene.until(
            lambda _: asked > scene.limits.attempts or bool(scene.state.record(second.enclave_id).quarantine)
        )
        assert scene.serving() == first.version
        assert "stopping" not in scene.passed()[scene.passed().index("idle") :]
        assert scene.state.name is not Name.HALTED
        failing = False
        if OF_FETCHING[code] == "rejected":
            assert scene.state.record(second.enclave_id).quarantine == code
            scene.say("retry")
        await scene.until_idle(second)

    scene.play(act)
    assert runbook_entry(code)


@pytest.mark.parametrize("code", OF_THE_HOST)
def test_what_the_host_lacks_is_found_before_the_old_node_stops(code: str) -> None:
    scene = Scene()

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        real = scene.world.nodes.preflight
        lacking, looked = True, 0

        async def preflight(target: Release, source_id: str, first_install: bool) -> list[Shut]:
            nonlocal looked
            looked += 1
            return [Shut(code, "x")] if lacking else await real(target, source_id, first_install)

        scene.world.nodes.preflight = preflight  # type: ignore[method-assign]
        second = scene.publish()
        await scene.until(lambda _: looked > 5)
        assert (scene.state.name, scene.serving()) == (Name.STAGED, first.version)
        lacking = False
        await scene.until_idle(second)

    scene.play(act)
    assert runbook_entry(code)


@pytest.mark.parametrize("code", ["CONTAINER_NAME_TAKEN", "CONTAINER_DATA_IN_USE"])
def test_a_manager_that_takes_the_containers_place_is_left_alone_until_a_person_ends_it(code: str) -> None:
    """The new version's container is gone, and the manager's own runs on the data: nothing is started beside it."""
    scene = Scene()

    async def act(scene: Scene) -> None:
        first = await scene.installed()
        nodes, real = scene.world.nodes, scene.world.nodes.start
        manager_there = False

        async def start(release: Release, *, first_install: bool) -> RunningNode:
            if manager_there:
                raise error(code)
            return await real(release, first_install=first_install)

        nodes.start = start  # type: ignore[method-assign]
        second = scene.publish()
        await scene.until_state(Name.DELIVERING)
        manager_there = True
        for node in nodes.all_living():
            node.kill("removed by the manager")
        await scene.until_state(Name.HALTED)
        assert nodes.all_living() == []
        assert scene.state.halted in ("SOURCE_WONT_START", "DATA_LOCKED")
        await asyncio.sleep(60)
        assert nodes.all_living() == []
        manager_there = False
        await scene.until_idle(first)
        assert second.enclave_id != first.enclave_id

    scene.play(act)
    assert runbook_entry(code)
