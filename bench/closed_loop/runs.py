"""One run: a scenario, a controller, a period and a seed, from the first step to the last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.closed_loop.controllers import Arrived, Controller, Task, Truth, View
from bench.closed_loop.draws import Draws, Reading, draw
from bench.closed_loop.plant import STEP_S, Plant, step_at
from bench.closed_loop.scenarios import EVENT_S, Scenario

# What takes place at the same moment takes place in this order.
CHANGE, MEMBERS, METER, ARRIVAL, TICK = range(5)


@dataclass(frozen=True, slots=True)
class Trace:
    """What came of a run. Power in kW at each step of the plant; travel in percent of Pn, from 60 s on.

    `commands`: when the commands changed, and to what, in percent.
    """

    scenario: Scenario
    production_kw: list[float]
    commands: list[tuple[float, tuple[int, ...]]]
    travel_pct: float
    writes: int


def first_command(scenario: Scenario) -> int:
    """The largest common command that meets the first limit, if the inverters obey exactly."""
    needed_kw = scenario.limit_kw.at(0.0) + scenario.load_kw.at(0.0)
    return min(100, math.floor(100.0 * needed_kw / scenario.nominal_kw + 1e-9))


def run(scenario: Scenario, make: Callable[[Task], Controller], *, period_s: float, seed: int) -> Trace:
    """Let a controller meet a scenario."""
    draws = draw(scenario.metering, seed=seed, period_s=period_s, end_s=scenario.end_s)
    return _Run(scenario, make, period_s=period_s).through(draws)


class _Run:
    def __init__(self, scenario: Scenario, make: Callable[[Task], Controller], *, period_s: float) -> None:
        command = first_command(scenario)
        self._scenario = scenario
        self._controller = make(Task(scenario, period_s, command))
        self._plant = Plant(
            scenario.inverters,
            commands=[command] * len(scenario.inverters),
            sun=scenario.sun.at(0.0),
            steps=step_at(scenario.end_s),
        )
        self._now_s = 0.0
        self._reading: Arrived | None = None
        self._travel_pct = 0.0
        self._writes = 0
        self._commands = [(0.0, (command,) * len(scenario.inverters))]

    def through(self, draws: Draws) -> Trace:
        end_s = self._scenario.end_s
        members_kw: dict[int, tuple[float, ...]] = {}
        seen: dict[int, Arrived] = {}
        for at_s, kind, index in _agenda(self._scenario, draws):
            if at_s >= end_s:
                break
            self._look_before(at_s)
            self._now_s = at_s
            self._plant.advance(step_at(at_s))
            if kind == CHANGE:
                self._plant.shine(self._scenario.sun.at(at_s))
            elif kind == MEMBERS:
                members_kw[index] = tuple(unit.power_kw for unit in self._plant.units)
            elif kind == METER:
                seen[index] = self._measured(draws.readings[index], members_kw.pop(index))
            elif kind == ARRIVAL:
                self._reading = seen.pop(index)
                self._write(self._controller.arrived(self._view(at_s)), at_s)
            else:
                self._write(self._controller.tick(self._view(at_s)), at_s)
        self._look_before(end_s)
        self._plant.advance(step_at(end_s))
        return Trace(
            self._scenario, self._plant.production_kw, self._commands, self._travel_pct, self._writes
        )

    def _look_before(self, until_s: float) -> None:
        """Call the controller at the times that it asked for."""
        while self._controller.look_at_s < until_s:
            self._now_s = at_s = max(self._controller.look_at_s, self._now_s)
            self._plant.advance(step_at(at_s))
            self._write(self._controller.look(self._view(at_s)), at_s)

    def _view(self, now_s: float) -> View:
        return View(now_s, self._reading, self._scenario.limit_kw.at(now_s), self._commands[-1][1])

    def _measured(self, reading: Reading, members_kw: tuple[float, ...]) -> Arrived:
        scenario, units = self._scenario, self._plant.units
        load_kw = scenario.load_kw.at(reading.taken * STEP_S)
        export_kw = self._plant.power_kw - load_kw
        truth = Truth(export_kw, load_kw, tuple(unit.power for unit in units))
        noise_kw = reading.noise * scenario.metering.noise_pct / 100.0 * scenario.nominal_kw
        return Arrived(reading.arrives_s, export_kw + noise_kw, members_kw, truth)

    def _write(self, wishes: Sequence[float] | None, at_s: float) -> None:
        if wishes is None:
            return
        before = self._commands[-1][1]
        commands = tuple(round(min(100.0, max(0.0, wish))) for wish in wishes)
        if commands == before:
            return
        self._commands.append((at_s, commands))
        for unit, old, new in zip(self._plant.units, before, commands, strict=True):
            if new == old:
                continue
            unit.take(new, at_s=at_s)
            if at_s >= EVENT_S:
                self._writes += 1
                self._travel_pct += abs(new - old) * unit.inverter.nominal_kw / self._scenario.nominal_kw


def _agenda(scenario: Scenario, draws: Draws) -> list[tuple[float, int, int]]:
    """All that is known beforehand: (when, what, which), in order."""
    agenda = [(at, CHANGE, 0) for at in scenario.changes]
    for index, reading in enumerate(draws.readings):
        agenda.append((reading.members_taken * STEP_S, MEMBERS, index))
        agenda.append((reading.taken * STEP_S, METER, index))
        agenda.append((reading.arrives_s, ARRIVAL, index))
    agenda.extend((at, TICK, index) for index, at in enumerate(draws.ticks))
    return sorted(agenda)
