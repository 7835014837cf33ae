import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain_watcher.proof.layout import (
    GENESIS_HASH_KEY,
    VALUE_BYTES_MAX,
    Layout,
    RawEntry,
    RawProgram,
    standard_layout,
    storage_key,
    twox64_concat,
    twox128,
    type_from_registry,
)
from tests.doubles.chain_makers import attempt, blob, code_of, compact, raw

FIVE, FOUR = standard_layout(fields=5), standard_layout(fields=4)
U8_TO_U256 = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "u128": 16, "u256": 32}


def entry_bytes(height: int, enclave_id: bytes, signature: bytes) -> bytes:
    return height.to_bytes(4, "little") + blob(enclave_id) + blob(signature)


def changed(**items: Any) -> Layout:
    """The 5-field layout with other types."""
    value = FIVE.to_json()
    for name, tree in items.items():
        value[name]["type"] = tree
    return Layout.from_json(value)


# --- keys ----------------------------------------------------------------------------------------------------------


def test_known_keys(vectors: Path) -> None:
    """Keys of a real chain and of Substrate's documentation."""
    known = json.loads((vectors / "chain/readproof_solochain_v1.json").read_text())["proofs"]
    keys = {proof["name"]: raw(proof["key"]) for proof in known}
    assert FIVE.keys["now"] == keys["Timestamp.Now"]
    assert FIVE.keys["dc_program"] == keys["absent DcNode.DcProgram"]
    assert storage_key("Sudo", "Key") == keys["Sudo.Key"]
    assert storage_key("System", "Events") == keys["System.Events"]


def test_known_hashes() -> None:
    assert twox128(b"System").hex() == "26aa394eea5630e07c48ae0c9558cef7"
    assert storage_key("System", "Number").hex().endswith("02a5c1b19ab7a04f536c519aca4983ac")
    assert twox64_concat(bytes(4)).hex() == "b4def25cfda6ef3a00000000"
    assert GENESIS_HASH_KEY.hex() == (
        "26aa394eea5630e07c48ae0c9558cef7a44704b568d21667356a5a050c118746b4def25cfda6ef3a00000000"
    )
    assert FIVE.proof_keys == (*(FIVE.keys[name] for name in ("enclave_ids", "dc_program", "now")), GENESIS_HASH_KEY)
    assert standard_layout(fields=4, prefix="Other").keys["dc_program"] == storage_key("Other", "DcProgram")


# --- values --------------------------------------------------------------------------------------------------------


def test_enclave_ids() -> None:
    rows = [(5, b"a" * 64, b"bsig"), (6, b"", b"\xff\x00"), (2**32 - 1, b"0xabcd", b"0x")]
    value = compact(3) + b"".join(entry_bytes(*row) for row in rows)
    assert FIVE.decode_enclave_ids(value) == tuple(RawEntry(*row) for row in rows)
    assert FIVE.decode_enclave_ids(compact(0)) == ()
    assert FIVE.decode_enclave_ids(None) == ()


def test_bytes_are_neither_text_nor_hex() -> None:
    """The text "0xabcd" and the bytes ab cd are different values and stay so."""
    texts = [b"0xabcd", b"\xab\xcd"]
    found = [FIVE.decode_enclave_ids(compact(1) + entry_bytes(1, text, text))[0].enclave_id for text in texts]
    assert found == texts
    programs = [FOUR.decode_dc_program(blob(text) * 4) for text in texts]
    assert [program and program.version for program in programs] == texts


def test_dc_program_with_four_and_five_fields() -> None:
    fields = [b"https://a/x.tar.gz", b"", b"a" * 64, b"1.2"]
    four = b"".join(map(blob, fields))
    five = four + compact(2) + blob(b"bafy") + blob(b"")
    assert FOUR.decode_dc_program(four) == RawProgram(*fields)  # type: ignore[arg-type]
    assert FIVE.decode_dc_program(five) == RawProgram(*fields, (b"bafy", b""))  # type: ignore[call-arg, arg-type]
    assert FIVE.decode_dc_program(None) is None
    assert code_of(lambda: FOUR.decode_dc_program(five)) == "SCALE_TRAILING_BYTES"
    assert code_of(lambda: FIVE.decode_dc_program(four)) == "SCALE_TRUNCATED"


