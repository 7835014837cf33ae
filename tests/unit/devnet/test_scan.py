"""The scanner finds planted keys, so that a scan without finds means something."""

import base64
import os
from pathlib import Path

import pytest

from devnet import scan
from devnet.reference_node.objects import KeySet


@pytest.mark.parametrize("before", range(6))
def test_every_form_is_recognised_at_every_alignment(before: int) -> None:
    keys = KeySet.draw()
    wanted = scan.needles(keys)
    text = os.urandom(before) + keys.encoded + os.urandom(7)
    for haystack in (text, text.hex().encode(), text.hex().upper().encode()):
        found = scan.search([haystack], wanted)
        assert {name.split(",")[0] for name in found} == {"data key", "name key"}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        found = scan.search([encode(text)], wanted)
        assert {name.split(",")[0] for name in found} == {"data key", "name key"}
    assert scan.search([os.urandom(4096), base64.b64encode(os.urandom(4096))], wanted) == set()


def test_own_memory_and_files(tmp_path: Path) -> None:
    keys = KeySet.draw()
    held = keys.encoded
    try:
        found = scan.find_key_set(os.getpid(), keys.id)
    except PermissionError:
        pytest.skip("this user may not read process memory")
    assert found == keys
    assert len(held) == 72
    assert "data key, raw" in scan.search_memory(os.getpid(), scan.needles(keys))
    (tmp_path / "a").write_bytes(keys.data_key)
    (tmp_path / "skipped").mkdir()
    (tmp_path / "skipped" / "b").write_bytes(keys.data_key)
    assert list(scan.search_files(tmp_path, scan.needles(keys), skip=[tmp_path / "skipped"])) == [tmp_path / "a"]
