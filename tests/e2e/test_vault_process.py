"""A vault's process under bad conditions: a log that is not read, stray signals, foreign modules in its folder."""

import asyncio
import os
import signal

import aiohttp
import pytest

from devnet.tools import free_port
from keyvault.client import VaultClient
from tests.e2e.vault_parts.kit import TOKEN, Bench, ready

pytestmark = pytest.mark.e2e

STRAY = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def fill(pipe_end: int) -> None:
    """Fill a pipe by a separate file description."""
    own = os.open(f"/proc/self/fd/{pipe_end}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(own, b"x" * 4096)
    except BlockingIOError:
        pass
    finally:
        os.close(own)


async def test_a_log_that_nobody_reads_does_not_hold_the_vault_up(bench: Bench) -> None:
    port = free_port()
    reader, writer = os.pipe()
    kept = os.dup(writer)
    process = bench.start_vault(bench.vault(), port, log_end=writer)
    try:
        async with VaultClient(f"http://127.0.0.1:{port}", TOKEN) as client, aiohttp.ClientSession() as session:
            await ready(client)
            fill(kept)
            for number in range(300):  # each is a line of its own in the log
                url = f"http://127.0.0.1:{port}/vault/delivery/{number}"
                async with asyncio.timeout(60), session.get(url) as answer:
                    assert answer.status == 401
            assert (await client.status())["condition"] is None
            process.popen.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(asyncio.to_thread(process.popen.wait), 60) == 0
    finally:
        os.close(kept)
        os.close(reader)


async def test_stray_signals_are_ignored_and_logged_and_quit_ends_it_cleanly(bench: Bench) -> None:
    port = free_port()
    process = bench.start_vault(bench.vault(), port)
    async with VaultClient(f"http://127.0.0.1:{port}", TOKEN) as client:
        await ready(client)
        for number in STRAY:
            process.popen.send_signal(number)  # the software CPU hands it on
            async with asyncio.timeout(60):
                while f"{number.name} is ignored" not in process.log.read_text():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        for number in (signal.SIGALRM, signal.SIGXCPU, signal.SIGPWR):
            os.kill(process.enclave_pid(), number)
        assert (await client.health())["status"] == "ok"
    assert process.stop(signal.SIGQUIT) == 0
    assert "the vault ends: SIGQUIT" in process.log.read_text()


async def test_modules_in_the_working_folder_are_run_neither_by_the_vault_nor_by_its_cpu(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted, caught = bench.folder / "planted", bench.folder / "caught"
    planted.mkdir()
    for name in ("argparse", "asyncio", "attestation", "keyvault", "json"):
        (planted / f"{name}.py").write_text(
            f"open({str(caught)!r}, 'a').write({name!r} + '\\n')\nraise SystemExit(9)\n"
        )
    monkeypatch.chdir(planted)
    port = free_port()
    process = bench.start_vault(bench.vault(), port)
    async with VaultClient(f"http://127.0.0.1:{port}", TOKEN) as client:
        await ready(client)
    assert process.stop() == 0
    assert not caught.exists()
