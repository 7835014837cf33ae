"""Rotation of logs while a process writes, also with renamed files and a full disk."""

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from process_supervisor import log_files
from process_supervisor.log_files import LogPolicy, log_of, open_log, remove_logs, tail_log, tend_log

POLICY = LogPolicy(size_bytes_max=10, kept=2, free_bytes_min=0)
Usage = namedtuple("Usage", "total used free")


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)


def names(folder: Path) -> dict[str, str]:
    return {item.name: item.read_text() for item in sorted(folder.iterdir())}


def test_rotation_keeps_a_number_of_files(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = opened(path)
    assert not tend_log(log, path, POLICY)
    for number in range(4):
        os.write(log, f"{number}".encode() * 11)
        assert tend_log(log, path, POLICY)
        assert not tend_log(log, path, POLICY)
    assert names(tmp_path) == {"log": "", "log.1": "3" * 11, "log.2": "2" * 11}
    os.write(log, b"x" * 11)
    assert tend_log(log, path, LogPolicy(size_bytes_max=10, kept=0, free_bytes_min=0))
    assert tail_log(path, 0) == []
    os.close(log)
    (tmp_path / "log.note").write_text("not ours")
    remove_logs(path)
    assert names(tmp_path) == {"log.note": "not ours"}


def test_a_removed_log_is_put_back_and_rotated(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = opened(path)
    path.unlink()
    os.write(log, b"short")
    assert not tend_log(log, path, POLICY)
    assert names(tmp_path) == {"log": "short"}
    os.write(log, b"and longer")
    assert tend_log(log, path, POLICY)
    assert names(tmp_path) == {"log": "", "log.1": "shortand longer"}
    assert os.fstat(log).st_size == 0, "what nobody sees does not grow"
    os.close(log)


def test_a_log_that_was_moved_aside_is_rotated_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = opened(path)
    os.write(log, b"kept")
    path.rename(tmp_path / "saved")
    assert not tend_log(log, path, POLICY)
    assert names(tmp_path) == {"saved": "kept"}
    path.write_text("another program's")
    os.write(log, b" and more")
    assert tend_log(log, path, POLICY)
    assert names(tmp_path) == {"log": "another program's", "log.1": "kept and more", "saved": ""}
    os.close(log)


def test_the_log_of_a_process_is_found_through_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log"
    out = open_log(path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=out)
    os.close(out)
    path.rename(tmp_path / "moved")
    found = log_of(child.pid, path)
    assert found is not None
    assert os.fstat(found).st_ino == (tmp_path / "moved").stat().st_ino
    os.close(found)
    child.communicate(b"\n")
    assert log_of(child.pid, path) is None
    os.mkfifo(path)
    assert log_of(child.pid, path) is None, "a FIFO is no log, and is not waited for"


def test_history_is_given_up_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    log = opened(path)
    for number in (1, 2, 3):
        (tmp_path / f"log.{number}").write_text(f"old {number}")

    def usage(_: Path) -> Usage:
        left = len(list(tmp_path.glob("log.*")))
        return Usage(100, 0, 40 - 10 * left)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert not tend_log(log, path, LogPolicy(size_bytes_max=100, kept=3, free_bytes_min=15))
    assert names(tmp_path) == {"log": "", "log.1": "old 1", "log.2": "old 2"}
    os.write(log, b"x" * 11)
    assert tend_log(log, path, LogPolicy(size_bytes_max=10, kept=3, free_bytes_min=15))
    assert names(tmp_path) == {"log": "", "log.1": "x" * 11, "log.2": "old 1"}
    os.close(log)


def test_a_log_that_filled_its_disk_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    log = opened(path)
    (tmp_path / "log.1").write_text("old 1")
    os.write(log, b"x" * 11)

    def full(source: int, target: Path) -> None:
        target.write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_files, "_copy", full)
    assert tend_log(log, path, POLICY)
    assert names(tmp_path) == {"log": "", "log.1": "old 1"}
    os.close(log)