def test_now() -> None:
    assert FIVE.decode_now((1_700_000_000_123).to_bytes(8, "little")) == 1_700_000_000_123
    assert code_of(lambda: FIVE.decode_now(None)) == "LAYOUT_MISMATCH"
    assert code_of(lambda: FIVE.decode_now(bytes(7))) == "SCALE_TRUNCATED"
    wide = changed(now="u128")
    assert wide.decode_now(bytes(16)) == 0
    assert code_of(lambda: wide.decode_now(b"\xff" * 16)) == "LAYOUT_MISMATCH"


def test_values_are_strict_and_bounded() -> None:
    value = compact(1) + entry_bytes(1, b"id", b"sig")
    for cut in range(len(value)):
        assert code_of(lambda cut=cut: FIVE.decode_enclave_ids(value[:cut])) == "SCALE_TRUNCATED"
    assert code_of(lambda: FIVE.decode_enclave_ids(value + b"\0")) == "SCALE_TRAILING_BYTES"
    assert code_of(lambda: FIVE.decode_enclave_ids(bytes(VALUE_BYTES_MAX + 1))) == "SCALE_TOO_LARGE"
    assert code_of(lambda: FIVE.decode_enclave_ids(compact(VALUE_BYTES_MAX))) == "SCALE_TRUNCATED"
    assert code_of(lambda: FIVE.decode_enclave_ids(compact(VALUE_BYTES_MAX + 1))) == "SCALE_TOO_LARGE"
    long_form = b"\x05\x00" + entry_bytes(1, b"id", b"sig")
    assert code_of(lambda: FIVE.decode_enclave_ids(long_form)) == "SCALE_COMPACT_NOT_CANONICAL"


raw_entries = st.builds(RawEntry, st.integers(0, 2**32 - 1), st.binary(max_size=70), st.binary(max_size=110))


@given(st.lists(raw_entries, max_size=5))
def test_enclave_ids_round_trip(entries: list[RawEntry]) -> None:
    rows = b"".join(entry_bytes(one.height, one.enclave_id, one.signature) for one in entries)
    assert FIVE.decode_enclave_ids(compact(len(entries)) + rows) == tuple(entries)


@given(st.tuples(*[st.binary(max_size=90)] * 4), st.lists(st.binary(max_size=70), max_size=4))
def test_dc_program_round_trip(fields: Any, cids: Any) -> None:
    value = b"".join(map(blob, fields)) + compact(len(cids)) + b"".join(map(blob, cids))
    assert FIVE.decode_dc_program(value) == RawProgram(*fields, tuple(cids))  # type: ignore[call-arg, arg-type]


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    attempt(lambda: FIVE.decode_enclave_ids(data))
    attempt(lambda: FIVE.decode_dc_program(data))
    attempt(lambda: FIVE.decode_now(data))


# --- layouts other than the standard ones --------------------------------------------------------------------------


def test_field_order_and_names_come_from_the_layout() -> None:
    order = ["Version", "mirrorUrl", "ENCLAVE_ID", "added", "mirror_cids", "originUrl", "flags"]
    types = ["bytes", "bytes", "bytes", "u16", {"vec": "bytes"}, "bytes", {"option": "bool"}]
    layout = changed(dc_program={"struct": [list(pair) for pair in zip(order, types, strict=True)]})
    value = blob(b"1") + blob(b"m") + blob(b"id") + b"\7\0" + compact(1) + blob(b"c") + blob(b"o") + b"\1\1"
    assert layout.decode_dc_program(value) == RawProgram(b"o", b"m", b"id", b"1", (b"c",))
    assert layout.decode_dc_program(value[:-2] + b"\0") == RawProgram(b"o", b"m", b"id", b"1", (b"c",))
    assert code_of(lambda: layout.decode_dc_program(value[:-2] + b"\2")) == "SCALE_VALUE_INVALID"
    assert code_of(lambda: layout.decode_dc_program(value[:-1] + b"\2")) == "SCALE_VALUE_INVALID"


def test_entries_as_structs() -> None:
    tree = {"struct": [["signature", "bytes"], ["height", "u64"], ["enclave_id", "bytes"]]}
    layout = changed(enclave_ids={"vec": tree})
    value = compact(1) + blob(b"sig") + (7).to_bytes(8, "little") + blob(b"id")
    assert layout.decode_enclave_ids(value) == (RawEntry(7, b"id", b"sig"),)


