"""What a run is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from bench.closed_loop.plant import STEP_S, step_at
from bench.closed_loop.runs import Trace
from bench.closed_loop.scenarios import EVENT_S, Scenario

BAND_PCT = 2.0
KWS_PER_KWH = 3600.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one run, or means over several; from 60 s on.

    Energies in kWh, times in seconds, overshoot and travel in percent of Pn. `iae_s` is the deviation from
    the reachable value, integrated, over Pn. `before_kwh` is the violation from 30 to 60 s, `late_kw` the
    greatest production from 90 s on.
    """

    violation_kwh: float
    longest_s: float
    overshoot_pct: float
    settling_s: float
    iae_s: float
    lost_kwh: float
    travel_pct: float
    writes: float
    before_kwh: float
    late_kw: float


def mean(figures: Sequence[Figures]) -> Figures:
    """The mean of each figure; of `late_kw` the greatest."""
    means = {
        field.name: sum(getattr(each, field.name) for each in figures) / len(figures)
        for field in fields(Figures)
    }
    return Figures(**means | {"late_kw": max(each.late_kw for each in figures)})


def figures_of(trace: Trace) -> Figures:
    scenario = trace.scenario
    band_kw = BAND_PCT / 100.0 * scenario.nominal_kw
    violated = lost = deviated = longest = 0.0
    overshoot = settling = 0.0
    running = 0
    for event_s, until_s in pairwise((*scenario.events, scenario.end_s)):
        first = step_at(event_s)
        last_outside = first - 1
        side = 0.0
        for step, export_kw, limit_kw, reachable_kw in _steps(trace, event_s, until_s):
            deviation = export_kw - reachable_kw
            if export_kw > limit_kw:
                violated += export_kw - limit_kw
            running = running + 1 if export_kw - limit_kw > band_kw else 0
            longest = max(longest, running)
            if deviation < 0.0:
                lost -= deviation
            deviated += abs(deviation)
            if abs(deviation) > band_kw:
                last_outside = step
            if step == first:
                # Thrown upwards it overshoots downwards; thrown down, or nowhere, upwards.
                side = -1.0 if deviation > 0.1 * band_kw else 1.0
            overshoot = max(overshoot, side * deviation)
        settling = max(settling, (last_outside + 1 - first) * STEP_S)
    return Figures(
        violation_kwh=violated * STEP_S / KWS_PER_KWH,
        longest_s=longest * STEP_S,
        overshoot_pct=100.0 * overshoot / scenario.nominal_kw,
        settling_s=settling,
        iae_s=deviated * STEP_S / scenario.nominal_kw,
        lost_kwh=lost * STEP_S / KWS_PER_KWH,
        travel_pct=trace.travel_pct,
        writes=trace.writes,
        before_kwh=sum(
            max(0.0, export_kw - limit_kw)
            for _, export_kw, limit_kw, _ in _steps(trace, EVENT_S - 30.0, EVENT_S)
        )
        * STEP_S
        / KWS_PER_KWH,
        late_kw=max(trace.production_kw[step_at(EVENT_S + 30.0) :]),
    )


def reachable_kw(scenario: Scenario, at_s: float) -> float:
    """The export that limit and sun allow."""
    return min(scenario.limit_kw.at(at_s), scenario.sun_kw(scenario.sun.at(at_s)) - scenario.load_kw.at(at_s))


def _steps(trace: Trace, from_s: float, until_s: float) -> list[tuple[int, float, float, float]]:
    """(step, export, limit, reachable export) of each step from one moment to before another."""
    scenario = trace.scenario
    moments = [from_s, *(at for at in scenario.changes if from_s < at < until_s), until_s]
    steps: list[tuple[int, float, float, float]] = []
    for at, end in pairwise(moments):
        limit, reachable, load = (
            scenario.limit_kw.at(at),
            reachable_kw(scenario, at),
            scenario.load_kw.at(at),
        )
        steps.extend(
            (step, trace.production_kw[step] - load, limit, reachable)
            for step in range(step_at(at), step_at(end))
        )
    return steps
