"""Release manager's side of the chain: sign an enclave id, and put a signed release into the pallet's storage.

Everything about the pallet (its name, index, argument order, the fifth field of newer chains) is taken from the chain's
own metadata. substrate-interface blocks, which is right for a tool that does one thing and ends; the watch loop of the
agent does not use it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dcupgrade.errors import DcupgradeError

ENCLAVE_ID = re.compile(r"[0-9a-f]{64}\Z")
FIELD_LENGTH_MAX = 2048
RPC_TIMEOUT_S = 90
CALLS = frozenset({"set_enclave_id", "remove_enclave_id", "set_dc_program"})
STORAGE = frozenset({"EnclaveIds", "DcProgram"})


@dataclass(frozen=True, slots=True)
class Release:
    """What ``set_dc_program`` is told. ``cids`` is used only by chains whose call has that argument."""

    enclave_id: str
    version: str
    origin_url: str
    mirror_url: str
    cids: tuple[str, ...] = ()

    def verify_fields(self) -> None:
        """Raise RELEASE_ID_MALFORMED or RELEASE_FIELD_BAD for what clients of the chain would refuse anyway."""
        require_enclave_id(self.enclave_id)
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
    """One element of ``EnclaveIds``: height at which it was added, enclave id, raw network signature text."""

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
        """Lowest height at which an id was added: that is the one clients count."""
        return min((entry.height for entry in self.entries if entry.enclave_id == enclave_id), default=None)


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A call of the pallet, encoded. ``data`` is the hex that a governance motion or preimage takes."""

    name: str
    data: str
    hash: str
    handle: Any


def require_enclave_id(enclave_id: str) -> str:
    """Return the id, or raise RELEASE_ID_MALFORMED: case counts, for the signature is over these characters."""
    if not ENCLAVE_ID.match(enclave_id):
        raise DcupgradeError(
            code="RELEASE_ID_MALFORMED",
            what=f"cannot use {enclave_id[:80]!r} as an enclave id",
            why=f"it must be 64 lower-case hexadecimal digits, and this has {len(enclave_id)} characters",
            action="Take the id from the SIGSTRUCT with --sigstruct, or as the build printed it.",
        )
    return enclave_id


def enclave_id_of_sigstruct(path: Path) -> str:
    """Enclave id in a SIGSTRUCT whose RSA signature verifies; RELEASE_SIGSTRUCT_UNREADABLE otherwise."""
    from attestation.artefact.sigstruct import SigStruct
    from attestation.errors import AttestationError

    try:
        sigstruct = SigStruct.decode(path.read_bytes())
        sigstruct.verify()
    except (OSError, AttestationError) as error:
        raise DcupgradeError(
            code="RELEASE_SIGSTRUCT_UNREADABLE", what=f"cannot take the enclave id from {path}", why=str(error)
        ) from error
    return sigstruct.mrenclave.hex()


def sign_enclave_id(key: Ed25519PrivateKey, enclave_id: str) -> str:
    """Network signature as the chain stores it: multibase base32 of ed25519 over the 64 ASCII characters of the id."""
    from attestation.network import encode_multibase

    text: str = encode_multibase(key.sign(require_enclave_id(enclave_id).encode("ascii")))
    return text


def network_key_text(key: Ed25519PrivateKey) -> str:
    """Public half of a network key, in the multibase form that settings take."""
    from attestation.network import encode_multibase

    text: str = encode_multibase(key.public_key().public_bytes_raw())
    return text


def verify_signatures(enclave_id: str, signatures: Sequence[str], keys: Sequence[str], threshold: int = 1) -> None:
    """Raise RELEASE_SIGNATURE_BAD unless enough of the network keys signed exactly this id."""
    from attestation.errors import AttestationError
    from attestation.network import NetworkKeys, decode_multibase

    require_enclave_id(enclave_id)
    try:
        raw = [decode_multibase(text) for text in signatures]
        NetworkKeys.parse(tuple(keys), threshold).verify(enclave_id, raw)
    except (AttestationError, ValueError) as error:
        raise DcupgradeError(
            code="RELEASE_SIGNATURE_BAD",
            what=f"the network signature over {enclave_id} was not accepted",
            why=str(error),
            action="Sign this exact id with the network key; nothing was sent to the chain.",
        ) from error


