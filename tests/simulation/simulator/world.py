"""The simulated host and chain: disk, processes, vault, network. Judges stand where the real things would happen."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from chain_watcher.proof.layout import RawEntry, RawProgram
from chain_watcher.proof.release import (
    BlockRef,
    ChainEntry,
    EntryList,
    encode_signature,
    lowest_heights,
    read_entries,
    verify_release,
)
from dcupgrade.errors import DcupgradeError
from dcupgrade.machine.gates import Shut
from dcupgrade.machine.stages import Permit, SealedKeys
from dcupgrade.machine.state import ChainFacts, Release
from dcupgrade.upgrade.ports import Announcement, Delivery, Ports
from keyvault.errors import KeyvaultError
from keyvault.vault import decisions as core
from keyvault.vault.chain_state import ChainState, Entry
from keyvault.vault.record import Facts

from .judges import Judges
from .loop import PowerCut, detached
from .nodes import Nodes

GENESIS = "ab" * 32
VAULT_ID = "e" * 64
EPOCH_UNIX_S = 1_700_000_000.0


def cheap_signature(enclave_id: str) -> bytes:
    """Stands for the network's ed25519 signature. Anybody could make it: this is a simulation."""
    return hashlib.blake2b(enclave_id.encode(), digest_size=64).digest()


@lru_cache(maxsize=1024)
def cheap_text(enclave_id: str) -> str:
    """The cheap signature as the chain spells it."""
    return encode_signature(cheap_signature(enclave_id)).decode()


@lru_cache(maxsize=1024)
def chain_entry(height: int, enclave_id: str) -> ChainEntry:
    """What the watcher decodes of an entry of the chain's list."""
    return read_entries([RawEntry(height, enclave_id.encode(), cheap_text(enclave_id).encode())]).entries[0]


def cheap_verify(enclave_id: str, signatures: tuple[Any, ...]) -> None:
    """Accept a cheap signature, as bytes or as the chain's text."""
    good = cheap_signature(enclave_id)
    if good not in signatures and cheap_text(enclave_id) not in signatures:
        raise ValueError("no good signature")


@dataclass(slots=True)
class Disk:
    """Files by name. A write is visible at once and safe once synced; a power cut loses or tears what was not.

    `cut_at` is the number of the operation during which the power goes. `syncs` false is a planted bug.
    """

    rng: random.Random
    safe: dict[str, Any] = field(default_factory=dict)
    loose: dict[str, Any] = field(default_factory=dict)
    operations: int = 0
    cut_at: int = -1
    full: bool = False
    syncs: bool = True
    dead: bool = False

    def tick(self) -> None:
        self.operations += 1
        if self.operations == self.cut_at and not self.dead:
            self.dead = True
            raise PowerCut

    def write(self, name: str, value: Any) -> None:
        """Write aside and rename: readers see the old or the new file, never a part."""
        if self.dead:
            return
        if self.full:
            raise DcupgradeError(code="STAGING_DISK_FULL", what=name, why="the disk is full", kind="transient")
        self.tick()
        self.loose[name] = value
        self.tick()
        if self.syncs:
            self.safe[name] = self.loose.pop(name)
        self.tick()

    def read(self, name: str) -> Any:
        """The file as programs see it, or None."""
        return self.loose[name] if name in self.loose else self.safe.get(name)

    def remove(self, name: str) -> None:
        """Delete a file."""
        if self.dead:
            return
        self.tick()
        self.loose.pop(name, None)
        self.safe.pop(name, None)

    def power_cut(self) -> None:
        """Keep what was synced; of the rest each file is lost, kept, or torn (torn files read as None)."""
        for name, value in self.loose.items():
            fate = self.rng.random()
            if fate < 0.4:
                self.safe[name] = value
            elif fate < 0.6:
                self.safe[name] = None
        self.loose.clear()
        self.dead = False


