"""The pallet's calls and storage, as the release manager's tools use them."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from chain_watcher.proof.release import lowest_heights
from dcupgrade.errors import DcupgradeError, why_of

from .signing import require_enclave_id

FIELD_LENGTH_MAX = 2048
NO_VERSION = "none"
"""Stands for the version of an id that is only listed."""
#: What the manager's version library (go-version, `VersionRegexpRaw`) takes.
_VERSION = re.compile(
    r"v?[0-9]+(\.[0-9]+)*(-[0-9]+[0-9A-Za-z~-]*(\.[0-9A-Za-z~-]+)*|-?[A-Za-z~-]+[0-9A-Za-z~-]*(\.[0-9A-Za-z~-]+)*)?"
    r"(\+[0-9A-Za-z~-]+(\.[0-9A-Za-z~-]+)*)?"
)
RPC_TIMEOUT_S = 90
CALLS = frozenset({"set_enclave_id", "remove_enclave_id", "set_dc_program"})


STORAGE = frozenset({"EnclaveIds", "DcProgram"})


def require_publishing() -> None:
    """Raise PUBLISH_EXTRA_MISSING if the packages that write to the chain are not installed."""
    try:
        importlib.import_module("substrateinterface")
    except ImportError as error:
        raise DcupgradeError(
            code="PUBLISH_EXTRA_MISSING",
            what="nothing can be written to the chain from here",
            why="substrate-interface is not installed: an agent's host does not need it",
            action="On a release manager's machine: pip install 'dcupgrade[publish]', or make install EXTRA=publish.",
        ) from error


@dataclass(frozen=True, slots=True)
class Release:
    """The arguments of `set_dc_program`. `cids`: only for chains whose call has that argument."""

    enclave_id: str
    version: str
    origin_url: str
    mirror_url: str
    cids: tuple[str, ...] = ()

    def verify_fields(self) -> None:
        """Raise RELEASE_ID_MALFORMED or RELEASE_FIELD_BAD for values that clients of the chain would refuse."""
        require_enclave_id(self.enclave_id)
        if self.version != NO_VERSION and not _VERSION.fullmatch(self.version):
            raise _field_bad(
                "version", "the field's manager cannot compare it: it is not like 1.2.3, 1.2.3-rc.1 or v1.2"
            )
        fields = {"version": self.version, "origin_url": self.origin_url, "mirror_url": self.mirror_url}
        fields |= {f"cids[{index}]": cid for index, cid in enumerate(self.cids)}
        for name, value in fields.items():
            if not value and name != "mirror_url":
                raise _field_bad(name, "it is empty")
            if len(value.encode()) > FIELD_LENGTH_MAX:
                raise _field_bad(name, f"it is longer than {FIELD_LENGTH_MAX} bytes")
            if not value.isascii() or any(not char.isprintable() or char == " " for char in value):
                raise _field_bad(name, "it holds spaces, control or non-ASCII characters")


def _field_bad(name: str, why: str) -> DcupgradeError:
    return DcupgradeError(code="RELEASE_FIELD_BAD", what=f"cannot publish this {name}", why=why)


@dataclass(frozen=True, slots=True)
class Entry:
    """One element of `EnclaveIds`: height at which it was added, enclave id, raw network signature text."""

    height: int
    enclave_id: str
    signature: str


@dataclass(frozen=True, slots=True)
class PalletState:
    """The pallet's storage at one finalized block."""

    block_hash: str
    entries: tuple[Entry, ...]
    program: dict[str, Any] | None

    def height_of(self, enclave_id: str) -> int | None:
        """Return the lowest height at which an id was added, which is the one that clients use."""
        return lowest_heights((entry.enclave_id, entry.height) for entry in self.entries).get(enclave_id)


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """An encoded call of the pallet. `data`: the hex text for a governance motion or preimage."""

    name: str
    data: str
    hash: str
    handle: Any


