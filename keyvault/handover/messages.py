"""Strict JSON messages of handover v2: what is not exactly as docs/protocol.md says is refused.

Each message is one JSON object in UTF-8. Binary values are standard base64 with padding in its canonical form. Refused
are duplicate keys, unknown and missing fields, wrong types, sizes outside their limits, NaN, trailing bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from keyvault.errors import KeyvaultError

from .key_set import KEY_SET_BYTES_MAX

VERSION: Final = 2
NONCE_BYTES: Final = 32
SESSION_BYTES: Final = 16
ID_BYTES: Final = 32
REPORT_BYTES: Final = 432
TARGET_INFO_BYTES: Final = 512
SIGNATURE_BYTES: Final = 64
SIGNATURES_MAX: Final = 16
KEM_PUBLIC_KEY_BYTES: Final = 1184 + 32
KEM_ENCAPSULATION_BYTES: Final = 1088 + 32
AEAD_TAG_BYTES: Final = 16
RECEIPT_KEY_BYTES: Final = 32
MAC_BYTES: Final = 32
CIPHERTEXT_OVERHEAD_BYTES: Final = KEM_ENCAPSULATION_BYTES + AEAD_TAG_BYTES + RECEIPT_KEY_BYTES
CIPHERTEXT_BYTES_MAX: Final = KEY_SET_BYTES_MAX + CIPHERTEXT_OVERHEAD_BYTES
#: The largest message is a delivery: its ciphertext in base64, a report, and the names around them.
MESSAGE_BYTES_MAX: Final = 96 * 1024
#: Objects and lists within each other. The deepest of ours, chain evidence, has five.
JSON_DEPTH_MAX: Final = 32
SMALL_MESSAGE_BYTES_MAX: Final = 8 * 1024


def _malformed(what: str, why: str) -> KeyvaultError:
    return KeyvaultError(code="HANDOVER_MESSAGE_MALFORMED", what=f"the {what} was refused", why=why)


def _too_large(what: str, found: int, allowed: int) -> KeyvaultError:
    return KeyvaultError(
        code="HANDOVER_MESSAGE_TOO_LARGE",
        what=f"the {what} was refused",
        why=f"it has {found} bytes, allowed are {allowed}",
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def strict_json(body: bytes | bytearray, limit: int, what: str) -> dict[str, Any]:
    """Decode one JSON object of at most `limit` bytes that somebody else wrote.

    Duplicate keys, NaN, trailing bytes, and objects or lists nested deeper than 32 are refused. `what` names the
    message in errors. Raises HANDOVER_MESSAGE_TOO_LARGE, HANDOVER_MESSAGE_MALFORMED.
    """
    if len(body) > limit:
        raise _too_large(what, len(body), limit)
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        # The text of a decoding error can quote the input, and the input can hold secrets: report its type only.
        reason = str(error) if str(error) in {"a key occurs twice"} else type(error).__name__
        raise _malformed(what, f"it is not strict JSON ({reason})") from None
    if not isinstance(value, dict):
        raise _malformed(what, "it is not a JSON object")
    if _is_deeper_than(value, JSON_DEPTH_MAX):
        raise _malformed(what, f"its objects and lists are nested deeper than {JSON_DEPTH_MAX}")
    return value


def _is_deeper_than(value: object, depth: int) -> bool:
    """Look level by level, without recursion."""
    level = [value]
    for _ in range(depth):
        below = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [child for children in below for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def decode_base64(text: object, what: str) -> bytes:
    """Decode standard base64 with padding, refusing every spelling but the canonical one."""
    if not isinstance(text, str):
        raise _malformed(what, "a binary value is not text")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _malformed(what, "a binary value is not base64") from None
    if base64.b64encode(data).decode("ascii") != text:
        raise _malformed(what, "a binary value is not in canonical base64")
    return data


def encode_base64(data: bytes | bytearray | memoryview) -> str:
    """Return canonical standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


Decoder = Callable[[object, str], Any]


def _bytes(low: int, high: int | None = None) -> Decoder:
    most = low if high is None else high

    def decode(value: object, what: str) -> bytes:
        data = decode_base64(value, what)
        if not low <= len(data) <= most:
            raise _malformed(what, f"a binary value has {len(data)} bytes, expected {low} to {most}")
        return data

    return decode


def _signatures(value: object, what: str) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= SIGNATURES_MAX:
        raise _malformed(what, f"network_signatures is not a list of 1 to {SIGNATURES_MAX}")
    one = _bytes(SIGNATURE_BYTES)
    return tuple(one(item, what) for item in value)


