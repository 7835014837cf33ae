"""The vault's decisions: who may have which keys. Pure: facts and verified evidence in, new facts or a refusal out.

Every function takes the facts and returns new ones. The caller seals them to disk before it acts on them. `now` is Unix
time in seconds by the host's clock; there is no trusted time (docs/threat-model.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from keyvault.errors import KeyvaultError, Kind

from .chain_state import ChainState
from .record import PERMIT_STATES, Collected, Facts, Permit

KEY_SETS_MAX: Final = 64
HEIGHTS_MAX: Final = 16384
_CLOCK_SKEW_S: Final = 300

#: Takes an enclave id and signatures (text, as on chain). Raises unless they are the network's over that id.
VerifySignatures = Callable[[str, tuple[str, ...]], None]


@dataclass(frozen=True)
class Rules:
    """The part of the measured policy that the decisions use. Times in seconds, hashes as 64 hex characters.

    `evidence_modes`: accepted modes of evidence; `floor_number`: block number of the embedded checkpoint;
    `transitions`: allowed (source id, target id) pairs, or None for all.
    """

    genesis_hash: str
    vault_id: str
    evidence_modes: frozenset[str] = frozenset({"proven"})
    require_listed_vault: bool = True
    evidence_age_max_s: int = 3600
    permit_ttl_s: int = 3600
    retention_s: int = 7 * 24 * 3600
    instances_max: int = 8
    floor_number: int = 0
    transitions: frozenset[tuple[str, str]] | None = field(default=None)


@dataclass(frozen=True)
class Release:
    """A requester gets this key set. `role`: "target" (named by a permit) or "source" (where the set came from)."""

    facts: Facts
    key_set_id: str
    role: str


def _refuse(code: str, what: str, why: str, action: str = "", kind: Kind = "rejected") -> KeyvaultError:
    return KeyvaultError(code=code, what=what, why=why, action=action, kind=kind)


def admit_evidence(facts: Facts, rules: Rules, state: ChainState, now: int) -> Facts:
    """Return the facts updated from a finalized block: floor, heights, own listing, authority set.

    Raises `VAULT_EVIDENCE_*` if the measured policy does not accept the mode, the block is of another chain, is below
    the floor, differs from the known block at the floor, is too old, or is from the future.
    """
    what = "the chain evidence was refused"
    if state.mode not in rules.evidence_modes:
        raise _refuse(
            "VAULT_EVIDENCE_UNPROVEN",
            what,
            f"its mode is {state.mode}, the measured policy accepts {', '.join(sorted(rules.evidence_modes))}",
            "Watch the chain in a mode this vault accepts, or run a vault build measured with another policy.",
        )
    if state.genesis_hash != rules.genesis_hash:
        raise _refuse(
            "VAULT_EVIDENCE_WRONG_CHAIN", what, f"expected genesis {rules.genesis_hash}, found {state.genesis_hash}"
        )
    floor = max(facts.floor_number, rules.floor_number)
    if state.block_number < floor:
        raise _refuse(
            "VAULT_EVIDENCE_BELOW_FLOOR",
            what,
            f"block {state.block_number} is below block {floor}, which the vault has already seen finalized",
            "Give the state of the newest finalized block.",
        )
    if state.block_number == facts.floor_number and facts.floor_hash not in ("", state.block_hash):
        raise _refuse(
            "VAULT_EVIDENCE_FORKED",
            what,
            f"at height {state.block_number} expected block {facts.floor_hash}, found {state.block_hash}",
            "An endpoint lies, or finality of the chain broke; look at several endpoints.",
        )
    age_s = now - state.timestamp_ms // 1000
    if not -_CLOCK_SKEW_S <= age_s <= rules.evidence_age_max_s:
        raise _refuse(
            "VAULT_EVIDENCE_STALE",
            what,
            f"the block is {age_s} s old by the vault's clock, allowed are {rules.evidence_age_max_s} s",
            "Give the state of the newest finalized block and look at the host's clock.",
            kind="transient",
        )
    heights = state.heights()
    known = _lowest(facts.add_heights, heights)
    return replace(
        facts,
        floor_number=state.block_number,
        floor_hash=state.block_hash,
        vault_listed=rules.vault_id in heights,
        authorities=_newer_set(facts.authorities, state.authorities),
        add_heights=known,
        revoked=frozenset(known.keys() - heights.keys()),
    )


def record_authorities(facts: Facts, authorities: Mapping[str, Any]) -> Facts:
    """Return the facts with a proven authority set. A set that is not newer than the known one is ignored."""
    newest = _newer_set(facts.authorities, authorities)
    return facts if newest is facts.authorities else replace(facts, authorities=newest)


def _newer_set(known: Mapping[str, Any] | None, proven: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the newer set. Two calls can be verified at once; the later one must not restore an older set."""
    if known is None or proven is None:
        return proven if known is None else known
    return proven if proven["set_id"] > known["set_id"] else known


