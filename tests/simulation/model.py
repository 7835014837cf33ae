"""A small model of the world around the machine: processes, slots, sealed keys, vault, chain. Values only.

Three releases: "a" runs at first, "b" is published, "c" may be published over it. Nodes move by themselves (they boot,
ask for keys, seal them), and so does the vault; the agent moves through `effects`. Nothing here knows the machine's
view: the model starts whatever it is told to start, so that only the machine keeps two nodes from running at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from dcupgrade.errors import Failure
from dcupgrade.machine import events as e
from dcupgrade.machine.effects import Effect, EffectKind
from dcupgrade.machine.gates import Shut
from dcupgrade.machine.stages import AttestedNode, Permit, RunningNode, SealedKeys, StagedRelease
from dcupgrade.machine.state import ChainFacts, Name, Release, State
from dcupgrade.upgrade.performer import failure_event

HEIGHTS = {"a": 1, "b": 2, "c": 3}
RELEASES = {name: Release(name, version=name, added_height=height) for name, height in HEIGHTS.items()}
MOVED_B = replace(RELEASES["b"], origin_url="http://corrected")
F = EffectKind
REVOKED_START = "a version known to be revoked was started"


@dataclass(frozen=True, slots=True)
class Traits:
    """What does not change within a run. `target` is how release "b" behaves, `source` how "a" does.

    target: good, bad (its artefact is refused), misplaced (its first address gives something else), dies (at start),
    mute (never ready), blind (cannot decrypt the canary), frail (dies in probation). source: good, broken (does not
    start again), forgetful (cannot unseal its own keys any more), gone (none: first install). `lags`: an endpoint may
    show the chain as it was before its last change. `fleet`: an upgrade needs one of the fleet's slots.
    """

    target: str = "good"
    source: str = "good"
    source_dead: bool = False
    remove_previous: bool = False
    lags: bool = False
    fleet: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """Everything outside the agent. `nodes` maps living nodes to starting, waiting, holding or serving."""

    traits: Traits
    nodes: tuple[tuple[str, str], ...]
    slots: frozenset[str]
    sealed: frozenset[str]
    program: str = "b"
    listed: frozenset[str] = frozenset("abc")
    vault: str = "up"
    vault_keys_of: str = ""
    permit: str = ""
    durable: frozenset[str] = frozenset()
    given_to: frozenset[str] = frozenset()
    told_commit: frozenset[str] = frozenset()
    vault_told: bool = False
    locked: bool = False
    moved: bool = False
    """Whether release "b" was published again under other addresses."""
    lost: frozenset[str] = frozenset()
    """Releases whose files a fault took away."""
    unseen_exit: str = ""
    knew_revoked: frozenset[str] = frozenset()
    older: ChainFacts | None = None
    """What an endpoint that lags shows: the chain before its last change."""
    slot: bool = False
    """Whether this node holds one of the fleet's slots."""
    fleet_full: bool = False
    """Whether other nodes hold all of the fleet's slots."""
    broken_rule: str = ""
    """The first rule that an act of the agent broke at the moment of the act."""
    went_back: bool = False
    """Whether an older node was started after a newer one had been told to commit."""

    def phase(self, name: str) -> str:
        """How far a node is; empty when it is down."""
        return dict(self.nodes).get(name, "")

    def with_node(self, name: str, phase: str) -> World:
        """The node in another phase; down when the phase is empty."""
        rest = tuple(item for item in self.nodes if item[0] != name)
        return replace(self, nodes=tuple(sorted((*rest, (name, phase)))) if phase else rest)

    def owner(self) -> str:
        """The release that owns the data for good: told to commit last, or there from the beginning."""
        told = max(self.told_commit, default="")
        return told or ("a" if "a" in self.sealed else "")

    def breaking(self, rule: str) -> World:
        """The world with a broken rule noted; the first one stays."""
        return self if self.broken_rule else replace(self, broken_rule=rule)

    def facts(self) -> ChainFacts:
        """What the agent would see of the chain now."""
        program = MOVED_B if self.moved and self.program == "b" else RELEASES.get(self.program)
        return ChainFacts(program, tuple(sorted((name, HEIGHTS[name]) for name in self.listed)), 1)


@dataclass(frozen=True, slots=True)
class Move:
    """Something that can happen next. `worlds` are the worlds it passes through, the last is where it ends.

    An effect's move carries the event that the agent gets, if any. A fault is anything that need not happen.
    """

    name: str
    worlds: tuple[World, ...]
    event: e.Event | None = None
    fault: bool = False


