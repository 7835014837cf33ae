"""Effects from the stop of the old node to the commit of the new one."""

from __future__ import annotations

from dcupgrade.errors import Failure, failure_of
from dcupgrade.machine.effects import Effect
from dcupgrade.machine.events import (
    CommitDone,
    Delivered,
    DeliveryFailed,
    Event,
    Healthy,
    Launched,
    LaunchFailed,
    NodeStopped,
    StopFailed,
    Unhealthy,
)
from dcupgrade.machine.stages import AttestedNode
from dcupgrade.machine.state import Name, State

from .tools import Emit, Tools, failed, problem_of, release_of

FINAL_REFUSALS = ("PERMIT_", "RELEASE_KEY_SET_")
"""Refusals of the vault that no further try of the same target changes; others may pass."""


async def stop_node(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Stop a node's process. If the machine halted because a stop failed, repeat until it succeeds."""
    tries = 0
    while True:
        try:
            await tools.retry("stop the node", lambda: tools.processes.stop(effect.enclave_id))
        except Exception as error:
            if state.name is not Name.HALTED:
                return failed(StopFailed, error, effect.enclave_id)
            tries += 1
            await tools.clock.sleep(tools.pause_s(tries))
        else:
            return NodeStopped(effect.enclave_id)


async def launch(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Start the new version."""
    release = release_of(state, effect)
    try:
        node = await tools.retry("launch", lambda: tools.processes.start(release, first_install=state.first_install))
    except Exception as error:
        return failed(LaunchFailed, error, effect.enclave_id)
    return Launched(node)


async def deliver(tools: Tools, effect: Effect, _state: State, _emit: Emit) -> Event:
    """Watch until the new version has confirmed the keys and serves."""
    return await tools.until_exit(effect.enclave_id, _watch_delivery(tools, effect))


async def _watch_delivery(tools: Tools, effect: Effect) -> Event:
    began = tools.clock.monotonic()
    last, refused_since = "the vault was not asked yet", None
    while True:
        health = await tools.node_http.health(effect.enclave_id)
        if problem := problem_of(health, effect.enclave_id):
            return DeliveryFailed(effect.enclave_id, problem)
        try:
            delivery = await tools.vault.delivery(effect.enclave_id)
            last = f"vault: {delivery.state} {delivery.code} {delivery.detail}, node: {health.status}"
            tools.note("delivery", {"state": delivery.state, "node": health.status})
            # a node that sealed this key set in an earlier attempt serves without requesting it again
            unasked = delivery.state == "waiting" and health.canary and health.key_set_id == effect.key_set_id
            if health.status == "serving" and (unasked or delivery.state in tools.limits.confirmed):
                return Delivered(AttestedNode(effect.enclave_id))
            now = tools.clock.monotonic()
            refused_since = (refused_since or now) if delivery.state == "refused" else None
            if refused_since is not None and (
                delivery.code.startswith(FINAL_REFUSALS) or now - refused_since >= tools.limits.refusal_patience_s
            ):
                code = delivery.code or "DELIVERY_REFUSED"
                return DeliveryFailed(effect.enclave_id, Failure(code, "rejected", last))
        except Exception as error:
            failure = failure_of(error)
            last = failure.detail
            if failure.code == "VAULT_REPLACED":
                return failed(DeliveryFailed, error, effect.enclave_id)
        waited = tools.clock.monotonic() - began
        if waited >= tools.limits.delivery_deadline_s:
            return DeliveryFailed(effect.enclave_id, Failure("DELIVERY_DEADLINE", "transient", last))
        await tools.clock.sleep(tools.pace_s(waited))


async def probation(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Watch the new version for the whole probation time."""
    return await tools.until_exit(effect.enclave_id, _watch_probation(tools, effect, state))


async def _watch_probation(tools: Tools, effect: Effect, state: State) -> Event:
    health = await tools.wait_serving(effect.enclave_id, tools.limits.ready_deadline_s)
    began = tools.clock.monotonic()
    silent = 0
    while True:
        passed = tools.clock.monotonic() - began
        silent = silent + 1 if health.status == "silent" else 0
        problem = problem_of(health, effect.enclave_id)
        if problem is None and health.status != "serving" and (silent == 0 or silent >= tools.limits.silent_probes):
            why = f"its health report says {health.status!r} {health.detail}"
            problem = Failure("NODE_NOT_READY", "rejected", why)
        if problem is not None:
            return Unhealthy(effect.enclave_id, problem)
        tools.note("probation", {"passed_s": passed, "whole_s": tools.limits.probation_s, "canary": health.canary})
        if passed >= tools.limits.probation_s and silent == 0:
            if health.canary is None and not state.first_install and "durable" in tools.limits.confirmed:
                why = "its health report says nothing about the canary"
                return Unhealthy(effect.enclave_id, Failure("CANARY_FAILED", "rejected", why))
            return Healthy(effect.enclave_id)
        await tools.clock.sleep(min(tools.limits.probe_interval_s, max(0.05, tools.limits.probation_s - passed)))
        health = await tools.node_http.health(effect.enclave_id)


async def commit(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Report the commit to the new version, indefinitely, and then to the vault."""
    tries = 0
    with tools.alarm() as alarm:
        while True:
            try:
                await tools.node_http.commit(effect.enclave_id)
                break
            except Exception as error:
                tries += 1
                alarm("COMMIT_NOT_ACKNOWLEDGED", failure_of(error).detail)
                await tools.clock.sleep(tools.pause_s(tries))
    if state.key_set_id:
        try:
            await tools.retry(
                "report the commit to the vault", lambda: tools.vault.committed(effect.enclave_id, state.key_set_id)
            )
        except Exception as error:
            # without the report the vault keeps its sealed copy longer than needed, which is safe
            tools.note("vault_not_told", {"detail": failure_of(error).detail})
    return CommitDone(effect.enclave_id)
