"""The watch over event loops reports exactly the calls that block them."""

import asyncio
import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.doubles.disk_watch import watched_files
from tests.doubles.loop_watch import HELD_S_MAX, read_reports, watch_children, watched_loop
from tests.doubles.vault_watch import EPOLL, VaultWatch


def compute() -> None:
    began = time.thread_time()
    while time.thread_time() - began < 2 * HELD_S_MAX:
        hash("x")


def block() -> None:
    time.sleep(2 * HELD_S_MAX)


async def test_a_callback_that_computes_is_named() -> None:
    with watched_loop() as found:
        asyncio.get_running_loop().call_soon(compute)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert [item.how for item in found] == ["computed"]
    assert "in compute" in "".join(found[0].stack)


async def test_a_blocking_call_is_named() -> None:
    async def step() -> None:
        block()

    with watched_loop() as found:
        await asyncio.create_task(step())
    assert [item.how for item in found] == ["blocked"]
    assert "in block" in str(found[0])


async def test_a_loop_that_waits_for_others_or_for_a_processor_is_not_named() -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            hashlib.sha256(b"x" * 1000).digest()

    threads = [threading.Thread(target=busy) for _ in range(4)]
    with watched_loop() as found:
        for thread in threads:
            thread.start()
        for _ in range(20):
            await asyncio.sleep(0.02)
        await asyncio.to_thread(time.sleep, 2 * HELD_S_MAX)
        stop.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    assert found == []


async def test_a_file_that_is_touched_on_the_loop_is_named_and_one_in_a_thread_is_not(tmp_path: Path) -> None:
    def touch() -> None:
        (tmp_path / "a").write_text("x")
        Path("/proc/self/stat").read_text()

    touch()
    with watched_files(str(tmp_path)) as found:
        await asyncio.to_thread(touch)
        assert found == []
        touch()
        Path("/etc/passwd").read_text()  # noqa: ASYNC240 - what lies elsewhere is not watched
    assert [item.how.split()[-1] for item in found] == [str(tmp_path / "a"), "/proc/self/stat"]
    assert "in touch" in str(found[0])
    touch()
    assert len(found) == 2


def test_a_process_of_its_own_is_watched(tmp_path: Path) -> None:
    env, report = watch_children(tmp_path)
    code = "import asyncio, time\nasync def main(): time.sleep(0.5)\nasyncio.run(main())"
    for argument, times in (("status", 0), ("watch", 1)):
        subprocess.run([sys.executable, "-c", code, argument], env=env, check=True)
        assert len(read_reports(report)) == times


VAULT = """
import asyncio, sys, time
async def main():
    if sys.argv[2] == "blocks":
        time.sleep(1000)
    await asyncio.to_thread(time.sleep, 1000)
time.sleep(float(sys.argv[4]))
asyncio.run(main())
"""
"""Stands where the enclave does: its loop begins after a while."""


@pytest.mark.parametrize("what", ["blocks", "serves"])
def test_a_vault_whose_loop_is_blocked_is_named_from_outside(tmp_path: Path, what: str) -> None:
    told, named = [], threading.Event()

    def report(text: str) -> None:
        told.append(text)
        named.set()

    watch = VaultWatch(tmp_path, report)
    with subprocess.Popen([sys.executable, "-c", VAULT, "serve", what, tmp_path / "store", "0.6"]) as vault:
        watch.start()
        try:
            if what == "blocks":
                named.wait()
            else:
                until_idle(vault.pid)
                assert not named.wait(3 * HELD_S_MAX)
        finally:
            watch.stop()
            vault.kill()
    assert len(told) == (what == "blocks")


def until_idle(pid: int) -> None:
    """Return once the process's loop waits for events, its other threads being at work."""
    while Path(f"/proc/{pid}/syscall").read_text().split()[0] not in EPOLL:
        time.sleep(0.01)
