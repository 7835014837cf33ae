"""Layouts: how the three storage items that DCUpgrade reads are encoded, and their strict decoding.

A layout is a small JSON value extracted from a runtime's metadata (by a short-lived child process) and pinned by its
hash where evidence is verified::

    {"format": 1,
     "enclave_ids": {"prefix": "DcNode", "item": "EnclaveIds", "type": TYPE},
     "dc_program":  {"prefix": "DcNode", "item": "DcProgram", "type": TYPE},
     "now":         {"prefix": "Timestamp", "item": "Now", "type": TYPE}}

TYPE is `"u8"` to `"u256"`, `"bool"`, `"bytes"` (a `Vec<u8>`), `{"compact": "u32"}`, `{"vec": TYPE}`,
`{"array": [COUNT, TYPE]}`, `{"option": TYPE}`, `{"tuple": [TYPE, ...]}` or
`{"struct": [[NAME, TYPE], ...]}`. Newtypes (a composite with one unnamed field: BoundedVec, BTreeSet) are
flattened, so that each storage layout has exactly one description and one hash.

Storage keys are twox128(prefix) + twox128(item). Bytes stay `bytes`: a `Vec<u8>` that holds the text `0xabcd`
is six bytes and never the two bytes `ab cd`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import xxhash

from chain_watcher.errors import ChainWatcherError

from .scale import U64_MAX, Reader, refuse

#: Largest storage value that is decoded, bytes. An entry of EnclaveIds takes 175: some 11,900 fit.
VALUE_BYTES_MAX: Final = 2 << 20
_DEPTH_MAX: Final = 16
_TYPE_NODES_MAX: Final = 256
_ARRAY_LENGTH_MAX: Final = 4096
_NAME_CHARS_MAX: Final = 128
_FORMAT: Final = 1
_ITEMS: Final = ("enclave_ids", "dc_program", "now")
_UINT_BYTES: Final = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "u128": 16, "u256": 32}
_HASH_TAG: Final = b"dcupgrade storage layout v1\0"
_PROGRAM_FIELDS: Final = {"originurl": "origin_url", "mirrorurl": "mirror_url", "enclaveid": "enclave_id"}
_CID_FIELDS: Final = ("mirrcids", "mirrorcids", "cids")

#: A type tree as JSON: a string, or an object with one member.
TypeTree = Any


@dataclass(frozen=True, slots=True)
class RawEntry:
    """One entry of `EnclaveIds` as stored: the chain's bytes, not yet verified."""

    height: int
    enclave_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class RawProgram:
    """`DcProgram` as stored: the chain's bytes, not yet verified. `mirr_cids` is empty in the 4-field layout."""

    origin_url: bytes
    mirror_url: bytes
    enclave_id: bytes
    version: bytes
    mirr_cids: tuple[bytes, ...] = ()


def twox128(data: bytes) -> bytes:
    """Return Substrate's twox128: two xxHash64 with seeds 0 and 1, each little-endian (16 bytes)."""
    return b"".join(xxhash.xxh64_intdigest(data, seed).to_bytes(8, "little") for seed in (0, 1))


def twox64_concat(data: bytes) -> bytes:
    """Return Substrate's twox64concat map key: xxHash64 with seed 0, little-endian, and the key itself."""
    return xxhash.xxh64_intdigest(data, 0).to_bytes(8, "little") + data


def storage_key(prefix: str, item: str) -> bytes:
    """Return the 32-byte key of a plain storage value: twox128(pallet prefix) + twox128(item name)."""
    return twox128(prefix.encode()) + twox128(item.encode())


#: `System.BlockHash(0)`: the genesis hash, which frame-system never prunes (`finalize`: "keep genesis hash").
#: A proof of it ties a state to one chain, even if two chains share authority keys.
GENESIS_HASH_KEY: Final = storage_key("System", "BlockHash") + twox64_concat(bytes(4))


