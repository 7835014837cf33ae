"""Run the vault's command and end it once it lives but does not answer; its service manager starts it again.

A vault inside Gramine cannot reach the socket of systemd's watchdog, so this host process asks it by HTTP.
"""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

ASK_TIMEOUT_S: Final = 10.0
ASK_EVERY_S: Final = 5.0
STOP_GRACE_S: Final = 5.0
EXIT_SILENT: Final = 70


def answers(url: str) -> bool:
    """Tell whether the vault at `url` answers its health route within 10 s, and does not say that it hangs."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        return answer.status != http.HTTPStatus.SERVICE_UNAVAILABLE
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def watch(
    command: Sequence[str],
    is_answering: Callable[[], bool],
    silent_s_max: float,
    *,
    ask_every_s: float = ASK_EVERY_S,
    stop_grace_s: float = STOP_GRACE_S,
) -> int:
    """Run `command` to its end and return its exit code (128 + n for signal n).

    A command that has not answered for `silent_s_max` seconds is ended by TERM, after `stop_grace_s` by KILL, and 70 is
    returned. TERM, INT, HUP and QUIT are passed on to it.
    """
    child = subprocess.Popen(list(command))  # noqa: S603 - the operator's command
    passed_on = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.signal(number, lambda got, _: child.send_signal(got)) for number in passed_on}
    try:
        answered_at = time.monotonic()
        while True:
            try:
                code = child.wait(ask_every_s)
                return code if code >= 0 else 128 - code
            except subprocess.TimeoutExpired:
                pass
            if is_answering():
                answered_at = time.monotonic()
            elif time.monotonic() - answered_at >= silent_s_max:
                sys.stderr.write(f"VAULT_SILENT: the vault has not answered for {silent_s_max:.0f} s: it is ended\n")
                _end(child, stop_grace_s)
                return EXIT_SILENT
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    child.terminate()
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
