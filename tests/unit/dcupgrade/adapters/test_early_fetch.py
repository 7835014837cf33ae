import asyncio

import pytest

from dcupgrade.adapters.early_fetch import AT_ONCE_MAX, KEEP_S, Prefetcher, fetchable_early
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.state import ChainFacts, Release, State


class World:
    def __init__(self) -> None:
        self.staged: list[str] = []
        self.removed: list[str] = []
        self.taken_up: set[str] = set()
        self.refuse = False
        self.refused: set[str] = set()
        self.waits: list[asyncio.Future[None]] = []
        self.prefetch = Prefetcher(self, self.fetchable, self.taken_up.__contains__, self.sleep)

    def fetchable(self, release: Release) -> Release | None:
        return None if release.enclave_id in self.refused else release

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

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


async def test_a_release_is_fetched_once_and_removed_when_it_never_becomes_final() -> None:
    world = World()
    for _ in range(3):
        world.prefetch(Release("a" * 64))
        await world.settle()
    assert world.staged == ["a" * 64]
    world.waits[0].set_result(None)
    await world.settle()
    assert world.removed == ["a" * 64]


async def test_a_release_that_the_machine_took_up_is_left_alone() -> None:
    world = World()
    world.prefetch(Release("a" * 64))
    await world.settle()
    world.taken_up.add("a" * 64)
    world.waits[0].set_result(None)
    await world.settle()
    world.prefetch(Release("a" * 64))
    await world.settle()
    assert (world.staged, world.removed) == (["a" * 64], [])


async def test_an_early_fetch_gives_way_to_the_machine_and_leaves_its_slot() -> None:
    world = World()
    world.prefetch(Release("a" * 64))
    await world.settle()
    await world.prefetch.give_way("a" * 64)
    await world.prefetch.give_way("b" * 64)
    assert (world.staged, world.removed) == (["a" * 64], [])


async def test_a_failed_fetch_may_be_tried_again() -> None:
    world = World()
    world.refuse = True
    world.prefetch(Release("a" * 64))
    await world.settle()
    world.refuse = False
    world.prefetch(Release("a" * 64))
    await world.settle()
    assert world.staged == ["a" * 64]
    await world.prefetch.close()


async def test_forks_cannot_fill_the_disk() -> None:
    world = World()
    for number in range(10):
        world.prefetch(Release(f"{number:064x}"))
    await world.settle()
    assert len(world.staged) == AT_ONCE_MAX
    await world.prefetch.close()
    assert world.removed == []


async def test_what_may_not_be_asked_for_early_is_not() -> None:
    world = World()
    world.refused.add("a" * 64)
    world.prefetch(Release("a" * 64))
    await world.settle()
    assert world.staged == []


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
