"""The files of tokens that the service reads or draws."""

import os
import stat
from pathlib import Path

import pytest

from dcupgrade.adapters import state_folder
from dcupgrade.errors import DcupgradeError


def test_a_token_is_drawn_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    drawn = state_folder.read_or_draw_token(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert state_folder.read_or_draw_token(path) == drawn


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 32, None])
def test_a_token_that_cannot_be_used_is_an_error_with_a_code(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "absent" / "token" if content is None else tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DcupgradeError) as caught:
        state_folder.read_or_draw_token(path)
    assert caught.value.code == "AGENT_STATE_UNUSABLE"
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_a_token_file_that_is_no_plain_file_is_an_error_and_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "token"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(DcupgradeError, match=r"AGENT_STATE_UNUSABLE.*not a plain file"):
        state_folder.read_or_draw_token(path)
