"""Opening the store at start: an id binds key sets and facts, and files of earlier formats still open."""

import os

import pytest

from keyvault.handover.hpke import RealCrypto
from keyvault.store.sealed_file import FORMAT_PLAIN, FORMAT_WITH_STORE_ID, KIND_KEY_SET, NO_STORE_ID, decode_header
from tests.doubles.crash_disk import CrashDisk, PowerCutError
from tests.doubles.vault_host import KEYS_ID, Host, NewNode, base_url, collect, permit, refused, serving
from tests.doubles.vault_kit import SECRET


def store_ids(disk: CrashDisk) -> set[bytes]:
    return {decode_header(data).store_id for data in disk.files.values()}


def formats(disk: CrashDisk) -> set[int]:
    return {int.from_bytes(data[8:10], "little") for data in disk.files.values()}


async def used(host: Host) -> Host:
    """A vault that collected, and has a permit under way."""
    async with serving(host.vault()) as client:
        await collect(client)
        await permit(client)
    return host


@pytest.fixture
async def earlier(monkeypatch: pytest.MonkeyPatch) -> CrashDisk:
    """The store of a vault from before there were store ids: both generations of facts and key set in format 1."""
    with monkeypatch.context() as patch:
        patch.setattr(RealCrypto, "random", lambda _, size: NO_STORE_ID if size == 8 else os.urandom(size))
        host = await used(Host())
        async with serving(host.vault()) as client:
            await collect(client)
            await permit(client, block=11)
    assert formats(host.disk) == {FORMAT_PLAIN}
    return host.disk


async def test_facts_and_key_sets_of_a_store_carry_one_id_and_stores_differ() -> None:
    one, two = await used(Host()), await used(Host())
    assert formats(one.disk) == {FORMAT_WITH_STORE_ID}
    assert len(store_ids(one.disk)) == len(store_ids(two.disk)) == 1
    assert store_ids(one.disk) != store_ids(two.disk)


async def test_hiding_the_store_for_one_start_does_not_make_the_vault_forget_what_it_learned() -> None:
    host = await used(Host())
    hidden = dict(host.disk.files)
    host.disk.files.clear()
    async with serving(host.vault()) as client:
        assert (await client.status())["chain"]["block_hash"] == ""  # a new store: it knows nothing
    for name, data in hidden.items():
        if decode_header(data).kind == KIND_KEY_SET:
            host.disk.files[name] = data
    async with serving(host.vault()) as client:
        assert (await client.health())["status"] == "VAULT_FACTS_MISSING"
        assert await refused(permit(client)) == "VAULT_FACTS_MISSING"
        assert await refused(collect(client)) == "VAULT_FACTS_MISSING"
        assert await refused(NewNode("node 2").ask(base_url(client))) == "NO_PERMIT_YET"
        assert await NewNode("node 1").ask(base_url(client)) == SECRET  # the source may have its own back
    host.disk.files.update(hidden)  # the operator restores the folder
    assert host.vault().condition is None


async def test_key_sets_of_another_store_put_beside_live_ones_are_found() -> None:
    host, other = await used(Host()), await used(Host())
    name = next(name for name, data in other.disk.files.items() if decode_header(data).kind == KIND_KEY_SET)
    host.disk.files[name] = other.disk.files[name]
    condition = host.vault().condition
    assert condition is not None
    assert condition.code == "VAULT_FACTS_MISSING"


async def test_a_store_of_an_earlier_version_opens_and_is_given_an_id(earlier: CrashDisk) -> None:
    host = Host(disk=earlier)
    vault = host.vault()
    assert vault.condition is None
    assert vault.status()["chain"]["height_floor"] == 11
    ids = {decode_header(data).store_id for data in earlier.files.values() if int.from_bytes(data[8:10], "little") == 2}
    assert len(ids) == 1
    async with serving(host.vault()) as client:
        assert await NewNode("node 2").ask(base_url(client)) == SECRET
    key_sets = [decode_header(d) for d in earlier.files.values() if decode_header(d).kind == KIND_KEY_SET]
    assert {header.store_id for header in key_sets} == ids  # both generations: a damaged one costs nothing
    assert len(key_sets) == 2


async def test_power_cut_at_any_step_of_giving_the_id_loses_nothing(earlier: CrashDisk) -> None:
    files = dict(earlier.files)
    for steps in range(200):
        disk = CrashDisk(dict(files), dict(files), dict(files), steps)
        done = True
        try:
            Host(disk=disk).vault()
        except PowerCutError:
            done = False
        for keep_names in (False, True):
            again = Host(disk=disk.after_power_cut(keep_names)).vault()
            assert again.condition is None, steps
            assert again.self_test()["opened"] == 1
            assert again.status()["permits"][0]["key_set_id"] == KEYS_ID
        if done:
            return
    raise AssertionError("it never ended")


async def test_a_full_disk_keeps_an_earlier_store_as_it_is_and_serving(earlier: CrashDisk) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    host = Host(disk=earlier)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(earlier, "write", full, raising=False)
        assert host.vault().condition is None
    assert formats(earlier) == {FORMAT_PLAIN}
    async with serving(host.vault()) as client:
        assert await NewNode("node 1").ask(base_url(client)) == SECRET
