"""The agent's process alone, without chain and vault: signals, and a log that is not read."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcupgrade.service import IGNORED_SIGNALS
from devnet.tools import free_port

pytestmark = pytest.mark.e2e

DEADLINE_S = 60.0


class Agent:
    """A running `dcupgrade watch` whose chain endpoint is down."""

    def __init__(self, folder: Path, stderr: int) -> None:
        self.port, closed = free_port(), free_port()
        settings = folder / "dcupgrade.toml"
        settings.write_text(
            f'[agent]\nstate_dir = "{folder}/state"\nhttp_listen = "127.0.0.1:{self.port}"\n'
            f'[chain]\nendpoints = ["ws://127.0.0.1:{closed}"]\nfinality = "single"\n'
            'network_keys = ["bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"]\n'
            f'[node]\nid = "n"\ndata_dir = "{folder}/data"\nport = {free_port()}\n'
            f'[vault]\nstart = false\nurl = "http://127.0.0.1:{closed}"\n'
        )
        (folder / "data").mkdir()
        command = [sys.executable, "-m", "dcupgrade", "--config", str(settings), "watch"]
        self.process = subprocess.Popen(command, stderr=stderr, stdin=subprocess.DEVNULL)

    def healthy(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5) as answer,
        ):
            return bool(json.load(answer)["ok"])
        return False

    def wait_healthy(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not self.healthy():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@contextlib.contextmanager
def agent(folder: Path, stderr: int) -> Iterator[Agent]:
    running = Agent(folder, stderr)
    try:
        running.wait_healthy()
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def test_a_signal_that_means_nothing_to_the_agent_does_not_end_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file, agent(tmp_path, file.fileno()) as running:
        for number in (*IGNORED_SIGNALS, signal.SIGRTMIN + 3):
            running.process.send_signal(number)
        ignored = [*(number.name for number in IGNORED_SIGNALS), f"signal {signal.SIGRTMIN + 3}"]
        deadline = time.monotonic() + DEADLINE_S
        while not all(f"{name} is ignored" in log.read_text() for name in ignored):
            assert running.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        assert running.healthy()
        assert running.end(signal.SIGQUIT) == 0
    assert "SIGQUIT: the agent stops" in log.read_text()


def test_strangers_connections_leave_the_agent_its_place_and_its_descriptors(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file, agent(tmp_path, file.fileno()) as running, contextlib.ExitStack() as stack:
        for number in range(1_100):  # half-sent requests, each kept open
            client = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=5))
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" if number % 2 else b"G")
        assert running.healthy()
        assert len(os.listdir(f"/proc/{running.process.pid}/fd")) < 400
        assert running.end(signal.SIGTERM) == 0
    assert log.stat().st_size < 100_000


def test_a_log_that_nobody_reads_stops_neither_the_agent_nor_its_end(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, bytes(4096))  # full: from the first line on, a write to it would wait indefinitely
    with agent(tmp_path, writer) as running:
        os.close(writer)
        assert running.healthy()
        assert running.end(signal.SIGTERM) == 0
    os.close(reader)
