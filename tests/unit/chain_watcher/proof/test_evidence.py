import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from chain_watcher.errors import CODES
from chain_watcher.proof import evidence
from chain_watcher.proof.evidence import (
    STANDARD_LAYOUTS,
    ProvenState,
    SetChange,
    TrustRoot,
    build_evidence,
    claimed_evidence,
    follow_set_changes,
    verify_evidence,
)
from chain_watcher.proof.grandpa import Checkpoint
from chain_watcher.proof.layout import RawEntry, RawProgram, standard_layout
from chain_watcher.proof.release import BlockRef, encode_signature, read_entries, verify_release
from tests.doubles import chain_makers as makers
from tests.doubles.chain_makers import Trie, attempt, authorities, code_of, finalize
from tests.doubles.state_maker import FIRST, GENESIS, NEW, NOW_MS, OLD, SECOND, SIGNATURE, THIRD, Case, entries_value


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def verify(made: Case, value: Any = None, **options: Any) -> ProvenState:
    return verify_evidence(made.json() if value is None else value, made.trust, **options)


def test_good_evidence(case: Case) -> None:
    state = verify_evidence(json.loads(json.dumps(case.json())), case.trust)
    assert (state.number, state.hash) == (100, "0x" + case.headers[0].hash.hex())
    assert state.block == BlockRef(100, state.hash)
    assert state.timestamp_ms == NOW_MS
    text = encode_signature(SIGNATURE)
    assert state.entries == (RawEntry(10, OLD.encode(), text), RawEntry(20, NEW.encode(), text))
    assert state.program == RawProgram(
        b"https://a/new.tar.gz", b"https://b/new.tar.gz", NEW.encode(), b"2.0", (b"bafy",)
    )
    assert state.checkpoint == Checkpoint(62, 2, THIRD)
    release = verify_release(state.program, read_entries(state.entries).entries, lambda *_: None, state.block)
    assert (release.enclave_id, release.added_height, release.block_hash) == (NEW, 20, state.hash)


def test_the_next_time_starts_at_the_new_checkpoint(case: Case) -> None:
    state = verify(case)
    later = replace(case.trust, checkpoint=state.checkpoint)
    value = {**case.json(), "set_changes": []}
    assert verify_evidence(value, later).checkpoint is state.checkpoint
    # The same evidence again: what lies before the checkpoint is passed over.
    assert verify_evidence(case.json(), later).checkpoint is state.checkpoint
    half = replace(case.trust, checkpoint=Checkpoint(30, 1, SECOND))
    assert verify_evidence(case.json(), half).checkpoint == state.checkpoint


def test_a_block_below_the_justified_one() -> None:
    made = Case(route_length=4)
    assert verify(made).number == 100
    without = made.json()
    without["route"].pop(1)
    assert code_of(lambda: verify(made, without)) == "HEADER_PARENT_MISMATCH"
    without = {**made.json(), "route": []}
    assert code_of(lambda: verify(made, without)) == "JUSTIFICATION_WRONG_TARGET"


def test_the_route_may_be_left_out(case: Case) -> None:
    value = case.json()
    del value["route"]
    assert verify(case, value).number == 100


def test_a_block_that_changes_the_set_moves_the_checkpoint() -> None:
    made = Case()
    made.headers = [makers.header(100, b"\x99" * 32, makers.scheduled(FIRST), state_root=made.trie.root)]
    made.justification = finalize(made.headers[0], (6,), 2)
    assert verify(made).checkpoint == Checkpoint(100, 3, FIRST)


def test_four_fields_and_absent_values() -> None:
    made = Case(layout=standard_layout(fields=4), changes=(("dc_program", None), ("enclave_ids", None)))
    state = verify(made)
    assert state.program is None
    assert state.entries == ()
    assert {made.layout.hash, standard_layout(fields=5).hash} == STANDARD_LAYOUTS