def test_compact_heights_and_optional_programs() -> None:
    layout = changed(
        enclave_ids={"vec": {"tuple": [{"compact": "u32"}, "bytes", "bytes"]}},
        dc_program={"option": FOUR.to_json()["dc_program"]["type"]},
    )
    assert layout.decode_enclave_ids(compact(1) + compact(300) + blob(b"i") + blob(b"s")) == (
        RawEntry(300, b"i", b"s"),
    )
    over = compact(1) + bytes.fromhex("070000000001") + blob(b"i") + blob(b"s")
    assert code_of(lambda: layout.decode_enclave_ids(over)) == "SCALE_TOO_LARGE"
    assert layout.decode_dc_program(b"\0") is None
    assert layout.decode_dc_program(b"\1" + blob(b"x") * 4) == RawProgram(b"x", b"x", b"x", b"x")


def test_further_types_are_decoded_and_ignored() -> None:
    extra = [["a", {"array": [3, "u16"]}], ["b", {"tuple": ["bool", {"vec": "u128"}]}], ["c", {"compact": "u256"}]]
    tree = FOUR.to_json()["dc_program"]["type"]
    layout = changed(dc_program={"struct": tree["struct"] + extra})
    value = blob(b"x") * 4 + bytes(6) + b"\1" + compact(2) + bytes(32) + b"\0"
    assert layout.decode_dc_program(value) == RawProgram(b"x", b"x", b"x", b"x")
    assert code_of(lambda: layout.decode_dc_program(value[:-1])) == "SCALE_TRUNCATED"


@pytest.mark.parametrize(("name", "size"), U8_TO_U256.items())
def test_integer_widths(name: str, size: int) -> None:
    tree = FOUR.to_json()["dc_program"]["type"]
    layout = changed(dc_program={"struct": [["first", name], *tree["struct"]]})
    assert layout.decode_dc_program(bytes(size) + blob(b"x") * 4)
    assert code_of(lambda: layout.decode_dc_program(bytes(size - 1) + blob(b"x") * 4)).startswith("SCALE_")


def test_hashes_tell_layouts_apart() -> None:
    assert FOUR != FIVE
    assert FOUR.hash != FIVE.hash
    assert standard_layout(fields=4, prefix="Other") != FOUR
    assert changed(now="u128") != FIVE
    again = Layout.from_json(json.loads(json.dumps(FIVE.to_json())))
    assert again == FIVE
    assert hash(again) == hash(FIVE)
    assert repr(again) == f"Layout({FIVE.hash})"
    assert FIVE.to_json() != FIVE
    # Pinned in settings and measured policies: these two values must never change.
    assert FOUR.hash == "54fe915cb28dc2e17bc7eb53b3e4b5228595d958c37085086c1293af7c1b0add"
    assert FIVE.hash == "ad3142bc8431f171e54d7e55e3e582ccedcc0144d39a4e4c16d8863104f7a20b"


def test_a_copy_does_not_reach_back() -> None:
    copy = FIVE.to_json()
    copy["enclave_ids"]["prefix"] = "Evil"
    assert FIVE.to_json()["enclave_ids"]["prefix"] == "DcNode"
    value = FIVE.to_json()
    layout = Layout.from_json(value)
    value["dc_program"]["type"]["struct"].reverse()
    assert layout.to_json() == FIVE.to_json()


def test_only_two_standard_layouts() -> None:
    with pytest.raises(ValueError, match="4 or 5"):
        standard_layout(fields=6)


def nested(depth: int, kind: str = "option") -> object:
    """A type of `depth` levels, each around the next."""
    tree: object = "u16"
    for _ in range(depth):
        tree = {kind: {"array": [1, tree], "tuple": [tree], "struct": [["a", tree]]}.get(kind, tree)}
    return tree


