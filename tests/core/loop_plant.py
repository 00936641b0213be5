"""A small site for a closed loop: members that follow late, sun, a load, and a meter whose readings take time.

It is written from the words of the design alone, apart from the model that the loop has of its members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edge.core.closed_loop import (
    LoopImage,
    LoopOutput,
    LoopSettings,
    LoopState,
    MemberImage,
    Sample,
    begin,
    step,
)

STEP_S = 0.1
STEPS_PER_S = 10


@dataclass(frozen=True)
class Nature:
    """How a member really is: seconds, percent of nominal power a second, percent too much."""

    dead_time_s: float = 1.0
    lag_s: float = 1.0
    ramp_pct_per_s: float = 20.0
    bias_pct: float = 0.0


@dataclass
class Site:
    """Runs a loop against its members. Members begin at rest at `value`, in percent.

    `sun` (of a tag and a moment) in percent, `load` in kW. A reading is taken each second and arrives
    `latency_s` later; `is_read` tells at which moments there is one. `direct` are the members that a direct
    request holds, and where.
    """

    settings: LoopSettings
    value: float = 50.0
    setpoint_kw: float = 40.0
    load: Callable[[float], float] = lambda _: 35.0
    sun: Callable[[str, float], float] = lambda *_: 100.0
    is_read: Callable[[float], bool] = lambda _: True
    natures: Mapping[str, Nature] = field(default_factory=dict)
    latency_s: float = 0.4
    direct: dict[str, float] = field(default_factory=dict)
    now_s: float = 0.0
    exports: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = {member.tag: self.value for member in self.settings.members}
        self.powers = dict(self.values)
        self.goals = dict(self.values)
        self.under_way: list[tuple[float, str, float]] = []
        self.readings: list[tuple[float, float, dict[str, float]]] = []
        self.sample: Sample | None = None
        self.state: LoopState = begin(self.settings, now_s=0.0)
        self.output: LoopOutput | None = None

    def nature(self, tag: str) -> Nature:
        return self.natures.get(tag, Nature())

    @property
    def export_kw(self) -> float:
        return sum(self.powers_kw.values()) - self.load(self.now_s)

    @property
    def powers_kw(self) -> dict[str, float]:
        return {
            member.tag: self.powers[member.tag] * member.nominal_kw / 100 for member in self.settings.members
        }

    def run(self, *, until_s: float) -> list[float]:
        """Go on until a moment; the export at each step of the plant on the way."""
        first = len(self.exports)
        while self.now_s < until_s - STEP_S / 2:
            self._advance()
        return self.exports[first:]

    def _advance(self) -> None:
        ticks = round(self.now_s * STEPS_PER_S)
        is_tick = ticks % round(self.settings.time_step_s * STEPS_PER_S) == 0
        if ticks % STEPS_PER_S == STEPS_PER_S // 3 and self.is_read(self.now_s):
            self.readings.append((self.now_s + self.latency_s, self.export_kw, self.powers_kw))
        has_arrived = bool(self.readings) and self.readings[0][0] <= self.now_s
        if has_arrived:
            at_s, export_kw, powers_kw = self.readings.pop(0)
            self.sample = Sample(at_s, export_kw, powers_kw)
        is_asked = self.output is not None and self.output.look_at_s <= self.now_s
        for tag, value in self.direct.items():
            bounds = self.output.bounds if self.output is not None else {}
            self._ask(tag, min(value, bounds.get(tag, math.inf)))
        if is_tick or has_arrived or is_asked:
            self.step(is_tick=is_tick)
        self._move()
        self.now_s = (ticks + 1) / STEPS_PER_S
        self.exports.append(self.export_kw)

    def step(self, *, is_tick: bool = True) -> LoopOutput:
        image = LoopImage(
            sample=self.sample,
            setpoint_kw=self.setpoint_kw,
            members={tag: MemberImage(value, tag in self.direct) for tag, value in self.values.items()},
            is_tick=is_tick,
        )
        self.state, self.output = step(self.state, image, self.now_s)
        for tag, value in self.output.values.items():
            self._ask(tag, min(value, self.output.bounds.get(tag, math.inf)))
        return self.output

    def _ask(self, tag: str, value: float) -> None:
        if value != self.values[tag]:
            self.values[tag] = value
            self.under_way.append((self.now_s + self.nature(tag).dead_time_s, tag, value))

    def _move(self) -> None:
        if self.under_way and min(self.under_way)[0] <= self.now_s:
            due = sorted(one for one in self.under_way if one[0] <= self.now_s)
            self.under_way = [one for one in self.under_way if one[0] > self.now_s]
            self.goals.update({tag: value for _, tag, value in due})
        for tag, power in self.powers.items():
            nature = self.nature(tag)
            sun = self.sun(tag, self.now_s)
            wanted = min(self.goals[tag] + nature.bias_pct * (self.goals[tag] > 0), sun)
            rate = (wanted - power) / max(nature.lag_s, STEP_S)
            rate = min(max(rate, -nature.ramp_pct_per_s), nature.ramp_pct_per_s)
            self.powers[tag] = min(power + rate * STEP_S, sun)
