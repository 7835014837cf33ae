"""How the publisher reads a chain and evaluates the results of its extrinsics, with invented answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from scalecodec.types import GenericCall
from substrateinterface.exceptions import SubstrateRequestException

from dcupgrade.errors import DcupgradeError
from dcupgrade.publishing import pallet, publish
from dcupgrade.publishing.pallet import PublisherChain, Release

ID = "ab" * 32
RELEASE = Release(ID, "1.1.0", "http://h/a", "", ("bafy",))


class FakeSubstrate:
    """The part of substrate-interface that the publisher uses, with a pallet of any name."""

    def __init__(self, *, arguments: tuple[str, ...] = ("origin_url",), sudo: bool = True, calls: Any = None) -> None:
        names = pallet.CALLS if calls is None else calls
        renamed = SimpleNamespace(
            name="Renamed",
            calls=[SimpleNamespace(name=name) for name in names],
            storage=[SimpleNamespace(value={"name": name}) for name in pallet.STORAGE],
        )
        others = [SimpleNamespace(name="Sudo", calls=None, storage=None)] if sudo else []
        self.metadata = SimpleNamespace(pallets=[*others, renamed])
        self.arguments = arguments
        self.composed: list[tuple[str, str, dict[str, Any]]] = []
        self.receipt: Any = None

    def init_runtime(self) -> None:
        pass

    def get_metadata_call_function(self, _pallet: str, _name: str) -> Any:
        return SimpleNamespace(args=[SimpleNamespace(name=name) for name in self.arguments])

    def compose_call(self, pallet: str, name: str, values: dict[str, Any]) -> Any:
        self.composed.append((pallet, name, values))
        return SimpleNamespace(data=SimpleNamespace(data=bytearray(b"\x07\x18")))

    def create_signed_extrinsic(self, call: GenericCall, keypair: Any) -> Any:
        return call, keypair

    def submit_extrinsic(self, _extrinsic: Any, **_wait: bool) -> Any:
        if isinstance(self.receipt, Exception):
            raise self.receipt
        return self.receipt


def event(pallet: str, name: str, attributes: Any = None) -> Any:
    return SimpleNamespace(value={"module_id": pallet, "event_id": name, "attributes": attributes})


def receipt(*events: Any, success: bool = True) -> Any:
    return SimpleNamespace(
        is_success=success, error_message={"name": "BadOrigin"}, triggered_events=events, block_hash="0xb10c"
    )


def submitted(outcome: Any) -> str:
    substrate = FakeSubstrate()
    substrate.receipt = outcome
    chain = PublisherChain(substrate)
    call = pallet.PreparedCall("Renamed.remove_enclave_id", "0x", "0x", None)
    return chain.submit(call, None, finalized=True)


def test_the_pallet_is_found_by_what_it_has_not_by_its_name() -> None:
    chain = PublisherChain(FakeSubstrate())
    assert chain.pallet == "Renamed"
    assert chain.has_sudo
    assert not PublisherChain(FakeSubstrate(sudo=False)).has_sudo
    with pytest.raises(DcupgradeError, match="PUBLISH_PALLET_MISSING"):
        PublisherChain(FakeSubstrate(calls=["set_enclave_id"]))


@pytest.mark.parametrize(
    "names",
    [
        ("origin_url", "mirror_url", "enclave_id", "version"),
        ("version", "enclave_id", "mirror_url", "origin_url", "mirr_cids"),
    ],
)
def test_arguments_follow_the_metadata_and_travel_as_hex(names: tuple[str, ...]) -> None:
    substrate = FakeSubstrate(arguments=names)
    call = PublisherChain(substrate).program_call(RELEASE)
    assert (call.name, call.data) == ("Renamed.set_dc_program", "0x0718")
    ((_, _, values),) = substrate.composed
    assert tuple(values) == names
    assert values["origin_url"] == "0x" + b"http://h/a".hex()
    assert values["mirror_url"] == "0x"
    assert values.get("mirr_cids", ["0x" + b"bafy".hex()]) == ["0x" + b"bafy".hex()]


def test_an_argument_that_nobody_knows_stops_it() -> None:
    with pytest.raises(DcupgradeError, match="PUBLISH_CALL_UNKNOWN_FIELD"):
        PublisherChain(FakeSubstrate(arguments=("origin_url", "quorum"))).program_call(RELEASE)


def test_a_call_that_fails_inside_sudo_is_seen_although_the_extrinsic_succeeded() -> None:
    good = event("Sudo", "Sudid", {"sudo_result": {"Ok": ()}})
    assert submitted(receipt(event("System", "ExtrinsicSuccess"), good)) == "0xb10c"
    bad = event("Sudo", "Sudid", {"sudo_result": {"Err": {"Module": {"index": 7, "error": "0x00000000"}}}})
    for outcome in (
        receipt(bad),
        receipt(event("Sudo", "Sudid", {"sudo_result": "BadOrigin"})),
        receipt(good, success=False),
        receipt(event("System", "ExtrinsicSuccess")),  # no word from sudo at all
    ):
        with pytest.raises(DcupgradeError, match="PUBLISH_DISPATCH_FAILED"):
            submitted(outcome)


def test_the_pools_refusal_is_told_in_its_own_words() -> None:
    refusal = ValueError({"code": 1010, "message": "Invalid Transaction", "data": "Inability to pay some fees"})
    with pytest.raises(DcupgradeError, match=r"PUBLISH_EXTRINSIC_REFUSED.*Invalid Transaction Inability to pay"):
        submitted(refusal)


@pytest.mark.parametrize(
    ("arguments", "calls"), [(("enclave_id",), 1), (("enclave_id", "signature"), 2), (("_enclave_id", "_signature"), 2)]
)
def test_every_entry_of_an_id_is_revoked_where_the_call_asks_for_the_signature(
    arguments: tuple[str, ...], calls: int
) -> None:
    listed = (
        pallet.Entry(1, "a" * 64, "bone"),
        pallet.Entry(2, "b" * 64, "bother"),
        pallet.Entry(3, "a" * 64, "btwo"),
    )
    substrate = FakeSubstrate(arguments=arguments)
    made = PublisherChain(substrate).revoke_calls(pallet.PalletState("0x", listed, None), "a" * 64)
    assert len(made) == calls
    sent = [values.get(arguments[-1]) for _, _, values in substrate.composed]
    ids = ["0x" + ("a" * 64).encode().hex()]
    assert sent == (ids if calls == 1 else ["0x" + text.hex() for text in (b"bone", b"btwo")])


@pytest.mark.parametrize(
    "error",
    [SubstrateRequestException({"code": -32601, "message": "Method not found"}), KeyError("result"), ValueError("x")],
)
def test_an_endpoint_that_talks_nonsense_is_an_error_with_a_code(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Odd(FakeSubstrate):
        closed = False

        def __init__(self, **_: Any) -> None:
            super().__init__()

        def init_runtime(self) -> None:
            raise error

        def close(self) -> None:
            Odd.closed = True

    monkeypatch.setattr("substrateinterface.SubstrateInterface", Odd)
    with pytest.raises(DcupgradeError, match="PUBLISH_CHAIN_UNREACHABLE"), PublisherChain.connect("ws://h"):
        pass
    assert Odd.closed


class ListedChain(PublisherChain):
    """A chain whose list is what the test says, before and after the calls."""

    def __init__(self, *lists: tuple[pallet.Entry, ...]) -> None:
        super().__init__(FakeSubstrate(arguments=("enclave_id", "signature")))
        self.lists = list(lists)
        self.sent: list[bool] = []

    def state(self) -> pallet.PalletState:
        return pallet.PalletState("0xb10c", self.lists.pop(0), None)

    def submit(self, call: pallet.PreparedCall, account: Any, *, finalized: bool) -> str:
        self.sent.append(finalized)
        return f"0x{len(self.sent)}"


def test_revoking_names_every_block_and_looks_whether_the_id_is_gone() -> None:
    listed = (pallet.Entry(1, ID, "bone"), pallet.Entry(2, ID, "btwo"))
    chain = ListedChain(listed, ())
    assert publish.revoke(chain, ID, None) == {
        "1. Renamed.remove_enclave_id": "0x1",
        "2. Renamed.remove_enclave_id": "0x2",
    }
    assert chain.sent == [False, True]
    with pytest.raises(DcupgradeError, match=r"PUBLISH_NOT_IN_STORAGE.*still listed"):
        publish.revoke(ListedChain(listed, listed[:1]), ID, None)
    with pytest.raises(DcupgradeError, match="RELEASE_NOT_LISTED"):
        publish.revoke(ListedChain(()), ID, None)