Perform = Callable[[Effect, State, World], Iterator[Move]]


def own_moves(world: World) -> Iterator[Move]:
    """What nodes and the vault do by themselves."""
    for name, phase in world.nodes:
        if phase == "starting":
            yield from _boot(world, name)
        elif phase == "waiting" and world.vault == "up":
            allowed = world.permit == name or world.vault_keys_of == name
            if allowed and world.vault_keys_of:
                after = replace(world.with_node(name, "holding"), given_to=world.given_to | {name})
                yield Move(f"{name} receives the keys", (after,))
        elif phase == "holding":
            after = world.with_node(name, "serving")
            after = replace(after, sealed=world.sealed | {name}, durable=world.durable | {name})
            yield Move(f"{name} seals the keys", (after,))
    if world.traits.target == "misplaced" and world.program == "b" and not world.moved:
        yield Move("b's address is corrected", (replace(world, moved=True),))
    if world.vault == "down":
        yield Move("the vault comes back", (replace(world, vault="up"),))
    if world.locked:
        yield Move("the data lock is let go", (replace(world, locked=False),))
    if world.fleet_full:
        yield Move("another node frees its slot", (replace(world, fleet_full=False),))


def agent_moves(state: State, world: World) -> Iterator[Move]:
    """What the agent does beside its effects: it frees the fleet's slot once the machine is idle."""
    if world.slot and state.name is Name.IDLE:
        yield Move("the slot is freed", (replace(world, slot=False),))


def _boot(world: World, name: str) -> Iterator[Move]:
    traits = world.traits
    if name == "b" and traits.target == "dies":
        yield Move("b dies at start", (replace(world.with_node(name, ""), unseen_exit=name),))
    elif name == "b" and traits.target == "mute":
        return
    elif name in world.sealed and not (name == "a" and traits.source == "forgetful"):
        yield Move(f"{name} serves", (world.with_node(name, "serving"),))
    elif traits.source == "gone" and not world.sealed:
        after = replace(world.with_node(name, "serving"), sealed=frozenset(name))
        yield Move(f"{name} makes the first keys", (after,))
    else:
        yield Move(f"{name} waits for keys", (world.with_node(name, "waiting"),))


def faults(world: World) -> Iterator[Move]:
    """What may go wrong outside the agent, at any time."""
    for name, phase in world.nodes:
        dead = replace(world.with_node(name, ""), unseen_exit=name)
        yield Move(f"{name} crashes while {phase}", (dead,), fault=True)
    if world.vault == "up":
        yield Move("the vault goes down", (replace(world, vault="down"),), fault=True)
        yield Move("the vault is replaced", (replace(world, vault="replaced"),), fault=True)
    if world.permit:
        yield Move("the permit expires", (replace(world, permit=""),), fault=True)
    if "a" in world.slots and not world.phase("a") and "b" in world.slots:
        yield Move(
            "the files of a are lost", (replace(world, slots=world.slots - {"a"}, lost=frozenset("a")),), fault=True
        )
    if not world.locked and not world.nodes:
        yield Move("another process locks the data", (replace(world, locked=True),), fault=True)
    if world.traits.fleet and not world.slot and not world.fleet_full:
        yield Move("other nodes take all slots", (replace(world, fleet_full=True),), fault=True)
    for move in chain_moves(world):
        older = world.facts() if world.traits.lags else None
        yield replace(move, worlds=(replace(move.worlds[-1], older=older),))


def chain_moves(world: World) -> Iterator[Move]:
    """What the network may decide."""
    if world.program == "b" and not world.moved and world.traits.target == "bad":
        yield Move("b is published elsewhere", (replace(world, moved=True),), fault=True)
    if world.program == "b":
        yield Move("c is published", (replace(world, program="c", listed=world.listed | {"c"}),), fault=True)
        yield Move("the program is withdrawn", (replace(world, program=""),), fault=True)
    for name in sorted(world.listed & {"a", "b"}):
        program = "" if world.program == name else world.program
        after = replace(world, listed=world.listed - {name}, program=program)
        yield Move(f"{name} is revoked", (after,), fault=True)


def effect_moves(effect: Effect, state: State, world: World) -> Iterator[Move]:
    """How performing an effect can go in this world: what the performers do, in small steps."""
    yield from _PERFORM[effect.kind](effect, state, world)
    ended = failure_event(effect, state, RuntimeError("a fault of the program"))
    if ended is not None:
        yield Move(f"{effect.kind.value} fails unexpectedly", (world,), ended, True)


