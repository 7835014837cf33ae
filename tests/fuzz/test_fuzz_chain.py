"""Whatever an endpoint or a host sends to the proof code: only documented errors escape, and no lie is believed."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chain_watcher.proof.evidence import SetChange, follow_set_changes, verify_evidence
from chain_watcher.proof.grandpa import Checkpoint, Justification, verify_justification
from chain_watcher.proof.header import Header, decode_authorities, decode_grandpa_log
from chain_watcher.proof.layout import Layout, standard_layout, type_from_registry
from chain_watcher.proof.release import decode_enclave_id, decode_signature
from chain_watcher.proof.scale import Reader
from chain_watcher.proof.trie import decode_node, read_proof
from tests.doubles import chain_makers as makers
from tests.doubles.chain_makers import attempt, hash256
from tests.doubles.state_maker import FIRST, Case

CASE = Case(route_length=2)
GOOD = CASE.json()
LAYOUT = standard_layout(fields=5)
TARGET, CHILD = makers.chain(5, 2)
VOTES = [makers.vote(0, TARGET), makers.vote(1, CHILD), makers.vote(2, CHILD), makers.vote(2, TARGET)]
JUSTIFICATION = makers.justify(TARGET, VOTES, [CHILD])

DECODERS: dict[str, Callable[[bytes], Any]] = {
    "header": Header.decode,
    "grandpa log": decode_grandpa_log,
    "authorities": decode_authorities,
    "justification": Justification.decode,
    "verified justification": lambda data: verify_justification(data, 0, FIRST),
    "trie node": decode_node,
    "proof": lambda data: read_proof(hash256(data), [data], [b"", b"\x12", data[:8]]),
    "enclave ids": LAYOUT.decode_enclave_ids,
    "program": LAYOUT.decode_dc_program,
    "now": LAYOUT.decode_now,
    "enclave id": decode_enclave_id,
    "signature": decode_signature,
    "compact": lambda data: Reader(data).compact(2**536),
}
SEEDS = [
    makers.header(5, b"\1" * 32, makers.scheduled(FIRST, 3), makers.forced(FIRST, 3, 1)).encoded,
    JUSTIFICATION,
    *CASE.proof,
    *CASE.trie.items[:8],
]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes] = SEEDS) -> bytes:
    """A good value with a few bytes changed, cut out, doubled or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 9)))
        data[at:to] = draw(st.binary(max_size=9) | st.just(bytes(data[at:to] * 2)))
    return bytes(data)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300) | mutated())
def test_decoders(name: str, data: bytes) -> None:
    attempt(lambda: DECODERS[name](data))


def test_the_canary_is_found() -> None:
    """This harness finds a decoder that trusts a length in a long value."""

    def broken(data: bytes) -> int:
        return data[33 + data[32]] if len(data) > 64 else 0

    @settings(max_examples=500, deadline=None, database=None, derandomize=True)
    @given(data=st.binary(max_size=300) | mutated())
    def harness(data: bytes) -> None:
        attempt(lambda: broken(data))

    with pytest.raises(IndexError):
        harness()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("0x00"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
names = ["u8", "u32", "u64", "bytes", "bool", "u7", "compact", "vec", "array", "option", "tuple", "struct"]
trees = st.recursive(
    st.sampled_from(names) | json_values,
    lambda inner: (
        st.dictionaries(st.sampled_from(names), inner | st.lists(inner, max_size=4), max_size=2)
        | st.lists(st.tuples(st.text(max_size=5), inner).map(list), max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_json_of_any_shape(value: Any) -> None:
    attempt(lambda: Header.from_json(value))
    attempt(lambda: Checkpoint.from_json(value))
    attempt(lambda: Layout.from_json(value))
    attempt(lambda: SetChange.from_json(value))
    attempt(lambda: verify_evidence(value, CASE.trust))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["enclave_ids", "dc_program", "now"]), trees, st.binary(max_size=60))
def test_layouts_of_any_type(name: str, tree: Any, data: bytes) -> None:
    value = LAYOUT.to_json()
    value[name]["type"] = tree
    layout, _ = attempt(lambda: Layout.from_json(value))
    if layout is not None:
        attempt(lambda: layout.decode_enclave_ids(data))
        attempt(lambda: layout.decode_dc_program(data))
        attempt(lambda: layout.decode_now(data))


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.integers(0, 4), json_values | st.fixed_dictionaries({"def": json_values | trees}), max_size=5)
)
def test_registries_of_any_shape(types: Any) -> None:
    attempt(lambda: type_from_registry(types, 0))


def replace_part(value: Any, draw: Callable[[Any], Any]) -> Any:
    """Change one part somewhere inside a JSON value."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: replace_part(value[name], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], replace_part(value[at], draw), *value[at + 1 :]]
    if isinstance(value, str) and value.startswith("0x") and draw(st.booleans()):
        return "0x" + draw(mutated([bytes.fromhex(value[2:])])).hex()
    return draw(json_values)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_evidence_with_a_part_changed(data: st.DataObject) -> None:
    value = replace_part(json.loads(json.dumps(GOOD)), data.draw)
    state, code = attempt(lambda: verify_evidence(value, CASE.trust))
    if code is None:
        # Only a part that the verification has no use for may differ; what it says may not.
        assert (state.hash, state.timestamp_ms) == ("0x" + CASE.headers[0].hash.hex(), 1_764_000_000_000)


@settings(max_examples=150, deadline=None)
@given(st.lists(mutated(list(CASE.trie.items)), max_size=3), st.data())
def test_proofs_with_items_added_and_taken_away(more: list[bytes], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(LAYOUT.proof_keys))
    kept = [item for item in CASE.proof if data.draw(st.booleans())]
    values, code = attempt(lambda: read_proof(CASE.trie.root, [*kept, *more], [key]))
    if code is None:
        assert values == read_proof(CASE.trie.root, CASE.proof, [key])


@settings(max_examples=300, deadline=None)
@given(mutated([JUSTIFICATION]))
def test_changed_justifications_finalize_nothing_else(data: bytes) -> None:
    justification, code = attempt(lambda: verify_justification(data, 0, FIRST))
    if code is None:
        assert (justification.target_hash, justification.target_number) == (TARGET.hash, TARGET.number)


@settings(max_examples=100, deadline=None)
@given(st.permutations(CASE.set_changes * 2), st.integers(0, 4))
def test_set_changes_in_any_order(changes: Any, count: int) -> None:
    following, code = attempt(lambda: follow_set_changes(CASE.trust.checkpoint, changes[:count]))
    if code is None:
        changed = [change.headers[0].grandpa_change() for change in CASE.set_changes]
        sets = [FIRST, *(change.authorities for change in changed if change is not None)]
        assert following.authorities == sets[following.set_id]
