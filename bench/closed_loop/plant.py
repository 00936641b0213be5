"""Inverters behind one meter, in steps of 50 ms."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

STEP_S = 0.05


def step_at(seconds: float) -> int:
    """The first step of the plant at or after a moment."""
    return math.ceil(seconds / STEP_S - 1e-9)


@dataclass(frozen=True, slots=True)
class Inverter:
    """How one inverter follows its command; the ramp in percent of nominal power a second.

    It gives `gain` times the command plus `bias_pct` of its nominal power, and nothing for a command of 0.
    """

    nominal_kw: float
    dead_time_s: float
    lag_s: float
    ramp_pct_per_s: float
    gain: float = 1.0
    bias_pct: float = 0.0

    def given_for(self, command: float) -> float:
        """What it gives in the end for a command under full sun, both in percent."""
        if command <= 0.0:
            return 0.0
        return min(100.0, max(0.0, self.gain * command + self.bias_pct))

    def command_for(self, percent: float) -> float:
        """The command for which it gives `percent`, not rounded."""
        return min(100.0, max(0.0, (percent - self.bias_pct) / self.gain))


class Unit:
    """One inverter's state in percent. `goal` is what it goes to: a command that has waited its dead time."""

    __slots__ = ("_pending", "_share", "command", "goal", "inverter", "power", "sun")

    def __init__(self, inverter: Inverter, *, command: int, sun: float) -> None:
        self.inverter = inverter
        self.command = command
        self.sun = sun
        self.goal = inverter.given_for(command)
        self.power = min(self.goal, sun)
        self._share = 1.0 - math.exp(-STEP_S / inverter.lag_s) if inverter.lag_s > 0.0 else 1.0
        self._pending: deque[tuple[int, float]] = deque()

    @property
    def power_kw(self) -> float:
        return self.power * self.inverter.nominal_kw / 100.0

    def take(self, command: int, *, at_s: float) -> None:
        """Accept a command, which acts after the dead time."""
        self.command = command
        effective = step_at(at_s + self.inverter.dead_time_s)
        self._pending.append((effective, self.inverter.given_for(command)))

    def shine(self, sun: float) -> None:
        """What the sun allows from now on, in percent: a loss takes power at once."""
        self.sun = sun
        self.power = min(self.power, sun)

    def advance(self, first: int, last: int, production_kw: list[float]) -> None:
        """Go from step `first` to step `last`, and add the power at each step after `first`."""
        while first < last:
            while self._pending and self._pending[0][0] <= first:
                self.goal = self._pending.popleft()[1]
            until = min(last, self._pending[0][0]) if self._pending else last
            self._follow(first, until, production_kw)
            first = until

    def _follow(self, first: int, last: int, production_kw: list[float]) -> None:
        share, power = self._share, self.power
        end = min(self.goal, self.sun)
        most = self.inverter.ramp_pct_per_s * STEP_S
        scale = self.inverter.nominal_kw / 100.0
        for step in range(first + 1, last + 1):
            change = (end - power) * share
            power += min(most, max(-most, change))
            production_kw[step] += power * scale
        self.power = power


class Plant:
    """All inverters of a site, and the power they gave at each step from the start."""

    def __init__(
        self, inverters: Sequence[Inverter], *, commands: Sequence[int], sun: Sequence[float], steps: int
    ) -> None:
        self.units = [
            Unit(inverter, command=command, sun=share)
            for inverter, command, share in zip(inverters, commands, sun, strict=True)
        ]
        self.step = 0
        self.production_kw = [0.0] * (steps + 1)
        self.production_kw[0] = self.power_kw

    @property
    def power_kw(self) -> float:
        return sum(unit.power_kw for unit in self.units)

    def advance(self, step: int) -> None:
        for unit in self.units:
            unit.advance(self.step, step, self.production_kw)
        self.step = max(self.step, step)

    def shine(self, sun: Sequence[float]) -> None:
        for unit, share in zip(self.units, sun, strict=True):
            unit.shine(share)
        self.production_kw[self.step] = self.power_kw