def _lowest(known: Mapping[str, int], listed: Mapping[str, int]) -> Mapping[str, int]:
    """Return the lowest height ever seen of each id, so that listing an id again does not make it newer."""
    if all(known.get(enclave_id, -1) == height for enclave_id, height in listed.items()):
        return known
    merged = dict(known)
    for enclave_id, height in listed.items():
        merged[enclave_id] = min(height, merged.get(enclave_id, height))
    if len(merged) > HEIGHTS_MAX:
        raise _refuse(
            "VAULT_EVIDENCE_MALFORMED",
            "the chain evidence was refused",
            f"more than {HEIGHTS_MAX} different enclave ids were seen in all",
        )
    return MappingProxyType(merged)


def check_collect(facts: Facts, rules: Rules) -> None:
    """Raise unless the vault may collect keys: its id is listed if the policy requires it, and there is room."""
    what = "collecting keys was refused"
    if rules.require_listed_vault and not facts.vault_listed:
        if facts.floor_hash == "":
            raise _refuse(
                "VAULT_EVIDENCE_NEEDED",
                what,
                "the measured policy asks that the vault's own id is listed, and no evidence was given yet",
                "Send chain evidence with the request.",
                kind="transient",
            )
        raise _refuse(
            "VAULT_NOT_LISTED",
            what,
            f"the vault's id {rules.vault_id} is not in the chain's list at block {facts.floor_number}",
            "Publish the vault's enclave id, or measure a vault with require_listed_vault = false.",
        )
    if sum(not entry.wiped for entry in facts.collected.values()) >= KEY_SETS_MAX:
        raise _refuse(
            "VAULT_TOO_MANY_KEY_SETS",
            what,
            f"{KEY_SETS_MAX} key sets are sealed already",
            "Find out which node makes new key sets; sets are wiped after commit and retention.",
            kind="invariant",
        )


def record_collected(facts: Facts, key_set_id: str, source_id: str, epoch: int, now: int) -> Facts:
    """Return the facts after a key set was sealed and read back.

    From now on the set may be returned to this source only. A permit for the same source stays valid; a permit that is
    used up (durable) or names an earlier source is dropped.
    """
    previous = facts.collected.get(key_set_id)
    permit = facts.permits.get(key_set_id)
    if permit is not None and (permit.source_id != source_id or permit.state == "durable"):
        facts = facts.without_permit(key_set_id)
    retain = previous.retain_until_unix_s if previous is not None else 0
    return facts.with_collected(Collected(key_set_id, source_id, epoch, now, retain, False))


def decide_permit(
    facts: Facts,
    rules: Rules,
    state: ChainState,
    verify: VerifySignatures,
    *,
    source_id: str,
    target_id: str,
    key_set_id: str,
    now: int,
) -> tuple[Facts, Permit | KeyvaultError]:
    """Decide on a release permit. `facts` must contain `state` already (`admit_evidence`).

    Returns new facts and either the permit or the refusal. A refusal also withdraws a permit that the target has, so
    that a revocation takes effect. The same request at the same block returns the same permit. At a newer block the
    permit is renewed; its count of deliveries starts again only if the earlier permit was used up or expired.
    """
    held = facts.permits.get(key_set_id)
    try:
        _check_target(facts, rules, state, verify, source_id, target_id, key_set_id)
    except KeyvaultError as refusal:
        if held is not None and held.target_id == target_id and held.state != "durable":
            facts = facts.without_permit(key_set_id)
        return facts, refusal
    permit = Permit(
        key_set_id,
        source_id,
        target_id,
        state.block_number,
        state.block_hash,
        issued_at_unix_s=now,
        expires_at_unix_s=now + rules.permit_ttl_s,
    )
    if held is not None and (held.source_id, held.target_id) == (source_id, target_id):
        over = held.state == "durable" or held.expires_at_unix_s <= now
        if held.block_number == state.block_number and not over:
            return facts, held
        if not over:
            permit = replace(permit, instances=held.instances, state=held.state)
    return facts.with_permit(permit), permit


