"""The vault: combines the sealed store, the release decisions and both sides of the handover. No HTTP here.

`keyvault.vault.decisions` decides. Every change of the facts is sealed to disk before the vault acts on it. Work that
changes facts or uses the disk is a step: a synchronous function that runs to its end before the next step begins. While
the vault serves, steps run in one separate thread (`Vault.steps`) and sessions run on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp

from attestation.errors import AttestationError
from attestation.network import decode_multibase
from attestation.policy import Policy, Role
from keyvault.errors import KeyvaultError
from keyvault.handover.holder import Confirmation, Holder, Limits
from keyvault.handover.http_client import confirm, fetch_key_set, node_base_url
from keyvault.handover.key_set import KeySet, wipe
from keyvault.handover.party import Crypto, Party, Tee, peer_verifier
from keyvault.handover.requester import Requester
from keyvault.handover.v1 import V1Holder
from keyvault.handover.v1_http import fetch_key_set_v1
from keyvault.store.sealed_file import KIND_FACTS, KIND_KEY_SET
from keyvault.store.sealed_store import SealedStore

from . import decisions as core
from .chain_state import (
    UNPROVEN_MODES,
    ChainState,
    decode_unproven,
    malformed,
    trust_root,
    verify_proven,
    verify_set_changes,
)
from .hygiene import lock_key_set
from .measured_policy import VaultPolicy
from .opening import NO_SOURCE, open_store
from .record import Facts, Permit
from .steps import Steps

log = logging.getLogger("keyvault")
_ATTEMPTS_MAX: Final = 1024
_COUNT_EVERY_S: Final = 3600.0


@dataclass(frozen=True)
class Clocks:
    """`unix_s` is the host's clock, for permits and retention; `monotonic_s` is for sessions."""

    unix_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic


