"""Keep the authority set that the vault knows up to date with the chain.

The vault verifies each change of the set itself. It gets small steps at intervals. So it never falls so far behind that
the evidence for a permit becomes too large or takes too long to verify.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from dcupgrade.errors import failure_of

log = logging.getLogger("dcupgrade")

CHECK_EVERY_S: Final = 300.0
RETRY_S: Final = 15.0


class Chain(Protocol):
    """The part of the chain adapter that is used here."""

    async def next_set_changes(self, vault_state: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Return one step of the set changes that the vault does not know; empty when it is up to date."""


class Vault(Protocol):
    """The part of the vault adapter that is used here."""

    async def status(self) -> Mapping[str, Any]:
        """Return the vault's state."""

    async def advance(self, set_changes: Sequence[Mapping[str, Any]]) -> int:
        """Have the vault verify and keep a step; returns the id of the set that it knows now."""


async def keep_authorities_current(
    chain: Chain, vault: Vault, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Bring the vault up to date at intervals. A failure is logged once and retried."""
    logged = ""
    while True:
        try:
            await catch_up(chain, vault)
            logged, pause_s = "", CHECK_EVERY_S
        except Exception as error:
            failure = failure_of(error)
            if failure.kind != "transient" and failure.detail != logged:
                log.warning("the vault's authority set was not brought up to date: %s", failure.detail)
                logged = failure.detail
            pause_s = RETRY_S if failure.kind == "transient" else CHECK_EVERY_S
        await sleep(pause_s)


async def catch_up(chain: Chain, vault: Vault) -> int:
    """Advance the vault until it knows the current set; return the number of steps. Raises the error of a failed step.

    Stops if a step does not advance the vault, because the next step would be the same.
    """
    steps = 0
    known = -1
    while changes := await chain.next_set_changes(await vault.status()):
        reached = await vault.advance(changes)
        steps += 1
        if reached <= known:
            break
        known = reached
        log.info("the vault knows authority set %d", reached)
    return steps
