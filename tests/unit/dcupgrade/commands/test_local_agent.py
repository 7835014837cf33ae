import os
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcupgrade.commands import local_agent
from dcupgrade.errors import DcupgradeError
from dcupgrade.settings import load
from dcupgrade.settings import schema as settings
from tests.doubles.command_line import run


class Answering(socketserver.ThreadingTCPServer):
    """A server in the agent's place: stores the requests and answers `reply`."""

    daemon_threads = True

    def __init__(self, reply: bytes) -> None:
        self.reply, self.asked = reply, b""
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Answering)
        self.server.asked = self.request.recv(65536)
        self.request.sendall(self.server.reply)


@pytest.fixture
def answering() -> Iterator[Answering]:
    body = b'{"state": {"name": "idle"}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with Answering(head + body) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def listening(config: Path, address: str) -> settings.Settings:
    config.write_text(config.read_text().replace('127.0.0.1:9"\n[', address + '"\n['))
    return load.load(config, {})


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - settings
def test_the_agent_is_asked_on_loopback_by_a_name_that_it_answers_to(
    config: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # leads nowhere: the agent's answer would be lost
    monkeypatch.delenv("no_proxy", raising=False)
    loaded = listening(config, f"{host}:{answering.server_address[1]}")
    assert local_agent.ask_agent(loaded, "/api/v1/status") == {"state": {"name": "idle"}}
    assert b"\r\nHost: localhost\r\n" in answering.asked


@pytest.mark.parametrize(
    ("listen", "address"), [("[::]:1", "[::1]:1"), ("::1:1", "[::1]:1"), ("10.0.0.7:1", "10.0.0.7:1")]
)
def test_every_form_of_the_agents_address_can_be_asked(listen: str, address: str) -> None:
    assert local_agent.agent_address(listen) == address


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(
    "reply", [b"SSH-2.0-OpenSSH\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\n[]", b"HTTP/1.1 200 OK\r\n\r\n{}"]
)
def test_something_else_on_the_agents_port_is_not_the_agent(config: Path, answering: Answering, reply: bytes) -> None:
    answering.reply = reply
    listening(config, f"127.0.0.1:{answering.server_address[1]}")
    code, text = run(config, "status")
    assert (code, "not running" in text) == (0, True)


def test_a_journal_that_cannot_be_looked_at_is_an_error_with_a_code(config: Path) -> None:
    config.write_text(config.read_text().replace('state_dir = "', f'state_dir = "/{"x" * 300}'))
    for command in ("status", "history", "hold"):
        code, text = run(config, command)
        assert (code, text.split(":")[0]) == (1, "JOURNAL_UNREADABLE")
        assert "agent's user" in text


def test_root_is_sent_to_the_agents_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OfSomebody(type(tmp_path)):  # type: ignore[misc]
        def stat(self, **_: bool) -> os.stat_result:
            return os.stat_result((0o40700, 0, 0, 0, 12345, 12345, 0, 0, 0, 0))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(DcupgradeError, match=r"AGENT_STATE_UNUSABLE.*user 12345.*runuser"):
        local_agent.require_own_folder(OfSomebody(tmp_path), "dcupgrade adopt")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    local_agent.require_own_folder(OfSomebody(tmp_path), "dcupgrade adopt")
    local_agent.require_own_folder(tmp_path / "not made yet", "dcupgrade adopt")
