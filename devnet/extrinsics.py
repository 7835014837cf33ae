"""Submit root calls to a dev chain as //Alice, for tests.

This is not the publisher (that is `dcupgrade release`). It signs with the well-known development key, sends each call
through sudo by substrate-interface, and waits until a block contains it. Arguments follow the chain's metadata, so
`mirr_cids` is sent to the five-field runtime only.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from substrateinterface import Keypair, SubstrateInterface
from substrateinterface.exceptions import SubstrateRequestException

from .tools import DevnetError

#: The GRANDPA key (ed25519) of //Alice, which substrate-interface cannot derive.
ALICE_ED25519 = "0x88dc3417d5058ec4b4503e0c12ea1a0a89be200fe98922423d4334014fa6b0ee"
_T = TypeVar("_T")
# set_code weighs as much as a block; sudo runs it with the weight given here.
_ANY_WEIGHT = {"ref_time": 1_000_000, "proof_size": 10_000}


class _NodeAtHead(SubstrateInterface):  # type: ignore[misc]
    """Encodes extrinsics for the runtime of the next block.

    The library uses the runtime of the head's parent, which made the head. Right after `set_code` that is the old
    runtime, and the chain could not decode the extrinsic.
    """

    _for_next_block = False

    def init_runtime(self, block_hash: str | None = None, block_id: int | None = None) -> None:
        """Load the runtime of a block, or without a block that of the next block."""
        self._for_next_block = block_hash is None and block_id is None
        try:
            super().init_runtime(block_hash, block_id)
        finally:
            self._for_next_block = False

    def rpc_request(self, method: str, params: Any, *arguments: Any, **named: Any) -> Any:
        """Hide the head's parent while the runtime for the next block is loaded, so that the head itself is used."""
        reply = super().rpc_request(method, params, *arguments, **named)
        if self._for_next_block and method == "chain_getHeader" and reply.get("result"):
            reply["result"]["parentHash"] = "0x" + "00" * 32
        return reply


class Root:
    """Root calls on one chain, blocking; `await root.later(root.set_enclave_id, ...)` from asyncio code.

    Each call opens a new connection, so it sees the current metadata, also after a runtime upgrade.
    """

    def __init__(self, ws_url: str, uri: str = "//Alice") -> None:
        self._url = ws_url
        self._keypair = Keypair.create_from_uri(uri)

    async def later(self, call: Callable[..., _T], *args: Any) -> _T:
        """Run one of the blocking calls below in a thread."""
        return await asyncio.to_thread(call, *args)

    def set_enclave_id(self, enclave_id: str, signature: str) -> str:
        """Add a signed enclave id; returns the hash of the block that contains the call."""
        return self.sudo("DcNode", "set_enclave_id", {"enclave_id": enclave_id, "signature": signature})

    def remove_enclave_id(self, enclave_id: str) -> str:
        """Remove an enclave id; returns the hash of the block that contains the call."""
        return self.sudo("DcNode", "remove_enclave_id", {"enclave_id": enclave_id})

    def set_dc_program(
        self, origin_url: str, mirror_url: str, enclave_id: str, version: str, mirr_cids: tuple[str, ...] = ()
    ) -> str:
        """Set the version to run; returns the hash of the block that contains the call.

        `mirr_cids` is sent only if the chain's runtime has that field.
        """
        arguments: dict[str, Any] = {
            "origin_url": origin_url,
            "mirror_url": mirror_url,
            "enclave_id": enclave_id,
            "version": version,
            "mirr_cids": list(mirr_cids),
        }
        return self.sudo("DcNode", "set_dc_program", arguments)

    def set_code(self, wasm: Path) -> str:
        """Replace the chain's runtime; the new one runs from the next block on. Returns the block's hash."""
        return self.sudo("System", "set_code", {"code": "0x" + wasm.read_bytes().hex()}, unchecked_weight=True)

    def together(self, *calls: tuple[str, Mapping[str, Any]]) -> str:
        """Send several DcNode calls with consecutive nonces, so that one block can contain all of them.

        Returns the hash of the block that contains the last call; the others are in it or in earlier blocks.
        """
        with self._connect() as chain:
            nonce = chain.get_account_nonce(self._keypair.ss58_address)
            for index, (name, arguments) in enumerate(calls):
                call = self._sudo_call(chain, "DcNode", name, arguments, unchecked_weight=False)
                extrinsic = chain.create_signed_extrinsic(call, self._keypair, nonce=nonce + index)
                last = index == len(calls) - 1
                receipt = self._submit(chain, extrinsic, name, wait_for_inclusion=last)
            return str(receipt.block_hash)

    def sudo(self, module: str, name: str, arguments: Mapping[str, Any], *, unchecked_weight: bool = False) -> str:
        """Send one call as root and wait for its block; returns that block's hash.

        Raises DevnetError if the chain refuses it or the call itself fails.
        """
        with self._connect() as chain:
            call = self._sudo_call(chain, module, name, arguments, unchecked_weight)
            extrinsic = chain.create_signed_extrinsic(call, self._keypair)
            receipt = self._submit(chain, extrinsic, name, wait_for_inclusion=True)
            for event in receipt.triggered_events:
                value = event.value
                if value["event_id"] == "Sudid" and "Err" in str(value["attributes"]):
                    raise DevnetError(f"{module}.{name} failed: {value['attributes']}")
            if not receipt.is_success:
                raise DevnetError(f"{module}.{name} failed: {receipt.error_message}")
            return str(receipt.block_hash)

    def _connect(self) -> SubstrateInterface:
        return _NodeAtHead(url=self._url, auto_reconnect=False)

    def _submit(self, chain: SubstrateInterface, extrinsic: Any, name: str, *, wait_for_inclusion: bool) -> Any:
        try:
            return chain.submit_extrinsic(extrinsic, wait_for_inclusion=wait_for_inclusion)
        except SubstrateRequestException as error:
            raise DevnetError(f"{name} was refused: {error}") from error

    def _sudo_call(
        self, chain: SubstrateInterface, module: str, name: str, arguments: Mapping[str, Any], unchecked_weight: bool
    ) -> Any:
        known = {argument["name"] for argument in chain.get_metadata_call_function(module, name).value["fields"]}
        inner = chain.compose_call(module, name, {key: value for key, value in arguments.items() if key in known})
        if unchecked_weight:
            return chain.compose_call("Sudo", "sudo_unchecked_weight", {"call": inner, "weight": _ANY_WEIGHT})
        return chain.compose_call("Sudo", "sudo", {"call": inner})
