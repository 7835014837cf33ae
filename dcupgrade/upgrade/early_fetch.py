"""Fetch a release as soon as a best block announces it, so that its files are here when the block is final.

A prefetched release is only a verified folder in its slot; it starts, stops or decides nothing. If its block is never
finalized, the folder is removed again. An endpoint can invent a best block. So only releases that are newer than the
running one are fetched, and only from hosts that final releases or the settings name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from dcupgrade.errors import failure_of
from dcupgrade.machine.guards import is_newer
from dcupgrade.machine.state import Release, State

from .ports import ClockPort, SlotsPort

log = logging.getLogger("dcupgrade")

KEEP_S = 900.0
"""Seconds after which a prefetched release that is not wanted is removed. Finality is minutes behind at the worst."""
AT_ONCE_MAX = 2


def fetchable_early(
    release: Release, state: State, listed: Mapping[str, int], hosts: Collection[str]
) -> Release | None:
    """Return the release with only the URLs that may be used before finality; None if none may, or if it is not newer.

    `listed` maps the ids of the last finalized view to their lowest heights; `hosts` are additional allowed hosts.
    """
    if not is_newer(release, state.running, listed):
        return None
    final = (state.running, state.target, state.previous, state.chain.program if state.chain else None)
    known = {_host(url) for item in final if item for url in (item.origin_url, item.mirror_url)}
    known = (known | {host.lower() for host in hosts}) - {""}

    def allowed(url: str) -> str:
        return url if _host(url) in known else ""

    out = replace(release, origin_url=allowed(release.origin_url), mirror_url=allowed(release.mirror_url))
    return out if out.origin_url or out.mirror_url or out.cids else None


def _host(url: str) -> str:
    """Return a URL's host; "" for an image reference or an invalid URL."""
    try:
        return (urlsplit(url).hostname or "").lower() if "://" in url else ""
    except ValueError:
        return ""


class EarlyFetch:
    """The early fetches of one agent. `state` returns the machine's state; `hosts` are additional allowed hosts."""

    def __init__(self, slots: SlotsPort, clock: ClockPort, state: Callable[[], State], hosts: Collection[str]) -> None:
        self._slots, self._clock, self._state, self._hosts = slots, clock, state, hosts
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def announced(self, release: Release, listed: Mapping[str, int]) -> None:
        """Begin to fetch a release from a best block, unless it is under way or wanted already, or two others are held.

        `listed` maps the ids of the last finalized view to their lowest heights.
        """
        enclave_id = release.enclave_id
        if enclave_id in self._tasks or self._is_wanted(enclave_id) or len(self._tasks) >= AT_ONCE_MAX:
            return
        fetchable = fetchable_early(release, self._state(), listed, self._hosts)
        if fetchable is None:
            log.info("%s is not fetched before it is final: no host that it names is known", enclave_id)
            return
        task = asyncio.ensure_future(self._fetch(fetchable))
        self._tasks[enclave_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(enclave_id, None))

    def _is_wanted(self, enclave_id: str) -> bool:
        """Whether the machine works on the release or runs it; its slot then belongs to the machine."""
        state = self._state()
        known = (state.running, state.target, state.previous, state.chain.program if state.chain else None)
        return any(release is not None and release.enclave_id == enclave_id for release in known)

    async def give_way(self, enclave_id: str) -> None:
        """Cancel the early fetch of a release that the machine fetches now. The bytes received so far are kept."""
        task = self._tasks.get(enclave_id)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def holds(self, enclave_id: str) -> bool:
        """Return whether files of that release are being fetched, or kept until it is final."""
        return enclave_id in self._tasks

    async def close(self) -> None:
        """Cancel all fetches. Fetched files stay for the next run."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, release: Release) -> None:
        try:
            await self._slots.fetch_early(release)
            log.info("fetched %s early, before it is final", release.enclave_id, extra={"event": "prefetched"})
            await self._clock.sleep(KEEP_S)
            if not self._is_wanted(release.enclave_id):
                await self._slots.remove_slot(release.enclave_id)
        except Exception as error:
            # once the release is final, the machine fetches it again and reports a failure
            log.info("early fetch of %s: %s", release.enclave_id, failure_of(error).detail)
