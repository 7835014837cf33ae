"""The release decision under random histories, judged by an independent checker that shares no code with it.

Rules that must hold in every history: keys go to nobody but the exact source of a set, or a target that a verified
block named, listed and signed as newer; never to an id seen removed; never over the bound of instances; and what was
collected is wiped only after durable, commit and retention.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest

from keyvault.errors import KeyvaultError
from keyvault.vault import decisions as core
from keyvault.vault.chain_state import ChainState, Entry
from keyvault.vault.decisions import Rules
from keyvault.vault.record import Facts, Permit, decode_facts

IDS = tuple(letter * 64 for letter in "abcd")
SETS = tuple(digit * 64 for digit in "12")
GENESIS = "11" * 32
RULES = Rules(
    GENESIS,
    "e" * 64,
    frozenset({"single"}),
    require_listed_vault=False,
    permit_ttl_s=50,
    retention_s=100,
    instances_max=2,
)
START = 1_700_000_000


@dataclass
class Book:
    """The checker's own record of one permitted pair of key set and target."""

    valid_until: int
    handed_out: int = 0
    durable: bool = False
    committed_at: int | None = None


class History:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.facts = Facts()
        self.now = START
        self.block = 1
        self.listed: dict[str, int] = {}
        self.program: str | None = None
        # the checker's books
        self.first_height: dict[str, int] = {}
        self.shown: dict[str, int] = {}  # the list as last shown to the vault
        self.ever_shown: dict[str, int] = {}  # lowest height ever shown of each id
        self.source_of: dict[str, str] = {}
        self.books: dict[tuple[str, str], Book] = {}
        self.wiped: set[str] = set()

    # the world

    def step(self) -> None:
        """Do one random step. A whole publication is more likely than its parts in a useless order."""
        one, other, key_set = self.random.choice(IDS), self.random.choice(IDS), self.random.choice(SETS)
        happenings: list[tuple[int, Callable[[], None]]] = [
            (4, lambda: self.time_passes(self.random.randint(1, 40))),
            (2, lambda: self.is_added(one)),
            (1, lambda: self.is_removed(one)),
            (1, lambda: self.becomes_program(one)),
            (3, lambda: (self.is_added(one), self.becomes_program(one), None)[2]),
            (3, lambda: self.collects(one, key_set)),
            (2, lambda: self.is_asked_for_a_permit(one, other, key_set)),
            (6, lambda: self.is_asked_for_a_permit(self.source_of.get(key_set, one), self.program or other, key_set)),
            (8, lambda: self.is_asked_for_keys(self.random.choice((one, self.program or other)))),
            (3, lambda: self.hears_durable(self.program or one, key_set)),
            (3, lambda: self.hears_of_a_commit(self.program or one, key_set)),
            (2, self.sweeps),
            (1, self.restarts),
        ]
        weights = [weight for weight, _ in happenings]
        self.random.choices(happenings, weights)[0][1]()
        self.what_was_collected_is_there()

    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    def is_added(self, enclave: str) -> None:
        self.block += 1
        self.listed[enclave] = self.block

    def is_removed(self, enclave: str) -> None:
        self.block += 1
        self.listed.pop(enclave, None)

    def becomes_program(self, enclave: str) -> None:
        self.block += 1
        self.program = enclave

    def state(self) -> ChainState:
        entries = tuple(Entry(height, enclave, "good") for enclave, height in self.listed.items())
        return ChainState("single", GENESIS, self.block, f"{self.block:064x}", self.now * 1000, self.program, entries)

    def show(self, state: ChainState) -> None:
        self.facts = core.admit_evidence(self.facts, RULES, state, self.now)
        self.shown = dict(self.listed)
        for enclave, height in self.listed.items():
            self.ever_shown[enclave] = min(height, self.ever_shown.get(enclave, height))

    # what the vault does

    def collects(self, source: str, key_set: str) -> None:
        self.facts = core.record_collected(self.facts, key_set, source, 1, self.now)
        if self.source_of.get(key_set) != source:
            self.books = {k: v for k, v in self.books.items() if k[0] != key_set}
        self.books = {k: v for k, v in self.books.items() if k[0] != key_set or not v.durable}
        self.source_of[key_set] = source
        self.wiped.discard(key_set)

    def is_asked_for_a_permit(self, source: str, to: str, key_set: str) -> None:
        state = self.state()
        self.show(state)
        self.facts, outcome = core.decide_permit(
            self.facts,
            RULES,
            state,
            lambda *_: None,
            source_id=source,
            target_id=to,
            key_set_id=key_set,
            now=self.now,
        )
        allowed = (
            self.source_of.get(key_set) == source
            and key_set not in self.wiped
            and to != source
            and self.program == to
            and to in self.shown
            and self.ever_shown[to] > self.ever_shown.get(source, -1)
        )
        assert allowed == isinstance(outcome, Permit), outcome
        book = self.books.get((key_set, to))
        if not allowed:
            if book is not None and not book.durable:
                del self.books[key_set, to]
            return
        over = book is None or book.durable or book.valid_until <= self.now
        self.books = {k: v for k, v in self.books.items() if k[0] != key_set}
        self.books[key_set, to] = Book(0) if over or book is None else book
        assert isinstance(outcome, Permit)
        self.books[key_set, to].valid_until = outcome.expires_at_unix_s
        assert outcome.expires_at_unix_s <= self.now + RULES.permit_ttl_s

    def is_asked_for_keys(self, requester: str) -> None:
        try:
            release = core.decide_release(self.facts, RULES, requester, "", self.now)
        except KeyvaultError:
            mine = [s for s, source in self.source_of.items() if source == requester and s not in self.wiped]
            removed = requester in self.ever_shown and requester not in self.shown
            assert not mine or removed, "the exact source was refused its own set"
            return
        self.facts = release.facts
        assert requester in self.shown or requester not in self.ever_shown, "keys for an id that was seen removed"
        assert release.key_set_id not in self.wiped
        if release.role == "source":
            assert self.source_of[release.key_set_id] == requester
            return
        book = self.books[release.key_set_id, requester]
        assert self.now < book.valid_until
        assert not book.durable
        book.handed_out += 1
        assert book.handed_out <= RULES.instances_max

    def hears_durable(self, to: str, key_set: str) -> None:
        book = self.books.get((key_set, to))
        if book is not None and book.handed_out:
            self.facts = core.record_progress(self.facts, key_set, to, "durable", self.now)
            book.durable = True

    def hears_of_a_commit(self, to: str, key_set: str) -> None:
        book = self.books.get((key_set, to))
        try:
            self.facts = core.record_committed(self.facts, key_set, to, self.now)
        except KeyvaultError:
            assert book is None or not book.durable
            return
        assert book is not None
        assert book.durable
        if book.committed_at is None:
            book.committed_at = self.now

    def sweeps(self) -> None:
        for key_set in core.wipeable(self.facts, RULES, self.now):
            books = [book for (of, _), book in self.books.items() if of == key_set]
            assert any(b.durable and b.committed_at is not None and b.committed_at + 100 <= self.now for b in books)
            self.facts = core.record_wiped(self.facts, key_set)
            self.wiped.add(key_set)

    def restarts(self) -> None:
        self.facts = decode_facts(self.facts.encode())

    def what_was_collected_is_there(self) -> None:
        held = {name for name, entry in self.facts.collected.items() if not entry.wiped}
        assert held == self.source_of.keys() - self.wiped


