"""What has happened and was not yet taken by the machine; bounded however long the machine cannot take it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from dcupgrade.machine.effects import Effect
from dcupgrade.machine.events import Event


@dataclass(frozen=True, slots=True)
class Item:
    """An event, and the run of an effect or the operator command that it comes from.

    `number` tells results of this run of an effect from those of an earlier run of an equal one. `given_unix_s` is when
    the operator gave the command.
    """

    event: Event
    effect: Effect | None = None
    number: int = 0
    command_id: int = 0
    given_unix_s: float = 0.0


class EventQueue:
    """Events in order. Of one source and class only the newest is kept, so that no source fills the memory."""

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
        """The oldest event."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        return self._items.pop(next(iter(self._items)))
