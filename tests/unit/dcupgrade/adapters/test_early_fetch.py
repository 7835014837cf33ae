import asyncio

from dcupgrade.adapters.early_fetch import AT_ONCE_MAX, KEEP_S, Prefetcher
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.state import Release
from dcupgrade.upgrade.ports import Progress


class World:
    def __init__(self) -> None:
        self.staged: list[str] = []
        self.removed: list[str] = []
        self.taken_up: set[str] = set()
        self.refuse = False
        self.waits: list[asyncio.Future[None]] = []
        self.prefetch = Prefetcher(self, self.taken_up.__contains__, self.sleep)

    async def fetch(self, release: Release, progress: Progress) -> None:
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
