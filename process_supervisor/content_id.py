"""IPFS content identifiers (CIDs), as text and as bytes. Pure decoding (https://github.com/multiformats/cid)."""

import base64
import dataclasses
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from .errors import ProcessSupervisorError

Codec = Literal["raw", "dag-pb"]
Bytes = bytes | memoryview

# https://github.com/multiformats/multicodec/blob/master/table.csv: codecs, and multihashes that hashlib computes.
_CODECS: Final[dict[int, Codec]] = {0x55: "raw", 0x70: "dag-pb"}
_HASHES: Final = {0x12: ("sha256", 32), 0x13: ("sha512", 64), 0x14: ("sha3_512", 64), 0x16: ("sha3_256", 32)}
_BASE36: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_CHARS_MAX: Final = 256
_VARINT_BYTES_MAX: Final = 9


@dataclass(frozen=True, slots=True)
class ContentId:
    """A decoded CID: the `codec` of the block that it names, and the block's hash.

    With codec `raw` the hash is that of the content itself. With `dag-pb` (every CIDv0) it is that of the root of a
    tree, see `unixfs.py`. Two CIDs of the same block are equal, whatever their `version` (0 or 1) and `text`.
    """

    codec: Codec
    hash_name: str
    digest: bytes
    version: int = field(default=1, compare=False)
    text: str = field(default="", compare=False)

    @property
    def is_tree(self) -> bool:
        """Whether the hash is that of a tree's root and not of the content."""
        return self.codec == "dag-pb"

    def names(self, block: Bytes) -> bool:
        """Return whether this is the CID of the block."""
        return hmac.compare_digest(hashlib.new(self.hash_name, block).digest(), self.digest)


def decode_cid(text: str) -> ContentId:
    """Decode the text form of a CID. Raises DOWNLOAD_SOURCE_UNSUPPORTED."""
    try:
        if len(text) > _CHARS_MAX or not text.isascii() or not text.isalnum():
            raise ValueError("it is not a CID")
        if len(text) == 46 and text.startswith("Qm"):
            data = _big_number(text, _BASE58)
        elif text[0] in _MULTIBASES:
            data = b"\1" + _MULTIBASES[text[0]](text[1:]).removeprefix(b"\1")
        else:
            raise ValueError("it is in no known base")
        found, rest = take_cid(data)
        if rest:
            raise ValueError("it is longer than a CID")
    except ValueError as error:
        raise ProcessSupervisorError(
            code="DOWNLOAD_SOURCE_UNSUPPORTED",
            what=f"CID {text[:_CHARS_MAX]!r}",
            why=str(error),
            action="Publish the release with the CID of a file, an http(s) URL of its archive, or an image reference",
        ) from error
    return dataclasses.replace(found, text=text)


def take_cid(data: Bytes) -> tuple[ContentId, Bytes]:
    """Return the CID at the start of `data`, and the rest. Raises ValueError."""
    codec, version = _CODECS[0x70], 0
    if data[:2] != b"\x12\x20":  # version 0 is a bare SHA-256 multihash
        version, data = take_varint(data)
        if version != 1:
            raise ValueError(f"it is a CID of version {version}")
        number, data = take_varint(data)
        if number not in _CODECS:
            raise ValueError(f"its codec {number:#x} is not that of a file")
        codec = _CODECS[number]
    hash_code, data = take_varint(data)
    length, data = take_varint(data)
    if hash_code not in _HASHES:
        raise ValueError(f"its hash {hash_code:#x} is not one that is verified here")
    hash_name, size = _HASHES[hash_code]
    if length != size or len(data) < size:
        raise ValueError("its digest has the wrong length")
    return ContentId(codec, hash_name, bytes(data[:size]), version), data[size:]


def take_varint(data: Bytes) -> tuple[int, Bytes]:
    """Return the unsigned LEB128 number at the start of `data`, and the rest. Raises ValueError."""
    number = 0
    for place, byte in enumerate(data[:_VARINT_BYTES_MAX]):
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, data[place + 1 :]
    raise ValueError("a number in it does not end")


def encode_varint(number: int) -> bytes:
    """Encode as unsigned LEB128."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _base32(text: str) -> bytes:
    return base64.b32decode(text.upper() + "=" * (-len(text) % 8))


def _big_number(text: str, alphabet: str) -> bytes:
    """Decode a text that is one big number; each leading zero digit is a zero byte."""
    number = 0
    for char in text:
        digit = alphabet.find(char)
        if digit < 0:
            raise ValueError(f"{char!r} is no digit of its base")
        number = number * len(alphabet) + digit
    zeros = len(text) - len(text.lstrip(alphabet[0]))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


# https://github.com/multiformats/multibase: those in which CIDs are written.
_MULTIBASES: Final[dict[str, Callable[[str], bytes]]] = {
    "b": _base32,
    "B": _base32,
    "f": bytes.fromhex,
    "F": bytes.fromhex,
    "k": lambda text: _big_number(text, _BASE36),
    "K": lambda text: _big_number(text.lower(), _BASE36),
    "z": lambda text: _big_number(text, _BASE58),
}