def test_other_chains_are_refused(case: Case) -> None:
    other = replace(case.trust, genesis_hash=b"\x77" * 32)
    assert code_of(lambda: verify_evidence(case.json(), other)) == "EVIDENCE_WRONG_GENESIS"
    # Naming another chain is refused, whatever the state proves.
    value = {**case.json(), "genesis_hash": "0x" + "77" * 32}
    assert code_of(lambda: verify(case, value)) == "EVIDENCE_WRONG_GENESIS"
    # It may name the right genesis: the state tells.
    value = {**case.json(), "genesis_hash": "0x" + "77" * 32}
    assert code_of(lambda: verify_evidence(value, other)) == "EVIDENCE_WRONG_GENESIS"
    for genesis in (None, b"", b"\x77" * 32):
        made = Case(changes=(("genesis", genesis),))
        assert code_of(lambda made=made: verify(made)) == "EVIDENCE_WRONG_GENESIS"


def test_layouts_are_pinned(case: Case) -> None:
    liar = Case(layout=standard_layout(fields=5, prefix="Liar"))
    assert code_of(lambda: verify(liar)) == "EVIDENCE_LAYOUT_NOT_PINNED"
    trusting = replace(liar.trust, layouts=frozenset([liar.layout.hash]))
    assert verify_evidence(liar.json(), trusting).number == 100
    assert code_of(lambda: verify_evidence(case.json(), trusting)) == "EVIDENCE_LAYOUT_NOT_PINNED"
    assert code_of(lambda: verify(case, {**case.json(), "layout": None})) == "EVIDENCE_LAYOUT_NOT_PINNED"
    assert code_of(lambda: verify(case, {**case.json(), "layout": {}})) == "LAYOUT_INVALID"
    nothing = replace(case.trust, layouts=frozenset())
    assert code_of(lambda: verify_evidence(case.json(), nothing)) == "EVIDENCE_LAYOUT_NOT_PINNED"


def test_the_floor(case: Case) -> None:
    assert verify(case, floor=100).number == 100
    assert code_of(lambda: verify(case, floor=101)) == "EVIDENCE_BELOW_FLOOR"


def test_finality_is_not_optional(case: Case) -> None:
    made = Case()
    made.justification = finalize(made.headers[0], (6,), 1)
    assert code_of(lambda: verify(made)) == "JUSTIFICATION_SIGNATURE_BAD"
    made.justification = finalize(made.headers[0], (0, 1, 2, 3), 2)
    assert code_of(lambda: verify(made)) == "JUSTIFICATION_BELOW_THRESHOLD"
    made = Case()
    made.set_changes.pop()
    assert code_of(lambda: verify(made)) == "JUSTIFICATION_BELOW_THRESHOLD"
    made = Case()
    made.set_changes.reverse()
    assert code_of(lambda: verify(made)) in CODES
    old = replace(case.trust, checkpoint=Checkpoint(100, 2, THIRD))
    assert code_of(lambda: verify_evidence(case.json(), old)) == "FINALITY_BEFORE_CHECKPOINT"


def test_the_values_come_from_this_state(case: Case) -> None:
    made = Case()
    other = Trie({**{b"x": b"y"}, made.layout.keys["enclave_ids"]: entries_value((1, OLD))})
    made.proof = other.prove(made.layout.proof_keys)
    assert code_of(lambda: verify(made)) == "PROOF_INCOMPLETE"
    made = Case()
    made.proof = [*made.proof, b"more"]
    assert code_of(lambda: verify(made)) == "PROOF_SUPERFLUOUS"
    for gone in range(len(case.proof)):
        value = case.json()
        value["proof"].pop(gone)
        assert code_of(lambda value=value: verify(case, value)) == "PROOF_INCOMPLETE"


