"""A vault's command under the watchdog: exit code and signals are passed on, and it is ended if it hangs."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from devnet.tools import free_port
from keyvault.watchdog import EXIT_SILENT, answers, watch

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]
DEAF = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]


def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("program", "code"),
    [("raise SystemExit(0)", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_the_commands_own_end_is_told(program: str, code: int) -> None:
    assert watch([sys.executable, "-c", program], never, 60) == code


@pytest.mark.parametrize("command", [SLEEPS, DEAF], ids=["ends at TERM", "needs KILL"])
def test_a_command_that_never_answers_is_ended(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(command, never, 0.0, ask_every_s=0.01, stop_grace_s=0.2) == EXIT_SILENT
    assert "VAULT_SILENT" in capsys.readouterr().err


def test_one_that_answers_again_in_time_goes_on_and_signals_reach_it() -> None:
    asked: list[bool] = []

    def is_answering() -> bool:
        asked.append(len(asked) % 2 == 0)
        if len(asked) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return asked[-1]

    before = signal.getsignal(signal.SIGTERM)
    assert watch(SLEEPS, is_answering, 60, ask_every_s=0.01) == 128 + signal.SIGTERM
    assert len(asked) >= 9
    assert signal.getsignal(signal.SIGTERM) is before


class Health(BaseHTTPRequestHandler):
    status = 500

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served() -> object:
    server = HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_whatever_it_says_a_vault_that_says_something_answers(served: str) -> None:
    assert answers(served)
    silent: Callable[[], bool] = lambda: answers(f"http://127.0.0.1:{free_port()}")  # noqa: E731
    assert not silent()


def test_a_vault_that_says_that_it_hangs_is_taken_for_silent(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Health, "status", 503)
    assert not answers(served)
