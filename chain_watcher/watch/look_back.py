"""What changed on chain while nobody looked: found by halving the blocks in between."""

from __future__ import annotations

from typing import Any, Final

from chain_watcher.endpoints.endpoint import Endpoint

from .state_reader import BlockState, StateReader

#: Changes found by looking back, at most; each costs a logarithm of the blocks in questions.
CHANGES_MAX: Final = 64


async def look_back(
    endpoint: Endpoint, reader: StateReader, genesis_hash: str, since: int, now: BlockState
) -> list[dict[str, Any]]:
    """The changes of both items between block ``since`` and ``now``, oldest first, by halving intervals.

    Informational: older blocks are found by number, which is the endpoint's word. An interval whose ends hold the
    same values counts as unchanged. Raises RPC_REFUSED where the endpoint has pruned an old state.
    """
    states: dict[int, BlockState] = {now.header.number: now}

    async def at(number: int) -> BlockState:
        if number not in states:
            header = await reader.header(endpoint, str(await endpoint.ask("chain_getBlockHash", number)))
            states[number] = await reader.read(endpoint, header, genesis_hash)
        return states[number]

    changes: list[tuple[int, int]] = []
    waiting = [(since, now.header.number)]
    while waiting and len(changes) < CHANGES_MAX:
        low, high = waiting.pop()
        if low >= high or (await at(low)).values == (await at(high)).values:
            continue
        if high - low == 1:
            changes.append((low, high))
            continue
        middle = (low + high) // 2
        waiting += [(middle, high), (low, middle)]
    return [_difference(states[low], states[high]) for low, high in changes]


def _difference(before: BlockState, after: BlockState) -> dict[str, Any]:
    program = after.program.enclave_id.decode("ascii", "replace") if after.program else None
    return {
        "block_number": after.header.number,
        "block_hash": "0x" + after.header.hash.hex(),
        "timestamp_ms": after.timestamp_ms,
        "added": sorted(after.heights.keys() - before.heights.keys()),
        "removed": sorted(before.heights.keys() - after.heights.keys()),
        "program": program,
        "program_changed": before.program != after.program,
    }
