"""The vault over a disk that fails: nothing that serving does not need keeps it from serving, and no key is lost."""

from dataclasses import replace

import pytest

from attestation.cpu import SoftwareCpu
from keyvault.errors import KeyvaultError
from keyvault.keyset import KeySet
from keyvault.service import Vault
from tests.unit.keyvault.host import KEYS_ID, NEW, OLD, Host, NewNode, base_url, collect, permit, serving
from tests.unit.keyvault.kit import CPU, SECRET


async def retained(host: Host) -> Vault:
    """A vault whose key set's retention time is over, and not swept yet."""
    vault = host.vault()
    async with serving(vault) as client:
        await collect(client)
        await permit(client)
        await NewNode("node 2").ask(base_url(client))
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
