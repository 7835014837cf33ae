"""The processes that a trial's world ends, and those that it leaves running."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from devnet import demo, world
from devnet.world import World


def empty(folder: Path) -> World:
    """A world in which nothing runs."""
    nothing = cast(Any, None)
    return World(
        folder=folder,
        chain_url="",
        genesis_hash="",
        keys=nothing,
        builder=nothing,
        server=nothing,
        session=nothing,
    )


def test_what_it_started_is_ended_and_who_only_names_its_folder_is_not(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    log.touch()
    stand_in = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    # As `less agent.log` does, or the shell around `python -m devnet demo --folder ...`.
    bystander = subprocess.Popen(["tail", "-f", str(log)], stdout=subprocess.DEVNULL)
    node = subprocess.Popen([*stand_in, f"--data={tmp_path}", "--upgrader", "x"], stdout=subprocess.PIPE)
    try:
        assert node.stdout is not None
        node.stdout.readline()
        here = empty(tmp_path)
        assert set(here.processes()) == {bystander.pid, node.pid}
        # It is this process's child, so somebody must take note of its end, as the system's init does for a node.
        reaper = threading.Thread(target=node.wait)
        reaper.start()
        asyncio.run(here._stop_enclaves())
        reaper.join()
        assert bystander.poll() is None
    finally:
        for process in (bystander, node):
            process.kill()
            process.communicate()


@pytest.mark.timeout(60)
def test_a_command_that_is_no_longer_waited_for_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, fifo = tmp_path / "dcupgrade", tmp_path / "pid"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        f"import os, signal\nwith open({str(fifo)!r}, 'w') as fifo:\n    fifo.write(str(os.getpid()))\nsignal.pause()\n"
    )
    os.mkfifo(fifo)
    monkeypatch.setattr(world, "ROOT", tmp_path)

    async def cancelled() -> str:
        asked = asyncio.create_task(empty(tmp_path).dcupgrade("release", "publish"))
        pid = await asyncio.to_thread(fifo.read_text)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        return pid

    assert not Path(f"/proc/{asyncio.run(cancelled())}").exists()


async def test_what_goes_wrong_with_one_of_many_objects_is_told_as_it_is() -> None:
    async def work(index: int) -> None:
        if index == 2:
            raise demo.DemoError("object 2 is not what was stored")

    with pytest.raises(demo.DemoError, match="object 2"):
        await demo._in_parallel(work, 5)
