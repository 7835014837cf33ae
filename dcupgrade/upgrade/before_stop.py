"""Effects before the old node stops: download, gates, keys, permit. A failure here does not affect the old node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dcupgrade.errors import DcupgradeError, failure_of
from dcupgrade.machine import gates
from dcupgrade.machine.effects import Effect
from dcupgrade.machine.events import (
    BackoffOver,
    Collected,
    CollectFailed,
    Event,
    GatesOpen,
    GatesShut,
    PermitFailed,
    Permitted,
    PreviousRetired,
    Staged,
    StageFailed,
)
from dcupgrade.machine.stages import Permit, SealedKeys, StagedRelease
from dcupgrade.machine.state import Release, State

from .tools import Emit, Tools, failed, release_of

PREFLIGHT_PAUSE_S = 2.0
"""Seconds until the host is checked again after a failed check."""
FLEET_PAUSE_S = 15.0
"""Seconds, on average, until the fleet is asked for a place again."""


async def backoff(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Wait before a release is tried again."""
    record = state.record(effect.enclave_id)
    await tools.clock.sleep(tools.pause_s(record.abandoned + record.reverted))
    return BackoffOver(effect.enclave_id)


async def retire(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Wait until the previous version's retention time is over, then remove its files if the settings say so."""
    while (left := state.previous_until_unix_s - tools.clock.now()) > 0:
        await tools.clock.sleep(min(left, 3600.0))
    if tools.limits.remove_previous:
        try:
            await tools.retry("remove the previous version", lambda: tools.slots.remove_slot(effect.enclave_id))
        except Exception as error:
            tools.note("retire_failed", {"enclave_id": effect.enclave_id, "detail": str(error)})
    return PreviousRetired(effect.enclave_id)


async def stage(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Download and verify the release.

    A wrong artefact may come from a wrong mirror, so the download is retried even then. Only if every attempt gave a
    wrong artefact, the release itself counts as faulty.
    """
    release = release_of(state, effect)
    refusals = 0

    async def fetch() -> StagedRelease:
        nonlocal refusals
        try:
            return await tools.fetch(release)
        except Exception as error:
            refusals += failure_of(error).kind == "rejected"
            raise

    try:
        return Staged(await tools.retry("download", fetch, also_refusals=True))
    except Exception as error:
        failure = failure_of(error)
        may_pass = failure.kind == "rejected" and refusals < tools.limits.attempts
        return StageFailed(effect.enclave_id, replace(failure, kind="transient") if may_pass else failure)


async def open_gates(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Wait until no gate is shut, the host's checks pass, and the fleet has a free slot for this node.

    The slot is requested last, so that a node that waits for its window does not block others.
    """
    release = release_of(state, effect)
    while True:
        now = tools.clock.now()
        shut = _shut_gates(tools, effect, state)
        pause_s = gates.recheck_after_s(shut, now)
        if not shut:
            shut = await _host_gates(tools, release, state)
            pause_s = min(PREFLIGHT_PAUSE_S, tools.limits.backoff_max_s)
        if shut:
            await tools.fleet.give_back()
        else:
            shut = await tools.fleet.take(release)
            # the pause varies by node and time, so that the nodes of a fleet do not ask the engine all at once
            pause_s = FLEET_PAUSE_S * (0.5 + gates.fraction(tools.rules.node_id, str(now)))
        if not shut:
            tools.show_gates(())
            return GatesOpen(effect.enclave_id)
        tools.show_gates(shut)
        await tools.clock.sleep(pause_s)


async def _host_gates(tools: Tools, release: Release, state: State) -> tuple[gates.Shut, ...]:
    source_id = state.running.enclave_id if state.running else ""
    try:
        return tuple(await tools.host.preflight(release, source_id, state.first_install))
    except Exception as error:
        return (gates.Shut("GATE_PREFLIGHT", failure_of(error).detail),)


def _shut_gates(tools: Tools, effect: Effect, state: State) -> tuple[gates.Shut, ...]:
    return gates.shut_gates(
        tools.rules,
        enclave_id=effect.enclave_id,
        since_unix_s=state.target_since_unix_s,
        now_unix_s=tools.clock.now(),
        hold=state.hold,
        approved=state.approved,
        override=state.override,
    )


async def collect(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Have the vault collect and seal the running node's key set."""
    target = state.target.enclave_id if state.target else ""

    async def ask() -> SealedKeys:
        try:
            evidence = await _evidence(tools, target, effect.enclave_id)
            return await tools.vault.collect(effect.enclave_id, evidence)
        except Exception:
            earlier = await _earlier_copy(tools, effect.enclave_id)
            if earlier is None:
                raise
            tools.note("sealed_copy_used", {"key_set_id": earlier.key_set_id})
            return earlier

    try:
        keys = await tools.retry("collect keys", ask)
    except Exception as error:
        return failed(CollectFailed, error, effect.enclave_id)
    return Collected(keys)


async def _earlier_copy(tools: Tools, source_id: str) -> SealedKeys | None:
    """Return the key set sealed in an earlier attempt, if the node is down and this set is the one that it has now.

    Raises NO_KEYS_ANYWHERE if the node runs but cannot unseal its keys, and the vault has none either.
    """
    if await tools.processes.is_alive(source_id):
        health = await tools.node_http.health(source_id)
        if health.status == "waiting_for_keys" and not await tools.vault.holds_keys_of(source_id, ""):
            raise DcupgradeError(
                code="NO_KEYS_ANYWHERE",
                what=f"keys of {source_id}",
                why="the running version cannot unseal them and the vault has no copy",
                kind="invariant",
            )
        return None
    key_set_id = await tools.processes.key_set_id()
    held = key_set_id and await tools.vault.holds_keys_of(source_id, key_set_id)
    return SealedKeys(source_id, key_set_id) if held else None


async def permit(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Have the vault issue the release permit, and check the gates once more before downtime begins."""
    source = state.running.enclave_id if state.running else ""

    async def ask() -> Permit:
        evidence = await _evidence(tools, effect.enclave_id, source)
        return await tools.vault.permit(source, effect.enclave_id, effect.key_set_id, evidence)

    try:
        permitted = await tools.retry("release permit", ask)
    except Exception as error:
        return failed(PermitFailed, error, effect.enclave_id)
    shut = _shut_gates(tools, effect, state)
    if not shut:  # the slot is already held: this checks whether the fleet was halted in between
        shut = await tools.fleet.take(release_of(state, effect))
    if shut:
        return GatesShut(effect.enclave_id, shut[0])
    return Permitted(permitted)


async def _evidence(tools: Tools, target_id: str, source_id: str) -> Mapping[str, Any]:
    return await tools.chain.evidence(target_id, source_id, await tools.vault.status())