class PublisherChain:
    """One blocking connection to a chain, for one run of a tool; use as a context manager."""

    def __init__(self, substrate: Any) -> None:
        self._substrate = substrate
        self.pallet = self._find_pallet()

    @classmethod
    @contextmanager
    def connect(cls, url: str) -> Iterator[PublisherChain]:
        """Open `url` (ws:// or wss://). Raises PUBLISH_CHAIN_UNREACHABLE without a connection or a valid answer."""
        require_publishing()
        from substrateinterface import SubstrateInterface
        from substrateinterface.exceptions import SubstrateRequestException

        substrate = None
        try:
            substrate = SubstrateInterface(url=url, ws_options={"timeout": RPC_TIMEOUT_S}, use_remote_preset=False)
            yield cls(substrate)
        except (OSError, _websocket_errors(), SubstrateRequestException, ValueError, KeyError) as error:
            raise DcupgradeError(
                code="PUBLISH_CHAIN_UNREACHABLE",
                what=f"the chain at {url}",
                why=_reason(error) or "the connection broke off",
                action="Check the endpoint. If something was sent, look at `dcupgrade chain releases` first.",
                kind="transient",
            ) from error
        finally:
            if substrate is not None:
                substrate.close()

    def _find_pallet(self) -> str:
        self._substrate.init_runtime()
        for pallet in self._substrate.metadata.pallets:
            calls = {call.name for call in pallet.calls or ()}
            storage = {item.value["name"] for item in pallet.storage or ()}
            if calls >= CALLS and storage >= STORAGE:
                return str(pallet.name)
        raise DcupgradeError(
            code="PUBLISH_PALLET_MISSING",
            what="this chain cannot carry DCNode releases",
            why="no pallet in its metadata has EnclaveIds, DcProgram and the calls that set them",
            action="Check that the URL is of the right chain.",
        )

    @property
    def has_sudo(self) -> bool:
        """Whether the chain has Sudo for root calls; otherwise they need governance."""
        return any(pallet.name == "Sudo" for pallet in self._substrate.metadata.pallets)

    def state(self) -> PalletState:
        """Return the pallet's storage at the finalized head."""
        head = self._substrate.get_chain_finalised_head()
        listed = self._substrate.query(self.pallet, "EnclaveIds", block_hash=head)
        program = self._substrate.query(self.pallet, "DcProgram", block_hash=head)
        entries = tuple(
            Entry(int(height), _text(enclave_id), _text(signature))
            for height, enclave_id, signature in _plain(listed) or ()
        )
        fields = _plain(program)
        decoded = {name: _text(value) for name, value in fields.items()} if isinstance(fields, dict) else None
        return PalletState(head, entries, decoded)

    def list_call(self, enclave_id: str, signature: str) -> PreparedCall:
        """Make `set_enclave_id`, which adds an id with its network signature to the list."""
        return self._call("set_enclave_id", {"enclave_id": enclave_id, "signature": signature})

    def revoke_calls(self, state: PalletState, enclave_id: str) -> list[PreparedCall]:
        """Make `remove_enclave_id`, which removes an id from the list.

        In some runtimes the call also needs the signature and removes only that entry; then there is one for each.
        """
        signatures = [entry.signature for entry in state.entries if entry.enclave_id == enclave_id]
        function = self._substrate.get_metadata_call_function(self.pallet, "remove_enclave_id")
        if all(argument.name.lower().lstrip("_") != "signature" for argument in function.args):
            signatures = signatures[:1]
        return [
            self._call("remove_enclave_id", {"enclave_id": enclave_id, "signature": signature})
            for signature in signatures
        ]

    def program_call(self, release: Release) -> PreparedCall:
        """Make `set_dc_program`, which names the version to run."""
        return self._call(
            "set_dc_program",
            {
                "enclave_id": release.enclave_id,
                "version": release.version,
                "origin_url": release.origin_url,
                "mirror_url": release.mirror_url,
                "cids": list(release.cids),
            },
        )

    def _call(self, name: str, values: dict[str, Any]) -> PreparedCall:
        function = self._substrate.get_metadata_call_function(self.pallet, name)
        arguments: dict[str, Any] = {}
        for argument in function.args:
            key = "cids" if "cid" in argument.name.lower() else argument.name.lower().lstrip("_")
            if key not in values:
                raise DcupgradeError(
                    code="PUBLISH_CALL_UNKNOWN_FIELD",
                    what=f"cannot compose {self.pallet}.{name}",
                    why=f"the chain's call has an argument {argument.name!r}",
                    action="Update this program, or make the call with another tool.",
                )
            # As hex: scalecodec would read a text that begins with 0x as hex itself.
            value = values[key]
            arguments[argument.name] = [_hex(item) for item in value] if key == "cids" else _hex(value)
        call = self._substrate.compose_call(self.pallet, name, arguments)
        encoded = bytes(call.data.data)
        digest = blake2b(encoded, digest_size=32).hexdigest()
        return PreparedCall(f"{self.pallet}.{name}", f"0x{encoded.hex()}", f"0x{digest}", call)

    def submit(self, call: PreparedCall, account: Any, *, finalized: bool) -> str:
        """Send `call` through sudo, wait for its block (or finality) and return that block's hash.

        Raises PUBLISH_EXTRINSIC_REFUSED if the pool refuses it, PUBLISH_DISPATCH_FAILED if the call inside failed: a
        sudo extrinsic succeeds even then, and only its `Sudid` event shows the failure.
        """
        from substrateinterface.exceptions import SubstrateRequestException

        sudo = self._substrate.compose_call("Sudo", "sudo", {"call": call.handle})
        extrinsic = self._substrate.create_signed_extrinsic(call=sudo, keypair=account)
        try:
            receipt = self._substrate.submit_extrinsic(
                extrinsic, wait_for_inclusion=not finalized, wait_for_finalization=finalized
            )
        except (SubstrateRequestException, ValueError) as error:
            raise DcupgradeError(
                code="PUBLISH_EXTRINSIC_REFUSED",
                what=f"the chain refused the extrinsic with {call.name}",
                why=_reason(error),
                action="Check that the account exists, has funds and is the chain's sudo key.",
            ) from error
        _require_dispatched(call.name, receipt)
        return str(receipt.block_hash)


