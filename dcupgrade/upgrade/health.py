"""Ask node and vault for their health at intervals, in every state of the machine, so that silence is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from dcupgrade.errors import failure_of
from dcupgrade.machine.state import Name, Release, State

from .feed import Feed
from .ports import NodeHealth
from .tools import Tools, first_of

ASK_EVERY_S = 10.0
"""Seconds between two questions. With `feed.ALARM_AFTER_S` and a slow answer, an alarm is raised within a minute."""
PAUSE_S = 1.0
"""Seconds between two questions to a node that does not serve, or to a vault that does not answer."""
OF_TARGET = (Name.LAUNCHING, Name.DELIVERING, Name.PROBATION)


async def watch_node(tools: Tools, feed: Feed, state: Callable[[], State]) -> None:
    """Report the health of the version that should run, indefinitely; at once after the agent's work changed it."""
    pause_s = PAUSE_S / 2
    while True:
        now = state()
        release = now.target if now.name in OF_TARGET else now.running
        if release is None:
            feed.node_seen(None, None)
        else:
            feed.node_seen(release, *await _ask_node(tools, release))
        waits_for_serving = release is not None and not feed.node_serves
        pause_s = min(2 * pause_s, ASK_EVERY_S) if waits_for_serving else ASK_EVERY_S
        await first_of(feed.ask_again.wait(), tools.clock.sleep(pause_s))
        if feed.ask_again.is_set():
            feed.ask_again.clear()
            pause_s = PAUSE_S / 2


async def _ask_node(tools: Tools, release: Release) -> tuple[NodeHealth, str]:
    """Return the node's health, and the error's code if it is unknown whether its process is alive."""
    try:
        if not await tools.processes.is_alive(release.enclave_id):
            return NodeHealth("stopped"), ""
        health = await tools.node_http.health(release.enclave_id)
        if health.status == "silent" and (why := await tools.processes.why_silent(release.enclave_id)):
            health = replace(health, detail=why)
        return health, ""
    except Exception as error:
        failure = failure_of(error)
        return NodeHealth("unknown", detail=failure.detail), failure.code


async def watch_vault(tools: Tools, feed: Feed) -> None:
    """Report whether the vault answers, indefinitely. The vault port keeps its last answer."""
    while True:
        try:
            async with asyncio.timeout(ASK_EVERY_S):
                condition = (await tools.vault.status()).get("condition") or {}
            feed.vault_seen(True, str(condition.get("code", "")), str(condition.get("why", "")))
        except TimeoutError:
            feed.vault_seen(False, "VAULT_UNREACHABLE", f"no answer within {ASK_EVERY_S:.0f} s")
        except Exception as error:
            failure = failure_of(error)
            feed.vault_seen(False, failure.code, failure.detail)
        await tools.clock.sleep(ASK_EVERY_S if feed.vault_reachable else PAUSE_S)