GOOD = FIVE.to_json()
ITEM = GOOD["now"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {**GOOD, "more": 1},
        {**GOOD, "format": 2},
        {**GOOD, "format": True},
        {**GOOD, "format": "1"},
        {**GOOD, "now": None},
        {**GOOD, "now": {"prefix": "Timestamp", "item": "Now"}},
        {**GOOD, "now": {**ITEM, "prefix": ""}},
        {**GOOD, "now": {**ITEM, "prefix": 7}},
        {**GOOD, "now": {**ITEM, "item": "N" * 129}},
        {**GOOD, "now": {**ITEM, "item": "N\u00f6w"}},
        {**GOOD, "now": {**ITEM, "type": "bool"}},
        {**GOOD, "now": {**ITEM, "type": {"compact": "u64"}}},
        {**GOOD, "now": {**GOOD["dc_program"], "type": "u64"}},  # one key for two items
    ],
)
def test_json_that_is_no_layout(value: Any) -> None:
    assert code_of(lambda: Layout.from_json(value)) == "LAYOUT_INVALID"


@pytest.mark.parametrize(
    "tree",
    [
        None,
        7,
        "u7",
        "text",
        [],
        {},
        {"vec": "u8"},  # is "bytes"
        {"vec": "u16", "tuple": []},
        {"vec": "nothing"},
        {"compact": "bytes"},
        {"compact": "bool"},
        {"compact": {"compact": "u8"}},
        {"array": "u8"},
        {"array": [3]},
        {"array": ["3", "u8"]},
        {"array": [True, "u8"]},
        {"array": [0, "u8"]},
        {"array": [4097, "u8"]},
        {"tuple": []},
        {"tuple": "u8"},
        {"struct": []},
        {"struct": {"a": "u8"}},
        {"struct": ["a"]},
        {"struct": [["a"]]},
        {"struct": [[7, "u8"]]},
        {"struct": [["", "u8"]]},
        {"struct": [["a", "u8"], ["A_", "u8"]]},
        {"struct": [["a" * 129, "u8"]]},
        {"set": "u8"},
        nested(17),
        *(nested(17, kind) for kind in ("vec", "array", "tuple", "struct")),
        {"tuple": [{"tuple": ["u8"] * 20}] * 20},
    ],
)
def test_types_that_are_none(tree: Any) -> None:
    extra = {"struct": [*FOUR.to_json()["dc_program"]["type"]["struct"], ["extra", tree]]}
    assert code_of(lambda: changed(dc_program=extra)) == "LAYOUT_INVALID"


def test_types_may_be_deep_but_not_too_deep() -> None:
    extra = {"struct": [*FOUR.to_json()["dc_program"]["type"]["struct"], ["extra", nested(15)]]}
    layout = changed(dc_program=extra)
    assert layout.decode_dc_program(blob(b"x") * 4 + b"\1" * 15 + b"\7\0")
    long = {**GOOD, "now": {**ITEM, "prefix": "T" * 128, "item": "N"}}
    assert Layout.from_json(long).to_json() == long
    assert changed(now="u128").decode_now(b"\xff" * 8 + bytes(8)) == 2**64 - 1


def test_a_value_of_the_largest_size() -> None:
    value = compact(1) + bytes(4) + blob(b"") + blob(b"x" * ((1 << 20) - 10))
    assert len(value) == 1 << 20
    assert len(FIVE.decode_enclave_ids(value)[0].signature) == (1 << 20) - 10


@pytest.mark.parametrize(
    "tree",
    [
        "bytes",
        {"vec": "bytes"},
        {"vec": {"tuple": ["u32", "bytes"]}},
        {"vec": {"tuple": ["bytes", "bytes", "u32"]}},
        {"vec": {"tuple": ["u128", "bytes", "bytes"]}},
        {"vec": {"tuple": [{"compact": "u8"}, "bytes", "bytes"]}},
        {"vec": {"tuple": [{"array": [2, "u16"]}, "bytes", "bytes"]}},
        {"vec": {"option": "u32"}},
        {"vec": {"struct": [["height", "u32"], ["id", "bytes"], ["signature", "bytes"]]}},
        {"vec": {"struct": [["height", "u32"], ["enclave_id", "bytes"], ["proof", "bytes"]]}},
        {"vec": {"struct": [["height", "u32"], ["enclave_id", "u32"], ["signature", "bytes"]]}},
        {"vec": {"struct": [["enclave_id", "bytes"], ["signature", "bytes"]]}},
        {"vec": {"struct": [["height", "u32"], ["enclave_id", "bytes"], ["signature", {"vec": "bytes"}]]}},
    ],
)
def test_types_that_cannot_be_enclave_ids(tree: Any) -> None:
    assert code_of(lambda: changed(enclave_ids=tree)) == "LAYOUT_INVALID"


