"""The effect that starts the source version again on its own keys and data."""

from __future__ import annotations

from dcupgrade.errors import Failure, failure_of
from dcupgrade.machine.effects import Effect
from dcupgrade.machine.events import Event, SourceFailed, SourceServing
from dcupgrade.machine.state import State

from .tools import Emit, Tools, release_of


async def start_source(tools: Tools, effect: Effect, state: State, _emit: Emit) -> Event:
    """Start the source again, a bounded number of times, and watch until it serves."""
    release = release_of(state, effect)
    if not await tools.slots.slot_is_good(effect.enclave_id):
        try:
            await tools.retry("fetch the previous version again", lambda: tools.fetch(release), also_refusals=True)
        except Exception as error:
            why = f"its files are missing or were changed, and cannot be had again: {failure_of(error).detail}"
            return _source_failed(effect, "SOURCE_SLOT_DAMAGED", why)
    found = _source_failed(effect, "SOURCE_WONT_START", "it was not tried yet")
    for tries in range(1, tools.limits.launches + 1):
        try:
            await tools.processes.start(release, first_install=False)
        except Exception as error:
            failure = failure_of(error)
            code = failure.code if failure.code == "DATA_LOCKED" else "SOURCE_WONT_START"
            found = _source_failed(effect, code, failure.detail)
        else:
            ended = await tools.until_exit(effect.enclave_id, _watch_source(tools, effect))
            if isinstance(ended, SourceServing) or ended.code in ("KEYS_UNREACHABLE", "NO_KEYS_ANYWHERE"):
                return ended
            found = _source_failed(effect, "SOURCE_WONT_START", ended.detail or ended.code)
            await _stop_quietly(tools, effect.enclave_id)
        if tries < tools.limits.launches:
            tools.note("retry", {"what": "start the previous version", "code": found.code, "detail": found.detail})
            await tools.clock.sleep(tools.pause_s(tries))
    return found


async def _stop_quietly(tools: Tools, enclave_id: str) -> None:
    try:
        await tools.processes.stop(enclave_id)
    except Exception as error:
        tools.note("stop_failed", {"enclave_id": enclave_id, "detail": failure_of(error).detail})


async def _watch_source(tools: Tools, effect: Effect) -> Event:
    began = tools.clock.monotonic()
    keys = ""
    while True:
        health = await tools.node_http.health(effect.enclave_id)
        waited = tools.clock.monotonic() - began
        if health.status == "serving":
            return SourceServing(effect.enclave_id)
        if health.status == "waiting_for_keys":
            keys = await _ask_about_keys(tools, effect.enclave_id)
            if keys == "":
                why = "it cannot unseal its own keys and the vault has no copy"
                return _source_failed(effect, "NO_KEYS_ANYWHERE", why)
        if waited >= tools.limits.ready_deadline_s or health.status == "failed":
            if keys:
                return _source_failed(effect, "KEYS_UNREACHABLE", keys)
            return _source_failed(effect, "SOURCE_WONT_START", health.detail or f"its health is {health.status!r}")
        await tools.clock.sleep(tools.pace_s(waited))


async def _ask_about_keys(tools: Tools, source_id: str) -> str:
    """Return why the source still waits for its keys; "" if the vault has none for it."""
    try:
        if not await tools.vault.holds_keys_of(source_id, ""):
            return ""
        delivery = await tools.vault.delivery(source_id)
        return f"the vault holds them, handover: {delivery.state} {delivery.code} {delivery.detail}"
    except Exception as error:
        return failure_of(error).detail


def _source_failed(effect: Effect, code: str, detail: str) -> SourceFailed:
    return SourceFailed(effect.enclave_id, Failure(code, "invariant", detail))