def _require_dispatched(name: str, receipt: Any) -> None:
    failure = None if receipt.is_success else json.dumps(receipt.error_message, default=str)
    sudid = False
    for event in receipt.triggered_events:
        value = event.value
        if (value["module_id"], value["event_id"]) == ("Sudo", "Sudid"):
            sudid = True
            attributes = value["attributes"]
            result = attributes.get("sudo_result", attributes) if isinstance(attributes, dict) else attributes
            if not (isinstance(result, dict) and "Ok" in result):
                failure = json.dumps(result, default=str)
    if failure is None and not sudid:
        failure = "the block has no Sudid event for it"
    if failure is not None:
        raise DcupgradeError(
            code="PUBLISH_DISPATCH_FAILED",
            what=f"{name} was included in block {receipt.block_hash} and failed there",
            why=failure,
            action="Check that the account is the chain's sudo key.",
        )


def _hex(text: str) -> str:
    return "0x" + text.encode().hex()


def _text(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    return value


def _plain(item: Any) -> Any:
    """Plain Python values with raw bytes: `.value` cannot tell the text `0xab` from the byte `ab`."""
    from scalecodec.base import ScaleType

    if isinstance(item, ScaleType):
        inner = item.value_object
        return item.value if inner is None and item.value is not None else _plain(inner)
    if isinstance(item, dict):
        return {key: _plain(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [_plain(value) for value in item]
    return item


def _reason(error: Exception) -> str:
    detail: Any = error.args[0] if error.args else error
    if isinstance(detail, dict):
        return " ".join(str(detail[key]) for key in ("message", "data") if detail.get(key))
    return why_of(error)


def _websocket_errors() -> type[Exception]:
    from websocket import WebSocketException

    error: type[Exception] = WebSocketException
    return error
