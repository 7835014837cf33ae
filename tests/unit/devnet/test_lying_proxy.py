"""Each lie changes exactly what it names."""

import pytest

from devnet.lying_proxy import (
    Behind,
    ForgedHeader,
    ForgedMetadata,
    ForgedValue,
    FutureHeight,
    Lie,
    NoMethods,
    OldState,
    Withheld,
    WithheldChange,
)

KEY, OTHER = "0xaa", "0xbb"
HEADER = {"number": "0x0a", "parentHash": "0x01", "stateRoot": "0x02"}


def test_a_forged_value_is_told_in_answers_notifications_and_proofs() -> None:
    lie = ForgedValue(KEY, "0x0666", truth="0x0111")
    assert lie.result("state_getStorage", [KEY, "0x1"], "0x0111") == "0x0666"
    assert lie.result("state_getStorage", [OTHER], "0x0111") == "0x0111"
    assert lie.notification("state_storage", {"block": "0x1", "changes": [[KEY, "0x0111"], [OTHER, None]]}) == {
        "block": "0x1",
        "changes": [[KEY, "0x0666"], [OTHER, None]],
    }
    assert lie.result("state_queryStorageAt", [[KEY]], [{"block": "0x1", "changes": [[KEY, "0x0111"]]}]) == [
        {"block": "0x1", "changes": [[KEY, "0x0666"]]}
    ]
    proof = {"at": "0x1", "proof": ["0xff0111ff", "0xee"]}
    assert lie.result("state_getReadProof", [[KEY, OTHER], "0x1"], proof)["proof"] == ["0xff0666ff", "0xee"]
    assert lie.result("state_getReadProof", [[OTHER], "0x1"], proof) == proof


def test_a_forged_header_is_told_wherever_headers_are() -> None:
    lie = ForgedHeader({"stateRoot": "0x66"})
    forged = {**HEADER, "stateRoot": "0x66"}
    assert lie.result("chain_getHeader", [], HEADER) == forged
    assert lie.result(
        "chain_getBlock", [], {"block": {"header": HEADER, "extrinsics": []}, "justifications": None}
    ) == {
        "block": {"header": forged, "extrinsics": []},
        "justifications": None,
    }
    assert lie.notification("chain_finalizedHead", HEADER) == forged
    assert lie.result("chain_getHeader", [], None) is None


def test_a_future_height_is_raised() -> None:
    assert FutureHeight(5).notification("chain_newHead", HEADER) == {**HEADER, "number": "0xf"}
    assert FutureHeight(5).result("chain_getHeader", [], HEADER) == {**HEADER, "number": "0xf"}


@pytest.mark.parametrize("asked", [[KEY], [KEY, "0x9"]])
def test_old_state_is_asked_for_in_place_of_new(asked: list[str]) -> None:
    assert OldState("0x1").params("state_getStorage", asked) == [KEY, "0x1"]
    assert OldState("0x1").params("chain_getHeader", asked) == asked


def test_an_endpoint_behind_says_nothing_new() -> None:
    lie = Behind("0x1")
    assert lie.result("chain_getFinalizedHead", [], "0x2") == "0x1"
    for method in ("chain_finalizedHead", "chain_newHead", "grandpa_justifications", "state_storage"):
        with pytest.raises(Withheld):
            lie.notification(method, HEADER)


def test_a_withheld_change_is_not_notified() -> None:
    lie = WithheldChange({KEY: None})
    assert lie.result("state_getStorage", [KEY, "0x9"], "0x0111") is None
    assert lie.notification("state_storage", {"block": "0x1", "changes": [[KEY, "0x01"], [OTHER, "0x02"]]}) == {
        "block": "0x1",
        "changes": [[OTHER, "0x02"]],
    }
    with pytest.raises(Withheld):
        lie.notification("state_storage", {"block": "0x1", "changes": [[KEY, "0x01"]]})


def test_forged_metadata_has_other_bytes() -> None:
    metadata = "0x" + b"..DcNode..".hex()
    assert ForgedMetadata(b"DcNode", b"DcNodf").result("state_getMetadata", [], metadata) == "0x" + b"..DcNodf..".hex()


def test_methods_that_are_not_offered_are_neither_listed_nor_answered() -> None:
    lie = NoMethods(("state_getReadProof",))
    assert lie.result("rpc_methods", [], {"methods": ["state_getReadProof", "b"]}) == {"methods": ["b"]}
    with pytest.raises(Withheld):
        lie.result("state_getReadProof", [[KEY]], {})


def test_a_plain_lie_is_the_truth() -> None:
    assert Lie().params("m", [1]) == [1]
    assert Lie().result("m", [1], {"a": 1}) == {"a": 1}
    assert Lie().notification("m", HEADER) == HEADER