def _check_target(
    facts: Facts,
    rules: Rules,
    state: ChainState,
    verify: VerifySignatures,
    source_id: str,
    target_id: str,
    key_set_id: str,
) -> None:
    what = f"a permit for {target_id} was refused"
    collected = facts.collected.get(key_set_id)
    if collected is None or collected.source_id != source_id or collected.wiped:
        raise _refuse(
            "PERMIT_KEY_SET_UNKNOWN",
            what,
            f"no sealed key set {key_set_id} from {source_id} is held",
            "Collect the keys of the running node first.",
        )
    if source_id == target_id:
        raise _refuse("PERMIT_TARGET_IS_SOURCE", what, "the source gets its key set back without a permit")
    if rules.require_listed_vault and not facts.vault_listed:
        raise _refuse(
            "VAULT_NOT_LISTED",
            what,
            f"the vault's id {rules.vault_id} is not in the chain's list at block {state.block_number}",
        )
    if state.program_id != target_id:
        raise _refuse(
            "PERMIT_TARGET_NOT_PROGRAM", what, f"DcProgram at block {state.block_number} names {state.program_id}"
        )
    signatures = tuple(entry.signature for entry in state.entries if entry.enclave_id == target_id)
    if not signatures:
        raise _refuse(
            "PERMIT_TARGET_NOT_LISTED",
            what,
            f"EnclaveIds at block {state.block_number} does not list it (never added, or revoked)",
        )
    try:
        verify(target_id, signatures)
    except Exception as error:
        why = getattr(error, "why", type(error).__name__)
        raise _refuse("PERMIT_TARGET_UNSIGNED", what, str(why)) from error
    target_height = facts.add_heights[target_id]
    # A source that was never listed counts as the oldest: every listed target is newer.
    source_height = facts.add_heights.get(source_id, -1)
    if target_height <= source_height:
        raise _refuse(
            "PERMIT_TARGET_NOT_NEWER",
            what,
            f"it was added at height {target_height}, the source {source_id} at {source_height}",
            "To go back to an older program, rebuild it as a newer id and publish that.",
        )
    if rules.transitions is not None and (source_id, target_id) not in rules.transitions:
        raise _refuse(
            "PERMIT_TRANSITION_REFUSED",
            what,
            f"the measured policy does not list the upgrade from {source_id}",
        )


def decide_release(facts: Facts, rules: Rules, requester_id: str, wanted: str, now: int) -> Release:
    """Decide which key set a verified requester gets. `wanted`: a key set's id, or "" for any.

    The exact source of a set may have it back at any time, without permit or chain. Any other requester needs a valid
    permit that names it, and each delivery is counted. An enclave id that the vault has seen removed from the chain's
    list gets nothing. Raises `NO_PERMIT_YET` (transient), `PERMIT_*` and `RELEASE_*`.
    """
    if requester_id in facts.revoked:
        raise _refuse(
            "RELEASE_REVOKED",
            f"keys for {requester_id} were refused",
            f"it is no longer in the chain's list at block {facts.floor_number}",
            "Publish a newer release; the sealed copy is kept for it.",
        )
    permit = _permit_for(facts, requester_id, wanted)
    refusal = _permit_refusal(permit, rules, now) if permit is not None else None
    if permit is not None and refusal is None:
        taken = replace(permit, instances=permit.instances + 1, state="delivered")
        return Release(facts.with_permit(taken), permit.key_set_id, "target")
    own = [
        entry
        for entry in facts.collected.values()
        if entry.source_id == requester_id and wanted in ("", entry.key_set_id)
    ]
    kept = [entry for entry in own if not entry.wiped]
    if kept:
        newest = max(kept, key=lambda entry: (entry.collected_at_unix_s, entry.epoch, entry.key_set_id))
        return Release(facts, newest.key_set_id, "source")
    what = f"keys for {requester_id} were refused"
    if refusal is not None:
        raise refusal
    if own:
        raise _refuse("RELEASE_KEY_SET_WIPED", what, "the set was wiped after its hand-over and the retention time")
    live = [p for p in facts.permits.values() if p.state != "durable" and p.expires_at_unix_s > now]
    if live:
        raise _refuse("PERMIT_OTHER_TARGET", what, "the permit under way names another enclave id")
    raise _refuse(
        "NO_PERMIT_YET",
        what,
        "no release permit names this enclave id",
        "Ask again; the upgrader asks for the permit before it starts a new version.",
        kind="transient",
    )


