"""Read the storage layout from a runtime's metadata (version 14), without a library.

Layout (frame-metadata `v14`, scale-info `PortableRegistry`): the magic `meta`, the version, the types, the pallets, the
extrinsic and the runtime's own type. Only the types that the three items need are kept; everything else is
skipped, so that memory use stays small for any size. The pallet is found by its name, fields by their names, in any
order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from chain_watcher.errors import ChainWatcherError

from .layout import Layout, type_from_registry
from .scale import Reader, refuse

PALLET: Final = "DcNode"
#: Metadata of large chains has a megabyte.
METADATA_BYTES_MAX: Final = 4 * 1024 * 1024
_TYPES_MAX: Final = 16_384
#: Types, fields, variants and lines of documentation together. Kusama's metadata has 15,000, a development chain with
#: every pallet 20,000.
_NODES_MAX: Final = 100_000
_TEXT_BYTES_MAX: Final = 64 * 1024
_PRIMITIVES: Final = ("bool", "char", "str", "u8", "u16", "u32", "u64", "u128", "u256", "i8", "i16", "i32", "i64")
_PLAIN: Final = 0


def layout_of(metadata: bytes) -> Layout:
    """Return the storage layout. Raises METADATA_UNREADABLE, CHAIN_WITHOUT_PALLET, LAYOUT_INVALID."""
    if metadata[:4] != b"meta" or len(metadata) < 5:
        raise _unreadable("it does not begin with the magic 'meta'")
    if metadata[4] != 14:
        raise _unreadable(f"version {metadata[4]}, this program reads version 14")
    if len(metadata) > METADATA_BYTES_MAX:
        raise _unreadable(f"{len(metadata)} bytes, at most {METADATA_BYTES_MAX}")
    decoder = _Decoder(metadata)
    try:
        types, pallets = decoder.types(), decoder.pallets()
        decoder.rest()
    except ChainWatcherError as problem:
        raise _unreadable(f"{problem.code}: {problem.why}") from problem
    if PALLET not in pallets:
        raise _without_pallet(f"the chain has no pallet {PALLET}; it has {', '.join(sorted(pallets))[:200]}")
    items = (("enclave_ids", PALLET, "EnclaveIds"), ("dc_program", PALLET, "DcProgram"), ("now", "Timestamp", "Now"))
    layout: dict[str, Any] = {"format": 1}
    for name, pallet, item in items:
        prefix, entries = pallets.get(pallet, ("", {}))
        if item not in entries:
            raise _without_pallet(f"pallet {pallet} has no plain storage value {item}")
        layout[name] = {"prefix": prefix, "item": item, "type": type_from_registry(types, entries[item])}
    return Layout(layout)


class _Types(Mapping[int, Mapping[str, Any]]):
    """The types by id, each decoded when it is requested."""

    def __init__(self, metadata: bytes, places: dict[int, int]) -> None:
        self._metadata = metadata
        self._places = places

    def __getitem__(self, type_id: int) -> Mapping[str, Any]:
        decoder = _Decoder(self._metadata)
        decoder.reader.position = self._places[type_id]
        return decoder.type()

    def __iter__(self) -> Any:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Decoder:
    """Reads the parts in order. A budget limits their number."""

    def __init__(self, metadata: bytes) -> None:
        self.reader = Reader(metadata, "chain metadata")
        self.reader.position = 5
        self._left = _NODES_MAX

    def types(self) -> _Types:
        """Find the position of each type."""
        places: dict[int, int] = {}
        for _ in range(self.reader.length(_TYPES_MAX)):
            type_id = self.reader.compact()
            places[type_id] = self.reader.position
            self.type()
        return _Types(self.reader.data, places)

    def pallets(self) -> dict[str, tuple[str, dict[str, int]]]:
        """Return pallet name -> (storage prefix, plain item -> type id)."""
        found: dict[str, tuple[str, dict[str, int]]] = {}
        for _ in self._items():
            name = self._text()
            prefix, entries = "", dict[str, int]()
            if self.reader.bool():
                prefix = self._text()
                entries = {item: kind for item, kind in [self._entry() for _ in self._items()] if kind is not None}
            for _ in ("calls", "event"):
                self._option(self.reader.compact)
            for _ in self._items():
                self._constant()
            self._option(self.reader.compact)  # error
            self.reader.u8()  # index
            found[name] = prefix, entries
        return found

    def rest(self) -> None:
        """Skip the extrinsic and the runtime's type, to the last byte."""
        self.reader.compact()
        self.reader.u8()
        for _ in self._items():
            self._skip_text()
            self.reader.compact()
            self.reader.compact()
        self.reader.compact()
        self.reader.finish()

    def type(self) -> dict[str, Any]:
        """Read one type in the form of `type_from_registry`: its path and its definition."""
        path = [self._text() for _ in self._items()]
        for _ in self._items():  # type parameters
            self._skip_text()
            self._option(self.reader.compact)
        definition = self._definition()
        self._docs()
        return {"path": path, "def": definition}

    def _definition(self) -> dict[str, Any]:
        reader = self.reader
        kind = reader.u8()
        if kind == 0:
            return {"composite": {"fields": self._fields()}}
        if kind == 1:
            return {"variant": {"variants": [self._variant() for _ in self._items()]}}
        if kind == 2:
            return {"sequence": {"type": reader.compact()}}
        if kind == 3:
            return {"array": {"len": reader.u32(), "type": reader.compact()}}
        if kind == 4:
            return {"tuple": [reader.compact() for _ in self._items()]}
        if kind == 5:
            index = reader.u8()
            return {"primitive": _PRIMITIVES[index] if index < len(_PRIMITIVES) else "i256"}
        if kind == 6:
            return {"compact": {"type": reader.compact()}}
        if kind == 7:
            return {"bitsequence": [reader.compact(), reader.compact()]}
        raise refuse("SCALE_VALUE_INVALID", reader.what, f"unknown kind of type {kind}")

    def _fields(self) -> list[dict[str, Any]]:
        fields = []
        for _ in self._items():
            name = self._option(self._text)
            fields.append({"name": name, "type": self.reader.compact()})
            self._option(self._skip_text)  # the type's name in the source
            self._docs()
        return fields

    def _variant(self) -> dict[str, Any]:
        variant = {"name": self._text(), "fields": self._fields()}
        self.reader.u8()  # index
        self._docs()
        return variant

    def _entry(self) -> tuple[str, int | None]:
        """Read a storage entry: its name, and the type of a plain value (None for a map)."""
        name, plain = self._text(), None
        self.reader.u8()  # modifier
        if self.reader.u8() == _PLAIN:
            plain = self.reader.compact()
        else:
            for _ in self._items():
                self.reader.u8()  # hasher
            self.reader.compact()
            self.reader.compact()
        self._skip_text()  # default value
        self._docs()
        return name, plain

    def _constant(self) -> None:
        self._skip_text()
        self.reader.compact()
        self._skip_text()
        self._docs()

    def _items(self) -> range:
        """Read the length of a list; METADATA_UNREADABLE once there are too many items in all."""
        count = self.reader.length(_NODES_MAX)
        self._left -= count
        if self._left < 0:
            raise refuse("SCALE_TOO_LARGE", self.reader.what, f"over {_NODES_MAX} types, fields and lines of text")
        return range(count)

    def _docs(self) -> None:
        for _ in self._items():
            self._skip_text()

    def _option(self, read: Callable[[], Any]) -> Any:
        return read() if self.reader.bool() else None

    def _text(self) -> str:
        try:
            return self.reader.blob(_TEXT_BYTES_MAX).decode()
        except UnicodeDecodeError:
            raise refuse("SCALE_VALUE_INVALID", self.reader.what, "a name that is not UTF-8") from None

    def _skip_text(self) -> None:
        count = self.reader.length(METADATA_BYTES_MAX)
        self.reader.position += count


def _without_pallet(why: str) -> ChainWatcherError:
    return ChainWatcherError(
        code="CHAIN_WITHOUT_PALLET",
        what="chain metadata",
        why=why,
        action="Point the endpoints at a DC chain, or upgrade its runtime",
    )


def _unreadable(why: str) -> ChainWatcherError:
    return ChainWatcherError(code="METADATA_UNREADABLE", what="chain metadata", why=why)