def test_values_that_do_not_follow_the_layout() -> None:
    assert code_of(lambda: verify(Case(changes=(("now", None),)))) == "LAYOUT_MISMATCH"
    assert code_of(lambda: verify(Case(changes=(("now", b"\0"),)))) == "SCALE_TRUNCATED"
    assert code_of(lambda: verify(Case(changes=(("enclave_ids", b"\4"),)))) == "SCALE_TRUNCATED"
    assert code_of(lambda: verify(Case(changes=(("dc_program", b"\0\0\0\0\0\0"),)))) == "SCALE_TRAILING_BYTES"


def test_big_values_pass() -> None:
    rows = [(height, f"{height:064x}") for height in range(1, 400)]
    made = Case(changes=(("enclave_ids", entries_value(*rows)),))
    assert len(verify(made).entries) == 399


def test_one_flipped_bit_never_yields_a_value(case: Case) -> None:
    """Every byte of every part, one bit each: an error, and one with a documented code."""
    good = case.json()

    def spots(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], int]]:
        if isinstance(value, str) and value.startswith("0x"):
            yield from ((path, position) for position in range(2, len(value)))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from spots(item, (*path, index))
        elif isinstance(value, dict):
            for name, item in value.items():
                yield from spots(item, (*path, name))

    for path, position in spots(good):
        broken = json.loads(json.dumps(good))
        holder = broken
        for step in path[:-1]:
            holder = holder[step]
        text = holder[path[-1]]
        flipped = f"{int(text[position], 16) ^ 1 << position % 4:x}"
        holder[path[-1]] = text[:position] + flipped + text[position + 1 :]
        assert attempt(lambda value=broken: verify(case, value))[1], (path, position)


def test_set_changes_that_change_nothing() -> None:
    made = Case()
    plain = makers.header(35)
    made.set_changes.insert(1, SetChange((plain,), finalize(plain, (3, 4, 5), 1)))
    assert code_of(lambda: verify(made)) == "EVIDENCE_INVALID"
    start = Checkpoint(0, 0, FIRST)
    assert code_of(lambda: follow_set_changes(start, [SetChange((), b"")])) == "JUSTIFICATION_WRONG_TARGET"
    assert follow_set_changes(start, []) is start


def test_set_changes_as_json(case: Case) -> None:
    for change in case.set_changes:
        assert SetChange.from_json(json.loads(json.dumps(change.to_json()))) == change
    for value in (
        None,
        {},
        {"headers": [], "justification": "0x", "more": 1},
        {"headers": "0x", "justification": "0x"},
    ):
        assert code_of(lambda value=value: SetChange.from_json(value)) == "EVIDENCE_INVALID"


def test_limits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    long = Case(route_length=3)
    size = sum(len(text) // 2 for text in json.dumps(case.json()).split('"') if text.startswith("0x"))
    monkeypatch.setattr(evidence, "EVIDENCE_BYTES_MAX", size - 1)
    assert code_of(lambda: verify(case)) == "EVIDENCE_TOO_LARGE"
    monkeypatch.setattr(evidence, "EVIDENCE_BYTES_MAX", size)
    verify(case)
    monkeypatch.setattr(evidence, "SET_CHANGES_MAX", 2)
    verify(case)
    monkeypatch.setattr(evidence, "SET_CHANGES_MAX", 1)
    assert code_of(lambda: verify(case)) == "EVIDENCE_TOO_LARGE"
    monkeypatch.undo()
    monkeypatch.setattr(evidence, "ROUTE_MAX", 2)
    assert code_of(lambda: verify(long)) == "EVIDENCE_TOO_LARGE"
    monkeypatch.undo()
    monkeypatch.setattr(evidence, "PROOF_ITEMS_MAX", 2)
    assert code_of(lambda: verify(case)) == "EVIDENCE_TOO_LARGE"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "single"),
        ("mode", None),
        ("genesis_hash", None),
        ("genesis_hash", "0x" + "AB" * 32),
        ("genesis_hash", "ab" * 32),
        ("header", "0x0"),
        ("header", 7),
        ("header", "0x0g"),
        ("route", "0x"),
        ("route", [None]),
        ("set_changes", {}),
        ("set_changes", [[]]),
        ("justification", b"0x"),
        ("proof", None),
        ("proof", ["00"]),
        ("more", 1),
    ],
)
def test_malformed_evidence(case: Case, name: str, value: Any) -> None:
    assert code_of(lambda: verify(case, {**case.json(), name: value})) == "EVIDENCE_INVALID"


