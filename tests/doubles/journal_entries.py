"""Entries of a journal with every kind of event and every field of a state, for the golden file."""

from __future__ import annotations

from dataclasses import replace

from dcupgrade.machine.events import Effect, EffectKind, Event, EventKind
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
E = EventKind
EVENTS = (
    Event(E.CHAIN, chain=FACTS),
    Event(E.HOLD, hold=HOLD, who="ann", detail="a holiday"),
    Event(E.UNHOLD, who="ann"),
    Event(E.APPROVE, B, who="ann", detail="looks good"),
    Event(E.OVERRIDE, B, who="ann"),
    Event(E.RESUME, who="ann", detail="port is free"),
    Event(E.REVERT, who="ann", detail="slow"),
    Event(E.REVERT, code="SOURCE_SLOT_DAMAGED", who="ann", detail="the files are gone"),
    Event(E.NODE_SERVING, A),
    Event(E.NODE_EXITED, A, code="NODE_EXITED", detail="signal 9"),
    Event(E.NODE_START_FAILED, A, code="PORT_TAKEN", detail="in use", failure="transient"),
    Event(E.BEGIN, B),
    Event(E.BACKOFF_OVER, B),
    Event(E.RETIRED, C),
    Event(E.STAGED, B),
    Event(E.STAGE_FAILED, B, code="DOWNLOAD_TRUNCATED", detail="cut off", failure="transient"),
    Event(E.GATES_OPEN, B),
    Event(E.GATES_SHUT, B, code="GATE_HELD", detail="ann: a holiday"),
    Event(E.COLLECTED, A, key_set_id="k" * 64),
    Event(E.COLLECT_FAILED, A, code="VAULT_UNREACHABLE", detail="down", failure="transient"),
    Event(E.PERMITTED, B, expires_unix_s=1700003600),
    Event(E.PERMIT_FAILED, B, code="PERMIT_REFUSED", detail="no", failure="rejected"),
    Event(E.NODE_STOPPED, A),
    Event(E.STOP_FAILED, A, code="NODE_STOP_FAILED", detail="hangs", failure="invariant"),
    Event(E.LAUNCHED, B),
    Event(E.LAUNCH_FAILED, B, code="NODE_START_FAILED", detail="no", failure="transient"),
    Event(E.DELIVERED, B),
    Event(E.DELIVERY_FAILED, B, "DELIVERY_DEADLINE", "vault: waiting", failure="transient"),
    Event(E.HEALTHY, B),
    Event(E.UNHEALTHY, B, "CANARY_FAILED", "cannot", failure="rejected"),
    Event(E.COMMIT_DONE, B),
    Event(E.SOURCE_SERVING, A),
    Event(E.SOURCE_FAILED, A, "SOURCE_WONT_START", "no", failure="invariant"),
    Event(E.SETTLED, A),
    Event(E.ADOPTED, A, detail="no node was known"),
    Event(E.WORD_REFUSED, who="ann", detail="sing: there is no such command"),
)
WANTED = (
    Effect(EffectKind.KEEP_NODE, A),
    Effect(EffectKind.COLLECT, A, key_set_id="k" * 64),
    Effect(EffectKind.GATES, B, words=("", B, "a holiday", "1700000999.5")),
)


def entries() -> list[Entry]:
    """One entry per event, each a second after the one before it; the last state is full, the others nearly empty."""
    out, before = [], State()
    for number, event in enumerate(EVENTS):
        after = FULL if number == len(EVENTS) - 1 else State(running=OLD, crashes=number)
        out.append(Entry(before, replace(event, at_unix_s=1700000000.0 + number), after, WANTED))
        before = after
    return out
