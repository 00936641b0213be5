"""Plants that nobody tuned on: S2 on sites drawn at random.

Load and limit are S2's in proportion to the nominal power. All else is drawn for each plant, to the
extremes that the scenarios have: 1 to 20 inverters of 5 to 100 kW; dead times of 0.6 to 1.6 s times 0.5, 1,
2 or 4, one factor for the plant; lags of 0.3 to 3 s and ramps of 5 to 40 %/s; gains of 0.95 to 1.05 and
errors of up to 4 % of nominal power either way for each inverter; latencies of 0.1 to 2.5 s that scatter by
up to 0.4 s; noise up to 0.5 % of Pn; up to a tenth of the readings lost; members read up to 0.5 s before
the meter, on half of the plants; a period of 1, 2 or 5 s.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from bench.closed_loop.controllers import Controller, Task
from bench.closed_loop.figures import Figures, figures_of
from bench.closed_loop.measure import CONTROLLERS
from bench.closed_loop.plant import Inverter
from bench.closed_loop.runs import run
from bench.closed_loop.scenarios import SCENARIOS, Course, Metering, Scenario
from bench.record import Figure, percentile

MEASURED = ("ours", "bound", "deadbeat")


@dataclass(frozen=True, slots=True)
class Drawn:
    """One plant, the period of its controllers, and the seed of its readings and ticks."""

    scenario: Scenario
    period_s: float
    seed: int


def drawn(drawing: int, number: int) -> Drawn:
    """Plant `number` of a drawing; the same whichever others are drawn."""
    chance = random.Random(f"plant {drawing} {number}")
    factor = chance.choice((0.5, 1.0, 2.0, 4.0))
    inverters = tuple(_inverter(chance, factor) for _ in range(chance.randint(1, 20)))
    latency_s = chance.uniform(0.1, 2.1)
    metering = Metering(
        latency_s=(latency_s, latency_s + chance.uniform(0.0, 0.4)),
        loss=chance.uniform(0.0, 0.1),
        noise_pct=chance.uniform(0.0, 0.5),
        members_before_s=chance.choice((0.0, chance.uniform(0.0, 0.5))),
    )
    s2 = SCENARIOS["S2"]
    scale = sum(inverter.nominal_kw for inverter in inverters) / s2.nominal_kw
    scenario = replace(
        s2,
        name=f"plant {number}",
        load_kw=_scaled(s2.load_kw, scale),
        limit_kw=_scaled(s2.limit_kw, scale),
        sun=Course(((0.0, (100.0,) * len(inverters)),)),
        metering=metering,
        inverters=inverters,
    )
    return Drawn(scenario, period_s=chance.choice((1.0, 2.0, 5.0)), seed=chance.randrange(2**31))


def measure_plants(
    count: int, *, drawing: int, controllers: tuple[str, ...] = MEASURED
) -> dict[str, list[Figures]]:
    """The figures of each controller on each plant."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = list(
            pool.map(partial(_on_plant, drawing, controllers=controllers), range(count), chunksize=4)
        )
    return {name: [each[index] for each in results] for index, name in enumerate(controllers)}


def plant_figures(measured: dict[str, list[Figures]]) -> dict[str, Figure]:
    """The goals on plants that nobody tuned on."""
    ours, bound, deadbeat = (measured[name] for name in MEASURED)
    n = len(ours)
    ratios = [one.violation_kwh / other.violation_kwh for one, other in zip(ours, bound, strict=True)]
    worse = sum(one.violation_kwh >= other.violation_kwh for one, other in zip(ours, deadbeat, strict=True))

    def figure(value: float, unit: str, at_most: float) -> Figure:
        value = round(value, 3)
        return Figure(value=value, unit=unit, n=n, goal=f"<= {at_most:g}", met=value <= at_most)

    return {
        "plants_violation_ratio_p50": figure(percentile(ratios, 0.50), "x bound", 1.15),
        "plants_violation_ratio_p95": figure(percentile(ratios, 0.95), "x bound", 1.35),
        "plants_violation_ratio_worst": figure(max(ratios), "x bound", 1.6),
        "plants_travel_p95": figure(percentile([each.travel_pct for each in ours], 0.95), "% Pn", 600.0),
        "plants_not_below_deadbeat": figure(worse, "plants", 0.0),
    }


def worst_plants(measured: dict[str, list[Figures]], drawing: int, *, shown: int = 3) -> list[str]:
    """The plants on which ours is furthest from the bound, and those on which it is not below the limiter."""
    ours, bound, deadbeat = (measured[name] for name in MEASURED)
    ratios = [one.violation_kwh / other.violation_kwh for one, other in zip(ours, bound, strict=True)]
    worst = sorted(range(len(ratios)), key=lambda number: -ratios[number])[:shown]
    beaten = [
        number
        for number in range(len(ratios))
        if ours[number].violation_kwh >= deadbeat[number].violation_kwh and number not in worst
    ]
    return [
        f"plant {number}: {ratios[number]:.3f} x bound"
        f" (deadbeat {deadbeat[number].violation_kwh / bound[number].violation_kwh:.3f}),"
        f" every {drawn(drawing, number).period_s:g} s,"
        f" {len(drawn(drawing, number).scenario.inverters)} inverters"
        for number in (*worst, *beaten)
    ]


def _on_plant(drawing: int, number: int, *, controllers: tuple[str, ...]) -> list[Figures]:
    plant = drawn(drawing, number)
    makes: list[Callable[[Task], Controller]] = [CONTROLLERS[name] for name in controllers]
    return [figures_of(run(plant.scenario, make, period_s=plant.period_s, seed=plant.seed)) for make in makes]


def _inverter(chance: random.Random, factor: float) -> Inverter:
    return Inverter(
        nominal_kw=round(5.0 * 20.0 ** chance.random(), 1),
        dead_time_s=factor * chance.uniform(0.6, 1.6),
        lag_s=0.3 * 10.0 ** chance.random(),
        ramp_pct_per_s=5.0 * 8.0 ** chance.random(),
        gain=chance.uniform(0.95, 1.05),
        bias_pct=chance.uniform(-4.0, 4.0),
    )


def _scaled(course: Course[float], scale: float) -> Course[float]:
    return Course(tuple((at, value * scale) for at, value in course.steps))