@pytest.mark.parametrize("value", [None, [], "proven", {}])
def test_what_is_no_evidence(case: Case, value: Any) -> None:
    assert code_of(lambda: verify_evidence(value, case.trust)) == "EVIDENCE_INVALID"


@pytest.mark.parametrize("name", ["mode", "genesis_hash", "set_changes", "header", "justification", "proof", "layout"])
def test_every_member_is_needed(case: Case, name: str) -> None:
    value = case.json()
    del value[name]
    assert code_of(lambda: verify(case, value)) == "EVIDENCE_INVALID"


def test_evidence_needs_a_block(case: Case) -> None:
    with pytest.raises(ValueError, match="header"):
        build_evidence(
            genesis_hash=GENESIS, set_changes=[], headers=[], justification=b"", proof=[], layout=case.layout
        )


def test_two_chains_with_the_same_keys() -> None:
    """Authority keys and set ids alike (development chains): only the genesis in the state differs."""
    other = b"\x55" * 32
    made = Case(changes=(("genesis", other),))
    made.trust = TrustRoot(other, made.trust.checkpoint)
    assert verify(made).number == 100
    value = {**made.json(), "genesis_hash": "0x" + GENESIS.hex()}
    assert code_of(lambda: verify_evidence(value, Case().trust)) == "EVIDENCE_WRONG_GENESIS"


def test_forks_of_the_set_changes_are_refused() -> None:
    """A change that the old set did not finalize, though its header is well made."""
    made = Case()
    forged = makers.header(30, b"\x31" * 32, makers.scheduled(authorities(9)))
    made.set_changes[0] = replace(made.set_changes[0], headers=(forged,))
    assert code_of(lambda: verify(made)) == "JUSTIFICATION_WRONG_TARGET"
    made.set_changes[0] = SetChange((forged,), finalize(forged, (9,), 0))
    assert code_of(lambda: verify(made)) == "JUSTIFICATION_BELOW_THRESHOLD"


def test_claims(case: Case) -> None:
    state = verify(case)
    entries = [*read_entries(state.entries).entries]
    release = verify_release(state.program, entries, lambda *_: None, state.block)
    entries.append(replace(entries[0], signature=b""))
    claim = claimed_evidence(
        mode="single",
        genesis_hash=GENESIS,
        block=state.block,
        timestamp_ms=NOW_MS,
        release=release,
        entries=entries,
    )
    text = encode_signature(SIGNATURE).decode()
    assert json.loads(json.dumps(claim)) == {
        "mode": "single",
        "genesis_hash": "0x" + GENESIS.hex(),
        "block_number": 100,
        "block_hash": state.hash,
        "timestamp_ms": NOW_MS,
        "program": {
            "enclave_id": NEW,
            "version": "2.0",
            "origin_url": "https://a/new.tar.gz",
            "mirror_url": "https://b/new.tar.gz",
        },
        "enclave_ids": [
            {"height": 10, "enclave_id": OLD, "signature": text},
            {"height": 20, "enclave_id": NEW, "signature": text},
            {"height": 10, "enclave_id": OLD, "signature": ""},
        ],
    }
    assert code_of(lambda: verify(case, {**case.json(), "mode": claim["mode"]})) == "EVIDENCE_INVALID"
    options: dict[str, Any] = {
        "genesis_hash": GENESIS,
        "block": state.block,
        "timestamp_ms": 0,
        "release": None,
        "entries": [],
    }
    assert claimed_evidence(mode="quorum", **options)["program"] is None
    with pytest.raises(ValueError, match="quorum or single"):
        claimed_evidence(mode="proven", **options)
