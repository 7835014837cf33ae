"""Opening the store when the vault starts: its facts, key sets that the facts do not list yet, and problems.

Facts and key sets of one store carry the same random id. If the host hides all of them for one start, the vault creates
a new store with another id. When the host puts the old key sets back later, their id differs from that of the new
facts. The new facts know no heights, revocations or permits, so the vault returns those key sets to their source only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from keyvault.errors import KeyvaultError
from keyvault.handover.key_set import wipe
from keyvault.store.sealed_file import KIND_FACTS, KIND_KEY_SET, NO_STORE_ID, STORE_ID_BYTES, Header
from keyvault.store.sealed_store import SealedStore

from .decisions import record_collected
from .record import Facts, decode_facts

log = logging.getLogger("keyvault")
NO_SOURCE = bytes(32)
"""Release id in the header of sealed facts."""


@dataclass(frozen=True)
class Opening:
    """What was found. `condition`: why the vault must not collect or permit. `is_saved`: `facts` are as on disk."""

    facts: Facts
    condition: KeyvaultError | None
    is_saved: bool


def open_store(store: SealedStore, own_id: str, random: Callable[[int], bytes]) -> Opening:
    """Read the facts, add key sets that they do not list, and look for problems. Sets the store's id.

    `own_id`: the vault's enclave id. `random(n)` returns n unpredictable bytes. Raises STORE_SEAL_KEY_UNSAFE.
    """
    entries = store.entries()
    for entry in entries:
        if entry.problem is not None:
            log.error("%s: %s", entry.file, entry.problem)
    headers = [entry.header for entry in entries if entry.problem is None and entry.header is not None]
    key_sets = [header for header in headers if header.kind == KIND_KEY_SET]
    condition = None
    sealed: Facts | None = None
    try:
        opened = store.get(KIND_FACTS, "")
        store.store_id = opened.header.store_id
        sealed = decode_facts(opened.payload)
    except KeyvaultError as error:
        if error.code == "STORE_SEAL_KEY_UNSAFE":
            raise
        if error.code != "STORE_MISSING" or key_sets:
            condition = _facts_missing("the sealed record of permits and heights is gone or cannot be opened")
        else:
            store.store_id = random(STORE_ID_BYTES)
    if sealed is not None and store.store_id != NO_STORE_ID and any(h.store_id != store.store_id for h in key_sets):
        condition = _facts_missing("the sealed record of permits and heights belongs to another store")
    others = sorted({entry.sealer for entry in entries if entry.sealer != own_id})
    if others:
        condition = _replaced(others)
    if condition is None and sealed is not None and store.store_id == NO_STORE_ID:
        _give_store_id(store, sealed, key_sets, random)
    facts = _adopted(sealed if sealed is not None else Facts(), key_sets)
    return Opening(facts, condition, facts is sealed)


def _give_store_id(store: SealedStore, facts: Facts, key_sets: list[Header], random: Callable[[int], bytes]) -> None:
    """Give an id to a store of an earlier format: seal both generations of each key set again, then the facts.

    Facts without an id accept any key set. So after a crash or a disk error in between, the vault still serves, and
    repeats this at its next start.
    """
    known = {header.store_id for header in key_sets} - {NO_STORE_ID}
    store.store_id = known.pop() if len(known) == 1 else random(STORE_ID_BYTES)
    try:
        for name in sorted({header.name.hex() for header in key_sets}):
            opened = store.get(KIND_KEY_SET, name)
            try:
                for _ in range(2):
                    store.put(KIND_KEY_SET, name, opened.header.source, opened.payload)
            finally:
                wipe(opened.payload)
        store.put(KIND_FACTS, "", NO_SOURCE, facts.encode())
    except KeyvaultError as error:
        store.store_id = NO_STORE_ID
        log.warning("the store keeps its earlier format for now: %s", error)


def _adopted(facts: Facts, key_sets: Iterable[Header]) -> Facts:
    """Add key sets that were sealed just before a crash, before the facts were. Their headers are authenticated."""
    for header in key_sets:
        name, source = header.name.hex(), header.source.hex()
        known = facts.collected.get(name)
        if known is None or (header.epoch > known.epoch and source != known.source_id and not known.wiped):
            at = known.collected_at_unix_s if known is not None else 0
            facts = record_collected(facts, name, source, header.epoch, at)
    return facts


def _facts_missing(why: str) -> KeyvaultError:
    return KeyvaultError(
        code="VAULT_FACTS_MISSING",
        what="the vault issues no permits",
        why=f"sealed key sets are there, but {why}",
        action="Restore the store's folder. Sources still get their key sets back.",
        kind="invariant",
    )


def _replaced(sealers: list[str]) -> KeyvaultError:
    return KeyvaultError(
        code="VAULT_REPLACED",
        what="the vault neither collects nor permits",
        why=f"its store was sealed by another build: {', '.join(sealers)}",
        action="Run that build until its store is empty, or give this one another store.",
        kind="invariant",
    )