def _failed(event: type[e.FailureEvent], effect: Effect, code: str, kind: str = "transient") -> e.FailureEvent:
    return event(effect.enclave_id, Failure(code, kind, ""))


def _coded(event: e.FailureEvent, code: str, kind: str = "") -> e.FailureEvent:
    """The same failure under another code, and of another kind if one is given."""
    return replace(event, failure=Failure(code, kind or event.failure.kind, ""))


def _start(world: World, effect: Effect, label: str, event: e.Event | None) -> Iterator[Move]:
    name = effect.enclave_id
    if world.phase(name):
        if event is not None:
            yield Move(label, (world,), event)
        return
    began = replace(world.with_node(name, "starting"), unseen_exit="")
    if effect.kind is not F.KEEP_NODE and name in world.knew_revoked:
        began = began.breaking(REVOKED_START)
    if any(HEIGHTS[name] < HEIGHTS[told] for told in world.told_commit):
        began = replace(began, went_back=True)
    yield Move(label, (began,), event)


def _keep(effect: Effect, state: State, world: World) -> Iterator[Move]:
    name = effect.enclave_id
    broken = name == "a" and world.traits.source == "broken"
    if world.unseen_exit == name and not world.phase(name):
        yield Move("keep: it ended", (replace(world, unseen_exit=""),), e.NodeExited(effect.enclave_id))
    elif not world.phase(name) and name not in world.slots:
        yield Move("keep: fetch", (_fetched(world, name),))
        yield Move("keep: fetch fails", (world,), _failed(e.NodeStartFailed, effect, "DOWNLOAD_UNREACHABLE"), True)
    elif not world.phase(name):
        if broken or world.locked:
            yield Move("keep: start fails", (world,), _failed(e.NodeStartFailed, effect, "NODE_START_FAILED"))
        else:
            for move in _start(world, effect, "keep: start", None):
                # kept in idle a revoked version continues to serve; on the way back it is not to be started
                back = state.resume_to == "reverting" and name in world.knew_revoked
                yield replace(move, worlds=(move.worlds[0].breaking(REVOKED_START),)) if back else move
    elif world.phase(name) == "serving":
        yield Move("keep: it serves", (world,), e.NodeServing(effect.enclave_id))


def _fetched(world: World, name: str) -> World:
    return replace(world, slots=world.slots | {name}, lost=world.lost - {name})


def _at_once(event: type[e.ReleaseEvent]) -> Perform:
    def moves(effect: Effect, _state: State, world: World) -> Iterator[Move]:
        yield Move(event.kind, (world,), event(effect.enclave_id))

    return moves


def _retire(effect: Effect, state: State, world: World) -> Iterator[Move]:
    after = replace(world, slots=world.slots - {effect.enclave_id}) if world.traits.remove_previous else world
    yield Move("retire", (after,), e.PreviousRetired(effect.enclave_id))


def _stage(effect: Effect, _state: State, world: World) -> Iterator[Move]:
    after = replace(world, slots=world.slots | {effect.enclave_id})
    trait = world.traits.target if effect.enclave_id == "b" else ""
    bad = trait == "bad" or (trait == "misplaced" and not world.moved)
    if not bad:
        yield Move("stage", (after,), e.Staged(StagedRelease(effect.enclave_id)))
    yield Move("stage fails", (world,), _failed(e.StageFailed, effect, "DOWNLOAD_UNREACHABLE"), True)
    if bad or trait != "misplaced":
        yield Move("stage refuses", (world,), _failed(e.StageFailed, effect, "SIGSTRUCT_BAD", "rejected"), not bad)


def _gates(effect: Effect, state: State, world: World) -> Iterator[Move]:
    if state.hold is None and not (state.first_install and world.sealed):
        if not world.traits.fleet:
            yield Move("gates open", (world,), e.GatesOpen(effect.enclave_id))
        elif world.slot or not world.fleet_full:  # the slot bears this node's name: taking it again finds it
            yield Move("gates open", (replace(world, slot=True),), e.GatesOpen(effect.enclave_id))
    elif world.slot:
        yield Move("the slot is given back", (replace(world, slot=False),))


