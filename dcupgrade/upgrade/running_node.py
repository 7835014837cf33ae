"""Effects that keep the running node up."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from dcupgrade.errors import failure_of
from dcupgrade.machine.effects import Effect
from dcupgrade.machine.events import Event, NodeServing, NodeStartFailed, RestartCommand, SourceServing
from dcupgrade.machine.state import Release, State

from .tools import Alarm, Emit, Tools, failed, first_of, release_of


async def keep_node(tools: Tools, effect: Effect, state: State, emit: Emit) -> NoReturn:
    """Keep the node running until this is no longer wanted, and report its state.

    The journal already says that the node should run. So after a crash it is started again before the crash is stored:
    a full disk must not keep it down. A pause follows every failure; an operator's `restart` ends the pause.
    """
    release = release_of(state, effect)
    crashes, first = state.crashes, True
    tools.restart.clear()
    with tools.alarm() as alarm:
        while True:
            alive = await _is_alive(tools, effect.enclave_id, alarm)
            if crashes and not (first and alive):
                await first_of(_asked_to_restart(tools), tools.clock.sleep(tools.pause_s(crashes)))
            first = False
            try:
                if alive and tools.restart.is_set():
                    await tools.processes.stop(effect.enclave_id)
                    alive = False
                tools.restart.clear()
                if not alive:
                    await _start(tools, release, alarm)
            except Exception as error:
                tools.restart.clear()
                emit(failed(NodeStartFailed, error, effect.enclave_id))
                crashes += 1
                continue
            served: list[bool] = []
            serving = _report_serving(tools, effect, crashes, emit, served)
            ended = await tools.until_exit(effect.enclave_id, _asked_to_restart(tools), serving)
            if isinstance(ended, RestartCommand):
                first = True  # no crash: no pause
                continue
            emit(ended)
            crashes = 1 if served else crashes + 1


async def _asked_to_restart(tools: Tools) -> Event:
    """Wait for an operator's `restart`."""
    await tools.restart.wait()
    return RestartCommand()


async def _is_alive(tools: Tools, enclave_id: str, alarm: Alarm) -> bool:
    """Return whether the node's process is alive. Repeat on errors: an error here is not a crash of the node."""
    tries = 0
    while True:
        try:
            alive = await tools.processes.is_alive(enclave_id)
        except Exception as error:
            tries += 1
            failure = failure_of(error)
            alarm(failure.code, failure.detail)
            await tools.clock.sleep(tools.pause_s(tries))
        else:
            if tries:
                alarm("", "")
            return alive


async def _start(tools: Tools, release: Release, alarm: Alarm) -> None:
    """Start the node. If its files are lost, fetch them again; a mirror that failed before may work now."""
    if not await tools.slots.slot_is_good(release.enclave_id):
        try:
            await tools.fetch(release)
        except Exception as error:
            alarm("SOURCE_SLOT_DAMAGED", failure_of(error).detail)
            raise
    await tools.processes.start(release, first_install=False)
    alarm("", "")


async def _report_serving(tools: Tools, effect: Effect, crashes: int, emit: Emit, served: list[bool]) -> Event:
    """After a crash, report SERVING only once the node has served for `steady_s`: a crash loop would look healthy."""
    health = await tools.wait_serving(effect.enclave_id, None)
    while crashes:
        await tools.clock.sleep(tools.limits.steady_s if health.status == "serving" else tools.limits.probe_interval_s)
        health = await tools.node_http.health(effect.enclave_id)
        if health.status == "serving":
            break
    if health.status == "serving":
        emit(NodeServing(effect.enclave_id))
        served.append(True)
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


async def await_source(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Wait until the running version serves."""
    while state.running is not None:
        health = await tools.wait_serving(effect.enclave_id, None)
        if health.status == "serving":
            break
        await tools.clock.sleep(tools.limits.probe_interval_s)
    return SourceServing(effect.enclave_id)