class PublisherChain:
    """One blocking connection to a chain, for one run of a tool; use as a context manager."""

    def __init__(self, substrate: Any) -> None:
        self._substrate = substrate
        self.pallet = self._find_pallet()

    @classmethod
    @contextmanager
    def connect(cls, url: str) -> Iterator[PublisherChain]:
        """Open ``url`` (ws:// or wss://); PUBLISH_CHAIN_UNREACHABLE if it cannot be had, breaks off or is not one."""
        from substrateinterface import SubstrateInterface
        from substrateinterface.exceptions import SubstrateRequestException

        substrate = None
        try:
            substrate = SubstrateInterface(url=url, ws_options={"timeout": RPC_TIMEOUT_S}, use_remote_preset=False)
            yield cls(substrate)
        except (OSError, _websocket_errors(), SubstrateRequestException, ValueError, KeyError) as error:
            raise DcupgradeError(
                code="PUBLISH_CHAIN_UNREACHABLE",
                what=f"lost or never had the chain at {url}",
                why=_reason(error) or type(error).__name__,
                action="Check the endpoint; then look at the chain's state before trying again.",
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
        """Whether root calls can be made through Sudo; otherwise they go through governance."""
        return any(pallet.name == "Sudo" for pallet in self._substrate.metadata.pallets)

    def state(self) -> PalletState:
        """The pallet's storage at the finalized head."""
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
        """``set_enclave_id``: adds an id with its network signature to the list."""
        return self._call("set_enclave_id", {"enclave_id": enclave_id, "signature": signature})

    def revoke_calls(self, state: PalletState, enclave_id: str) -> list[PreparedCall]:
        """``remove_enclave_id``: takes an id out of the list.

        The call of some runtimes also takes the signature and removes only that entry: then there is one for each.
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
        """``set_dc_program``: names the version to run."""
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
        """Send ``call`` through sudo, wait for its block (or finality) and return that block's hash.

        PUBLISH_EXTRINSIC_REFUSED if the pool does not take it, PUBLISH_DISPATCH_FAILED if the call failed inside:
        a sudo extrinsic succeeds even when what it carries fails, and only the ``Sudid`` event tells.
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


def load_account(suri: str | None, key_file: Path | None) -> Any:
    """Keypair (sr25519) that signs extrinsics: a secret URI, or a file that holds one, or 64 hex digits of a seed."""
    from substrateinterface import Keypair

    try:
        if key_file is not None:
            suri = key_file.read_text("ascii").strip()
        if not suri:
            raise ValueError("give --suri or --key-file")
        if re.fullmatch(r"(0x)?[0-9a-fA-F]{64}", suri):
            return Keypair.create_from_seed(suri if suri.startswith("0x") else f"0x{suri}")
        return Keypair.create_from_uri(suri)
    except (OSError, ValueError, NotImplementedError) as error:
        raise DcupgradeError(
            code="PUBLISH_NO_KEY",
            what="no account to sign the extrinsic with",
            why=str(error) or "the secret URI cannot be used",
            action="Give --key-file with a secret URI or seed, or --print-call to submit it in another way.",
        ) from error


def require_publishable(state: PalletState, release: Release) -> None:
    """Raise RELEASE_ALREADY_PUBLISHED or PUBLISH_NOT_NEWER for what clients would take for the same or for older."""
    current = state.program
    height = state.height_of(release.enclave_id)
    if current is not None and current.get("enclave_id") == release.enclave_id:
        if current.get("version") == release.version and current.get("origin_url") == release.origin_url:
            raise DcupgradeError(
                code="RELEASE_ALREADY_PUBLISHED",
                what=f"{release.enclave_id} is what the chain tells nodes to run",
                why=f"it is there as version {current['version']}, added at block {height}",
            )
    elif current is not None and height is not None:
        running = state.height_of(str(current.get("enclave_id")))
        if running is not None and height <= running:
            raise DcupgradeError(
                code="PUBLISH_NOT_NEWER",
                what=f"{release.enclave_id} cannot replace {current['enclave_id']}",
                why=f"it was added at block {height} and the current one at block {running}",
                action="To recall a release, build its predecessor anew: a rebuilt version has a newer id.",
            )


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
    """Plain Python values with raw bytes: ``.value`` cannot tell the text ``0xab`` from the byte ``ab``."""
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
    return str(detail)


def _websocket_errors() -> type[Exception]:
    from websocket import WebSocketException

    error: type[Exception] = WebSocketException
    return error


def publish(
    chain: PublisherChain, release: Release, signatures: Iterable[str], account: Any, *, list_only: bool = False
) -> dict[str, str]:
    """List an id with its signatures and name it as the program; returns the hashes of the blocks that did it.

    The caller has verified the signatures. What is on the chain already is not sent again. At the end the finalized
    state is read back: PUBLISH_NOT_IN_STORAGE if it does not show the release.
    """
    blocks: dict[str, str] = {}
    calls = prepare_calls(chain, release, signatures, list_only=list_only)
    for index, call in enumerate(calls):
        blocks[f"{index + 1}. {call.name}"] = chain.submit(call, account, finalized=index == len(calls) - 1)
    state = chain.state()
    shown = state.program is not None and state.program.get("enclave_id") == release.enclave_id
    if state.height_of(release.enclave_id) is None or not (shown or list_only):
        raise DcupgradeError(
            code="PUBLISH_NOT_IN_STORAGE",
            what=f"{release.enclave_id} is not in the finalized state",
            why=f"block {state.block_hash} does not show it, although the calls succeeded",
            action="Somebody may have published at the same time: look at the chain's state.",
        )
    return blocks


def revoke(chain: PublisherChain, enclave_id: str, account: Any) -> dict[str, str]:
    """Take every entry of an id out of the list; returns the hashes of the blocks that did it.

    At the end the finalized state is read back: PUBLISH_NOT_IN_STORAGE if it still lists the id.
    """
    calls = prepare_revocation(chain, enclave_id)
    blocks = {
        f"{index + 1}. {call.name}": chain.submit(call, account, finalized=index == len(calls) - 1)
        for index, call in enumerate(calls)
    }
    state = chain.state()
    if state.height_of(enclave_id) is not None:
        raise DcupgradeError(
            code="PUBLISH_NOT_IN_STORAGE",
            what=f"{enclave_id} is still listed",
            why=f"block {state.block_hash} shows it, although the calls succeeded",
            action="Nodes still take it. Look at the chain's state, and revoke what is left.",
        )
    return blocks


def prepare_revocation(chain: PublisherChain, enclave_id: str) -> list[PreparedCall]:
    """The calls that revoke an id in the chain's present state; raises RELEASE_NOT_LISTED."""
    state = chain.state()
    if state.height_of(enclave_id) is None:
        raise DcupgradeError(
            code="RELEASE_NOT_LISTED",
            what=f"cannot revoke {enclave_id}",
            why="the finalized state does not list it",
            action="Check the id and the chain.",
        )
    return chain.revoke_calls(state, enclave_id)


def prepare_calls(
    chain: PublisherChain, release: Release, signatures: Iterable[str], *, list_only: bool = False
) -> list[PreparedCall]:
    """The calls that publish a release from the chain's present state, in their order."""
    state = chain.state()
    if not list_only:
        require_publishable(state, release)
    listed = {(entry.enclave_id, entry.signature) for entry in state.entries}
    # An id that is listed is not sent again: clients count its lowest height, so that would change nothing.
    calls = [
        chain.list_call(release.enclave_id, signature)
        for signature in signatures
        if (release.enclave_id, signature) not in listed
    ]
    if not list_only:
        calls.append(chain.program_call(release))
    return calls
