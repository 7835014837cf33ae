"""Metadata in, layout out: by names, never by index or order; and everything that is not such metadata."""

from __future__ import annotations

import asyncio
import sys

import pytest

from chain_watcher.errors import CODES, ChainWatcherError
from chain_watcher.proof.layout import standard_layout
from chain_watcher.watch import metadata
from chain_watcher.watch.metadata import LayoutCache, answer, from_json, read_metadata
from tests.doubles.metadata_maker import PROGRAM_FIELDS, make_metadata


def test_the_public_pallet_has_the_standard_layout() -> None:
    found = from_json(answer("0x" + make_metadata().hex()))
    assert found.layout == standard_layout(fields=4)
    assert found.calls["set_dc_program"] == metadata.Call(30, 24, PROGRAM_FIELDS)
    assert found.calls["sudo"] == metadata.Call(6, 0, ("call",))


def test_another_index_order_and_a_fifth_field() -> None:
    fields = ("version", "MirrCids", "enclave_id", "mirror_url", "origin_url")
    raw = make_metadata(fields=fields, pallet_index=77, call_indices=(1, 2, 3), prefix="Other", sudo=False)
    found = from_json(answer(raw.hex()))
    assert found.calls["set_enclave_id"] == metadata.Call(77, 1, ("enclave_id", "signature"))
    assert "sudo" not in found.calls
    assert found.layout.to_json()["dc_program"]["prefix"] == "Other"
    value = b"\x041" + b"\x04\x0cCID" + b"\x08id" + b"\x04m" + b"\x04o"
    program = found.layout.decode_dc_program(value)
    assert program is not None
    assert (program.version, program.mirr_cids, program.enclave_id) == (b"1", (b"CID",), b"id")
    assert (program.origin_url, program.mirror_url) == (b"o", b"m")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (make_metadata(with_pallet=False), "CHAIN_WITHOUT_PALLET"),
        (make_metadata(fields=("origin_url", "version")), "LAYOUT_INVALID"),
        (make_metadata(entry_order=("id", "number", "signature")), "LAYOUT_INVALID"),
        (make_metadata(version=15), "METADATA_UNREADABLE"),
        (make_metadata()[:-40], "METADATA_UNREADABLE"),
        (b"meta", "METADATA_UNREADABLE"),
        (b"", "METADATA_UNREADABLE"),
        (b"tame" + bytes(60), "METADATA_UNREADABLE"),
    ],
)
def test_what_is_refused(raw: bytes, code: str) -> None:
    with pytest.raises(ChainWatcherError) as caught:
        from_json(answer(raw.hex()))
    assert caught.value.code == code
    assert code in CODES


def test_text_that_is_not_hex() -> None:
    with pytest.raises(ChainWatcherError, match="METADATA_UNREADABLE"):
        from_json(answer("0xzz"))


async def test_the_child_process_gives_the_same_answer() -> None:
    found = await read_metadata("0x" + make_metadata().hex())
    assert found.layout == standard_layout(fields=4)


async def test_the_child_process_passes_errors_on() -> None:
    with pytest.raises(ChainWatcherError) as caught:
        await read_metadata("0x" + make_metadata(with_pallet=False).hex())
    assert (caught.value.code, caught.value.kind) == ("CHAIN_WITHOUT_PALLET", "rejected")
    with pytest.raises(ChainWatcherError, match="METADATA_UNREADABLE"):
        await read_metadata("0x" + "0" * (2 * metadata.METADATA_BYTES_MAX + 2))


async def test_a_child_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ChainWatcherError, match="METADATA_PROCESS_FAILED"):
        await read_metadata("0x", timeout_s=0.001)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ChainWatcherError, match=r"METADATA_PROCESS_FAILED.*cannot be started"):
        await read_metadata("0x")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ChainWatcherError, match="METADATA_PROCESS_FAILED"):
        await read_metadata("0x")


async def test_the_childs_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up metadata may unfold to gigabytes in the parser: that ends in an error, in the child."""
    hungry = "import chain_watcher.watch.metadata as m; m.limit_memory(); bytearray(m.CHILD_MEMORY_BYTES)"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", hungry, stderr=asyncio.subprocess.PIPE)
    _, complaint = await child.communicate()
    assert complaint.decode().strip().endswith("MemoryError")

    def starved(_raw: bytes) -> dict[str, object]:
        raise MemoryError

    monkeypatch.setattr(metadata, "extract", starved)
    with pytest.raises(ChainWatcherError, match=r"METADATA_UNREADABLE.*more memory"):
        from_json(answer(make_metadata().hex()))


@pytest.mark.parametrize("value", [{}, {"layout": {}}, {"calls": {}, "layout": []}, {"error": {}}, {"error": 1}])
def test_answers_of_another_shape(value: dict[str, object]) -> None:
    with pytest.raises(ChainWatcherError):
        from_json(value)


def test_the_cache_keeps_the_newest() -> None:
    cache = LayoutCache(size_max=2)
    found = from_json(answer(make_metadata().hex()))
    for spec in range(3):
        cache.put("0x00", spec, found)
    assert cache.get("0x00", 0) is None
    assert cache.get("0x00", 2) is found
    assert cache.get("0x01", 2) is None


def test_accepted_metadata_is_recognised_beside() -> None:
    cache = LayoutCache()
    found = from_json(answer(make_metadata().hex()))
    cache.put("0x00", 1, found)
    cache.accept(1, "0xabcd", found)
    beside = cache.beside()
    assert beside.get("0x00", 1) is None
    assert beside.accepted(1, "0xabcd") is found
    assert beside.accepted(1, "0xabce") is None
    assert beside.accepted(2, "0xabcd") is None, "what was said of one runtime is no word on another"


def test_the_long_lived_process_never_loads_the_parser() -> None:
    import subprocess

    found = "[m for m in sys.modules if 'scalecodec' in m or 'pydantic' in m]"
    code = f"import sys, chain_watcher.watch.metadata; print({found})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