class Layout:
    """A valid layout, made by `from_json`. Evidence pins its `hash`: SHA-256 of the canonical form, hex."""

    __slots__ = ("_entry_order", "_json", "_program_order", "hash", "keys")

    def __init__(self, value: Mapping[str, Any]) -> None:
        """Validate `value`, the JSON form above. Raises LAYOUT_INVALID."""
        if not isinstance(value, Mapping) or set(value) != {"format", *_ITEMS}:
            raise _invalid("a layout has the members format, enclave_ids, dc_program and now")
        if type(value["format"]) is not int or value["format"] != _FORMAT:
            raise _invalid("this program reads layouts of format 1")
        items = {name: _read_item(name, value[name]) for name in _ITEMS}
        self._json: dict[str, Any] = {"format": _FORMAT, **items}
        self._entry_order = _entry_order(items["enclave_ids"]["type"])
        self._program_order = _program_order(items["dc_program"]["type"])
        if items["now"]["type"] not in ("u32", "u64", "u128"):
            raise _invalid("now is not an unsigned integer")
        keys = {name: storage_key(item["prefix"], item["item"]) for name, item in items.items()}
        if len(set(keys.values())) != len(keys):
            raise _invalid("two items share a storage key")
        #: Storage key (32 bytes) of `enclave_ids`, `dc_program` and `now`.
        self.keys: Mapping[str, bytes] = keys
        canonical = json.dumps(self._json, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        self.hash = hashlib.sha256(_HASH_TAG + canonical.encode("ascii")).hexdigest()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Layout:
        """Return the layout that `value` describes. Raises LAYOUT_INVALID."""
        return cls(value)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, as a copy. `from_json` makes an equal layout of it."""
        copy: dict[str, Any] = json.loads(json.dumps(self._json))
        return copy

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"Layout({self.hash})"

    @property
    def proof_keys(self) -> tuple[bytes, ...]:
        """The keys to ask `state_getReadProof` for: both items, the timestamp, the genesis hash."""
        return (*(self.keys[name] for name in _ITEMS), GENESIS_HASH_KEY)

    def decode_enclave_ids(self, value: bytes | None) -> tuple[RawEntry, ...]:
        """Decode `EnclaveIds`. An absent value is the empty set. Raises SCALE_*."""
        if value is None:
            return ()
        rows = self._decode("enclave_ids", value)
        height, enclave_id, signature = self._entry_order
        return tuple(RawEntry(row[height], row[enclave_id], row[signature]) for row in rows)

    def decode_dc_program(self, value: bytes | None) -> RawProgram | None:
        """Decode `DcProgram`; None if it is absent or an empty option. Raises SCALE_*."""
        if value is None:
            return None
        row = self._decode("dc_program", value)
        if row is None:
            return None
        fields: dict[str, Any] = {name: row[index] for name, index in self._program_order.items()}
        fields["mirr_cids"] = tuple(fields.get("mirr_cids", ()))
        return RawProgram(**fields)

    def decode_now(self, value: bytes | None) -> int:
        """Decode the timestamp pallet's `Now`: milliseconds since 1970.

        Raises SCALE_*, and LAYOUT_MISMATCH if it is absent or over u64.
        """
        if value is None:
            raise refuse("LAYOUT_MISMATCH", "now", "the chain has no timestamp")
        now = self._decode("now", value)
        if now > U64_MAX:
            raise refuse("LAYOUT_MISMATCH", "now", f"{now} is over u64")
        return int(now)

    def _decode(self, name: str, value: bytes) -> Any:
        if len(value) > VALUE_BYTES_MAX:
            raise refuse("SCALE_TOO_LARGE", name, f"{len(value)} bytes, at most {VALUE_BYTES_MAX}")
        reader = Reader(value, name)
        decoded = _decode_type(self._json[name]["type"], reader)
        reader.finish()
        return decoded


def standard_layout(*, fields: int, prefix: str = "DcNode") -> Layout:
    """Return the layout of the public pallet with 4 or 5 program fields. Raises ValueError for another number.

    A vault that pins no layout accepts these two, by their hashes. Watchers take the layout from the chain's metadata.
    """
    if fields not in (4, 5):
        raise ValueError("the program has 4 or 5 fields")
    program = [["origin_url", "bytes"], ["mirror_url", "bytes"], ["enclave_id", "bytes"], ["version", "bytes"]]
    cids: list[list[Any]] = [["mirr_cids", {"vec": "bytes"}]]
    entry = {"tuple": ["u32", "bytes", "bytes"]}
    return Layout(
        {
            "format": _FORMAT,
            "enclave_ids": {"prefix": prefix, "item": "EnclaveIds", "type": {"vec": entry}},
            "dc_program": {
                "prefix": prefix,
                "item": "DcProgram",
                "type": {"struct": [*program, *(cids if fields == 5 else [])]},
            },
            "now": {"prefix": "Timestamp", "item": "Now", "type": "u64"},
        }
    )


def type_from_registry(types: Mapping[int, Mapping[str, Any]], type_id: int) -> TypeTree:
    """Return the TYPE of `type_id` in a V14 portable registry. `types` maps ids to JSON forms with `path` and `def`.

    `def` is one of composite, variant, sequence, array, tuple, primitive, compact. Newtypes are flattened; `Option` is
    the only enum that is accepted. Raises LAYOUT_INVALID.
    """
    return _registry_type(types, type_id, 0, [_TYPE_NODES_MAX])


def _invalid(why: str) -> ChainWatcherError:
    return refuse("LAYOUT_INVALID", "storage layout", why)


def _registry_type(types: Mapping[int, Mapping[str, Any]], type_id: int, depth: int, left: list[int]) -> TypeTree:
    """`left` is the number of types still allowed: a small registry may describe a type of unbounded size."""
    left[0] -= 1
    if depth > _DEPTH_MAX or left[0] < 0:
        raise _invalid("a type of the metadata is nested too deeply or too large")
    try:
        described = types[type_id]
        ((kind, body),) = described["def"].items()
        path = list(described.get("path") or ())

        def inner(number: Any) -> TypeTree:
            return _registry_type(types, int(number), depth + 1, left)

        if kind == "primitive":
            name = str(body).lower()
            return "bytes" if name == "str" else name
        if kind == "sequence":
            item = inner(body["type"])
            return "bytes" if item == "u8" else {"vec": item}
        if kind == "array":
            return {"array": [int(body["len"]), inner(body["type"])]}
        if kind == "compact":
            return {"compact": inner(body["type"])}
        if kind == "tuple":
            return {"tuple": [inner(part) for part in body]}
        if kind == "composite":
            fields = body["fields"]
            if len(fields) == 1 and not fields[0].get("name"):
                return inner(fields[0]["type"])
            if all(not field.get("name") for field in fields):
                return {"tuple": [inner(field["type"]) for field in fields]}
            return {"struct": [[field["name"], inner(field["type"])] for field in fields]}
        if kind == "variant" and path == ["Option"]:
            (some,) = (variant for variant in body["variants"] if variant["name"] == "Some")
            return {"option": inner(some["fields"][0]["type"])}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _invalid(f"type {type_id} of the metadata is not well formed") from error
    raise _invalid(f"type {type_id} ({kind} {'::'.join(map(str, path))}) cannot be decoded by this program")


def _read_item(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or set(value) != {"prefix", "item", "type"}:
        raise _invalid(f"{name} has the members prefix, item and type")
    for part in ("prefix", "item"):
        text = value[part]
        if not isinstance(text, str) or not 0 < len(text) <= _NAME_CHARS_MAX or not text.isascii():
            raise _invalid(f"{part} of {name} is not a name")
    tree, _ = _read_type(value["type"], 0, _TYPE_NODES_MAX)
    return {"prefix": value["prefix"], "item": value["item"], "type": tree}


def _read_type(tree: Any, depth: int, budget: int) -> tuple[TypeTree, int]:
    """Return a clean copy of a type tree and the number of nodes still allowed.

    Types of zero size are refused: a vector of them could claim any length in a few bytes.
    """
    if depth > _DEPTH_MAX or budget <= 0:
        raise _invalid("a type is nested too deeply or too large")
    budget -= 1
    if isinstance(tree, str):
        if tree not in _UINT_BYTES and tree not in ("bool", "bytes"):
            raise _invalid(f"unknown type {tree!r}")
        return tree, budget
    if not isinstance(tree, Mapping) or len(tree) != 1:
        raise _invalid("a type is a name or an object with one member")
    ((kind, body),) = tree.items()
    if kind == "compact" and isinstance(body, str) and body in _UINT_BYTES:
        return {"compact": body}, budget
    if kind in ("vec", "option"):
        inner, budget = _read_type(body, depth + 1, budget)
        if (kind, inner) == ("vec", "u8"):
            raise _invalid('a Vec<u8> is written "bytes": one storage layout has one description')
        return {kind: inner}, budget
    if kind == "array" and isinstance(body, list) and len(body) == 2 and type(body[0]) is int:
        if not 0 < body[0] <= _ARRAY_LENGTH_MAX:
            raise _invalid(f"array of {body[0]} items")
        inner, budget = _read_type(body[1], depth + 1, budget)
        return {"array": [body[0], inner]}, budget
    if kind == "tuple" and isinstance(body, list) and body:
        parts = []
        for part in body:
            inner, budget = _read_type(part, depth + 1, budget)
            parts.append(inner)
        return {"tuple": parts}, budget
    if kind == "struct" and isinstance(body, list) and body:
        return _read_struct(body, depth, budget)
    raise _invalid(f"malformed type {kind!r}")


def _read_struct(body: list[Any], depth: int, budget: int) -> tuple[TypeTree, int]:
    fields: list[list[Any]] = []
    for field in body:
        if not isinstance(field, list) or len(field) != 2 or not isinstance(field[0], str):
            raise _invalid("a struct's field is a list of name and type")
        inner, budget = _read_type(field[1], depth + 1, budget)
        fields.append([field[0], inner])
    names = {_plain(name) for name, _ in fields}
    if len(names) != len(fields) or not all(0 < len(name) <= _NAME_CHARS_MAX for name in names):
        raise _invalid("a struct's fields need names of their own")
    return {"struct": fields}, budget


def _plain(name: str) -> str:
    """Return the form in which `mirr_cids`, `MirrCids` and `mirrCids` are equal: chains spell fields differently."""
    return name.replace("_", "").lower()


def _entry_order(tree: TypeTree) -> tuple[int, int, int]:
    """Return the positions of height, enclave id and signature in an entry's row."""
    row = tree.get("vec") if isinstance(tree, dict) else None
    if isinstance(row, dict) and "tuple" in row and len(row["tuple"]) == 3:
        if _is_uint(row["tuple"][0]) and row["tuple"][1:] == ["bytes", "bytes"]:
            return 0, 1, 2
    elif isinstance(row, dict) and "struct" in row:
        fields = {_plain(name): (index, kind) for index, (name, kind) in enumerate(row["struct"])}
        heights = [index for index, kind in fields.values() if _is_uint(kind)]
        enclave_id, signature = fields.get("enclaveid"), fields.get("signature")
        if len(heights) == 1 and enclave_id and signature and enclave_id[1] == signature[1] == "bytes":
            return heights[0], enclave_id[0], signature[0]
    raise _invalid("enclave_ids is not a list of (height, enclave id, signature)")


def _program_order(tree: TypeTree) -> dict[str, int]:
    """Return the position of each RawProgram field. Fields that a later runtime adds are decoded and ignored."""
    if isinstance(tree, dict) and "option" in tree:
        tree = tree["option"]
    fields = tree.get("struct", []) if isinstance(tree, dict) else []
    order: dict[str, int] = {}
    for index, (name, kind) in enumerate(fields):
        plain = _plain(name)
        if kind == "bytes" and (plain in _PROGRAM_FIELDS or plain == "version"):
            order[_PROGRAM_FIELDS.get(plain, plain)] = index
        elif plain in _CID_FIELDS and kind == {"vec": "bytes"} and "mirr_cids" not in order:
            order["mirr_cids"] = index
    if not order.keys() >= {"origin_url", "mirror_url", "enclave_id", "version"}:
        raise _invalid("dc_program lacks one of the byte fields origin_url, mirror_url, enclave_id, version")
    return order


def _is_uint(tree: TypeTree) -> bool:
    name = tree.get("compact") if isinstance(tree, dict) else tree
    return isinstance(name, str) and name in ("u32", "u64")


def _decode_type(tree: TypeTree, reader: Reader) -> Any:
    if tree == "bytes":
        return reader.blob(VALUE_BYTES_MAX)
    if tree == "bool":
        return reader.bool()
    if isinstance(tree, str):
        return reader.uint(_UINT_BYTES[tree])
    ((kind, body),) = tree.items()
    if kind == "vec":
        return [_decode_type(body, reader) for _ in range(reader.length(VALUE_BYTES_MAX))]
    if kind == "tuple":
        return [_decode_type(part, reader) for part in body]
    if kind == "struct":
        return [_decode_type(part, reader) for _, part in body]
    if kind == "array":
        return [_decode_type(body[1], reader) for _ in range(body[0])]
    if kind == "option":
        flag = reader.u8()
        if flag > 1:
            raise refuse("SCALE_VALUE_INVALID", reader.what, f"option byte {flag:#04x}")
        return _decode_type(body, reader) if flag else None
    return reader.compact(256 ** _UINT_BYTES[body] - 1)
