"""Effects that keep the running node up."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from dcupgrade.machine.events import Effect, Event, EventKind
from dcupgrade.machine.state import State

from .tools import Emit, Tools, failed, release_of


async def keep_node(tools: Tools, effect: Effect, state: State, emit: Emit) -> NoReturn:
    """Keep the node up until that is wanted no more, and tell how it goes.

    The journal holds already that the node is to run. So a crash is told and the node started again without
    waiting for the crash to be stored: a full disk must not keep it down.
    """
    release = release_of(state, effect)
    crashes = state.crashes
    while True:
        try:
            if not await tools.processes.is_alive(effect.enclave_id):
                if crashes:
                    await tools.clock.sleep(tools.pause_s(crashes))
                await tools.processes.start(release, first_install=False)
        except Exception as error:
            emit(failed(EventKind.NODE_START_FAILED, error, effect.enclave_id))
            crashes += 1
            continue
        served: list[bool] = []
        emit(await tools.until_exit(effect.enclave_id, _tell_when_serving(tools, effect, crashes, emit, served)))
        crashes = 1 if served else crashes + 1


async def _tell_when_serving(tools: Tools, effect: Effect, crashes: int, emit: Emit, served: list[bool]) -> Event:
    """A node that crashed counts as serving only after it did so for a while: crash loops are to be seen."""
    health = await tools.wait_serving(effect.enclave_id, None)
    while crashes:
        await tools.clock.sleep(tools.limits.steady_s if health.status == "serving" else tools.limits.probe_interval_s)
        health = await tools.node_http.health(effect.enclave_id)
        if health.status == "serving":
            break
    if health.status == "serving":
        emit(Event(EventKind.NODE_SERVING, effect.enclave_id))
        served.append(True)
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


async def await_source(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Wait until the running version serves."""
    while state.running is not None:
        health = await tools.wait_serving(effect.enclave_id, None)
        if health.status == "serving":
            break
        await tools.clock.sleep(tools.limits.probe_interval_s)
    return Event(EventKind.SOURCE_SERVING, effect.enclave_id)
