"""Early fetches: only of allowed sources, never delaying the machine; their files do not stay indefinitely."""

import asyncio
from typing import Any, cast

import pytest

from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.state import ChainFacts, Name, Release, State
from dcupgrade.upgrade.early_fetch import AT_ONCE_MAX, KEEP_S, EarlyFetch, fetchable_early
from tests.doubles.scene import Scene
from tests.simulation.simulator.world import Published

A = Release("a" * 64, origin_url="https://known.example/a.tar")


class World:
    """The slots, the clock and the machine's state of one test."""

    def __init__(self) -> None:
        self.staged: list[str] = []
        self.removed: list[str] = []
        self.refuse = False
        self.state = State()
        self.waits: list[asyncio.Future[None]] = []
        self.early = EarlyFetch(cast(Any, self), cast(Any, self), lambda: self.state, ["known.example"])

    async def fetch_early(self, release: Release) -> None:
        if self.refuse:
            raise DcupgradeError(code="DOWNLOAD_UNREACHABLE", what="a", why="b", kind="transient")
        self.staged.append(release.enclave_id)

    async def remove_slot(self, enclave_id: str) -> None:
        self.removed.append(enclave_id)

    def sleep(self, seconds: float) -> asyncio.Future[None]:
        assert seconds == KEEP_S
        self.waits.append(asyncio.get_running_loop().create_future())
        return self.waits[-1]

    async def announce(self, release: Release = A) -> None:
        self.early.announced(release, {})
        for _ in range(10):
            await asyncio.sleep(0)


async def test_a_release_is_fetched_once_and_removed_when_it_never_becomes_final() -> None:
    world = World()
    for _ in range(3):
        await world.announce()
    assert world.staged == [A.enclave_id]
    world.waits[0].set_result(None)
    for _ in range(10):
        await asyncio.sleep(0)
    assert world.removed == [A.enclave_id]


async def test_a_release_that_the_machine_took_up_is_left_alone() -> None:
    world = World()
    await world.announce()
    world.state = State(target=A)
    world.waits[0].set_result(None)
    await world.announce()
    await world.announce()
    assert (world.staged, world.removed) == ([A.enclave_id], [])


async def test_an_early_fetch_gives_way_to_the_machine_and_leaves_its_slot() -> None:
    world = World()
    await world.announce()
    await world.early.give_way(A.enclave_id)
    await world.early.give_way("b" * 64)
    assert (world.staged, world.removed) == ([A.enclave_id], [])


async def test_a_failed_fetch_may_be_tried_again() -> None:
    world = World()
    world.refuse = True
    await world.announce()
    world.refuse = False
    await world.announce()
    assert world.staged == [A.enclave_id]
    await world.early.close()


async def test_forks_cannot_fill_the_disk() -> None:
    world = World()
    for number in range(10):
        await world.announce(Release(f"{number:064x}", origin_url=A.origin_url))
    assert len(world.staged) == AT_ONCE_MAX
    await world.early.close()
    assert world.removed == []


async def test_what_may_not_be_asked_for_early_is_not() -> None:
    world = World()
    await world.announce(Release("a" * 64, origin_url="https://evil.example/a.tar"))
    assert world.staged == []


def test_a_release_is_there_before_it_is_final_and_is_begun_only_then() -> None:
    async def act(scene: Scene) -> None:
        first = await scene.installed()
        coming = Published(scene.next_id(), "1.1.0", 0, "good")
        scene.world.chain.announce(coming)
        await asyncio.sleep(5)
        assert scene.world.disk.read(f"slot/{coming.enclave_id}") == "verified"
        assert (scene.state.name, scene.serving()) == (Name.IDLE, first.version)
        await scene.until_idle(scene.publish())

    Scene().play(act)


OLD, RUNNING, NEW = "a" * 64, "b" * 64, "c" * 64
LISTED = {OLD: 10, RUNNING: 20}
STATE = State(
    running=Release(RUNNING, origin_url="https://mirror.example/1.tar", added_height=20),
    chain=ChainFacts(program=Release(RUNNING, origin_url="dc/node:1", mirror_url="https://Second.Example:8443/1.tar")),
)


@pytest.mark.parametrize(
    ("origin", "mirror", "asked"),
    [
        ("https://mirror.example/2.tar", "https://second.example/2.tar", 2),
        ("https://mirror.example/2.tar", "https://evil.example/2.tar", 1),
        ("https://settings.example/2.tar", "", 1),
        ("https://evil.example/2.tar", "http://127.0.0.1:6666/", 0),
        ("http://169.254.169.254/latest/meta-data", "http://[::1", 0),
        ("https://mirror.example@evil.example/2.tar", "https://mirror.example.evil.example/2.tar", 0),
        ("dc/node:2", "evil.example/dc/node:2", 0),
    ],
)
def test_only_hosts_that_final_releases_or_the_settings_name_are_asked_early(
    origin: str, mirror: str, asked: int
) -> None:
    release = Release(NEW, origin_url=origin, mirror_url=mirror, added_height=30)
    found = fetchable_early(release, STATE, LISTED, ["settings.example"])
    urls = [url for url in (found.origin_url, found.mirror_url) if url] if found else []
    assert len(urls) == asked
    assert (found is None) == (asked == 0)


@pytest.mark.parametrize("claimed", [0, 20, 10**6])
@pytest.mark.parametrize("enclave_id", [OLD, RUNNING])
def test_an_old_id_is_not_asked_for_early_whatever_a_best_block_says_of_its_height(
    enclave_id: str, claimed: int
) -> None:
    release = Release(enclave_id, origin_url="https://mirror.example/1.tar", added_height=claimed)
    assert fetchable_early(release, STATE, LISTED, []) is None
