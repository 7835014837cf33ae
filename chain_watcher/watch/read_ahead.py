"""Best blocks read before they are final, so that nothing need be asked at finality."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from chain_watcher.endpoints.endpoint import Endpoint
from chain_watcher.errors import ChainWatcherError
from chain_watcher.proof.header import Header

from .headers import Headers
from .state_reader import BlockState, StateReader, hash_text

#: Values of all states that are kept: what lies over it is read again at finality.
STATES_BYTES_MAX: Final = 4 * 1024 * 1024

Read = Callable[[Endpoint, Header], Awaitable[BlockState]]


class ReadAhead:
    """Takes hints (best heads, storage notices), reads those blocks one after the other, keeps the newest states.

    ``floor`` gives the last final block (None: nothing is read yet, hints are passed over); ``on_state`` hears of
    every state and says whether to keep it; ``on_problem`` hears of every failure.
    """

    def __init__(
        self,
        reader: StateReader,
        read: Read,
        headers: Headers,
        *,
        floor: Callable[[], Header | None],
        states_max: int,
        on_state: Callable[[BlockState], bool],
        on_problem: Callable[[Endpoint, ChainWatcherError], None],
    ) -> None:
        self._reader = reader
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

    def hint(self, endpoint: Endpoint, value: Any) -> None:
        """A header, or a storage notice that names a block; the oldest hint gives way."""
        if self._floor() is not None:
            if self._hints.full():
                self._hints.get_nowait()
            self._hints.put_nowait((endpoint, value))

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            endpoint, value = await self._hints.get()
            try:
                await self._read_hint(endpoint, value)
            except ChainWatcherError as problem:
                self._on_problem(endpoint, problem)

    async def newest_of(self, endpoint: Endpoint, line: Sequence[Header]) -> BlockState | None:
        """The state of the last block of ``line`` (oldest first) that was read; a read on its way is waited for."""
        asked, done = self._in_flight.get(line[-1].hash, (None, None))
        if done is not None and asked is endpoint:
            await done.wait()
        return next((self._states[one.hash] for one in reversed(line) if one.hash in self._states), None)

    def drop(self, number: int) -> list[BlockState]:
        """Forget what lies at or below a final block; returns it."""
        low = [key for key, state in self._states.items() if state.header.number <= number]
        return [self._states.pop(key) for key in low]

    def _is_late(self, header: Header) -> bool:
        floor = self._floor()
        return floor is None or header.number <= floor.number or header.hash in self._states

    async def _read_hint(self, endpoint: Endpoint, value: Any) -> None:
        if isinstance(value, Mapping) and "block" in value:
            block_hash = str(value["block"])
            if any(hash_text(state.header) == block_hash for state in self._states.values()):
                return
            header = await self._reader.header(endpoint, block_hash)
        else:
            header = Header.from_json(value)
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
