"""Layouts kept by runtime, by the digest of their metadata, and across starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chain_watcher.proof.layout import Layout, standard_layout
from chain_watcher.watch.layout_cache import FILE_BYTES_MAX, LAYOUTS_MAX, LayoutCache

FOUR, FIVE = standard_layout(fields=4), standard_layout(fields=5)


def test_the_newest_are_kept() -> None:
    cache = LayoutCache()
    for spec in range(LAYOUTS_MAX + 1):
        assert cache.put("0x00", spec, FOUR)
    assert not cache.put("0x00", LAYOUTS_MAX, FOUR)
    assert cache.get("0x00", 0) is None
    assert cache.get("0x00", 1) is FOUR
    assert cache.get("0x01", 1) is None
    assert (cache.newest("0x00"), cache.newest("0x01")) == ((LAYOUTS_MAX, FOUR), None)
    cache.drop("0x00", LAYOUTS_MAX)
    assert cache.newest("0x00") == (LAYOUTS_MAX - 1, FOUR)


def test_accepted_metadata_is_recognised_beside() -> None:
    cache = LayoutCache()
    cache.put("0x00", 1, FOUR)
    cache.accept(1, "0xabcd", FOUR)
    beside = cache.beside()
    assert beside.get("0x00", 1) is None
    assert beside.accepted(1, "0xabcd") is FOUR
    assert beside.accepted(1, "0xabce") is None
    assert beside.accepted(2, "0xabcd") is None, "what was said of one runtime is no word on another"


def test_layouts_survive_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "layouts.json"
    cache = LayoutCache(file)
    cache.put("0x00", 1, FOUR)
    cache.put("0x00", 2, FIVE)
    cache.save()
    again = LayoutCache(file)
    assert (again.get("0x00", 1), again.newest("0x00")) == (FOUR, (2, FIVE))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layouts.json"]
    pinned = LayoutCache(file, frozenset({FOUR.hash}))
    assert (pinned.get("0x00", 1), pinned.get("0x00", 2)) == (FOUR, None), "a pin that was set since counts"


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"layouts": 7}', b'{"layouts": [[1]]}', b'{"layouts": [["0x00", 1, {}]]}', b"[" * 100_000],
)
def test_a_file_that_cannot_be_used_is_passed_over(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "layouts.json"
    file.write_bytes(content)
    assert LayoutCache(file).newest("0x00") is None


@pytest.mark.parametrize("kind", ["fifo", "link", "large", "folder", "missing"])
def test_only_a_small_regular_file_is_read(tmp_path: Path, kind: str) -> None:
    good, file = tmp_path / "good.json", tmp_path / "layouts.json"
    cache = LayoutCache(good)
    cache.put("0x00", 1, FOUR)
    cache.save()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "link":
        file.symlink_to(good)
    elif kind == "large":
        file.write_bytes(b" " * FILE_BYTES_MAX + good.read_bytes())
    elif kind == "folder":
        file.mkdir()
    assert LayoutCache(file).newest("0x00") is None


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    cache = LayoutCache(tmp_path / "missing" / "layouts.json")
    cache.put("0x00", 1, FOUR)
    cache.save()
    assert isinstance(cache.get("0x00", 1), Layout)
