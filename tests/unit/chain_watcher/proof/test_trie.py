import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain_watcher.proof import trie
from chain_watcher.proof.trie import EMPTY_ROOT, ReadProof, TrieNode, decode_node, read_proof
from tests.doubles import chain_makers as makers
from tests.doubles.chain_makers import Trie, attempt, code_of, hash256, node_bytes, raw


@pytest.fixture(scope="module")
def solochain(vectors: Path) -> dict[str, Any]:
    return json.loads((vectors / "chain/readproof_solochain_v1.json").read_text())


@pytest.fixture(scope="module")
def polkadot(vectors: Path) -> dict[str, Any]:
    return json.loads((vectors / "chain/trie_polkadot_genesis.json").read_text())


def read(root: bytes, items: Sequence[bytes], key: bytes) -> bytes | None:
    return read_proof(root, items, [key])[key]


def flips(items: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Every list of items with one bit of one item flipped."""
    for index, item in enumerate(items):
        for bit in range(len(item) * 8):
            broken = bytearray(item)
            broken[bit // 8] ^= 1 << bit % 8
            yield [*items[:index], bytes(broken), *items[index + 1 :]]


# --- known answers -------------------------------------------------------------------------------------------------


def test_solochain_proofs(solochain: dict[str, Any]) -> None:
    root = raw(solochain["stateRoot"])
    for proof in solochain["proofs"]:
        items = [raw(item) for item in proof["proof"]]
        expected = None if proof["value"] is None else raw(proof["value"])
        assert read(root, items, raw(proof["key"])) == expected, proof["name"]
        for gone in range(len(items)):
            rest = items[:gone] + items[gone + 1 :]
            code = code_of(lambda rest=rest, proof=proof: read(root, rest, raw(proof["key"])))
            assert code == "PROOF_INCOMPLETE", (proof["name"], gone)


def test_solochain_proofs_as_one(solochain: dict[str, Any]) -> None:
    root = raw(solochain["stateRoot"])
    items = list({raw(item) for proof in solochain["proofs"] for item in proof["proof"]})
    values = read_proof(root, items, [raw(proof["key"]) for proof in solochain["proofs"]])
    assert values == {raw(p["key"]): None if p["value"] is None else raw(p["value"]) for p in solochain["proofs"]}


def test_solochain_one_flipped_bit_never_yields_a_value(solochain: dict[str, Any]) -> None:
    root = raw(solochain["stateRoot"])
    for proof in solochain["proofs"]:
        items = [raw(item) for item in proof["proof"]]
        for broken in flips(items):
            assert attempt(lambda broken=broken, proof=proof: read(root, broken, raw(proof["key"])))[1]


def test_polkadot_genesis(polkadot: dict[str, Any]) -> None:
    items = [raw(item) for item in polkadot["proof"]]
    for case in polkadot["expect"]:
        root = raw(case.get("stateRoot", polkadot["stateRoot"]))
        if "error" in case:
            assert case["error"] == "incomplete"
            assert code_of(lambda root=root, case=case: read(root, items, raw(case["key"]))) == "PROOF_INCOMPLETE"
        else:
            assert read(root, items, raw(case["key"])) == (case["value"] and raw(case["value"]))


def test_polkadot_genesis_one_flipped_bit_never_yields_a_value(polkadot: dict[str, Any]) -> None:
    items = [raw(item) for item in polkadot["proof"]]
    key = raw(polkadot["expect"][0]["key"])
    for broken in flips(items):
        assert attempt(lambda broken=broken: read(raw(polkadot["stateRoot"]), broken, key))[1]


def test_roots_known_from_substrate() -> None:
    """Roots that sp-trie and smoldot test themselves with: the empty trie, one key, two keys."""
    assert EMPTY_ROOT == makers.EMPTY_ROOT == Trie({}).root
    one = Trie({b"abcd": b"hello world"})
    assert one.root.hex() == "7ab18659d3b2789ef2400d107104c7d4fb93d06d9ab6a8b641a5de7c3fecc851"
    assert read(one.root, one.items, b"abcd") == b"hello world"
    state = {b"\xaa": b"\xbb"}
    assert Trie(state).root == hash256(bytes([0x42, 0xAA, 4, 0xBB]))
    state = {bytes([0x48, 0x19]): b"\xfe", bytes([0x13, 0x14]): b"\xff"}
    expected = bytes([0x80, 0x12, 0x00, 0x14, 0x43, 0x03, 0x14, 4, 0xFF, 0x14, 0x43, 0x08, 0x19, 4, 0xFE])
    assert Trie(state).items == [expected]
    for key, value in state.items():
        assert read(hash256(expected), [expected], key) == value


# --- shapes --------------------------------------------------------------------------------------------------------

BIG = bytes(range(33))
STATE = {
    b"": b"root value",
    b"\x00": b"",
    b"\x01": b"x" * 32,
    b"\x01\x02": BIG,  # hashed value in a branch
    b"\x01\x02\x03": b"child",
    b"\x01\x02\x04": BIG + b"leaf",  # hashed value in a leaf
    b"\x10" * 40: b"a long partial key in a leaf",
    b"\x20" * 40 + b"\x01": b"under a long partial key",
    b"\x20" * 40 + b"\x02": BIG * 9,
    b"\x30" * 200 + b"\x01": BIG,
    b"\x30" * 200 + b"\x01\x00": BIG + b"!",
    b"\xf0": b"a" * 40,
    b"\xff": b"b" * 40,
}
ABSENT = [
    b"\x02",
    b"\x00\x00",
    b"\x01\x02\x03\x04",
    b"\x01\x02\x05",
    b"\x10" * 39,
    b"\x10" * 41,
    b"\x20",
    b"\x20" * 40,
    b"\x20" * 40 + b"\x03",
    b"\x30" * 200,
    b"\xf1",
    b"\xe0" * 32,
]


@pytest.mark.parametrize("version", [0, 1])
def test_every_shape_of_node(version: int) -> None:
    state = Trie(STATE, version)
    for key, value in STATE.items():
        assert read(state.root, state.prove([key]), key) == value
        assert read(state.root, state.items, key) == value
    for key in ABSENT:
        assert read(state.root, state.prove([key]), key) is None
        assert read(state.root, state.items, key) is None
    keys = [*STATE, *ABSENT]
    assert read_proof(state.root, state.prove(keys), keys) == {**STATE, **dict.fromkeys(ABSENT)}


@pytest.mark.parametrize("version", [0, 1])
def test_a_missing_item_is_never_an_absence(version: int) -> None:
    state = Trie(STATE, version)
    for key in [*STATE, *ABSENT]:
        items = state.prove([key])
        for gone in range(len(items)):
            rest = items[:gone] + items[gone + 1 :]
            assert code_of(lambda rest=rest, key=key: read(state.root, rest, key)) == "PROOF_INCOMPLETE"


def test_without_a_root_value_the_empty_key_is_absent() -> None:
    state = {key: value for key, value in STATE.items() if key}
    assert read(Trie(state).root, Trie(state).items, b"") is None
    one = Trie({b"": BIG})
    assert read(one.root, one.items, b"") == BIG
    assert read(one.root, one.items[:1] if hash256(one.items[0]) == one.root else one.items[1:], b"\0") is None


@pytest.mark.parametrize(
    "length", [0, 1, 2, *range(12, 19), *range(28, 35), *range(60, 67), *range(268, 275), 317, 318, 319, 573]
)
@pytest.mark.parametrize("shape", ["leaf", "hashed leaf", "branch", "value branch", "hashed branch"])
def test_partial_key_lengths_at_the_borders(length: int, shape: str) -> None:
    """1 and 15, 31 or 63 nibbles fill the header byte, every further 255 another one."""
    partial = ("123456789abcdef" * 40)[:length]
    value = None if shape == "branch" else hash256(b"v") if "hashed" in shape else b"v"
    children = {3: node_bytes("", value=b"c")} if "branch" in shape else None
    encoded = node_bytes(partial, value=value, hashed="hashed" in shape, children=children)
    node = decode_node(encoded)
    assert (node.partial, node.value, node.hashed) == (partial, value, "hashed" in shape)
    assert [child for child in node.children if child] == list((children or {}).values())
    if length % 2:
        position = encoded.index(bytes.fromhex("0" + partial))
        padded = encoded[:position] + bytes([encoded[position] | 0x10]) + encoded[position + 1 :]
        assert code_of(lambda: decode_node(padded)) == "PROOF_NODE_INVALID"


def test_known_header_bytes() -> None:
    assert node_bytes("0" * 63, value=b"")[:2] == b"\x7f\x00"
    assert node_bytes("0" * 318, value=b"")[:3] == b"\x7f\xff\x00"
    assert node_bytes("0" * 31, value=bytes(32), hashed=True)[:2] == b"\x3f\x00"
    assert node_bytes("0" * 15, value=bytes(32), hashed=True, children={0: b"@\0"})[:2] == b"\x1f\x00"


def test_inline_children() -> None:
    inner = node_bytes("", children={1: node_bytes("", value=b"deep"), 15: node_bytes("f", value=b"")})
    root = node_bytes("a", children={0: inner})
    assert len(inner) < 32
    assert read(hash256(root), [root], b"\xa0\x1f") is None
    assert read(hash256(root), [root], b"\xa0") is None
    # nibbles a 0 1 are odd: ways of whole bytes end at a 0 f f
    assert read(hash256(root), [root], b"\xa0\xff") == b""
    broken = node_bytes("a", children={0: b"\x01\x02"})
    assert code_of(lambda: read(hash256(broken), [broken], b"\xa0")) == "PROOF_NODE_INVALID"
    empty = node_bytes("a", children={0: b"\0"})
    assert code_of(lambda: read(hash256(empty), [empty], b"\xa0")) == "PROOF_NODE_INVALID"


def test_hashed_value_inside_an_inline_child_has_no_room_but_is_followed() -> None:
    """A node with a hashed value has at least 33 bytes, so it never is inline; a child by hash is followed."""
    leaf = node_bytes("0", value=hash256(BIG), hashed=True)
    root = node_bytes("", children={1: hash256(leaf)})
    assert read(hash256(root), [root, leaf, BIG], b"\x10") == BIG


@pytest.mark.parametrize(
    "data",
    [
        "",
        "00",  # the empty trie is no node of a way
        "01",  # compact-proof escape
        "0f",
        "40",  # leaf without value
        "4000" + "00",  # byte after the value
        "4004",  # value cut short
        "400100",  # length not in its shortest form
        "41",  # partial key cut short
        "411000",  # padding
        "7f",  # length cut short
        "7fff",
        "20" + "00" * 31,  # hash cut short
        "20" + "00" * 33,
        "80",  # bitmap cut short
        "8000",
        "800000",  # no child
        "80010000",  # child of no byte
        "80010004",  # child cut short
        "8001",
        "800100",
        "80010005" + "00" * 64,  # two-byte length
        "80010084" + "00" * 33,  # child of 33 bytes
        "800100" + "80" + "00" * 31,
        "800300" + "80" + "00" * 32,  # second child missing
        "800100" + "80" + "00" * 33,  # byte after the children
        "c00100",
        "c0010004",
        "c001000000",
        "100100" + "00" * 31,
        "10",
    ],
)
def test_malformed_nodes(data: str) -> None:
    item = bytes.fromhex(data)
    assert code_of(lambda: decode_node(item)) == "PROOF_NODE_INVALID"
    if item != b"\0":
        assert code_of(lambda: read(hash256(item), [item], b"\x12")) == "PROOF_NODE_INVALID"


def test_decoded_node() -> None:
    leaf = decode_node(b"\x42\xaa\x04\xbb")
    assert leaf == TrieNode("aa", b"\xbb", False, (None,) * 16)


# --- the empty trie, superfluous items, limits ---------------------------------------------------------------------


def test_empty_trie() -> None:
    assert read(EMPTY_ROOT, [], b"any") is None
    assert read(EMPTY_ROOT, [b"\0"], b"any") is None
    assert read(EMPTY_ROOT, [], b"") is None
    assert code_of(lambda: read(EMPTY_ROOT, [b"\0", b"@\0"], b"any")) == "PROOF_SUPERFLUOUS"
    assert read_proof(EMPTY_ROOT, [], []) == {}
    assert code_of(lambda: read_proof(EMPTY_ROOT, [b"@\0"], [])) == "PROOF_SUPERFLUOUS"


def test_superfluous_items() -> None:
    state = Trie(STATE)
    key = b"\x01\x02\x04"
    items = state.prove([key])
    assert code_of(lambda: read(state.root, [*items, b"@\0"], key)) == "PROOF_SUPERFLUOUS"
    assert code_of(lambda: read(state.root, [*items, b"not a node"], key)) == "PROOF_SUPERFLUOUS"
    assert code_of(lambda: read(state.root, [*items, b""], key)) == "PROOF_SUPERFLUOUS"
    assert code_of(lambda: read(state.root, [*items, items[0]], key)) == "PROOF_SUPERFLUOUS"
    other = Trie({b"another": b"trie"})
    assert code_of(lambda: read(state.root, items + other.items, key)) == "PROOF_SUPERFLUOUS"
    # An item of the trie whose parent is not there hangs on nothing.
    leaf = next(item for item in state.prove([b"\x30" * 200 + b"\x01\x00"]) if item not in items)
    alone = [item for item in state.prove([b"\x30" * 200 + b"\x01\x00"]) if item not in items and item != leaf]
    assert alone
    assert code_of(lambda: read(state.root, [*items, alone[-1]], key)) == "PROOF_SUPERFLUOUS"
    # Items for other keys of the same trie pass, hashed values among them, and items below inline nodes.
    assert read(state.root, state.items, key) == STATE[key]
    assert read_proof(state.root, state.items, []) == {}
    assert code_of(lambda: read_proof(hash256(b""), state.items, [])) == "PROOF_SUPERFLUOUS"


def test_superfluous_items_are_searched_through_inline_nodes() -> None:
    leaf = node_bytes("0", value=b"w" * 40)
    inner = node_bytes("", children={1: node_bytes("", value=b"i")})
    root = node_bytes("", children={0: inner, 1: hash256(leaf), 2: hash256(b"elsewhere")})
    assert read(hash256(root), [root, leaf], b"") is None
    broken = node_bytes("", children={0: b"\x01\x02", 1: hash256(leaf)})
    assert code_of(lambda: read(hash256(broken), [broken, leaf], b"")) == "PROOF_NODE_INVALID"
    malformed = b"\x41"
    root = node_bytes("", children={0: hash256(malformed), 1: hash256(leaf)})
    assert code_of(lambda: read(hash256(root), [root, leaf, malformed], b"\x10")) == "PROOF_NODE_INVALID"


def test_a_value_that_looks_like_a_node_is_not_walked() -> None:
    """The writer of a value over 32 bytes chooses bytes whose hash is in the trie; it is not a child there."""
    fake = node_bytes("", children={1: hash256(b"x" * 40), 2: hash256(b"y" * 40)})
    state = Trie({b"\x01": fake, b"\x02": b"z" * 40})
    assert read(state.root, state.items, b"\x01") == fake
    assert read(state.root, state.items, b"\x01\x10") is None
    # The value hangs on the trie, what it names does not.
    assert code_of(lambda: read(state.root, [*state.items, b"x" * 40], b"\x02")) == "PROOF_SUPERFLUOUS"


def test_an_inline_value_names_no_item() -> None:
    """32 bytes stored inline that happen to be the hash of an item are a value, not a link."""
    state = Trie({b"\x01": hash256(b"item"), b"\x02": b"z" * 40})
    assert read(state.root, state.items, b"\x01") == hash256(b"item")
    assert code_of(lambda: read(state.root, [*state.items, b"item"], b"\x01")) == "PROOF_SUPERFLUOUS"


def test_the_same_subtree_twice() -> None:
    twin = {b"\x10" + b"s" * 40: b"v" * 40, b"\x20" + b"s" * 40: b"v" * 40}
    state = Trie(twin)
    assert read_proof(state.root, state.items, twin) == twin


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Trie(STATE)
    monkeypatch.setattr(trie, "PROOF_NODES_MAX", len(state.items) - 1)
    assert code_of(lambda: ReadProof(state.items)) == "PROOF_TOO_LARGE"
    monkeypatch.setattr(trie, "PROOF_NODES_MAX", len(state.items))
    ReadProof(state.items)
    monkeypatch.setattr(trie, "PROOF_BYTES_MAX", sum(map(len, state.items)) - 1)
    assert code_of(lambda: ReadProof(state.items)) == "PROOF_TOO_LARGE"


def test_a_root_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        read_proof(b"", [], [])


# --- properties ----------------------------------------------------------------------------------------------------

keys = st.binary(max_size=5) | st.binary(min_size=1, max_size=2).map(lambda data: data * 40)
states = st.dictionaries(keys, st.binary(max_size=70), max_size=25)


@settings(max_examples=150)
@given(states, st.sampled_from([0, 1]), st.lists(keys, max_size=5))
def test_any_state_is_proven(state: dict[bytes, bytes], version: int, others: list[bytes]) -> None:
    made = Trie(state, version)
    asked = [*state, *others]
    expected = {key: state.get(key) for key in asked}
    assert read_proof(made.root, made.items, asked) == expected
    if made.root != EMPTY_ROOT:
        assert read_proof(made.root, made.prove(asked), asked) == expected


@settings(max_examples=100)
@given(states.filter(bool), st.data())
def test_corrupted_proofs_of_any_state_never_lie(state: dict[bytes, bytes], data: st.DataObject) -> None:
    made = Trie(state)
    key = data.draw(st.sampled_from(sorted(state)) | keys)
    items = made.prove([key])
    index = data.draw(st.integers(0, len(items) - 1))
    bit = data.draw(st.integers(0, max(0, len(items[index]) * 8 - 1)))
    broken = bytearray(items[index] or b"\0")
    broken[bit // 8] ^= 1 << bit % 8
    assert attempt(lambda: read(made.root, [*items[:index], bytes(broken), *items[index + 1 :]], key))[1]


@given(st.binary(max_size=80))
def test_a_node_that_decodes_encodes_to_the_same_bytes(data: bytes) -> None:
    node, code = attempt(lambda: decode_node(data))
    if code is None:
        children = {index: child for index, child in enumerate(node.children) if child is not None}
        assert node_bytes(node.partial, value=node.value, hashed=node.hashed, children=children or None) == data


def test_order_of_items_does_not_matter() -> None:
    made = Trie({b"\x01": BIG, b"\x02": b"b", b"\x11": b"c" * 40})
    for items in itertools.permutations(made.items):
        assert read(made.root, items, b"\x01") == BIG