def _permit_for(facts: Facts, target_id: str, wanted: str) -> Permit | None:
    named = [p for p in facts.permits.values() if p.target_id == target_id and wanted in ("", p.key_set_id)]
    return max(named, key=lambda p: (p.state != "durable", p.issued_at_unix_s, p.key_set_id), default=None)


def _permit_refusal(permit: Permit, rules: Rules, now: int) -> KeyvaultError | None:
    what = f"keys for {permit.target_id} were refused"
    if permit.state == "durable":
        return _refuse(
            "PERMIT_ALREADY_DURABLE",
            what,
            "it already confirmed that it holds the keys durably",
            "Use the sealed copy.",
        )
    if permit.expires_at_unix_s <= now:
        return _refuse(
            "PERMIT_EXPIRED",
            what,
            f"its permit ran out at unix time {permit.expires_at_unix_s}, it is {now}",
            "Ask for a new permit with new chain evidence.",
        )
    if permit.instances >= rules.instances_max:
        return _refuse(
            "PERMIT_INSTANCES_SPENT",
            what,
            f"the keys were handed out {permit.instances} times under this permit, none confirmed them durable",
            "Find out why the new node does not keep the keys, then ask for a new permit.",
        )
    return None


def record_progress(facts: Facts, key_set_id: str, target_id: str, state: str, now: int) -> Facts:
    """Return the facts after a verified `received` or `durable` of a permitted target. The state never goes back.

    A source that got its own set back has no permit, so nothing changes.
    """
    permit = facts.permits.get(key_set_id)
    if permit is None or permit.target_id != target_id:
        return facts
    if PERMIT_STATES.index(permit.state) >= PERMIT_STATES.index(state):
        return facts
    durable_at = now if state == "durable" else permit.durable_at_unix_s
    return facts.with_permit(replace(permit, state=state, durable_at_unix_s=durable_at))


def record_committed(facts: Facts, key_set_id: str, target_id: str, now: int) -> Facts:
    """Return the facts after the agent reported the commit of an upgrade. The retention time begins here."""
    permit = facts.permits.get(key_set_id)
    if permit is None or permit.target_id != target_id or permit.state != "durable":
        raise _refuse(
            "PERMIT_KEY_SET_UNKNOWN",
            "the commit was refused",
            f"no durable hand-over of key set {key_set_id} to {target_id} is known",
        )
    if permit.committed_at_unix_s:
        return facts
    return facts.with_permit(replace(permit, committed_at_unix_s=max(now, 1)))


def record_retain(facts: Facts, key_set_id: str, until_unix_s: int) -> Facts:
    """Return the facts with the wiping of a key set postponed. A time before the known one is ignored."""
    entry = facts.collected.get(key_set_id)
    if entry is None:
        raise _refuse("PERMIT_KEY_SET_UNKNOWN", "the retention was refused", f"no key set {key_set_id} is known")
    if until_unix_s <= entry.retain_until_unix_s:
        return facts
    return facts.with_collected(replace(entry, retain_until_unix_s=until_unix_s))


def wipeable(facts: Facts, rules: Rules, now: int) -> list[str]:
    """Return the key sets whose sealed copy may be wiped: durable at the target, committed, retention over."""
    return [
        permit.key_set_id
        for permit in facts.permits.values()
        if permit.state == "durable"
        and permit.committed_at_unix_s
        and max(permit.durable_at_unix_s, permit.committed_at_unix_s) + rules.retention_s <= now
        and facts.collected[permit.key_set_id].retain_until_unix_s <= now
        and not facts.collected[permit.key_set_id].wiped
    ]


def count_kept(facts: Facts, seconds: int) -> Facts:
    """Return the facts with `seconds` of running time added to each permit whose retention time runs.

    Returns the same object if there is nothing to add.
    """
    counted = {
        name: replace(permit, kept_s=permit.kept_s + seconds)
        for name, permit in facts.permits.items()
        if permit.committed_at_unix_s and not facts.collected[name].wiped
    }
    return replace(facts, permits=MappingProxyType({**facts.permits, **counted})) if counted and seconds else facts


def kept_long_enough(facts: Facts, rules: Rules, key_set_id: str) -> bool:
    """Tell whether the vault has run for the whole retention time, so that a jump of the host's clock wipes nothing."""
    return facts.permits[key_set_id].kept_s >= rules.retention_s


def record_wiped(facts: Facts, key_set_id: str) -> Facts:
    """Return the facts with a key set marked as wiped. The caller seals them before it overwrites the file."""
    return facts.with_collected(replace(facts.collected[key_set_id], wiped=True))
