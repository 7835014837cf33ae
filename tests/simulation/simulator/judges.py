"""The judges of a simulated world: checks of the design's invariants at the places where the real effects happen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from dcupgrade.machine.state import Record
from keyvault.vault import decisions as core

from .nodes import ATTEMPTS, WRONG_CONTENT, Node

if TYPE_CHECKING:
    from .nodes import Nodes
    from .world import Chain, Disk


class ViolationError(Exception):
    """An invariant of the design does not hold."""


class Judges:
    """What they look at is the world's own; see `SimulatedWorld`."""

    disk: Disk
    chain: Chain
    nodes: Nodes
    data_key: str
    told_commit: list[str]
    lost: set[str]
    by_hand: bool
    restart_asked: bool
    stopped_for_upgrade: bool
    violation: str

    def violate(self, what: str) -> NoReturn:
        """Note a violation, whatever the program makes of the exception."""
        self.violation = self.violation or what
        raise ViolationError(what)

    def judge_keys(self) -> None:
        """1: what a power cut would leave has the keys: sealed to a node whose files are there, or in the vault."""
        key = self.data_key
        if not key:
            return
        safe = self.disk.safe
        by_node = any(
            name.startswith("node/") and name != "node/keyset" and value == key and self._has_files(name[5:])
            for name, value in safe.items()
        )
        if not by_node and safe.get(f"vault/keys/{key}") != key:
            self.violate("1: the keys cannot be recovered")

    def _has_files(self, enclave_id: str) -> bool:
        return bool(self.disk.safe.get(f"slot/{enclave_id}")) or enclave_id in self.lost

    def judge_release(self, enclave_id: str, release: core.Release) -> None:
        """3: keys go back to the id they came from, or to the program of the block that the permit names."""
        collected = release.facts.collected[release.key_set_id]
        if enclave_id == collected.source_id:
            return
        permit = release.facts.permits.get(release.key_set_id)
        if permit is None or permit.target_id != enclave_id:
            self.violate(f"3: keys went to {enclave_id[:8]} without a permit")
        program, listed = self.chain.history[permit.block_number]
        lowest = min(heights.get(collected.source_id, -1) for _, heights in self.chain.history.values())
        if program != enclave_id or enclave_id not in listed or listed[enclave_id] <= lowest:
            raise ViolationError(
                f"3: keys went to {enclave_id[:8]}, which the chain did not name at {permit.block_number}"
            )

    def judge_stop(self, node: Node) -> None:
        """4: the node that owns the data stops only when a successor's files and a sealed copy are safe on disk."""
        enclave_id = node.release.enclave_id
        if self.restart_asked and self._has_files(enclave_id):
            return
        owner = self.told_commit[-1] if self.told_commit else ""
        if enclave_id != owner or self.by_hand:
            return
        height = self.chain.releases[enclave_id].height
        successor = any(
            release.height > height and self._has_files(name) for name, release in self.chain.releases.items()
        )
        if not successor or (node.key and self.disk.safe.get(f"vault/keys/{node.key}") != node.key):
            self.violate(f"4: {node.release.version} was stopped before release and keys were safe")

    def judge_fleet(self) -> None:
        """12: the fleet is never asked for a place once the old node was stopped."""
        if self.stopped_for_upgrade:
            self.violate("12: the fleet is asked for a place after the old node was stopped")

    def judge_records(self, records: Iterable[Record]) -> None:
        """13: a release is condemned for its content only where every try of one staging was given a wrong one."""
        for record in records:
            wrong = self.nodes.wrong_given[record.enclave_id]
            if record.quarantine == WRONG_CONTENT and wrong < ATTEMPTS:
                self.violate(f"13: {record.enclave_id[:8]} is condemned, and a source was wrong {wrong} times")

    def judge_commit(self, node: Node) -> None:
        """8: what stays for good reads the old data, and its own copy of the keys would survive a power cut."""
        name = node.release.version
        if node.release.trait == "blind":
            self.violate(f"8: {name}, which cannot decrypt the old data, was told to commit")
        if self.disk.safe.get(f"node/{node.release.enclave_id}") != self.data_key:
            self.violate(f"8: {name} was told to commit before its keys were safe on its disk")

    def judge_removal(self, enclave_id: str) -> None:
        """9: the files of the version that owns the data are never removed, nor those of one that runs."""
        if self.nodes.living(enclave_id) or (self.told_commit[-1:] == [enclave_id] and not self.by_hand):
            self.violate(f"9: the files of {enclave_id[:8]} are removed, which may be needed")

    def judge_start(self, enclave_id: str) -> None:
        """3 and 8: only what was final is started; after a commit only an operator brings an older version back."""
        self.stopped_for_upgrade = False
        if enclave_id not in self.chain.releases:
            self.violate(f"3: {enclave_id[:8]} is started, which was never final")
        if self.told_commit and not self.by_hand:
            told = self.chain.releases[self.told_commit[-1]].height
            if self.chain.releases[enclave_id].height < told:
                self.violate("8: an older version was started after the commit")