def forgets_revocations(monkeypatch: pytest.MonkeyPatch) -> None:
    real = core.admit_evidence
    monkeypatch.setattr(core, "admit_evidence", lambda *args: replace(real(*args), revoked=frozenset()))


def lets_equal_heights_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    real = core._check_target

    def check(facts: Facts, *rest: Any) -> None:
        try:
            real(facts, *rest)
        except KeyvaultError as error:
            if error.code != "PERMIT_TARGET_NOT_NEWER":
                raise

    monkeypatch.setattr(core, "_check_target", check)


def never_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = core.decide_release

    def decide(facts: Facts, *rest: Any) -> core.Release:
        release = real(facts, *rest)
        return replace(release, facts=facts)

    monkeypatch.setattr(core, "decide_release", decide)


def wipes_without_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def wipeable(facts: Facts, rules: Rules, now: int) -> list[str]:
        return [
            p.key_set_id
            for p in facts.permits.values()
            if p.state == "durable" and not facts.collected[p.key_set_id].wiped
        ]

    monkeypatch.setattr(core, "wipeable", wipeable)


def histories(count: int, steps: int = 120) -> None:
    for seed in range(count):
        history = History(seed)
        for _ in range(steps):
            try:
                history.step()
            except AssertionError as error:
                raise AssertionError(f"history of seed {seed}: {error}") from error


def test_no_history_breaks_a_rule() -> None:
    histories(400)


@pytest.mark.parametrize("mutant", [forgets_revocations, lets_equal_heights_pass, never_counts, wipes_without_commit])
def test_the_checker_finds_planted_bugs(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError, match="history of seed"):
        histories(400)
