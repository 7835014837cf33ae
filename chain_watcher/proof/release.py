"""From the chain's bytes to a `VerifiedRelease`: what may run, by which signatures, and which of two is newer.

Nothing else can make a `VerifiedRelease`, so code that holds one need not check the chain's fields again.
Rules (chain.md): an enclave id is 64 lower-case hex characters of MRENCLAVE; a network signature is canonical
multibase base32 (prefix `b`, lower case, no padding) of 64 bytes; several entries for one id carry the signatures
of M of N keys; the lowest height of an id counts; equal heights are not newer; a removed source is the oldest.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Final

from chain_watcher.errors import ChainWatcherError, Kind

from .layout import RawEntry, RawProgram
from .scale import refuse

#: Raises unless the signatures over an enclave id are good. Its return value is ignored.
SignatureVerifier = Callable[[str, tuple[bytes, ...]], object]

ENCLAVE_ID_CHARS: Final = 64
SIGNATURE_BYTES: Final = 64
#: 64 bytes are 512 bits: 103 characters of 5 bits, the last with 3 bits that must be zero.
SIGNATURE_TEXT_CHARS: Final = 104
URL_BYTES_MAX: Final = 2048
VERSION_BYTES_MAX: Final = 128
CID_BYTES_MAX: Final = 256
CIDS_MAX: Final = 32
#: Refused entries are reported one by one up to this number.
REFUSALS_MAX: Final = 256
#: More signatures for one id than this are not handed to the verifier (N of a network is far smaller).
SIGNATURES_MAX: Final = 64

_ID_PATTERN: Final = re.compile(rb"[0-9a-f]{64}", re.ASCII)
_SIGNATURE_PATTERN: Final = re.compile(rb"b[a-z2-7]{103}", re.ASCII)
_BLOCK_HASH_PATTERN: Final = re.compile(r"0x[0-9a-f]{64}", re.ASCII)
_TOKEN: Final = object()


@dataclass(frozen=True, slots=True)
class ChainEntry:
    """One entry of `EnclaveIds` with a well-formed id.

    `signature` is 64 raw bytes, or empty if the chain's text is not canonical. Such an entry counts only for the height
    of its id.
    """

    height: int
    enclave_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class EntryList:
    """`EnclaveIds`, decoded: entries in chain order, and an error for each refused entry or signature (256 at most)."""

    entries: tuple[ChainEntry, ...]
    refused: tuple[ChainWatcherError, ...]


@dataclass(frozen=True, slots=True)
class BlockRef:
    """A block by number and hash (`0x` and 64 lower-case hex characters)."""

    number: int
    hash: str

    def __post_init__(self) -> None:
        if not 0 <= self.number < 2**32 or not _BLOCK_HASH_PATTERN.fullmatch(self.hash):
            raise ValueError("a block reference needs a u32 number and a 0x hash of 32 bytes")


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """The version that the chain names, with a verified network signature. Only `verify_release` makes one.

    `signatures` are raw ed25519 signatures over the 64 ASCII bytes of `enclave_id`; `added_height` is the
    lowest height of the id's entries. `block_number` and `block_hash` are the block whose state was read.
    """

    enclave_id: str
    version: str
    origin_url: str
    mirror_url: str
    cids: tuple[str, ...]
    signatures: tuple[bytes, ...]
    added_height: int
    block_number: int
    block_hash: str
    _: KW_ONLY
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _TOKEN:
            raise TypeError("a VerifiedRelease comes from verify_release only")


def decode_enclave_id(raw: bytes) -> str:
    """Return the id as text. Raises RELEASE_ID_INVALID unless it is exactly 64 lower-case hex characters."""
    if len(raw) != ENCLAVE_ID_CHARS:
        raise refuse("RELEASE_ID_INVALID", "enclave id", f"{len(raw)} bytes instead of {ENCLAVE_ID_CHARS}")
    if not _ID_PATTERN.fullmatch(raw):
        case = "upper-case hex" if _ID_PATTERN.fullmatch(raw.lower()) else "characters that are not lower-case hex"
        raise refuse("RELEASE_ID_INVALID", "enclave id", f"{case} in {raw!r}")
    return raw.decode("ascii")


def decode_signature(raw: bytes) -> bytes:
    """Return the 64 signature bytes of a canonical multibase base32 text, given as the chain's ASCII bytes.

    Raises RELEASE_SIGNATURE_ENCODING for another prefix, alphabet, case, length, padding, or non-zero unused bits.
    """
    if len(raw) != SIGNATURE_TEXT_CHARS or not _SIGNATURE_PATTERN.fullmatch(raw):
        raise refuse(
            "RELEASE_SIGNATURE_ENCODING",
            "network signature",
            f"{len(raw)} bytes that are not 'b' and 103 characters of lower-case base32",
        )
    signature = base64.b32decode(raw[1:].upper() + b"=")
    if encode_signature(signature) != raw:
        raise refuse("RELEASE_SIGNATURE_ENCODING", "network signature", "unused bits of the last character are not 0")
    return signature


def encode_signature(signature: bytes) -> bytes:
    """Return the canonical text of 64 signature bytes, as ASCII bytes. Raises ValueError for another length."""
    if len(signature) != SIGNATURE_BYTES:
        raise ValueError("a network signature has 64 bytes")
    return b"b" + base64.b32encode(signature).rstrip(b"=").lower()


def read_entries(raw_entries: Iterable[RawEntry]) -> EntryList:
    """Decode the entries of `EnclaveIds`. A bad entry is refused alone; it does not hide the good ones."""
    entries: list[ChainEntry] = []
    refused: list[ChainWatcherError] = []
    for raw in raw_entries:
        try:
            enclave_id = decode_enclave_id(raw.enclave_id)
        except ChainWatcherError as error:
            _note(refused, error)
            continue
        try:
            signature = decode_signature(raw.signature)
        except ChainWatcherError as error:
            _note(refused, error)
            signature = b""
        entries.append(ChainEntry(raw.height, enclave_id, signature))
    return EntryList(tuple(entries), tuple(refused))


def _note(refused: list[ChainWatcherError], error: ChainWatcherError) -> None:
    """Keep the error, up to REFUSALS_MAX: a large value of bad entries would otherwise fill the memory with errors."""
    if len(refused) < REFUSALS_MAX:
        refused.append(error.with_traceback(None))


def lowest_heights(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the lowest height of each enclave id in `pairs` of (enclave id, height at which it was added).

    Adding an id again never makes it newer. To merge heights that were seen earlier, pass them as well::

        lowest_heights((entry.enclave_id, entry.height) for entry in entries)
        lowest_heights([*seen.items(), *listed.items()])
    """
    lowest: dict[str, int] = {}
    for enclave_id, height in pairs:
        lowest[enclave_id] = min(height, lowest.get(enclave_id, height))
    return lowest


