"""What a vault finds in its store when it starts: its facts, key sets that they do not know yet, and what is wrong.

Facts and key sets of one store carry the same random id. A host that hides all of them for one start gets a new store
with another id: key sets that it puts back later do not belong to the new facts, which know nothing of heights,
revocations and permits, and so go to nobody but their source.
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
    """What was found. `condition` is why the vault may not collect or permit; `is_saved`: the facts are on disk so."""

    facts: Facts
    condition: KeyvaultError | None
    is_saved: bool


def open_store(store: SealedStore, own_id: str, random: Callable[[int], bytes]) -> Opening:
    """Read the facts, take up key sets they do not know, and find conditions. Sets the store's id.

    `own_id` is the vault's enclave id, `random` gives n unpredictable bytes. Raises STORE_SEAL_KEY_UNSAFE.
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
    """Seal a store from before there were ids anew: key sets first, both generations, the facts last.

    A crash in between leaves facts without an id, which belong to any key set, and it is done again. So it is after a
    disk error, which keeps no vault from serving.
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
    """Take up what a crash left between sealing a key set and the facts: what its header says is authenticated."""
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
        what="the vault gives out no permits",
        why=f"sealed key sets are there, but {why}",
        action="Restore the store's folder. Sources can still have their key sets back.",
        kind="invariant",
    )


def _replaced(sealers: list[str]) -> KeyvaultError:
    return KeyvaultError(
        code="VAULT_REPLACED",
        what="the vault neither collects nor permits",
        why=f"its store was sealed by another build: {', '.join(sealers)}",
        action="Run that build until its store is empty, or give this one a store of its own.",
        kind="invariant",
    )
