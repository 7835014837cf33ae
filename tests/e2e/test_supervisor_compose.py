"""The compose trial as a user runs it: images, services, upgrade, revert, a killed agent, clean-up."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from devnet.docker.engine import missing_tools
from devnet.release_builder import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.compose]


def processes_naming(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if text in line:
                found.append(line)
    return found


@pytest.mark.timeout(3000)  # the first time builds images: npm, pip
async def test_the_compose_trial(tmp_path: Path) -> None:
    lacks = missing_tools()
    if lacks:
        pytest.skip(f"no Docker engine of our own: it needs {'; '.join(lacks)}")
    folder = tmp_path / "trial"
    arguments = ["compose-trial", "--objects", "20", "--folder", str(folder)]
    trial = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "devnet", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await trial.communicate()
    except BaseException:
        trial.terminate()  # it takes its services down before it ends
        await trial.wait()
        raise
    text = output.decode()
    assert trial.returncode == 0, text
    for said in ("20 of 20 objects", "the previous container serves again", "the upgrade ends all the same"):
        assert said in " ".join(text.split())
    assert processes_naming(str(folder)) == []