def newer(source: int | None, target: int) -> bool:
    """Return whether a release added at height `target` is newer than one added at height `source`.

    Both are lowest heights of their ids. `source` is None when its id is not on chain (removed, or never seen): it
    counts as the oldest. Equal heights are not newer.
    """
    return source is None or target > source


def verify_release(
    program: RawProgram | None, entries: Sequence[ChainEntry], verify: SignatureVerifier, block: BlockRef
) -> VerifiedRelease:
    """Return the release that `program` names. Its entry and its network signatures are verified here.

    Raises, with kind `rejected` unless the verifier's own error has another: RELEASE_PROGRAM_ABSENT (nothing on
    chain), RELEASE_ENTRY_WITHOUT_PROGRAM (ids listed, no program), RELEASE_ID_INVALID, RELEASE_FIELD_INVALID,
    RELEASE_PROGRAM_WITHOUT_ENTRY, RELEASE_SIGNATURE_ENCODING (no entry of the id has a readable signature),
    RELEASE_SIGNATURE_REFUSED (`verify` raised; the cause is chained).
    """
    if program is None:
        if entries:
            ids = len({entry.enclave_id for entry in entries})
            raise refuse("RELEASE_ENTRY_WITHOUT_PROGRAM", "release", f"{ids} enclave ids are listed, no program is set")
        raise refuse("RELEASE_PROGRAM_ABSENT", "release", "the chain names no program")
    enclave_id = decode_enclave_id(program.enclave_id)
    version = _text("version", program.version, VERSION_BYTES_MAX)
    origin_url = _text("origin_url", program.origin_url, URL_BYTES_MAX)
    mirror_url = _text("mirror_url", program.mirror_url, URL_BYTES_MAX)
    cids = _cids(program.mirr_cids)
    own = [entry for entry in entries if entry.enclave_id == enclave_id]
    if not own:
        why = f"{enclave_id} is not among the {len(entries)} entries of EnclaveIds"
        raise refuse("RELEASE_PROGRAM_WITHOUT_ENTRY", "release", why)
    signatures = tuple(dict.fromkeys(entry.signature for entry in own if entry.signature))
    if not signatures:
        raise refuse("RELEASE_SIGNATURE_ENCODING", "release", f"no entry of {enclave_id} has a readable signature")
    if len(signatures) > SIGNATURES_MAX:
        why = f"{len(signatures)} signatures for {enclave_id}, at most {SIGNATURES_MAX}"
        raise refuse("RELEASE_SIGNATURE_REFUSED", "release", why)
    _verify_signatures(enclave_id, signatures, verify)
    return VerifiedRelease(
        enclave_id=enclave_id,
        version=version,
        origin_url=origin_url,
        mirror_url=mirror_url,
        cids=cids,
        signatures=signatures,
        added_height=min(entry.height for entry in own),
        block_number=block.number,
        block_hash=block.hash,
        token=_TOKEN,
    )


def _verify_signatures(enclave_id: str, signatures: tuple[bytes, ...], verify: SignatureVerifier) -> None:
    try:
        verify(enclave_id, signatures)
    except Exception as error:  # any exception of the verifier means: not verified
        kind: Kind = "rejected"
        if getattr(error, "kind", None) in ("transient", "invariant"):
            kind = error.kind  # type: ignore[attr-defined]
        raise ChainWatcherError(
            code="RELEASE_SIGNATURE_REFUSED", what=f"network signature of {enclave_id}", why=str(error), kind=kind
        ) from error


def _text(name: str, raw: bytes, maximum: int) -> str:
    """Return printable text of at most `maximum` bytes, for commands, logs and pages."""
    if len(raw) > maximum:
        raise refuse("RELEASE_FIELD_INVALID", name, f"{len(raw)} bytes, at most {maximum}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse("RELEASE_FIELD_INVALID", name, "not UTF-8") from error
    if not text.isprintable():
        raise refuse("RELEASE_FIELD_INVALID", name, "control or other unprintable characters")
    return text


def _cids(raw: tuple[bytes, ...]) -> tuple[str, ...]:
    if len(raw) > CIDS_MAX:
        raise refuse("RELEASE_FIELD_INVALID", "mirr_cids", f"{len(raw)} CIDs, at most {CIDS_MAX}")
    texts = tuple(_text("mirr_cids", cid, CID_BYTES_MAX) for cid in raw)
    if not all(text.isascii() and text for text in texts):
        raise refuse("RELEASE_FIELD_INVALID", "mirr_cids", "an empty or non-ASCII CID")
    return texts
