"""What stands behind a point of connection: inverters with sun, a load, and the meter that sees them all."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.devices import SimulatedDevice

# From the command to the power: what an inverter takes to obey.
DEAD_TIME_S = 0.4
# How long a load that wanders takes to be back where it was.
WANDER_S = 20.0


class Inverter(SimulatedDevice):
    """Gives what it is limited to as far as its sun goes, a dead time after it was told.

    Its power moves by `ramp_pct_per_s` of nominal power, None for at once; only a loss of sun needs no time.
    `told_s`: when it last took a value; `disturbed_s`: when something else changed what it gives.
    """

    def __init__(
        self, *, dead_time_s: float = DEAD_TIME_S, ramp_pct_per_s: float | None = None, **how: Any
    ) -> None:
        super().__init__(**how)
        self._dead_time_s = dead_time_s
        self._ramp_pct_per_s = ramp_pct_per_s
        self._sun = 1.0
        self._obeys = self._given_pct = self.limit_in_force
        self._orders: deque[tuple[float, float]] = deque()
        self._moved_s = self.told_s = self.disturbed_s = self.clock()

    @property
    def sun(self) -> float:
        """What the sun allows, as a part of nominal power."""
        return self._sun

    @sun.setter
    def sun(self, part: float) -> None:
        self._move()
        self._sun = part
        self.disturbed_s = self.clock()

    def take(self, value: float, *, who: str, sent_s: float) -> None:
        was_strange = self.was_set_by_hand
        super().take(value, who=who, sent_s=sent_s)
        self._is_told()
        if was_strange:
            self.disturbed_s = self.clock()

    def restart(self) -> None:
        super().restart()
        self._is_told()
        self.disturbed_s = self.clock()

    def turn_knob(self, value: float) -> None:
        super().turn_knob(value)
        self._is_told()
        self.disturbed_s = self.clock()

    def tell_power(self) -> float:
        self._move()
        return self.nameplate_kw * self._given_pct / 100

    def _is_told(self) -> None:
        self.told_s = self.clock()
        self._orders.append((self.clock() + self._dead_time_s, self.limit_in_force))

    def _move(self) -> None:
        now = self.clock()
        while self._orders and self._orders[0][0] <= now:
            at_s, limit = self._orders.popleft()
            self._follow(at_s)
            self._obeys = limit
        self._follow(now)

    def _follow(self, until_s: float) -> None:
        passed_s, self._moved_s = until_s - self._moved_s, until_s
        shining = 100 * self._sun
        aim = min(self._obeys, shining)
        given = min(self._given_pct, shining)
        if self._ramp_pct_per_s is None:
            self._given_pct = aim
        else:
            most = self._ramp_pct_per_s * passed_s
            self._given_pct = min(max(aim, given - most), given + most)


@dataclass
class Connection:
    """All that the meter sees: `set_load` says what the site takes, and how far that strays up and down."""

    clock: Callable[[], float]
    load_kw: float = 10.0
    wander_kw: float = 0.0
    changed_s: float = 0.0
    inverters: list[Inverter] = field(default_factory=list)

    def set_load(self, kw: float, *, wander_kw: float = 0.0) -> None:
        self.load_kw, self.wander_kw, self.changed_s = kw, wander_kw, self.clock()

    @property
    def production_kw(self) -> float:
        return sum(inverter.tell_power() for inverter in self.inverters)

    @property
    def load_now_kw(self) -> float:
        return self.load_kw + self.wander_kw * math.sin(2 * math.pi * self.clock() / WANDER_S)

    @property
    def export_kw(self) -> float:
        return self.production_kw - self.load_now_kw


class Meter(SimulatedDevice):
    """Measures what the site gives to the grid, or says what a test puts into its mouth."""

    connection: Connection
    says: float | None = None
    is_broken: bool = False
    told_s: float = 0.0

    def tell_power(self) -> float:
        if self.is_broken:
            return float("nan")
        self.told_s = self.clock()
        return self.connection.export_kw if self.says is None else self.says
