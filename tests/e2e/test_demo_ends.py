"""A demonstration that a signal ends at any moment leaves no process and no large files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devnet.release_builder import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.demo]


def started_by_it(folder: Path) -> list[str]:
    """Command lines of all processes whose arguments or temporary files are in the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in told:
                found.append(told.decode("utf-8", "replace"))
    return found


@pytest.mark.parametrize(
    ("number", "seen"),
    [
        (signal.SIGTERM, "TEE is SIMULATED"),  # while the chain starts
        (signal.SIGHUP, "development chain"),  # while the vault is built and listed
        (signal.SIGINT, "1.1.0 published"),  # in the middle of the upgrade
        (signal.SIGTERM, "everything continues to run"),
    ],
    ids=["start", "vault", "upgrade", "staying"],
)
def test_a_demonstration_that_is_ended_leaves_nothing(tmp_path: Path, number: signal.Signals, seen: str) -> None:
    temporary, folder = tmp_path / "tmp", tmp_path / "demo"
    temporary.mkdir()
    argv = [sys.executable, "-m", "devnet", "demo", "--objects", "5", "--stay", "--folder", str(folder)]
    env = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    with subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        told = []
        for line in demo.stdout:
            told.append(line)
            if seen in line:
                demo.send_signal(number)
                break
        told.append(demo.stdout.read())
    text = "".join(told)
    stayed = "everything continues to run" in text  # a signal may come late on a busy machine; all was done by then
    assert demo.returncode == (0 if stayed else 130), text
    assert ("the upgrade succeeded" if stayed else "interrupted; everything was stopped") in text
    assert started_by_it(tmp_path) == []
    assert list(temporary.iterdir()) == []
    assert not {"data", "keys", "archives"} & {path.name for path in folder.glob("*")}
