"""What the agent prepares before it begins to work."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from dcupgrade import service
from dcupgrade.errors import DcupgradeError
from dcupgrade.settings import load
from devnet.tools import free_port
from tests.doubles.command_line import KEY
from tests.doubles.disk_watch import watched_files
from tests.doubles.proving import ProvenChain

SILENT = 40
"""More than asyncio's own pool ever has."""


def test_name_servers_that_are_silent_hold_up_no_other_blocking_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = tmp_path / "dcupgrade.toml"
    config.write_text(
        f'[agent]\nstate_dir = "{tmp_path}/file/state"\n'
        f'[chain]\nendpoints = ["ws://127.0.0.1:9"]\nnetwork_keys = ["{KEY}"]\nfinality = "single"\n'
        f'[node]\nid = "n1"\ndata_dir = "{tmp_path}/data"\n[vault]\nstart = false\n'
    )
    answered = threading.Event()

    async def act() -> None:
        with pytest.raises(DcupgradeError, match="AGENT_STATE_UNUSABLE"):
            await service.serve(load.load(config))
        lookups = [asyncio.get_running_loop().run_in_executor(None, answered.wait) for _ in range(SILENT)]
        try:
            async with asyncio.timeout(5):
                assert await asyncio.to_thread(lambda: "a node is started") == "a node is started"
        finally:
            answered.set()
        await asyncio.gather(*lookups)

    asyncio.run(act())


def test_no_file_is_touched_on_the_loop_from_the_start_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locks, tokens, checkpoint, secrets, journal, layouts, records of nodes, /proc: a slow disk holds up nothing."""
    chain = ProvenChain().settings()
    (tmp_path / "checkpoint.json").write_text(json.dumps(chain["checkpoint"]))
    (tmp_path / "secret").write_text("of a receiver")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "layouts.json").write_text("{}")
    config = tmp_path / "dcupgrade.toml"
    config.write_text(
        f'[agent]\nstate_dir = "{tmp_path}/state"\nhttp_listen = "127.0.0.1:0"\n'
        f'[chain]\nendpoints = ["ws://127.0.0.1:9"]\nnetwork_keys = ["{KEY}"]\nfinality = "proven"\n'
        f'genesis_hash = "{chain["genesis_hash"]}"\ncheckpoint_file = "{tmp_path}/checkpoint.json"\n'
        f'[node]\nid = "n1"\ndata_dir = "{tmp_path}/data"\n'
        '[vault]\ncommand = ["/bin/sleep", "600"]\nurl = "http://127.0.0.1:9"\n'
        f'[[webhooks]]\nurl = "http://127.0.0.1:9"\nsecret_file = "{tmp_path}/secret"\n'
    )
    settings = load.load(config)

    async def act() -> None:
        told = asyncio.Queue[str]()
        monkeypatch.setattr("sdnotify.SystemdNotifier", lambda: SimpleNamespace(notify=told.put_nowait))
        serving = asyncio.create_task(service.serve(settings))
        while "READY=1" not in await told.get():
            pass
        while not (tmp_path / "state" / "run" / "vault.json").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        await serving

    try:
        with watched_files(str(tmp_path)) as touched:
            asyncio.run(act())
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(json.loads((tmp_path / "state" / "run" / "vault.json").read_text())["pid"], signal.SIGKILL)
    assert not touched, "\n".join(map(str, touched))


def test_a_port_that_another_program_took_keeps_the_page_away_and_not_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Case B4, of the agent's own port: without its agent a node that ends is not started again."""
    monkeypatch.setattr(service, "LISTEN_AGAIN_S", 0.01)
    port = free_port()
    squatter = socket.create_server(("127.0.0.1", port))
    config = tmp_path / "dcupgrade.toml"
    config.write_text(
        f'[agent]\nstate_dir = "{tmp_path}/state"\nhttp_listen = "127.0.0.1:{port}"\n'
        f'[chain]\nendpoints = ["ws://127.0.0.1:9"]\nnetwork_keys = ["{KEY}"]\nfinality = "single"\n'
        f'[node]\nid = "n1"\ndata_dir = "{tmp_path}/data"\n[vault]\nstart = false\n'
    )

    async def act() -> None:
        told = asyncio.Queue[str]()
        monkeypatch.setattr("sdnotify.SystemdNotifier", lambda: SimpleNamespace(notify=told.put_nowait))
        serving = asyncio.create_task(service.serve(load.load(config)))
        while "READY=1" not in await told.get():
            pass
        assert f"HTTP_PORT_TAKEN: agent.http_listen, 127.0.0.1 port {port}: pid {os.getpid()}" in caplog.text
        squatter.close()
        async with aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://127.0.0.1:{port}/healthz") as answer:
                        assert answer.status == 200
                        break
                await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        await serving

    asyncio.run(act())
