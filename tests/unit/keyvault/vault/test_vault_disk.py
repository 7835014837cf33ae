"""The vault with a failing disk, and over time: only failures that prevent serving stop it from serving."""

from dataclasses import replace

import aiohttp
import pytest

from attestation.simulated.cpu import SoftwareCpu
from keyvault.errors import KeyvaultError
from keyvault.handover.http_client import fetch_key_set
from keyvault.handover.key_set import KeySet
from keyvault.handover.requester import Requester
from keyvault.vault.vault import Vault
from tests.doubles.crash_disk import CrashDisk
from tests.doubles.vault_host import (
    KEYS_ID,
    NEW,
    NOW,
    OLD,
    Host,
    NewNode,
    base_url,
    collect,
    hand_over,
    permit,
    policy,
    refused,
    serving,
)
from tests.doubles.vault_kit import CPU, SECRET, Enclave


async def retained(host: Host) -> Vault:
    """A vault whose key set's retention time is over, and not swept yet."""
    vault = host.vault()
    async with serving(vault) as client:
        await hand_over(client)
        await client.committed(NEW, KEYS_ID)
    host.clock.unix_s += 1000
    host.clock.monotonic_s += 1000
    return vault


def broken(*_: object) -> None:
    raise OSError(5, "Input/output error")


async def test_a_disk_that_fails_at_wiping_keeps_no_vault_down_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host()
    vault = await retained(host)
    with monkeypatch.context() as patch:
        patch.setattr(host.disk, "remove", broken, raising=False)
        assert vault.sweep() == [KEYS_ID]
        assert host.vault().condition is None
        assert [name for name in host.disk.files if "keys-" in name]
    assert vault.sweep() == []
    assert not [name for name in host.disk.files if "keys-" in name]


async def test_a_key_set_that_was_collected_again_is_not_wiped_by_an_earlier_wish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host()
    vault = await retained(host)
    with monkeypatch.context() as patch:
        patch.setattr(host.disk, "write", lambda name, data: broken() if "keys-" in name else None, raising=False)
        patch.setattr(vault, "_save", lambda facts: setattr(vault, "_facts", facts))
        assert vault.sweep() == [KEYS_ID]
    async with serving(vault) as client:
        await collect(client)
        assert vault.sweep() == []
        assert await NewNode("node 1").ask(base_url(client)) == SECRET


async def test_key_material_of_a_hand_out_that_could_not_be_counted_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    vault = host.vault()
    async with serving(vault) as client:
        await collect(client)
        await permit(client)
    opened = []
    real = vault._open_key_set

    def open_key_set(name: str) -> KeySet:
        opened.append(real(name))
        return opened[-1]

    monkeypatch.setattr(vault, "_open_key_set", open_key_set)
    monkeypatch.setattr(host.disk, "write", broken, raising=False)
    with pytest.raises(KeyvaultError, match="STORE_WRITE_FAILED"):
        vault.hand_out(NEW)
    (key_set,) = opened
    assert not any(key_set.buffer)


async def test_a_newer_cpu_security_version_on_a_full_disk_loses_neither_facts_nor_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host()
    async with serving(host.vault()) as client:
        await collect(client)
        await permit(client)
    host.cpu = SoftwareCpu(replace(CPU.root, cpusvn_level=2))
    with monkeypatch.context() as patch:
        patch.setattr(host.disk, "write", broken, raising=False)
        vault = host.vault()
        assert vault.condition is None
        with vault.hand_out(OLD) as key_set:
            assert bytes(key_set.view()) == SECRET
    with host.vault().hand_out(NEW) as key_set:
        assert bytes(key_set.view()) == SECRET


async def test_no_permit_is_given_over_a_sealed_copy_that_no_longer_opens() -> None:
    """The agent stops the old node after the permit, and that node may have the last good copy."""
    host = Host()
    async with serving(host.vault()) as client:
        await collect(client)
    sound = dict(host.disk.files)
    for name in [name for name in host.disk.files if "keys-" in name]:
        host.disk.files[name] = host.disk.files[name][:-1]
    async with serving(host.vault()) as client:
        assert await refused(permit(client)) == "RELEASE_KEY_SET_UNREADABLE"
        status = await client.status()
        assert (status["permits"], status["chain"]["height_floor"]) == ([], 10)  # what the chain said is kept
        host.disk.files.update({name: data for name, data in sound.items() if "keys-" in name})
        assert (await permit(client))["target_id"] == NEW


async def test_time_is_sealed_once_an_hour_while_another_set_waits_for_the_end_of_its_retention() -> None:
    host = Host(policy=policy(retention_s=10_000))
    vault = host.vault()
    async with serving(vault) as client:
        await hand_over(client)
        await client.committed(NEW, KEYS_ID)
        await client.retain(KEYS_ID, NOW + 100_000)
    written = []
    real = host.disk.write
    host.disk.write = lambda name, data: (written.append(name), real(name, data))[1]  # type: ignore[method-assign]
    for _ in range(400):
        host.clock.unix_s += 60
        host.clock.monotonic_s += 60
        assert vault.sweep() == []
    assert len(written) == 6  # in 24,000 s: every hour, and once when the retention time was over


async def test_receipt_keys_of_deliveries_that_ran_out_are_wiped_without_another_message() -> None:
    host = Host()
    vault = host.vault()
    async with serving(vault) as client:
        await collect(client)
        requester = Requester(Enclave("node 1").party)
        async with aiohttp.ClientSession() as session:
            (await fetch_key_set(session, base_url(client), requester)).wipe()
    (delivery,) = vault._holder._deliveries.values()
    assert any(delivery.receipt_key)
    host.clock.monotonic_s += 901
    vault.sweep_sessions()
    assert not any(delivery.receipt_key)


#: Offset of the sealer's MRENCLAVE in a sealed file (keyvault/store/sealed_file.py).
SEALER_AT = 532


async def test_one_flipped_bit_in_a_files_sealer_is_damage_of_one_generation() -> None:
    host = Host()
    async with serving(host.vault()) as client:
        await collect(client)
        await collect(client)  # two generations of the key set, and of the facts
    assert len(host.disk.files) == 4
    for name, data in host.disk.files.items():
        spoiled = bytearray(data)
        spoiled[SEALER_AT + 5] ^= 0x10
        vault = Host(disk=CrashDisk(files={**host.disk.files, name: bytes(spoiled)})).vault()
        assert vault.condition is None, name
        assert vault.self_test() == {"attestation": True, "opened": 1, "failed": {}}
        assert [entry["key_set_id"] for entry in vault.status()["key_sets"]] == [KEYS_ID]