def _collect(effect: Effect, _state: State, world: World) -> Iterator[Move]:
    failed = _failed(e.CollectFailed, effect, "HANDOVER_PEER_UNREACHABLE")
    if world.vault == "replaced":
        yield Move("collect: replaced", (world,), _coded(failed, "VAULT_REPLACED", "invariant"))
        return
    name = effect.enclave_id
    done = e.Collected(SealedKeys(name, "k"))
    if world.vault == "up" and world.phase(name) == "serving":
        after = replace(world, vault_keys_of=name, permit="" if world.vault_keys_of != name else world.permit)
        yield Move("collect", (after,), done)
    elif world.vault == "up" and not world.phase(name) and world.vault_keys_of == name:
        yield Move("collect: earlier copy", (world,), done)
    elif world.vault == "up" and world.phase(name) == "waiting" and not world.vault_keys_of:
        yield Move("collect: no keys", (world,), _coded(failed, "NO_KEYS_ANYWHERE", "invariant"))
    yield Move("collect fails", (world,), failed, True)


def _permit(effect: Effect, _state: State, world: World) -> Iterator[Move]:
    name = effect.enclave_id
    failed = _failed(e.PermitFailed, effect, "VAULT_UNREACHABLE")
    if world.vault == "replaced":
        yield Move("permit: replaced", (world,), _coded(failed, "VAULT_REPLACED", "invariant"))
        return
    source = world.vault_keys_of
    newer = name in world.listed and (source not in world.listed or HEIGHTS[name] > HEIGHTS.get(source, 0))
    if world.vault == "up":
        if source and world.program == name and newer:
            after = replace(world, permit=name)
            yield Move("permit", (after,), e.Permitted(Permit(name, 9)))
            yield Move("permit: the window has closed", (after,), e.GatesShut(name, Shut("GATE_WINDOW_SHUT", "")), True)
        else:
            refused = _coded(failed, "PERMIT_TARGET_NOT_PROGRAM", "rejected")
            yield Move("permit refused", (world,), refused)
    yield Move("permit fails", (world,), failed, True)


def _stop(effect: Effect, state: State, world: World) -> Iterator[Move]:
    name = effect.enclave_id
    done, failed = e.NodeStopped(effect.enclave_id), _failed(e.StopFailed, effect, "NODE_STOP_FAILED", "invariant")
    gone = replace(world.with_node(name, ""), unseen_exit="")
    if world.phase(name):
        # judged from the world alone, when the signal is sent
        forward = world.vault_keys_of == name and any(HEIGHTS[slot] > HEIGHTS[name] for slot in world.slots)
        backward = any(HEIGHTS[slot] < HEIGHTS[name] for slot in (world.slots | world.lost) & world.sealed)
        if name == world.owner() and not forward and not backward:
            gone = gone.breaking("the node was stopped before release and keys were safe")
        if state.name is Name.STOPPING and world.traits.fleet and not world.slot:
            gone = gone.breaking("the node was stopped for an upgrade without a slot of the fleet")
        yield Move("stop", (world, gone), done)
    elif world.locked:
        if state.name is not Name.HALTED:
            yield Move("stop: data stays locked", (world,), _coded(failed, "DATA_LOCKED"))
    else:
        yield Move("stop", (gone,), done)
    if state.name is not Name.HALTED:  # there it is tried until it succeeds
        yield Move("stop fails", (world,), failed, True)


def _launch(effect: Effect, _state: State, world: World) -> Iterator[Move]:
    if not world.locked:
        yield from _start(world, effect, "launch", e.Launched(RunningNode(effect.enclave_id)))
    failed = _failed(e.LaunchFailed, effect, "NODE_START_FAILED")
    yield Move("launch fails", (world,), failed, not world.locked)


def _deliver(effect: Effect, _state: State, world: World) -> Iterator[Move]:
    name = effect.enclave_id
    phase = world.phase(name)
    if not phase:
        yield Move("deliver: it ended", (replace(world, unseen_exit=""),), e.NodeExited(effect.enclave_id))
        return
    failed = _failed(e.DeliveryFailed, effect, "DELIVERY_DEADLINE")
    if phase == "serving" and name in world.durable:
        yield Move("deliver", (world,), e.Delivered(AttestedNode(name)))
    stuck = phase == "waiting" and (world.vault == "replaced" or (world.vault == "up" and world.permit != name))
    hopeless = stuck or (phase == "starting" and name == "b" and world.traits.target == "mute")
    yield Move("deliver fails", (world,), failed, not hopeless)


