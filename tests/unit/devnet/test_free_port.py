"""Ports for simultaneous trials: a reserved port is given to no other trial, even before anything listens on it."""

import random
import socket
import subprocess
import sys

import pytest

from devnet.tools import DevnetError, free_port

ASK = "import random; from devnet import tools; random.SystemRandom.sample = lambda *_: [{port}]; tools.free_port()"


def draws(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    monkeypatch.setattr(random.SystemRandom, "sample", lambda *_: list(ports))


def test_a_port_is_given_to_one_caller_only(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = free_port(), free_port()
    assert first != second
    draws(monkeypatch, first, second)
    with pytest.raises(DevnetError, match="no free port"):
        free_port()
    other = subprocess.run([sys.executable, "-c", ASK.format(port=first)], capture_output=True, text=True, check=False)
    assert "no free port" in other.stderr


def test_a_port_that_somebody_listens_on_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = random.SystemRandom.sample
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr(random.SystemRandom, "sample", lambda *drawn: [taken, *sample(*drawn)])
        assert free_port() != taken
