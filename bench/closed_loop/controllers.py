"""What every controller in the benchmark is given, and the ones that ours is compared with.

`simple-pid` is the package of that name. `deadbeat` is what export limiters of home energy managers do: the
load is derived from meter and production, and covered at once, by a fifth of the last limit a cycle
(OpenEMS, controller `PvInverter.SellToGridLimit`). `cyclic PID` counts its gains per cycle and clamps its
summed error to ten times the output's limit (OpenEMS, `PidFilter`). Written anew after what their
documentation and behaviour say.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from simple_pid import PID

from bench.closed_loop.scenarios import Scenario

STALE_S = 10.0


@dataclass(frozen=True, slots=True)
class Truth:
    """The plant as it was when a reading was taken; for the bound alone. Percent of nominal power."""

    export_kw: float
    load_kw: float
    power: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Arrived:
    """A reading as it arrived."""

    at_s: float
    export_kw: float
    members_kw: tuple[float, ...]
    truth: Truth


@dataclass(frozen=True, slots=True)
class View:
    """What a controller sees when it is called. `commands` are those in force, in percent."""

    now_s: float
    reading: Arrived | None
    limit_kw: float
    commands: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """What a controller is told before the run. `command` is the one in force, the same for all members."""

    scenario: Scenario
    period_s: float
    command: int

    @property
    def fallback_pct(self) -> float | None:
        if self.scenario.fallback_kw is None:
            return None
        return 100.0 * self.scenario.fallback_kw / self.scenario.nominal_kw


class Controller(Protocol):
    """Answers are commands in percent for all members, not rounded; None changes none.

    `look_at_s`: when it wants to be called apart from ticks and readings; infinite for never.
    """

    look_at_s: float

    def tick(self, view: View) -> Sequence[float] | None: ...
    def arrived(self, view: View) -> Sequence[float] | None: ...
    def look(self, view: View) -> Sequence[float] | None: ...


class _AtTicks(ABC):
    """A controller that acts at ticks only, with one command for all members.

    It is given the fallback at its first tick with a reading that is too old.
    """

    look_at_s = math.inf

    def __init__(self, task: Task) -> None:
        self.task = task
        self.nominal_kw = task.scenario.nominal_kw
        self._members = len(task.scenario.inverters)

    def arrived(self, view: View) -> Sequence[float] | None:  # noqa: ARG002 - it waits for its tick
        return None

    def look(self, view: View) -> Sequence[float] | None:  # noqa: ARG002 - it asks for none
        return None

    def tick(self, view: View) -> Sequence[float] | None:
        if view.reading is None:
            return None
        fallback = self.task.fallback_pct
        if fallback is not None and view.now_s - view.reading.at_s > STALE_S:
            return [fallback] * self._members
        return [self.command(view, view.reading)] * self._members

    @abstractmethod
    def command(self, view: View, reading: Arrived) -> float:
        """The command for all members, in percent."""

    def in_percent(self, kw: float) -> float:
        return 100.0 * kw / self.nominal_kw


class SimplePid(_AtTicks):
    """`simple-pid` on the export, all in percent of Pn."""

    def __init__(self, task: Task, *, kp: float, ki: float) -> None:
        super().__init__(task)
        self._pid = PID(
            kp, ki, 0.0, sample_time=None, output_limits=(0.0, 100.0), starting_output=float(task.command)
        )
        self._last_s: float | None = None

    def command(self, view: View, reading: Arrived) -> float:
        elapsed_s = self.task.period_s if self._last_s is None else view.now_s - self._last_s
        self._last_s = view.now_s
        self._pid.setpoint = self.in_percent(view.limit_kw)
        output = self._pid(self.in_percent(reading.export_kw), dt=elapsed_s)
        assert output is not None
        return output


class Deadbeat(_AtTicks):
    """Covers the load at once: at most a fifth of the last limit a cycle, and freely from none."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._last_kw = task.command * self.nominal_kw / 100.0

    def command(self, view: View, reading: Arrived) -> float:
        wish_kw = sum(reading.members_kw) - reading.export_kw + view.limit_kw
        if self._last_kw > 0.1:
            most_kw = 0.2 * self._last_kw
            wish_kw = min(self._last_kw + most_kw, max(self._last_kw - most_kw, wish_kw))
        self._last_kw = min(self.nominal_kw, max(0.0, wish_kw))
        return self.in_percent(self._last_kw)


class CyclicPid(_AtTicks):
    """Gains per cycle; the summed error is held within ten times the output's limit."""

    P, I, D = 0.3, 0.3, 0.1  # noqa: E741 - the trade's names
    MOST_SUMMED = 10 * 100.0

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._summed = task.command / self.I
        self._last: float | None = None

    def command(self, view: View, reading: Arrived) -> float:
        measured = self.in_percent(reading.export_kw)
        error = self.in_percent(view.limit_kw) - measured
        change = 0.0 if self._last is None else measured - self._last
        self._last = measured
        self._summed = min(self.MOST_SUMMED, max(-self.MOST_SUMMED, self._summed + error))
        return min(100.0, max(0.0, self.P * error + self.I * self._summed - self.D * change))
