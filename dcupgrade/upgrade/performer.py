"""Perform the effects of the machine. Every effect is safe to repeat and safe to cancel.

An effect waits, retries transient failures, and returns the event that ends it. The machine's table decides what comes
next.
"""

from __future__ import annotations

from dcupgrade.machine.effects import Effect, EffectKind
from dcupgrade.machine.events import (
    CollectFailed,
    DeliveryFailed,
    Event,
    FailureEvent,
    LaunchFailed,
    PermitFailed,
    Settled,
    SourceFailed,
    StageFailed,
    StopFailed,
    Unhealthy,
    UpgradeBegun,
)
from dcupgrade.machine.state import Name, State

from . import before_stop, running_node, stop_to_commit, way_back
from .tools import Emit, Tools, Work, at_once, failed

WORK: dict[EffectKind, Work] = {
    EffectKind.KEEP_NODE: running_node.keep_node,
    EffectKind.AWAIT_SOURCE: running_node.await_source,
    EffectKind.BEGIN: at_once(UpgradeBegun),
    EffectKind.BACKOFF: before_stop.backoff,
    EffectKind.RETIRE: before_stop.retire,
    EffectKind.STAGE: before_stop.stage,
    EffectKind.GATES: before_stop.open_gates,
    EffectKind.COLLECT: before_stop.collect,
    EffectKind.PERMIT: before_stop.permit,
    EffectKind.STOP_NODE: stop_to_commit.stop_node,
    EffectKind.LAUNCH: stop_to_commit.launch,
    EffectKind.DELIVER: stop_to_commit.deliver,
    EffectKind.PROBATION: stop_to_commit.probation,
    EffectKind.COMMIT: stop_to_commit.commit,
    EffectKind.START_SOURCE: way_back.start_source,
    EffectKind.SETTLE: at_once(Settled),
}


async def perform(tools: Tools, effect: Effect, state: State, emit: Emit) -> Event:
    """Do the work and return the event that ends it; `emit` takes events before that.

    Every expected failure becomes an event. Raises only for a fault of the program, and for cancellation.
    """
    return await WORK[effect.kind](tools, effect, state, emit)


FAILURES: dict[EffectKind, type[FailureEvent]] = {
    EffectKind.STAGE: StageFailed,
    EffectKind.COLLECT: CollectFailed,
    EffectKind.PERMIT: PermitFailed,
    EffectKind.STOP_NODE: StopFailed,
    EffectKind.LAUNCH: LaunchFailed,
    EffectKind.DELIVER: DeliveryFailed,
    EffectKind.PROBATION: Unhealthy,
    EffectKind.START_SOURCE: SourceFailed,
}
"""What an effect ends with that failed unexpectedly, again and again. The others are repeated indefinitely."""


def failure_event(effect: Effect, state: State, error: Exception) -> Event | None:
    """Return the event of an effect that failed unexpectedly; None for an effect that is repeated indefinitely."""
    ended = FAILURES.get(effect.kind)
    if ended is None or (ended is StopFailed and state.name is Name.HALTED):
        return None
    return failed(ended, error, effect.enclave_id)
