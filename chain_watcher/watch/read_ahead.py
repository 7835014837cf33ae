"""Read best blocks before they are final, so that no request is needed at finality."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from chain_watcher.endpoints.endpoint import Endpoint, unexpected
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.header import Header

from .headers import FinalHeight, Headers
from .state_reader import BlockState

#: Limit of the values of all kept states. A state beyond it is read again at finality.
STATES_BYTES_MAX: Final = 8 * 1024 * 1024

Read = Callable[[Endpoint, Header], Awaitable[BlockState]]


class ReadAhead:
    """Takes best heads as hints, reads those blocks one after the other, and keeps the newest states.

    `floor` returns the last final block; while it is None, hints are ignored. `on_state` gets every state and returns
    whether to keep it; `on_problem` gets every failure.
    """

    def __init__(
        self,
        read: Read,
        headers: Headers,
        *,
        floor: Callable[[], FinalHeight | None],
        states_max: int,
        on_state: Callable[[BlockState], bool],
        on_problem: Callable[[Endpoint, ChainWatcherError], None],
    ) -> None:
        self._read = read
        self._headers = headers
        self._floor = floor
        self._states_max = states_max
        self._on_state = on_state
        self._on_problem = on_problem
        self._states: dict[bytes, BlockState] = {}
        self._hints: asyncio.Queue[tuple[Endpoint, Any]] = asyncio.Queue(maxsize=states_max)
        self._in_flight: dict[bytes, tuple[Endpoint, asyncio.Event]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def hint(self, endpoint: Endpoint, head: Any) -> None:
        """Queue a best head (JSON); the oldest hint is dropped."""
        if self._floor() is not None:
            if self._hints.full():
                self._hints.get_nowait()
            self._hints.put_nowait((endpoint, head))

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            endpoint, head = await self._hints.get()
            try:
                await self._read_hint(endpoint, Header.from_json(head))
            except ChainWatcherError as problem:
                self._on_problem(endpoint, problem)
            except Exception as error:
                self._on_problem(endpoint, unexpected(endpoint, error))

    async def newest_of(self, endpoint: Endpoint, line: Sequence[Header]) -> BlockState | None:
        """Return the state of the newest block of `line` (oldest first) that was read. Awaits a read under way."""
        asked, done = self._in_flight.get(line[-1].hash, (None, None))
        if done is not None and asked is endpoint:
            await done.wait()
        return next((self._states[one.hash] for one in reversed(line) if one.hash in self._states), None)

    def drop(self, number: int) -> list[BlockState]:
        """Remove and return the states at or below a final block."""
        low = [key for key, state in self._states.items() if state.header.number <= number]
        return [self._states.pop(key) for key in low]

    def _is_late(self, header: Header) -> bool:
        floor = self._floor()
        return floor is None or header.number <= floor.number or header.hash in self._states

    async def _read_hint(self, endpoint: Endpoint, header: Header) -> None:
        if self._is_late(header):
            return
        self._headers.add(header)
        done = asyncio.Event()
        self._in_flight[header.hash] = (endpoint, done)
        try:
            state = await self._read(endpoint, header)
            if not self._is_late(header) and self._on_state(state):
                self._states[header.hash] = state
                while len(self._states) > self._states_max or sum(map(_size, self._states.values())) > STATES_BYTES_MAX:
                    self._states.pop(next(iter(self._states)))
        finally:
            del self._in_flight[header.hash]
            done.set()


def _size(state: BlockState) -> int:
    return sum(len(value or b"") for value in state.values)
