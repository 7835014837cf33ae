"""Notifications to systemd (sd_notify(3)): ready, stopping, a status line, and the watchdog of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from dcupgrade.machine.state import Release, State
from dcupgrade.printable import one_line

PERIOD_S_MAX = 2.0


class Notifier(Protocol):
    """What `sdnotify.SystemdNotifier` offers; without systemd it does nothing."""

    def notify(self, state: str) -> None:
        """Send lines of `NAME=value`."""


def status_line(state: State) -> str:
    """Return the state for `systemctl status`: the current work and the running version. Always one line."""
    parts = [f"halted: {state.halted}" if state.halted else state.name.value]
    if state.target is not None:
        parts[0] += f" {_short(state.target)}"
    parts.append(f"running {_short(state.running)}" if state.running is not None else "no node yet")
    return "; ".join(parts)


def _short(release: Release) -> str:
    # a newline in the version that a node reports would begin another assignment
    return one_line(f"{release.version} {release.enclave_id[:8]}")


def period_s(environ: Mapping[str, str]) -> float:
    """Return the seconds between notifications: at most half the timeout of systemd's watchdog."""
    text = environ.get("WATCHDOG_USEC", "")
    return min(PERIOD_S_MAX, int(text) / 1e6 / 3) if text.isdecimal() and int(text) else PERIOD_S_MAX


async def keep_telling(notifier: Notifier, state: Callable[[], State], pause_s: float) -> None:
    """Send the status and the watchdog's keep-alive indefinitely, from the event loop that does the work."""
    while True:
        notifier.notify(f"STATUS={status_line(state())}\nWATCHDOG=1")
        await asyncio.sleep(pause_s)
