"""Remove the files of versions that are no longer needed, so that disk use does not grow with every upgrade.

Kept are the running version, the versions of an upgrade under way, the version that a revert would start, the version
on the chain, and the files of early fetches. For any other version, the slot, the driver's record and the logs are
removed together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from dcupgrade.errors import failure_of
from dcupgrade.machine.state import Name, State

from .early_fetch import EarlyFetch
from .tools import Tools

log = logging.getLogger("dcupgrade")


def needed(state: State) -> frozenset[str]:
    """Return the enclave ids whose files may still be needed in this state."""
    program = state.chain.program if state.chain else None
    return frozenset(item.enclave_id for item in (state.running, state.target, state.previous, program) if item)


async def keep_tidy(tools: Tools, early: EarlyFetch, state: Callable[[], State]) -> None:
    """Remove unneeded files every `tidy_every_s` seconds while the machine is idle; retry failures the next time.

    The first time comes after `tidy_soon_s`, and so does the next one after a time at which the machine was at work: an
    agent that is restarted often, or upgrades often, removes files too.
    """
    pause_s = tools.limits.tidy_soon_s
    while True:
        await tools.clock.sleep(pause_s)
        pause_s = tools.limits.tidy_every_s
        try:
            for enclave_id in await tools.slots.staged() if tools.limits.remove_previous else ():
                # read before each removal: the state may have changed meanwhile
                now = state()
                if now.name is not Name.IDLE or now.running is None:
                    pause_s = tools.limits.tidy_soon_s
                    break
                if enclave_id not in needed(now) and not early.holds(enclave_id):
                    await tools.slots.remove_slot(enclave_id)
                    log.info("removed the files of %s: it cannot be gone back to", enclave_id)
        except Exception as error:
            log.warning("old versions are not removed: %s", failure_of(error).detail)
