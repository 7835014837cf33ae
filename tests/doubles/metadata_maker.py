"""Minimal V14 metadata: any pallet index, any field order, four or five program fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def compact(number: int) -> bytes:
    if number < 1 << 6:
        return bytes([number << 2])
    if number < 1 << 14:
        return ((number << 2) | 1).to_bytes(2, "little")
    if number < 1 << 30:
        return ((number << 2) | 2).to_bytes(4, "little")
    raw = number.to_bytes((number.bit_length() + 7) // 8, "little")
    return bytes([((len(raw) - 4) << 2) | 3]) + raw


def text(value: str) -> bytes:
    return compact(len(value.encode())) + value.encode()


def vec(items: list[bytes]) -> bytes:
    return compact(len(items)) + b"".join(items)


Path = tuple[str, ...]
NamedType = tuple[str | None, int]
Variant = tuple[str, Sequence[NamedType], int]


@dataclass
class Registry:
    """Type ids in the order of definition."""

    types: list[bytes]

    def add(self, definition: bytes, path: tuple[str, ...] = (), params: bytes = b"\x00") -> int:
        number = len(self.types)
        body = vec([text(part) for part in path]) + params + definition + b"\x00"
        self.types.append(compact(number) + body)
        return number

    def primitive(self, index: int) -> int:
        return self.add(bytes([5, index]))

    def sequence(self, inner: int) -> int:
        return self.add(b"\x02" + compact(inner))

    def tuple(self, inner: list[int]) -> int:
        return self.add(b"\x04" + vec([compact(one) for one in inner]))

    def composite(self, fields: Sequence[NamedType], path: Path = ()) -> int:
        return self.add(b"\x00" + vec([field(name, kind) for name, kind in fields]), path)

    def variant(self, variants: Sequence[Variant], path: Path = ()) -> int:
        body = vec(
            [
                text(name) + vec([field(one, kind) for one, kind in fields]) + bytes([index]) + b"\x00"
                for name, fields, index in variants
            ]
        )
        return self.add(b"\x01" + body, path)


def field(name: str | None, kind: int) -> bytes:
    return (b"\x00" if name is None else b"\x01" + text(name)) + compact(kind) + b"\x00" + b"\x00"


def entry(name: str, kind: int, *, default: bool) -> bytes:
    return text(name) + bytes([1 if default else 0]) + b"\x00" + compact(kind) + vec([]) + vec([])


def pallet(name: str, index: int, entries: list[bytes], calls: int | None, prefix: str | None = None) -> bytes:
    storage = b"\x01" + text(prefix or name) + vec(entries) if entries else b"\x00"
    called = b"\x00" if calls is None else b"\x01" + compact(calls)
    return text(name) + storage + called + b"\x00" + vec([]) + b"\x00" + bytes([index])


PROGRAM_FIELDS = ("origin_url", "mirror_url", "enclave_id", "version")


def make_metadata(
    *,
    fields: tuple[str, ...] = PROGRAM_FIELDS,
    entry_order: tuple[str, ...] = ("number", "id", "signature"),
    pallet_index: int = 30,
    call_indices: tuple[int, int, int] = (22, 23, 24),
    prefix: str = "DcNode",
    with_pallet: bool = True,
    sudo: bool = True,
    version: int = 14,
    filler: int = 0,
    removed_by: tuple[str, ...] = ("enclave_id",),
) -> bytes:
    """Metadata bytes with magic. `fields` may hold `MirrCids` (a Vec<Bytes>); `filler` adds unused types.

    `removed_by` names the arguments of `remove_enclave_id`: that of the public pallet takes the signature too.
    """
    registry = Registry([])
    u8, u32, u64 = registry.primitive(3), registry.primitive(5), registry.primitive(6)
    registry.primitive(2)
    octets = registry.sequence(u8)
    cids = registry.sequence(octets)
    parts = {"number": u32, "id": octets, "signature": octets}
    tuple_id = registry.tuple([parts[one] for one in entry_order])
    listing = registry.sequence(tuple_id)
    tree = registry.add(
        b"\x00" + vec([field(None, listing)]),
        ("BTreeSet",),
        vec([text("T") + b"\x01" + compact(tuple_id)]),
    )
    program = registry.composite(
        [(name, cids if name in ("MirrCids", "mirr_cids") else octets) for name in fields],
        ("pallet_dc_node", "DcProgram"),
    )
    urls = [("origin_url", octets), ("mirror_url", octets), ("enclave_id", octets), ("version", octets)]
    calls = registry.variant(
        [
            ("set_enclave_id", [("enclave_id", octets), ("signature", octets)], call_indices[0]),
            ("remove_enclave_id", [(name, octets) for name in removed_by], call_indices[1]),
            ("set_dc_program", list(urls), call_indices[2]),
        ],
        ("pallet_dc_node", "pallet", "Call"),
    )
    sudo_calls = registry.variant([("sudo", [("call", calls)], 0)], ("pallet_sudo", "pallet", "Call"))
    upgrade = registry.composite(
        [("spec_version", registry.add(b"\x06" + compact(u32))), ("spec_name", octets)],
        ("frame_system", "LastRuntimeUpgradeInfo"),
    )
    unit = registry.tuple([])
    for number in range(filler):
        members: list[tuple[str | None, int]] = [(f"a_member_of_some_length_{at}", u32) for at in range(12)]
        registry.composite(members, ("a_pallet_of_the_chain", "types", f"Filler{number}"))
    pallets = [
        pallet(
            "System", 0, [entry("Number", u32, default=True), entry("LastRuntimeUpgrade", upgrade, default=False)], None
        ),
        pallet("Timestamp", 1, [entry("Now", u64, default=True)], None),
    ]
    if with_pallet:
        entries = [entry("EnclaveIds", tree, default=True), entry("DcProgram", program, default=False)]
        pallets.append(pallet("DcNode", pallet_index, entries, calls, prefix))
    if sudo:
        pallets.append(pallet("Sudo", 6, [], sudo_calls))
    extrinsic = compact(unit) + bytes([4]) + vec([])
    body = vec(registry.types) + vec(pallets) + extrinsic + compact(unit)
    return b"meta" + bytes([version]) + body