@pytest.mark.parametrize(
    "tree",
    [
        "bytes",
        {"vec": "bytes"},
        {"option": "bytes"},
        {"struct": FIVE.to_json()["dc_program"]["type"]["struct"][1:]},
        {"struct": [["origin_url", "bytes"], ["mirror_url", "bytes"], ["enclave_id", "u64"], ["version", "bytes"]]},
    ],
)
def test_types_that_cannot_be_a_program(tree: Any) -> None:
    assert code_of(lambda: changed(dc_program=tree)) == "LAYOUT_INVALID"


# --- from metadata -------------------------------------------------------------------------------------------------


def registry() -> dict[int, dict[str, Any]]:
    """A V14 registry as JSON, with the wrappers that FRAME puts around plain types."""

    def field(type_id: int, name: str | None = None) -> dict[str, Any]:
        return {"name": name, "type": type_id, "typeName": "T", "docs": []}

    program = ["origin_url", "mirror_url", "enclave_id", "version"]
    return {
        0: {"path": [], "def": {"primitive": "U8"}},
        1: {"path": [], "def": {"sequence": {"type": 0}}},
        2: {"path": ["bounded_collections", "BoundedVec"], "def": {"composite": {"fields": [field(1)]}}},
        3: {"path": [], "def": {"primitive": "u32"}},
        4: {"path": [], "def": {"tuple": [3, 2, 1]}},
        5: {"path": [], "def": {"sequence": {"type": 4}}},
        6: {"path": ["BTreeSet"], "def": {"composite": {"fields": [field(5)]}}},
        7: {"path": ["DcProgram"], "def": {"composite": {"fields": [field(1, name) for name in program]}}},
        8: {"path": ["Option"], "def": {"variant": {"variants": [{"name": "None", "fields": []}]}}},
        9: {"def": {"compact": {"type": 3}}},
        10: {"path": None, "def": {"array": {"len": 4, "type": 3}}},
        11: {"path": ["Pair"], "def": {"composite": {"fields": [field(3), field(2)]}}},
        12: {
            "path": ["Option"],
            "def": {"variant": {"variants": [{"name": "None"}, {"name": "Some", "fields": [field(3)]}]}},
        },
        13: {"path": ["Either"], "def": {"variant": {"variants": []}}},
        14: {"path": [], "def": {"primitive": "str"}},
        15: {"path": ["Endless"], "def": {"sequence": {"type": 15}}},
        16: {"path": [], "def": {"sequence": {"type": 99}}},
        17: {"path": [], "def": {}},
        18: {"path": [], "def": {"bitSequence": {}}},
        19: {"path": [], "def": None},
        20: {"path": [], "def": {"tuple": [3] * 17}},
        22: {"path": ["Either"], "def": {"variant": {"variants": [{"name": "Some", "fields": [field(3)]}]}}},
        23: {"path": ["Option"], "def": {"bitSequence": {"variants": [{"name": "Some", "fields": [field(3)]}]}}},
        21: {"path": [], "def": {"tuple": [20] * 17}},
    }


def test_types_from_metadata_are_the_standard_ones() -> None:
    assert type_from_registry(registry(), 6) == FIVE.to_json()["enclave_ids"]["type"]
    assert type_from_registry(registry(), 7) == FOUR.to_json()["dc_program"]["type"]


@pytest.mark.parametrize(
    ("type_id", "tree"),
    [
        (2, "bytes"),
        (9, {"compact": "u32"}),
        (10, {"array": [4, "u32"]}),
        (11, {"tuple": ["u32", "bytes"]}),
        (12, {"option": "u32"}),
        (14, "bytes"),
    ],
)
def test_types_from_metadata(type_id: int, tree: Any) -> None:
    assert type_from_registry(registry(), type_id) == tree


@pytest.mark.parametrize("type_id", [8, 13, 15, 16, 17, 18, 19, 21, 22, 23, 99])
def test_types_from_metadata_that_cannot_be_read(type_id: int) -> None:
    assert code_of(lambda: type_from_registry(registry(), type_id)) == "LAYOUT_INVALID"
