"""The reference node's data folder does not grow with every upgrade, and no needed file is removed."""

import asyncio
import logging
from pathlib import Path

import pytest

from devnet.reference_node.main import Node
from devnet.reference_node.objects import KeySet
from devnet.reference_node.old_copies import Versions, remove_old_copies
from tests.doubles.reference_nodes import node

KEYS = KeySet.draw()


def upgraded(folder: Path, version: str, keys: KeySet = KEYS, *, commit: bool = True) -> Node:
    """A version that received the keys, sealed them and serves, as after a handover."""
    new = node(folder, version)
    asyncio.run(new._receive(keys.encoded))
    new.serve(keys)
    if commit:
        asyncio.run(new.commit())
    return new


def restarted(folder: Path, version: str) -> Node:
    """A version that is started on its own sealed copy."""
    again = node(folder, version)
    asyncio.run(again.bring_up())
    assert again.state.status == "serving", again.state.error
    return again


def sealers(folder: Path) -> set[str]:
    return {path.name[:64] for path in (folder / "sealed").iterdir()}


def test_fifty_upgrades_leave_two_copies(tmp_path: Path) -> None:
    ids = [upgraded(tmp_path, f"1.{number}.0").state.enclave_id for number in range(50)]
    assert sealers(tmp_path) == set(ids[-2:])
    assert {path.name for path in (tmp_path / "commits").iterdir()} == set(ids[-2:])
    assert Versions(tmp_path).read() == ids[-2:]
    restarted(tmp_path, "1.48.0")  # what can be gone back to still opens


def test_before_commit_everything_stays(tmp_path: Path) -> None:
    ids = {upgraded(tmp_path, f"1.{number}.0", commit=False).state.enclave_id for number in range(3)}
    assert sealers(tmp_path) == ids


def test_a_version_that_was_gone_back_to_is_the_one_that_stays(tmp_path: Path) -> None:
    old = upgraded(tmp_path, "1.0.0")
    bad = upgraded(tmp_path, "1.1.0", commit=False)
    restarted(tmp_path, "1.0.0")
    new = upgraded(tmp_path, "1.2.0")
    assert sealers(tmp_path) == {old.state.enclave_id, new.state.enclave_id}
    assert bad.state.enclave_id not in Versions(tmp_path).read()


def test_nothing_goes_before_the_own_copy_was_proven(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = [upgraded(tmp_path, f"1.{number}.0", commit=number == 0).state.enclave_id for number in range(3)]
    newest = upgraded(tmp_path, "1.3.0", commit=False)
    (own,) = (path for path in (tmp_path / "sealed").iterdir() if path.name.startswith(newest.state.enclave_id))
    good = own.read_bytes()
    own.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        asyncio.run(newest.commit())
    assert sealers(tmp_path) == {*ids, newest.state.enclave_id}
    own.write_bytes(good)
    asyncio.run(newest.commit())  # the control, and a commit that is repeated tidies too
    assert sealers(tmp_path) == {ids[-1], newest.state.enclave_id}


def test_copies_of_other_keys_and_of_unknown_versions_stay(tmp_path: Path) -> None:
    first = upgraded(tmp_path, "1.0.0", commit=False)
    first.seal(KeySet.draw())
    unknown = tmp_path / "sealed" / f"{'ab' * 32}.keys-{KEYS.id}.a.sealed"
    unknown.write_bytes(b"sealed by a node in another language")
    for number in range(1, 4):
        upgraded(tmp_path, f"1.{number}.0")
    left = [path.name for path in (tmp_path / "sealed").iterdir()]
    assert unknown.name in left
    assert [name for name in left if name.startswith(first.state.enclave_id) and KEYS.id not in name]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'["../x"]', b"[" * 100_000])
def test_a_list_that_cannot_be_read_removes_nothing(tmp_path: Path, damage: bytes) -> None:
    ids = {upgraded(tmp_path, f"1.{number}.0", commit=False).state.enclave_id for number in range(4)}
    (tmp_path / "versions.json").write_bytes(damage)
    assert remove_old_copies(tmp_path, sorted(ids)[0], KEYS.id) == set()
    assert sealers(tmp_path) == ids
