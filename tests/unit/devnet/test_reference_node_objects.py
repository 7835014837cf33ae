"""The reference node's store: objects are read back unchanged, and nothing else is accepted as an object."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from devnet.reference_node.objects import CHUNK_BYTES, KEY_SET_LENGTH, TAG_BYTES, KeySet, NodeError, ObjectStore


async def parts(data: bytes, size: int = 70_001) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def read(store: ObjectStore, name: str) -> bytes:
    size, chunks = store.open(name)
    data = b"".join(chunks)
    assert len(data) == size
    return data


def files(folder: Path) -> list[Path]:
    return sorted((folder / "objects").iterdir())


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 8 * 1024 * 1024]
)
async def test_an_object_of_any_size_comes_back(tmp_path: Path, size: int) -> None:
    store = ObjectStore(tmp_path, KeySet.draw())
    data = os.urandom(size)
    assert await store.put("a", parts(data)) == size
    assert read(store, "a") == data
    assert store.sizes() == {"a": size}


async def test_a_later_version_with_the_same_keys_reads_it(tmp_path: Path) -> None:
    keys = KeySet.draw()
    await ObjectStore(tmp_path, keys).put("a", parts(b"old"))
    again = KeySet(keys.encoded)
    assert again.id == keys.id
    assert len(keys.encoded) == KEY_SET_LENGTH
    assert read(ObjectStore(tmp_path, again), "a") == b"old"


async def test_other_keys_read_nothing_and_hear_no_canary(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, KeySet.draw())
    await store.put("a", parts(b"data"))
    store.write_canary("1.0.0")
    assert store.canary_sings()
    stranger = ObjectStore(tmp_path, KeySet.draw())
    assert not stranger.canary_sings()
    with pytest.raises(NodeError, match="NODE_OBJECT_MISSING"):
        stranger.open("a")
    with pytest.raises(NodeError, match="NODE_OBJECT_UNREADABLE"):
        stranger.sizes()


async def test_another_format_with_the_right_keys_hears_no_canary(tmp_path: Path) -> None:
    keys = KeySet.draw()
    ObjectStore(tmp_path, keys).write_canary("1.0.0")
    assert not ObjectStore(tmp_path, keys, format_tag=b"dc object v2").canary_sings()


async def test_neither_name_nor_content_lies_on_the_disk_in_the_clear(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, KeySet.draw())
    await store.put("a-name-to-look-for", parts(b"a content to look for" * 10))
    (path,) = files(tmp_path)
    assert b"look" not in path.name.encode() + path.read_bytes()


@pytest.mark.parametrize("change", ["flip", "cut", "cut-a-frame", "append", "swap-frames"])
async def test_a_changed_file_is_refused(tmp_path: Path, change: str) -> None:
    store = ObjectStore(tmp_path, KeySet.draw())
    await store.put("a", parts(os.urandom(3 * CHUNK_BYTES)))
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    frame = CHUNK_BYTES + TAG_BYTES
    if change == "flip":
        data[-1] ^= 1
    elif change == "cut":
        del data[-5:]
    elif change == "cut-a-frame":
        del data[-frame:]
    elif change == "append":
        data += bytes(20)
    else:
        data[-2 * frame :] = data[-frame:] + data[-2 * frame : -frame]
    path.write_bytes(data)
    with pytest.raises(NodeError, match="NODE_OBJECT_UNREADABLE"):
        read(store, "a")


async def test_the_file_of_one_object_does_not_pass_for_another(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, KeySet.draw())
    await store.put("a", parts(b"of a"))
    (of_a,) = files(tmp_path)
    await store.put("b", parts(b"of b"))
    (of_b,) = set(files(tmp_path)) - {of_a}
    of_b.write_bytes(of_a.read_bytes())
    with pytest.raises(NodeError, match="NODE_OBJECT_UNREADABLE"):
        read(store, "b")


async def test_a_broken_upload_leaves_the_old_object(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, KeySet.draw())
    await store.put("a", parts(b"old"))

    async def broken() -> AsyncIterator[bytes]:
        yield b"new, but only half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put("a", broken())
    assert read(store, "a") == b"old"
    assert len(files(tmp_path)) == 1


def test_leftovers_of_a_crash_are_cleared_at_the_next_start(tmp_path: Path) -> None:
    keys = KeySet.draw()
    ObjectStore(tmp_path, keys)
    (tmp_path / "objects" / "x.part").write_bytes(b"half")
    assert ObjectStore(tmp_path, keys).sizes() == {}
    assert files(tmp_path) == []


async def test_delete_and_delete_again(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, KeySet.draw())
    await store.put("a", parts(b"x"))
    store.delete("a")
    with pytest.raises(NodeError, match="NODE_OBJECT_MISSING"):
        store.delete("a")


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * KEY_SET_LENGTH, KeySet.draw().encoded[:-1], KeySet.draw().encoded + b"x"],
    ids=["empty", "no magic", "truncated", "trailing byte"],
)
def test_what_is_no_key_set_is_refused(data: bytes) -> None:
    with pytest.raises(NodeError, match="NODE_KEY_SET_MALFORMED"):
        KeySet(data)


def test_a_key_set_does_not_show_itself() -> None:
    keys = KeySet.draw()
    assert keys.data_key.hex() not in repr(keys)
    assert repr(keys.data_key) not in repr(keys)
