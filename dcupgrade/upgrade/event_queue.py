"""Events that wait for the machine. The queue is bounded, however long the machine cannot take events."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from dcupgrade.machine.effects import Effect
from dcupgrade.machine.events import Event


@dataclass(frozen=True, slots=True)
class Item:
    """An event, and its source: a run of an effect, or an operator command.

    `number` distinguishes this run of an effect from an earlier run of an equal effect. `given_unix_s` is the time at
    which the operator gave the command.
    """

    event: Event
    effect: Effect | None = None
    number: int = 0
    command_id: int = 0
    given_unix_s: float = 0.0


class EventQueue:
    """Events in order. Per source and class only the newest is kept, so that no source can fill the memory."""

    def __init__(self) -> None:
        self._items: dict[tuple[object, ...], Item] = {}
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        """Queue an event behind all others; an older one of the same source and class is dropped."""
        key = (item.effect, item.number, item.command_id, type(item.event))
        self._items.pop(key, None)
        self._items[key] = item
        self._filled.set()

    async def get(self) -> Item:
        """Wait for the oldest event, remove it from the queue and return it."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        return self._items.pop(next(iter(self._items)))
