"""Calls as they are encoded from a chain's metadata, by the library that does it, without a chain."""

from __future__ import annotations

from typing import Any

import pytest
from substrateinterface import SubstrateInterface

from dcupgrade.publishing.pallet import Entry, PalletState, PublisherChain
from tests.doubles.metadata_maker import compact, make_metadata

ID, OTHER = "ab" * 32, "cd" * 32
SIGNATURES = ("bone", "btwo")
LISTED = PalletState("0x", (Entry(1, ID, "bone"), Entry(2, OTHER, "bother"), Entry(3, ID, "btwo")), None)


class Offline(SubstrateInterface):
    """A chain of which only the metadata is there."""

    def __init__(self, metadata: bytes) -> None:
        self._answers: dict[str, Any] = {
            "state_getMetadata": "0x" + metadata.hex(),
            "chain_getBlockHash": "0x" + "00" * 32,
            "chain_getHeader": {"number": "0x1", "parentHash": "0x" + "00" * 32},
            "state_getRuntimeVersion": {"specName": "dc", "specVersion": 1, "transactionVersion": 1},
            "chain_getRuntimeVersion": {"specName": "dc", "specVersion": 1, "transactionVersion": 1},
        }
        super().__init__(url="http://127.0.0.1:1", auto_discover=False)

    def rpc_request(self, method: str, _params: Any, _handler: Any = None) -> Any:
        return {"result": self._answers[method]}

    def supports_rpc_method(self, _name: str) -> bool:
        return False

    def get_block_runtime_info(self, _block_hash: str) -> Any:
        return self._answers["state_getRuntimeVersion"]


def octets(text: str) -> bytes:
    return compact(len(text)) + text.encode()


@pytest.mark.parametrize(
    ("removed_by", "arguments"),
    [
        (("enclave_id",), [octets(ID)]),
        (("enclave_id", "signature"), [octets(ID) + octets(text) for text in SIGNATURES]),
        (("signature", "enclave_id"), [octets(text) + octets(ID) for text in SIGNATURES]),
    ],
)
def test_a_revocation_is_the_call_that_the_chains_metadata_describes(
    removed_by: tuple[str, ...], arguments: list[bytes]
) -> None:
    """The public pallet's takes the signature and removes the entries where both match."""
    chain = PublisherChain(Offline(make_metadata(removed_by=removed_by, pallet_index=9, call_indices=(22, 23, 24))))
    calls = chain.revoke_calls(LISTED, ID)
    assert [bytes.fromhex(call.data.removeprefix("0x")) for call in calls] == [
        bytes([9, 23]) + argument for argument in arguments
    ]
