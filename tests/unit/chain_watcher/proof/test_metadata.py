"""The layout from metadata: by names, not by index or order. Malformed metadata is refused."""

from __future__ import annotations

import pytest

from chain_watcher.errors import CODES, ChainWatcherError
from chain_watcher.proof import metadata
from chain_watcher.proof.layout import standard_layout
from chain_watcher.proof.metadata import METADATA_BYTES_MAX, layout_of
from tests.doubles.chain_makers import code_of
from tests.doubles.metadata_maker import PROGRAM_FIELDS, make_metadata


@pytest.mark.parametrize("count", [4, 5])
def test_the_public_pallet_has_the_standard_layout(count: int) -> None:
    fields = PROGRAM_FIELDS if count == 4 else (*PROGRAM_FIELDS, "mirr_cids")
    assert layout_of(make_metadata(fields=fields)) == standard_layout(fields=count)


def test_another_index_order_and_a_fifth_field() -> None:
    fields = ("version", "MirrCids", "enclave_id", "mirror_url", "origin_url")
    layout = layout_of(make_metadata(fields=fields, pallet_index=77, prefix="Other", sudo=False))
    assert layout.to_json()["dc_program"]["prefix"] == "Other"
    program = layout.decode_dc_program(b"\x041" + b"\x04\x0cCID" + b"\x08id" + b"\x04m" + b"\x04o")
    assert program is not None
    assert (program.version, program.mirr_cids, program.enclave_id) == (b"1", (b"CID",), b"id")
    assert (program.origin_url, program.mirror_url) == (b"o", b"m")


def test_the_library_that_others_use_reads_the_same_types() -> None:
    """scalecodec decodes the whole of it; here only what the three items lead to is kept."""
    from scalecodec.base import RuntimeConfigurationObject, ScaleBytes
    from scalecodec.type_registry import load_type_registry_preset

    from chain_watcher.proof.layout import type_from_registry

    raw = make_metadata(fields=(*PROGRAM_FIELDS, "MirrCids"))
    config = RuntimeConfigurationObject(implements_scale_info=True)
    config.update_type_registry(load_type_registry_preset("core"))
    decoded = config.create_scale_object("MetadataVersioned", data=ScaleBytes(bytearray(raw)))
    decoded.decode()
    theirs = decoded.value[1]["V14"]
    types = {int(one["id"]): one["type"] for one in theirs["types"]["types"]}
    decoder = metadata._Decoder(raw)
    ours, pallets = decoder.types(), decoder.pallets()
    decoder.rest()
    plain = 0
    for pallet in theirs["pallets"]:
        for entry in (pallet["storage"] or {"entries": []})["entries"]:
            number = int(entry["type"]["Plain"])
            assert pallets[pallet["name"]] == (pallet["storage"]["prefix"], pallets[pallet["name"]][1])
            assert pallets[pallet["name"]][1][entry["name"]] == number
            assert type_from_registry(ours, number) == type_from_registry(types, number)
            plain += 1
    assert plain == 5


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (make_metadata(with_pallet=False), "CHAIN_WITHOUT_PALLET"),
        (make_metadata(fields=("origin_url", "version")), "LAYOUT_INVALID"),
        (make_metadata(entry_order=("id", "number", "signature")), "LAYOUT_INVALID"),
        (make_metadata(version=15), "METADATA_UNREADABLE"),
        (make_metadata()[:-40], "METADATA_UNREADABLE"),
        (make_metadata() + b"\0", "METADATA_UNREADABLE"),
        (b"meta", "METADATA_UNREADABLE"),
        (b"", "METADATA_UNREADABLE"),
        (b"tame" + bytes(60), "METADATA_UNREADABLE"),
        (b"meta\x0e" + bytes(METADATA_BYTES_MAX), "METADATA_UNREADABLE"),
    ],
)
def test_what_is_refused(raw: bytes, code: str) -> None:
    assert code_of(lambda: layout_of(raw)) == code
    assert code in CODES


def test_metadata_that_claims_endless_items_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "_NODES_MAX", 20)
    with pytest.raises(ChainWatcherError, match=r"METADATA_UNREADABLE.*over"):
        layout_of(make_metadata())


def test_a_type_that_is_not_in_the_registry_is_refused() -> None:
    raw = bytearray(make_metadata())
    at = raw.index(b"\x0cNow") + 4 + 2  # the type of Timestamp.Now
    raw[at] = 0xFC
    assert code_of(lambda: layout_of(bytes(raw))) == "LAYOUT_INVALID"
