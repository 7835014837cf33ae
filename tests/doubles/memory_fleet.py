"""A fleet's engine in memory: every answer is atomic, as etcd's transactions are; faults are switched on by tests."""

from dataclasses import dataclass, field, replace

from dcupgrade.adapters.fleet import unreachable
from dcupgrade.machine.fleet import Fleet, Halt, Member, Outcome, Slot, worth_keeping


@dataclass
class MemoryFleet:
    """`down` makes every call fail; `most_held` is the largest number of slots ever held at once."""

    limit: int = 3
    fleet: Fleet = field(init=False)
    down: bool = False
    most_held: int = 0
    asked: int = 0
    told: dict[str, Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fleet = Fleet((None,) * self.limit)

    def _reach(self) -> None:
        self.asked += 1
        if self.down:
            raise unreachable("in memory", "it is down")

    def _with(self, number: int, slot: Slot | None) -> None:
        slots = list(self.fleet.slots)
        slots[number] = slot
        self.fleet = replace(self.fleet, slots=tuple(slots))
        self.most_held = max(self.most_held, sum(slot is not None for slot in slots))

    async def read(self) -> Fleet:
        self._reach()
        return self.fleet

    async def put(self, number: int, slot: Slot) -> bool:
        self._reach()
        if self.fleet.slots[number] is not None or self.fleet.halt is not None:
            return False
        self._with(number, slot)
        return True

    async def clear(self, number: int, holder: str, outcome: Outcome | None) -> None:
        self._reach()
        slot = self.fleet.slots[number]
        if slot is None or slot.holder != holder:
            return
        self._with(number, None)
        if outcome is not None:
            self.fleet = replace(self.fleet, outcomes=worth_keeping((*self.fleet.outcomes, outcome)))

    async def set_halt(self, halt: Halt | None) -> None:
        self._reach()
        self.fleet = replace(self.fleet, halt=halt, outcomes=self.fleet.outcomes if halt else ())

    async def publish(self, member: Member) -> None:
        self._reach()
        self.told[member.node] = member

    async def members(self) -> tuple[Member, ...]:
        self._reach()
        return tuple(self.told.values())

    async def aclose(self) -> None:
        pass
