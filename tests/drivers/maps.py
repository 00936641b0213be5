"""A Modbus device as a map of words in memory, for what depends on single registers and not on sockets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edge.drivers.errors import DeviceRefused, DeviceUnreachable
from edge.profiles.points import Table


@dataclass
class Map:
    """A device's registers, as a session reads them; what is not in them is refused, `deaf` places are silent."""

    words: dict[int, int] = field(default_factory=dict)
    deaf: set[int] = field(default_factory=set)
    generation: int = 1
    connected: bool = True
    next_command_at: float = 0.0
    endpoint: str = "device"
    reads: list[tuple[int, int]] = field(default_factory=list)
    writes: list[tuple[int, list[int]]] = field(default_factory=list)
    # What becomes of it with each pause that a driver makes.
    later: list[tuple[int, list[int]]] = field(default_factory=list)

    def put(self, address: int, words: Iterable[int]) -> None:
        self.words.update(enumerate(words, start=address))

    async def connect(self) -> None:
        self.generation += 1

    async def aclose(self) -> None:
        self.connected = False

    async def pause(self, seconds: float) -> None:  # noqa: ARG002 - a session's signature
        """No time passes here, but the device goes on."""
        if self.later:
            address, words = self.later.pop(0)
            self.put(address, words)

    async def read(self, unit: int, table: Table, address: int, count: int) -> list[int]:
        assert (unit, table) == (1, Table.HOLDING)
        self.reads.append((address, count))
        if address in self.deaf:
            raise DeviceUnreachable("no answer")
        if any(one not in self.words for one in range(address, address + count)):
            raise DeviceRefused("no such register")
        return [self.words[one] for one in range(address, address + count)]

    async def write(
        self, unit: int, address: int, registers: list[int], *, single: bool, table: Table = Table.HOLDING
    ) -> None:
        assert (unit, table) == (1, Table.HOLDING)
        assert single == (len(registers) == 1)
        self.writes.append((address, registers))
        self.put(address, registers)