@dataclass(frozen=True, slots=True)
class Published:
    """A release. `trait`: good, dies, mute, blind, frail, or hungry (dies once with the keys in hand)."""

    enclave_id: str
    version: str
    height: int
    trait: str


class Chain:
    """The finalized chain, and the chain port over it."""

    def __init__(self, world: SimulatedWorld) -> None:
        self.world = world
        self.number = 10
        self.program: Published | None = None
        self.listed: dict[str, int] = {VAULT_ID: 1}
        self.releases: dict[str, Published] = {}
        self.history: dict[int, tuple[str, dict[str, int]]] = {}
        self.reachable = True
        self.breaks = False
        self.lags = False
        """The endpoint stays at the block that it was asked at last, and proves that one."""
        self.knows_history = True
        self._shown = 0
        self.announced: deque[Announcement] = deque(maxlen=4)
        self._changed = asyncio.Event()
        self._entries: EntryList | None = None
        self._record()

    def new_loop(self) -> None:
        """After a power cut the loop is another one."""
        self._changed = asyncio.Event()

    def publish(self, release: Published) -> None:
        """List a release and make it the program."""
        self.listed.setdefault(release.enclave_id, self.number + 1)
        self.program = replace(release, height=self.listed[release.enclave_id])
        self.releases[release.enclave_id] = self.program
        self._new_block()

    def revoke(self, enclave_id: str) -> None:
        """Take an id off the list."""
        self.listed.pop(enclave_id, None)
        self._new_block()

    def _new_block(self) -> None:
        self.number += 1
        self._entries = None
        self._record()
        self._changed.set()

    def _record(self) -> None:
        self.history[self.number] = (self.program.enclave_id if self.program else "", dict(self.listed))

    def facts(self) -> ChainFacts:
        """What the watcher would say, by its own verification."""
        if self._entries is None:
            self._entries = EntryList(tuple(chain_entry(height, name) for name, height in self.listed.items()), ())
        program = None
        self._shown = self.number
        if self.program is not None:
            raw = RawProgram(b"http://a/1", b"", self.program.enclave_id.encode(), self.program.version.encode(), ())
            block = BlockRef(self.number, f"0x{self.number:064x}")
            try:
                program = verify_release(raw, self._entries.entries, cheap_verify, block)
            except Exception:
                program = None
        release = None
        if program is not None:
            release = Release(
                program.enclave_id, program.version, program.origin_url, added_height=program.added_height
            )
        heights = lowest_heights((entry.enclave_id, entry.height) for entry in self._entries.entries)
        return ChainFacts(release, tuple(sorted(heights.items())), self.number)

    def announce(self, release: Published) -> None:
        """A best block names a release; it may never become final."""
        self.announced.append(
            Announcement(Release(release.enclave_id, release.version, "http://a/1", added_height=self.number + 1))
        )
        self._changed.set()

    async def news(self) -> AsyncIterator[Announcement | ChainFacts]:
        """Facts now and after every change, and what was announced, while the chain can be reached."""
        seen = -1
        while True:
            if self.breaks:
                raise DcupgradeError(code="ENDPOINT_GARBAGE", what="views", why="broken off", kind="transient")
            if not self.reachable or (self.lags and seen >= 0):
                await asyncio.sleep(1.0)
                continue
            while self.announced:
                yield self.announced.popleft()
            if seen != self.number:
                seen = self.number
                yield self.facts()
            self._changed.clear()
            if seen == self.number:
                await self._changed.wait()
            await asyncio.sleep(0.01)

    async def evidence(self, target_id: str, _source_id: str, _vault: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state itself; the real evidence's decoding has tests of its own."""
        if not self.reachable:
            raise DcupgradeError(code="WATCHER_NO_VIEW", what="evidence", why="unreachable", kind="transient")
        if not self.knows_history:
            raise DcupgradeError(code="EVIDENCE_NOT_READY", what="evidence", why="no history", kind="transient")
        behind = self.world.rng.randint(0, 2) if self.lags else 0
        number = max(min(self.history), self._shown - behind) if self.lags else self.number
        program_id, listed = self.history[number]
        entries = tuple(Entry(height, name, cheap_text(name)) for name, height in listed.items())
        state = ChainState(
            "single", GENESIS, number, f"{number:064x}", int(self.world.now() * 1000), program_id or None, entries
        )
        return {"state": state}


class Vault:
    """The vault: keyvault.vault.decisions over the simulated disk. Sealing is writing the key set down."""

    def __init__(self, world: SimulatedWorld) -> None:
        self.world = world
        self.up = True
        self.replaced = False
        self.rules = core.Rules(GENESIS, VAULT_ID, frozenset({"single"}), permit_ttl_s=600, retention_s=3600)
        self.refusals: dict[str, str] = {}

    @property
    def facts(self) -> Facts:
        """What it remembers, from its sealed file."""
        return self.world.disk.read("vault/facts") or Facts()

    def _save(self, facts: Facts) -> None:
        if facts.floor_number < self.facts.floor_number:
            self.world.violate("3: the vault believes an older block than the one that it knew")
        if facts is not self.facts:
            self.world.disk.write("vault/facts", facts)

    def _reach(self) -> None:
        if not self.up:
            raise KeyvaultError(code="VAULT_UNREACHABLE", what="vault", why="it is down", kind="transient")

    def _agent(self) -> int:
        self._reach()
        if self.replaced:
            raise KeyvaultError(code="VAULT_REPLACED", what="vault", why="another build", kind="invariant")
        return int(self.world.now())

    async def status(self) -> Mapping[str, Any]:
        self._reach()
        return {"key_sets": [entry.key_set_id for entry in self.facts.collected.values()]}

    async def collect(self, source_id: str, evidence: Mapping[str, Any]) -> SealedKeys:
        return await detached(self._collect(source_id, evidence))

    async def _collect(self, source_id: str, evidence: Mapping[str, Any]) -> SealedKeys:
        now = self._agent()
        await self.world.network()
        self._save(core.admit_evidence(self.facts, self.rules, evidence["state"], now))
        core.check_collect(self.facts, self.rules)
        node = self.world.nodes.living(source_id)
        if node is None or node.phase != "serving":
            raise KeyvaultError(code="HANDOVER_PEER_UNREACHABLE", what="collect", why="no answer", kind="transient")
        key = node.key
        self._reach()
        name = f"vault/keys/{key}"
        self.world.disk.write(name, key)
        if self.world.disk.read(name) != key:
            raise KeyvaultError(code="STORE_READ_BACK_FAILED", what="collect", why="torn", kind="transient")
        self._save(core.record_collected(self.facts, key, source_id, 1, now))
        return SealedKeys(source_id, key)

    async def permit(self, source_id: str, target_id: str, key_set_id: str, evidence: Mapping[str, Any]) -> Permit:
        return await detached(self._permit(source_id, target_id, key_set_id, evidence))

    async def _permit(self, source_id: str, target_id: str, key_set_id: str, evidence: Mapping[str, Any]) -> Permit:
        now = self._agent()
        await self.world.network()
        self._reach()
        state = evidence["state"]
        facts = core.admit_evidence(self.facts, self.rules, state, now)
        facts, outcome = core.decide_permit(
            facts, self.rules, state, cheap_verify,
            source_id=source_id, target_id=target_id, key_set_id=key_set_id, now=now,
        )  # fmt: skip
        self._save(facts)
        if isinstance(outcome, KeyvaultError):
            raise outcome
        self.refusals.pop(target_id, None)
        return Permit(target_id, outcome.expires_at_unix_s)

    async def delivery(self, enclave_id: str) -> Delivery:
        self._agent()
        permits = [item for item in self.facts.permits.values() if item.target_id == enclave_id]
        state = permits[-1].state if permits else "waiting"
        if state != "durable" and enclave_id in self.refusals:
            return Delivery("refused", self.refusals[enclave_id])
        return Delivery("waiting" if state == "issued" else state)

    async def holds_keys_of(self, source_id: str, key_set_id: str) -> bool:
        self._reach()
        return any(
            item.source_id == source_id and not item.wiped and key_set_id in ("", item.key_set_id)
            for item in self.facts.collected.values()
        )

    async def committed(self, target_id: str, key_set_id: str) -> None:
        now = self._agent()
        self._save(core.record_committed(self.facts, key_set_id, target_id, now))
        for old in core.wipeable(self.facts, self.rules, now):
            self._save(core.record_wiped(self.facts, old))
            self.world.disk.remove(f"vault/keys/{old}")

    def hand_over(self, enclave_id: str) -> str:
        """A node asks for keys: the core decides, the judge looks at what goes out to whom."""
        self._reach()
        now = int(self.world.now())
        try:
            release = core.decide_release(self.facts, self.rules, enclave_id, "", now)
        except KeyvaultError as error:
            self.refusals[enclave_id] = error.code
            raise
        self.refusals.pop(enclave_id, None)
        self._save(release.facts)
        key = self.world.disk.read(f"vault/keys/{release.key_set_id}")
        if key is None:
            raise KeyvaultError(code="RELEASE_KEY_SET_UNREADABLE", what="keys", why="gone", kind="transient")
        self.world.judge_release(enclave_id, release)
        return str(key)

    def progress(self, enclave_id: str, key: str, state: str) -> None:
        """A node says `received` or `durable`."""
        self._reach()
        self._save(core.record_progress(self.facts, key, enclave_id, state, int(self.world.now())))


class Fleet:
    """The fleet port: places that are refused now and then, and asked for only while the old node runs."""

    def __init__(self, world: SimulatedWorld) -> None:
        self.world = world
        self.full = False

    async def take(self, _release: Release) -> tuple[Shut, ...]:
        self.world.judge_fleet()
        await self.world.network()
        return (Shut("GATE_SLOT", "no place is free"),) if self.full else ()

    async def give_back(self) -> None:
        await self.world.network()


class SimulatedWorld(Judges):
    """All of it, with the clock port and the judges."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.disk = Disk(rng)
        self.chain = Chain(self)
        self.vault = Vault(self)
        self.nodes = Nodes(self)
        self.fleet = Fleet(self)
        self.boot = 1
        self.data_key = ""
        self.told_commit: list[str] = []
        self.wall_offset_s = 0.0
        self.by_hand = False
        """Whether an operator asked to go back: only then may a node stop that has no successor."""
        self.restart_asked = False
        """Whether an operator asked for a restart: then a node may stop whose own files are safe."""
        self.lost: set[str] = set()
        """Slots that a fault took away."""
        self.violation = ""
        self.stopped_for_upgrade = False
        self._done: set[str] = set()

    def ports(self) -> Ports:
        """The ports of an agent in this world."""
        return Ports(
            chain=self.chain, vault=self.vault, slots=self.nodes, processes=self.nodes, node_http=self.nodes,
            host=self.nodes, clock=self, fleet=self.fleet,
        )  # fmt: skip

    # clock port

    def now(self) -> float:
        """The wall clock, which faults may set."""
        return EPOCH_UNIX_S + asyncio.get_running_loop().time() + self.wall_offset_s

    def monotonic(self) -> float:
        """Simulated seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    # tools

    async def network(self) -> None:
        """A round trip on loopback."""
        await asyncio.sleep(self.rng.uniform(0.001, 0.05))

    def once(self, what: str) -> bool:
        """True the first time it is asked about `what`."""
        if what in self._done:
            return False
        self._done.add(what)
        return True

    def empty_data(self) -> None:
        """An operator moves away what a first install left that never came up; nobody misses those keys now."""
        self.data_key = ""
        for name in sorted(name for name in {*self.disk.safe, *self.disk.loose} if name.startswith("node/")):
            self.disk.remove(name)