def _versions(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 8:
        raise _malformed(what, "versions is not a list of 1 to 8 numbers")
    if not all(type(item) is int and 0 < item < 256 for item in value) or sorted(set(value)) != value:
        raise _malformed(what, "versions is not a rising list of numbers below 256")
    return tuple(value)


def _version(value: object, what: str) -> int:
    if type(value) is not int or not 0 < value < 256:
        raise _malformed(what, "version is not a number below 256")
    return value


def is_hex_id(value: object) -> bool:
    """Tell whether a value is text of exactly 64 lower-case hex characters."""
    return isinstance(value, str) and len(value) == 64 and all(c in "0123456789abcdef" for c in value)


def _key_set_id(value: object, what: str) -> str:
    if not isinstance(value, str) or not is_hex_id(value):
        raise _malformed(what, "key_set_id is not 64 lower-case hex characters")
    return value


def _key_set_id_or_any(value: object, what: str) -> str:
    return "" if value == "" else _key_set_id(value, what)


def _true_or_false(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise _malformed(what, "canary is neither true nor false")
    return value


def _state(value: object, what: str) -> str:
    if not isinstance(value, str) or value not in {"received", "durable"}:
        raise _malformed(what, "state is unknown")
    return value


@dataclass(frozen=True)
class Shape:
    """One message type: its name, its fields with their decoders, and the size limit of its JSON in bytes."""

    name: str
    fields: Mapping[str, Decoder]
    limit: int = SMALL_MESSAGE_BYTES_MAX

    def decode(self, body: bytes | bytearray) -> dict[str, Any]:
        """Return the decoded fields; raises `HANDOVER_MESSAGE_MALFORMED` or `HANDOVER_MESSAGE_TOO_LARGE`."""
        return self.check(strict_json(body, self.limit, self.name))

    def session(self, body: bytes | bytearray) -> tuple[bytes, dict[str, Any]]:
        """Return the session a message names and its still unchecked fields.

        So a holder can consume the session before it looks at anything else.
        """
        value = strict_json(body, self.limit, self.name)
        return _bytes(SESSION_BYTES)(value.get("session"), self.name), value

    def check(self, value: Mapping[str, object]) -> dict[str, Any]:
        """Return the decoded fields of a JSON object."""
        missing, unknown = self.fields.keys() - value.keys(), value.keys() - self.fields.keys()
        if missing:
            raise _malformed(self.name, f"fields are missing: {', '.join(sorted(missing))}")
        if unknown:
            raise _malformed(self.name, f"it has {len(unknown)} unknown fields")
        return {name: decoder(value[name], self.name) for name, decoder in self.fields.items()}

    def encode(self, **values: object) -> bytes:
        """Return the message as compact JSON bytes in the order of the fields; binary values become base64."""
        return json.dumps(
            {name: _plain(values[name]) for name in self.fields}, separators=(",", ":"), ensure_ascii=True
        ).encode("ascii")


def _plain(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return encode_base64(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


HELLO: Final = Shape(
    "hello",
    {
        "versions": _versions,
        "genesis": _bytes(32),
        "nonce": _bytes(NONCE_BYTES),
        "target_info": _bytes(TARGET_INFO_BYTES),
    },
)
CHALLENGE: Final = Shape(
    "challenge",
    {
        "version": _version,
        "session": _bytes(SESSION_BYTES),
        "nonce": _bytes(NONCE_BYTES),
        "report": _bytes(REPORT_BYTES),
        "network_signatures": _signatures,
    },
)
REQUEST: Final = Shape(
    "request",
    {
        "session": _bytes(SESSION_BYTES),
        "kem_public_key": _bytes(KEM_PUBLIC_KEY_BYTES),
        "key_set_id": _key_set_id_or_any,
        "report": _bytes(REPORT_BYTES),
        "network_signatures": _signatures,
    },
)
DELIVERY: Final = Shape(
    "delivery",
    {
        "session": _bytes(SESSION_BYTES),
        "ciphertext": _bytes(CIPHERTEXT_OVERHEAD_BYTES + 1, CIPHERTEXT_BYTES_MAX),
        "report": _bytes(REPORT_BYTES),
    },
    MESSAGE_BYTES_MAX,
)
RECEIVED: Final = Shape("received", {"session": _bytes(SESSION_BYTES), "mac": _bytes(MAC_BYTES)})
DURABLE: Final = Shape(
    "durable",
    {
        "session": _bytes(SESSION_BYTES),
        "key_set_id": _key_set_id,
        "canary": _true_or_false,
        "report": _bytes(REPORT_BYTES),
    },
)
ACKNOWLEDGED: Final = Shape("acknowledgement", {"session": _bytes(SESSION_BYTES), "state": _state})
