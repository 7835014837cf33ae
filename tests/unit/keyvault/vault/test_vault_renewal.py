"""A vault build is renewed while the old one still holds sealed sets; the nodes name both builds."""

from typing import Any

import pytest

from keyvault.client import VaultClient
from tests.doubles.vault_host import (
    KEYS_ID,
    LISTED,
    NEW,
    OLD,
    VAULT,
    Host,
    NewNode,
    base_url,
    evidence,
    node_serving,
    policy,
    refused,
    serving,
)
from tests.doubles.vault_kit import SECRET, enclave_id

RENEWED = enclave_id("vault of the next release")
NEWEST = enclave_id("node 3")
ALL = {**LISTED, RENEWED: 8, NEWEST: 9}
BOTH = frozenset({VAULT, RENEWED})


def renewed() -> Host:
    return Host(name="vault of the next release", policy=policy(require_listed_vault=True))


async def permit(client: VaultClient, source: str, target: str, listed: dict[str, int] = ALL) -> dict[str, Any]:
    return await client.permit(source, target, KEYS_ID, evidence(target, listed))


async def test_a_build_is_renewed_while_the_old_one_still_holds_sealed_sets() -> None:
    old, new = Host(), renewed()
    old_vault = old.vault()
    async with serving(old_vault) as before, serving(new.vault()) as after:
        # 1. The old build carries the keys from node 1 to node 2, which names both builds. It keeps its sealed copy.
        async with node_serving("node 1", upgraders=BOTH) as (url, _):
            await before.collect(url, OLD)
        await permit(before, OLD, NEW)
        assert await NewNode("node 2", upgraders=BOTH).ask(base_url(before)) == SECRET
        await before.committed(NEW, KEYS_ID)
        # 2. The new build, with a store of its own, takes over from here: node 2 to node 3.
        async with node_serving("node 2", upgraders=BOTH) as (url, _):
            await after.collect(url, NEW, evidence=evidence(NEW, ALL))
        await permit(after, NEW, NEWEST)
        assert await NewNode("node 3", upgraders=frozenset({RENEWED})).ask(base_url(after)) == SECRET
        await after.committed(NEWEST, KEYS_ID)
        # 3. Until its retention time is over the old build can still give node 1 its keys back; the new one cannot.
        assert await NewNode("node 1", upgraders=BOTH).ask(base_url(before)) == SECRET
        assert await refused(NewNode("node 1", upgraders=BOTH).ask(base_url(after))) == "NO_PERMIT_YET"
        # 4. Then its store is empty, and it can be stopped.
        old.clock.unix_s += 1000
        old.clock.monotonic_s += 1000
        assert old_vault.sweep() == [KEYS_ID]
        assert all(entry["wiped"] for entry in (await before.status())["key_sets"])
        assert not [name for name in old.disk.files if "keys-" in name]
        assert [name for name in new.disk.files if "keys-" in name]


@pytest.mark.parametrize(
    ("names", "code"), [(frozenset({VAULT}), "PEER_NOT_UPGRADER"), (BOTH, "nothing was refused")], ids=["old", "both"]
)
async def test_a_node_that_names_only_the_old_build_gives_the_new_one_nothing(names: frozenset[str], code: str) -> None:
    async with node_serving("node 2", upgraders=names) as (url, _), serving(renewed().vault()) as client:
        assert await refused(client.collect(url, NEW, evidence=evidence(NEW, ALL))) == code


async def test_a_build_that_is_not_listed_yet_collects_nothing() -> None:
    unlisted = {name: height for name, height in ALL.items() if name != RENEWED}
    async with node_serving("node 2", upgraders=BOTH) as (url, _), serving(renewed().vault()) as client:
        assert await refused(client.collect(url, NEW, evidence=evidence(NEW, unlisted))) == "VAULT_NOT_LISTED"
