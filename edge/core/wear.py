"""What writing has cost a device's registers, and what it may still cost.

A register kept in flash or EEPROM stands some hundred thousand writes. The budget is a profile's; a day is a
UTC day, and never begins twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

# A stored parameter whose maker says nothing of its endurance (device register reference, 0.5).
PERSISTENT_WRITES_PER_DAY = 20
A_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Count:
    """How often one register was written, today and ever."""

    today: int = 0
    ever: int = 0


@dataclass(frozen=True, slots=True)
class Ledger:
    """The writes of a device by register; `day` is the UTC day that `today` counts."""

    day: date | None = None
    registers: Mapping[str, Count] = field(default_factory=dict)

    def today(self, registers: Collection[str]) -> int:
        """Today's writes of that one of these registers which was written most."""
        return max((self.registers[name].today for name in registers if name in self.registers), default=0)


EMPTY_LEDGER = Ledger()


def begin_day(ledger: Ledger, today: date) -> Ledger:
    """Begin to count anew where a new day has begun; a clock set back begins none.

    One that was days ahead, and counted for a day which is still to come, would begin none until then: the
    count goes on under the day it is now.
    """
    if ledger.day is not None and today <= ledger.day:
        return ledger if ledger.day - today <= A_DAY else Ledger(today, ledger.registers)
    return Ledger(today, {name: Count(0, count.ever) for name, count in ledger.registers.items()})


def count(ledger: Ledger, writes: Mapping[str, int]) -> Ledger:
    """Enter writes by register."""
    registers = dict(ledger.registers)
    for name, number in writes.items():
        before = registers.get(name, Count())
        registers[name] = Count(before.today + number, before.ever + number)
    return Ledger(ledger.day, registers)


def merged(ledger: Ledger, other: Ledger) -> Ledger:
    """Two devices' writes to the same registers, as one's; today is the later of their days."""
    days = [each.day for each in (ledger, other) if each.day is not None]
    latest = max(days, default=None)
    total = Ledger(latest)
    for each in (ledger, other):
        for name, found in each.registers.items():
            before = total.registers.get(name, Count())
            today = found.today if each.day == latest else 0
            registers = {**total.registers, name: Count(before.today + today, before.ever + found.ever)}
            total = Ledger(latest, registers)
    return total
