"""Entries of a journal with every kind of event and every field of a state, for the golden file."""

from __future__ import annotations

from dataclasses import replace

from dcupgrade.errors import Failure
from dcupgrade.machine import events as e
from dcupgrade.machine.effects import Effect, EffectKind
from dcupgrade.machine.gates import Shut
from dcupgrade.machine.stages import AttestedNode, Permit, RunningNode, SealedKeys, StagedRelease
from dcupgrade.machine.state import ChainFacts, Hold, Name, Record, Release, State
from dcupgrade.upgrade.ports import Entry

A, B, C = "a" * 64, "b" * 64, "c" * 64
OLD = Release(A, "1.0.0", added_height=3)
NEW = Release(
    B, "1.1.0", "http://origin/1", "http://mirror/1", ("bafy1", "bafy2"), (bytes(range(64)), bytes(64)), added_height=7
)
FACTS = ChainFacts(NEW, ((A, 3), (B, 7)), 42)
HOLD = Hold("a holiday", "ann", 1700000999.5)
FULL = State(
    name=Name.DELIVERING,
    running=OLD,
    target=NEW,
    target_since_unix_s=1700000000.25,
    previous=Release(C, "0.9.0", added_height=1),
    previous_until_unix_s=1701209600.0,
    chain=FACTS,
    key_set_id="k" * 64,
    permit_expires_unix_s=1700003600,
    first_install=True,
    crashes=2,
    launches=1,
    target_stopped=True,
    revert_requested=True,
    revoked_accepted=True,
    reason="OPERATOR_REVERT",
    detail="a detail",
    halted="SOURCE_WONT_START",
    resume_to="reverting",
    hold=HOLD,
    approved=B,
    override=C,
    records=(Record(B, 1, 2, "BUDGET_SPENT", True), Record(C)),
)
EVENTS: tuple[e.Event, ...] = (
    e.ChainSeen(FACTS),
    e.HoldCommand("ann", "a holiday", hold=HOLD),
    e.UnholdCommand("ann"),
    e.ApproveCommand("ann", "looks good", B),
    e.OverrideCommand("ann", "", B),
    e.ResumeCommand("ann", "port is free"),
    e.RevertCommand("ann", "slow"),
    e.RevertCommand("ann", "slow", files_damaged="the files are gone"),
    e.NodeServing(A),
    e.NodeExited(A, "signal 9"),
    e.NodeStartFailed(A, Failure("PORT_TAKEN", "transient", "in use")),
    e.UpgradeBegun(B),
    e.BackoffOver(B),
    e.PreviousRetired(C),
    e.Staged(StagedRelease(B)),
    e.StageFailed(B, Failure("DOWNLOAD_TRUNCATED", "transient", "cut off")),
    e.GatesOpen(B),
    e.GatesShut(B, Shut("GATE_HELD", "ann: a holiday")),
    e.Collected(SealedKeys(A, "k" * 64)),
    e.CollectFailed(A, Failure("VAULT_UNREACHABLE", "transient", "down")),
    e.Permitted(Permit(B, 1700003600)),
    e.PermitFailed(B, Failure("PERMIT_REFUSED", "rejected", "no")),
    e.NodeStopped(A),
    e.StopFailed(A, Failure("NODE_STOP_FAILED", "invariant", "hangs")),
    e.Launched(RunningNode(B)),
    e.LaunchFailed(B, Failure("NODE_START_FAILED", "transient", "no")),
    e.Delivered(AttestedNode(B)),
    e.DeliveryFailed(B, Failure("DELIVERY_DEADLINE", "transient", "vault: waiting")),
    e.Healthy(B),
    e.Unhealthy(B, Failure("CANARY_FAILED", "rejected", "cannot")),
    e.CommitDone(B),
    e.SourceServing(A),
    e.SourceFailed(A, Failure("SOURCE_WONT_START", "invariant", "no")),
    e.Settled(A),
    e.Adopted(A),
    e.CommandRefused("ann", why="sing: there is no such command"),
)
WANTED = (
    Effect(EffectKind.KEEP_NODE, A),
    Effect(EffectKind.COLLECT, A, key_set_id="k" * 64),
    Effect(EffectKind.GATES, B, depends_on=("", B, "a holiday", "1700000999.5")),
)


def entries() -> list[Entry]:
    """One entry per event, each a second after the one before it; the last state is full, the others nearly empty."""
    out, before = [], State()
    for number, event in enumerate(EVENTS):
        after = FULL if number == len(EVENTS) - 1 else State(running=OLD, crashes=number)
        out.append(Entry(before, replace(event, at_unix_s=1700000000.0 + number), after, WANTED))
        before = after
    return out