def _probation(effect: Effect, _state: State, world: World) -> Iterator[Move]:
    name, traits = effect.enclave_id, world.traits
    phase = world.phase(name)
    sick = name == "b" and traits.target in ("blind", "frail", "mute")
    if not phase:
        ended = e.NodeExited(effect.enclave_id)
        yield Move("probation: it ended", (replace(world, unseen_exit=""),), ended)
        yield Move("probation: host rebooted", (replace(world, unseen_exit=""),), replace(ended, rebooted=True), True)
        return
    unhealthy = _failed(e.Unhealthy, effect, "CANARY_FAILED", "rejected")
    if phase == "serving" and not sick:
        yield Move("probation passed", (world,), e.Healthy(effect.enclave_id))
    elif sick and traits.target == "frail" and phase == "serving":
        yield Move("b dies in probation", (replace(world.with_node(name, ""), unseen_exit=name),))
    elif phase == "waiting":
        yield Move("probation: not ready", (world,), unhealthy)
    yield Move("probation failed", (world,), unhealthy, not (sick and traits.target in ("blind", "mute")))


def _commit(effect: Effect, _state: State, world: World) -> Iterator[Move]:
    name = effect.enclave_id
    if world.phase(name) == "serving":
        told = replace(world, told_commit=world.told_commit | {name})
        yield Move("commit", (told, replace(told, vault_told=world.vault == "up")), e.CommitDone(effect.enclave_id))


def _await_source(effect: Effect, state: State, world: World) -> Iterator[Move]:
    if state.running is None or world.phase(effect.enclave_id) == "serving":
        yield Move("the source serves", (world,), e.SourceServing(effect.enclave_id))


def _start_source(effect: Effect, _state: State, world: World) -> Iterator[Move]:
    name = effect.enclave_id
    failed = _failed(e.SourceFailed, effect, "SOURCE_WONT_START", "invariant")
    phase = world.phase(name)
    if name not in world.slots:
        yield Move("source: fetch", (_fetched(world, name),))
        yield Move("source: slot damaged", (world,), _coded(failed, "SOURCE_SLOT_DAMAGED"), True)
    elif phase == "serving":
        yield Move("source serves", (world,), e.SourceServing(effect.enclave_id))
    elif phase == "waiting" and not world.vault_keys_of:
        yield Move("source: no keys", (world,), _coded(failed, "NO_KEYS_ANYWHERE"))
    elif phase == "waiting":
        hopeless = world.vault == "replaced" or world.vault_keys_of != name
        yield Move("source: keys unreachable", (world,), _coded(failed, "KEYS_UNREACHABLE"), not hopeless)
    elif not phase and world.locked:
        yield Move("source: data locked", (world,), _coded(failed, "DATA_LOCKED"))
    elif not phase and name == "a" and world.traits.source == "broken":
        yield Move("source: does not start", (world,), failed)
    elif not phase:
        yield from _start(world, effect, "source: start", None)
    if name in world.slots and phase != "serving":
        yield Move("source: deadline", (world,), failed, True)


_PERFORM: dict[EffectKind, Perform] = {
    F.KEEP_NODE: _keep,
    F.BEGIN: _at_once(e.UpgradeBegun),
    F.BACKOFF: _at_once(e.BackoffOver),
    F.RETIRE: _retire,
    F.STAGE: _stage,
    F.GATES: _gates,
    F.COLLECT: _collect,
    F.PERMIT: _permit,
    F.STOP_NODE: _stop,
    F.LAUNCH: _launch,
    F.DELIVER: _deliver,
    F.PROBATION: _probation,
    F.COMMIT: _commit,
    F.AWAIT_SOURCE: _await_source,
    F.START_SOURCE: _start_source,
    F.SETTLE: _at_once(e.Settled),
}


def beginning(traits: Traits) -> tuple[State, World]:
    """The agent's journal and the world before anything happens: "a" runs and "b" is on the chain."""
    if traits.source == "gone":
        world = World(traits, (), frozenset(), frozenset())
        return State(name=Name.IDLE, chain=world.facts()), world
    nodes = () if traits.source_dead else (("a", "serving"),)
    listed = frozenset("ab" if traits.lags else "abc")  # what shows that a view is old: "c" is not listed in it
    world = World(traits, nodes, frozenset("a"), frozenset("a"), listed=listed)
    return State(name=Name.IDLE, running=RELEASES["a"], chain=world.facts()), world
