"""Events of all endpoints that wait for the watcher. An endpoint's flood displaces only its own events."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from .endpoint import Endpoint, Event, EventKind

#: Kinds that may make a block final.
OF_FINALITY: frozenset[EventKind] = frozenset({"finalized", "justification", "unproven"})


class EventQueue:
    """A queue of at most `size_max` events, of which at most `of_a_kind_max` are of one endpoint and kind.

    Over either limit the oldest is dropped: of the same endpoint and kind, or of all.
    """

    def __init__(self, size_max: int, of_a_kind_max: int) -> None:
        self.dropped = 0
        self._size_max = size_max
        self._of_a_kind_max = of_a_kind_max
        self._events: deque[Event] = deque()
        self._counts: Counter[tuple[str, EventKind]] = Counter()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> None:
        """Queue an event."""
        key = (event.endpoint.url, event.kind)
        if self._counts[key] >= self._of_a_kind_max:
            self._drop(next(one for one in self._events if (one.endpoint.url, one.kind) == key))
        elif len(self._events) >= self._size_max:
            self._drop(self._events[0])
        self._events.append(event)
        self._counts[key] += 1
        self._wake.set()

    async def get(self, timeout_s: float) -> Event | None:
        """Return the next event, or None after `timeout_s`, so that the caller can look at its timers."""
        if not self._events:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return None
        if not self._events:
            return None
        event = self._events.popleft()
        self._forget(event)
        return event

    def has_finality_besides(self, endpoint: Endpoint) -> bool:
        """Return whether another usable endpoint has an event waiting that may make a block final."""
        return any(
            one.kind in OF_FINALITY and one.endpoint is not endpoint and one.endpoint.usable for one in self._events
        )

    def _drop(self, event: Event) -> None:
        self._events.remove(event)
        self._forget(event)
        self.dropped += 1

    def _forget(self, event: Event) -> None:
        key = (event.endpoint.url, event.kind)
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]