class Vault:
    """One vault over one sealed store. Call `start` first.

    `signatures`: the network's signatures over this vault's enclave id, 64 bytes each.
    """

    def __init__(
        self,
        tee: Tee,
        policy: VaultPolicy,
        store: SealedStore,
        crypto: Crypto,
        signatures: tuple[bytes, ...],
        clocks: Clocks | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.enclave_id = tee.target_info().enclave_id
        self.policy = policy
        self.condition: KeyvaultError | None = None
        self._tee = tee
        self._store = store
        self._clocks = clocks if clocks is not None else Clocks()
        self._rules = policy.rules(self.enclave_id)
        self._acceptance = Policy(network=policy.network, isvsvn_floor=policy.isvsvn_floor)
        # `core` decides later who may have which keys; any enclave that the network signed may open a session.
        anyone = peer_verifier(tee, self._acceptance, Role.UPGRADER, None)
        self._party = Party(bytes.fromhex(policy.genesis_hash), signatures, tee, crypto, anyone)
        self._holder = Holder(self._party, limits)
        self._v1_holder = V1Holder(self._party, policy.network)
        self.steps = Steps(self._clocks.monotonic_s)
        self._facts = Facts()
        #: enclave id -> state of its newest attempt, for the agent: "challenged", "received" or the code of a refusal
        self._attempts: dict[str, str] = {}
        #: key sets whose retention time is over, but whose sealed copy could not be wiped yet
        self._unwiped: set[str] = set()
        self._collecting = asyncio.Lock()
        self._counted_at = self._clocks.monotonic_s()
        self._uncounted_s = 0.0

    def start(self) -> None:
        """Open the store and load its content.

        Raises STORE_SEAL_KEY_UNSAFE or STORE_WRITE_FAILED. Other problems are kept in `condition`.
        """
        self._party.tee.verify(self._tee.self_report())
        opening = open_store(self._store, self.enclave_id, self._party.crypto.random)
        self._facts, self.condition = opening.facts, opening.condition
        if self.condition is None:
            if not opening.is_saved:  # if there is nothing to write, a full disk must not prevent the start
                self._save(self._facts)
            for collected in self._facts.collected.values():
                if collected.wiped:
                    self._wipe(collected.key_set_id)

    def _save(self, facts: Facts) -> None:
        """Seal the facts, then use them. Takes about a microsecond for each enclave id that was ever listed."""
        self._store.put(KIND_FACTS, "", NO_SOURCE, facts.encode())
        self._facts = facts

    def _now(self) -> int:
        return int(self._clocks.unix_s())

    def _check_condition(self) -> None:
        if self.condition is not None:
            raise self.condition

    # the agent's calls

    def status(self) -> dict[str, Any]:
        """Return the vault's identity and content, for people and the agent. Contains no key material."""
        facts = self._facts
        return {
            "enclave_id": self.enclave_id,
            "tee": self._tee.kind,
            "unsafe": list(self.policy.unsafe()),
            "evidence_mode": self.policy.evidence_mode,
            "condition": self.condition.to_json() if self.condition is not None else None,
            "require_listed_vault": self.policy.require_listed_vault,
            "chain": {
                "genesis_hash": self.policy.genesis_hash,
                "height_floor": max(facts.floor_number, self._rules.floor_number),
                "block_hash": facts.floor_hash,
                "vault_listed": facts.vault_listed,
                "authorities": facts.authorities,
                "checkpoint": self.policy.checkpoint,
            },
            "key_sets": [
                {
                    "key_set_id": entry.key_set_id,
                    "source_id": entry.source_id,
                    "epoch": entry.epoch,
                    "collected_at_unix_s": entry.collected_at_unix_s,
                    "retain_until_unix_s": entry.retain_until_unix_s,
                    "wiped": entry.wiped,
                    "source_added_height": facts.add_heights.get(entry.source_id),
                }
                for entry in facts.collected.values()
            ],
            "permits": [_permit_json(permit) for permit in facts.permits.values()],
            "sessions_open": self._holder.sessions_open,
        }

    async def collect(self, node_url: str, source_id: str, protocol: str, evidence: object | None) -> dict[str, Any]:
        """Collect the running node's key set, seal it and read it back. Returns its id, source and epoch."""
        async with self._collecting:
            self._check_condition()
            base_url = node_base_url(node_url)
            if evidence is not None:
                state = await asyncio.to_thread(self._chain_state, evidence)
                await self.steps.run(lambda: self._save(self._admit(state)))
            core.check_collect(self._facts, self._rules)
            if protocol == "v2":
                return await self._collect_v2(base_url, source_id)
            return await self._collect_v1(base_url, source_id)

    async def _collect_v2(self, base_url: str, source_id: str) -> dict[str, Any]:
        verify = peer_verifier(self._tee, self._acceptance, Role.SOURCE, frozenset({source_id}))
        requester = Requester(replace(self._party, verify_peer=verify))
        async with aiohttp.ClientSession() as session:
            with await fetch_key_set(session, base_url, requester) as key_set:
                answer = await self.steps.run(self.keep, key_set, source_id)
            try:
                await confirm(session, base_url, requester, _sealed_already())
            except KeyvaultError as error:
                # The keys are sealed and read back already; the lost confirmation changes nothing.
                log.warning("the source did not take the confirmation: %s", error)
        return answer

    async def _collect_v1(self, base_url: str, source_id: str) -> dict[str, Any]:
        """Collect over v1: only if the agent requests it and the measured policy allows it."""
        self._check_v1(source_id)
        verify = peer_verifier(self._tee, self._acceptance, Role.SOURCE, frozenset({source_id}))
        async with aiohttp.ClientSession() as session:
            with await fetch_key_set_v1(session, base_url, replace(self._party, verify_peer=verify)) as key_set:
                return await self.steps.run(self.keep, key_set, source_id)

    def _check_v1(self, enclave_id: str) -> None:
        if not self.policy.v1_allowed(enclave_id):
            raise KeyvaultError(
                code="HANDOVER_DOWNGRADE_REFUSED",
                what=f"handover v1 with {enclave_id} was refused",
                why="the measured policy does not allow v1 for this node",
                action="Use v2, or run a vault build whose policy names this node in allow_v1.",
            )

    # handover v1, as holder (V1Port of keyvault.handover.v1_http); only the release decision is a step

    async def v1_challenge(self, query: Mapping[str, str]) -> bytes:
        """Answer `/teerandom`."""
        return self._v1_holder.challenge(query, now_s=self._clocks.monotonic_s())

    async def v1_answer(self, query: Mapping[str, str]) -> bytes:
        """Answer `/secret`, if the measured policy allows v1 for the requester."""
        request = self._v1_holder.accept(query, now_s=self._clocks.monotonic_s())
        self._check_v1(request.enclave_id)
        with await self.steps.run(self.hand_out, request.enclave_id) as key_set:
            return self._v1_holder.seal(request, key_set)

    def keep(self, key_set: KeySet, source_id: str) -> dict[str, Any]:
        """Seal a collected key set; others stay untouched. `put` returns after the file was read back and unsealed."""
        lock_key_set(key_set)
        epoch = self._store.put(KIND_KEY_SET, key_set.key_set_id, bytes.fromhex(source_id), key_set.view())
        self._save(core.record_collected(self._facts, key_set.key_set_id, source_id, epoch, self._now()))
        log.info("sealed key set %s from %s, epoch %d", key_set.key_set_id, source_id, epoch)
        return {"key_set_id": key_set.key_set_id, "source_id": source_id, "epoch": epoch}

    def _admit(self, state: ChainState) -> Facts:
        """Return the facts updated from verified evidence. The caller seals them."""
        return core.admit_evidence(self._facts, self._rules, state, self._now())

    def _chain_state(self, evidence: object) -> ChainState:
        """Verify evidence. Many set changes take seconds, so this runs in a thread beside sessions and steps."""
        mode = evidence.get("mode") if isinstance(evidence, dict) else None
        if mode in UNPROVEN_MODES:
            return decode_unproven(evidence)
        pinned = self._facts.authorities or self.policy.checkpoint
        if mode != "proven" or pinned is None:
            raise malformed("its mode is unknown, or the measured policy pins no checkpoint")
        return verify_proven(evidence, trust_root(self.policy.genesis_hash, pinned, self.policy.layouts))

    async def advance(self, set_changes: list[Any]) -> dict[str, Any]:
        """Verify changes of the chain's authority set and seal the newest set; returns its id and first block.

        Called now and then, it keeps the evidence of a permit short, however long the vault lives.
        """
        self._check_condition()
        known = self._facts.authorities or self.policy.checkpoint
        if known is None:
            raise malformed("the measured policy pins no checkpoint, so there is no authority set to advance")
        proven = await asyncio.to_thread(verify_set_changes, set_changes, known)
        return await self.steps.run(self._advance, proven)

    def _advance(self, proven: Mapping[str, Any]) -> dict[str, Any]:
        facts = core.record_authorities(self._facts, proven)
        if facts is not self._facts:
            self._save(facts)
        current = facts.authorities or proven
        return {"set_id": current["set_id"], "block_number": current["block_number"]}

    async def permit(self, source_id: str, target_id: str, key_set_id: str, evidence: object) -> dict[str, Any]:
        """Verify the evidence and issue (or renew, or repeat) the release permit; it is sealed before it is returned.

        The agent then stops the old node, so the sealed copy must open now, whenever it was read back last.
        """
        self._check_condition()
        state = await asyncio.to_thread(self._chain_state, evidence)
        return await self.steps.run(self._permit, state, source_id, target_id, key_set_id)

    def _permit(self, state: ChainState, source_id: str, target_id: str, key_set_id: str) -> dict[str, Any]:
        admitted = self._admit(state)
        facts, outcome = core.decide_permit(
            admitted,
            self._rules,
            state,
            self._verify_chain_signatures,
            source_id=source_id,
            target_id=target_id,
            key_set_id=key_set_id,
            now=self._now(),
        )
        if isinstance(outcome, Permit):
            try:
                self._open_key_set(key_set_id).wipe()
            except KeyvaultError as error:
                facts, outcome = admitted, error
        if facts != self._facts:
            self._save(facts)
        if isinstance(outcome, KeyvaultError):
            raise outcome
        self._attempts.pop(target_id, None)
        log.info("permit for %s until unix time %d", target_id, outcome.expires_at_unix_s)
        return {
            "target_id": outcome.target_id,
            "block_number": outcome.block_number,
            "block_hash": outcome.block_hash,
            "expires_at_unix_s": outcome.expires_at_unix_s,
        }

    def _verify_chain_signatures(self, enclave_id: str, texts: tuple[str, ...]) -> None:
        signatures = []
        for text in texts:
            try:
                signatures.append(decode_multibase(text))
            except AttestationError:
                continue  # a malformed entry must not hide a good one
        self.policy.network.verify(enclave_id, signatures)

    def delivery(self, target_id: str) -> dict[str, Any]:
        """Return the progress of the handover to a target: {"state", "code", "instances"}."""
        permits = [p for p in self._facts.permits.values() if p.target_id == target_id]
        permit = max(permits, key=lambda p: p.issued_at_unix_s, default=None)
        attempt = self._attempts.get(target_id)
        state = "waiting" if permit is None or permit.state == "issued" else permit.state
        code = None
        if state != "durable" and attempt is not None:
            if attempt in ("challenged", "received"):
                state = attempt if state in ("waiting", "delivered") else state
            else:
                state, code = "refused", attempt
        return {"state": state, "code": code, "instances": permit.instances if permit is not None else 0}

    def retain(self, key_set_id: str, until_unix_s: int) -> dict[str, Any]:
        """Postpone the wiping of a key set."""
        self._check_condition()
        self._save(core.record_retain(self._facts, key_set_id, until_unix_s))
        entry = self._facts.collected[key_set_id]
        return {"key_set_id": key_set_id, "retain_until_unix_s": entry.retain_until_unix_s}

    def committed(self, target_id: str, key_set_id: str) -> dict[str, Any]:
        """Record that the upgrade is committed."""
        self._check_condition()
        self._count_kept(everything=True)
        facts = core.record_committed(self._facts, key_set_id, target_id, self._now())
        if facts != self._facts:
            self._save(facts)
        return {"target_id": target_id, "key_set_id": key_set_id}

    def self_test(self) -> dict[str, Any]:
        """Attest to itself and unseal every sealed key set, for example after an update of the kernel or the microcode.

        Changes nothing, and no key leaves this method. Returns {"attestation", "opened", "failed": {id: code}}.
        """
        self._tee.verify(self._tee.report(self._tee.target_info(), bytes(64)))
        failed = {}
        kept = [entry.key_set_id for entry in self._facts.collected.values() if not entry.wiped]
        for key_set_id in kept:
            try:
                self._open_key_set(key_set_id).wipe()
            except KeyvaultError as error:
                failed[key_set_id] = error.code
        return {"attestation": True, "opened": len(kept) - len(failed), "failed": failed}

    def sweep_sessions(self) -> None:
        """Drop expired sessions. Call it from time to time, on the event loop."""
        self._holder.sweep(self._clocks.monotonic_s())

    def sweep(self) -> list[str]:
        """Wipe sealed copies after their retention time; returns their key set ids. Call it from time to time."""
        if self.condition is not None:
            return []
        self._count_kept()
        over = [
            key_set_id
            for key_set_id in core.wipeable(self._facts, self._rules, self._now())
            if core.kept_long_enough(self._facts, self._rules, key_set_id)
        ]
        for key_set_id in over:
            self._save(core.record_wiped(self._facts, key_set_id))
            log.info("the retention time of key set %s is over: its sealed copy is wiped", key_set_id)
            self._unwiped.add(key_set_id)
        for key_set_id in sorted(self._unwiped):
            self._wipe(key_set_id)
        return over

    def _wipe(self, key_set_id: str) -> None:
        """Wipe a key set that the facts mark as wiped. If the disk fails, the vault still serves and retries later."""
        self._unwiped.discard(key_set_id)
        if not self._facts.collected[key_set_id].wiped:  # it was collected again
            return
        try:
            self._store.wipe(KIND_KEY_SET, key_set_id)
        except KeyvaultError as error:
            log.error("%s", error)
            self._unwiped.add(key_set_id)

    def _count_kept(self, *, everything: bool = False) -> None:
        """Add this process's running time to each retention timer. Seal hourly, and when a timer expires."""
        now = self._clocks.monotonic_s()
        self._uncounted_s += now - self._counted_at
        self._counted_at = now
        counted = core.count_kept(self._facts, int(self._uncounted_s))
        over = any(
            core.kept_long_enough(counted, self._rules, name)
            and not core.kept_long_enough(self._facts, self._rules, name)
            for name in counted.permits
        )
        if everything or over or self._uncounted_s >= _COUNT_EVERY_S:
            self._uncounted_s = 0.0
            if counted is not self._facts:
                self._save(counted)

    # the handover, as holder (HandoverPort of keyvault.handover.http_server)

    async def on_hello(self, body: bytes) -> bytes:
        """Open a session."""
        return self._holder.on_hello(body, self._clocks.monotonic_s())

    async def on_request(self, body: bytes) -> bytes:
        """Verify the requester, decide, seal the new count of deliveries, then deliver."""
        request = self._holder.on_request(body, self._clocks.monotonic_s())
        with await self.steps.run(self.hand_out, request.requester_id, request.wanted) as key_set:
            return self._holder.deliver(request, key_set, self._clocks.monotonic_s())

    def hand_out(self, requester_id: str, wanted: str = "") -> KeySet:
        """Decide on a verified requester, seal the count of deliveries, and return the key set. The caller wipes it.

        Both handover protocols use it. Raises what `core.decide_release` raises.
        """
        try:
            release = core.decide_release(self._facts, self._rules, requester_id, wanted, self._now())
            key_set = self._open_key_set(release.key_set_id)
            try:
                if release.facts is not self._facts:
                    self._save(release.facts)
            except KeyvaultError:
                key_set.wipe()
                raise
        except KeyvaultError as error:
            self._note(requester_id, "challenged" if error.kind == "transient" else error.code)
            raise
        self._attempts.pop(requester_id, None)
        log.info("key set %s goes to its %s %s", release.key_set_id, release.role, requester_id)
        return key_set

    def _note(self, enclave_id: str, attempt: str) -> None:
        if len(self._attempts) >= _ATTEMPTS_MAX and enclave_id not in self._attempts:
            self._attempts.pop(next(iter(self._attempts)))
        self._attempts[enclave_id] = attempt

    def _open_key_set(self, key_set_id: str) -> KeySet:
        try:
            opened = self._store.get(KIND_KEY_SET, key_set_id)
        except KeyvaultError as error:
            raise KeyvaultError(
                code="RELEASE_KEY_SET_UNREADABLE",
                what=f"key set {key_set_id} cannot be handed out",
                why=f"{error.code}: {error.why}",
                action="Everything is kept. `keyvault inspect` on the store shows the problem.",
                kind="invariant",
            ) from error
        try:
            key_set = KeySet(opened.payload)
        finally:
            wipe(opened.payload)
        lock_key_set(key_set)
        return key_set

    async def on_received(self, body: bytes) -> bytes:
        """Accept a receipt (`received`)."""
        confirmation = self._holder.on_received(body, self._clocks.monotonic_s())
        await self.steps.run(self._note, confirmation.requester_id, "received")
        return confirmation.answer

    async def on_durable(self, body: bytes) -> bytes:
        """Record that the keys are durable at the target, and acknowledge it once the record is sealed."""
        confirmation = self._holder.on_durable(body, self._clocks.monotonic_s())
        await self.steps.run(self._record_durable, confirmation)
        return confirmation.answer

    def _record_durable(self, confirmation: Confirmation) -> None:
        facts = core.record_progress(
            self._facts, confirmation.key_set_id, confirmation.requester_id, "durable", self._now()
        )
        if facts is not self._facts:
            self._save(facts)
            log.info("key set %s is durable at %s", confirmation.key_set_id, confirmation.requester_id)
        self._attempts.pop(confirmation.requester_id, None)


async def _sealed_already() -> bool:
    """Seal nothing: the vault sealed the keys before. False: it has no old data, so no canary was opened."""
    return False


def _permit_json(permit: Permit) -> Mapping[str, Any]:
    return {
        "key_set_id": permit.key_set_id,
        "source_id": permit.source_id,
        "target_id": permit.target_id,
        "block_number": permit.block_number,
        "block_hash": permit.block_hash,
        "expires_at_unix_s": permit.expires_at_unix_s,
        "instances": permit.instances,
        "state": permit.state,
        "committed": permit.committed_at_unix_s != 0,
    }
