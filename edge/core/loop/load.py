"""What the site takes: the load, found from one reading of the meter and its members' power then."""

from __future__ import annotations

from dataclasses import dataclass

# A small deviation is taken for noise, and averaged over so many readings.
MOST_AVERAGED = 10
# A deviation beyond so many times the usual one is no noise.
CLEAR = 4.0
# How fast what is usual is learned.
LEARNING = 0.1
# The least that is taken for usual, as a part of nominal power.
LEAST_NOISE = 0.0005


@dataclass(frozen=True, slots=True)
class Load:
    """An estimate of the load: `value_kw`, the mean of `averaged` readings.

    `usual_kw` is how far from it a reading usually is; `last_kw` is what the newest reading alone says, and
    `production_kw` the members' power in it.
    """

    value_kw: float
    averaged: int
    usual_kw: float
    last_kw: float
    production_kw: float


def first(*, export_kw: float, production_kw: float, nominal_kw: float) -> Load:
    value = production_kw - export_kw
    return Load(value, 1, 4 * LEAST_NOISE * nominal_kw, value, production_kw)


def observe(
    load: Load, *, export_kw: float, production_kw: float, nominal_kw: float, rises_at_once: bool
) -> Load:
    """Take a reading in.

    Nobody knows whether members and meter were read at the same moment: while production moves, the load that
    comes out is wrong by as much as it moved in between. So what can be explained by the production's change
    since the last reading is not believed. A fall is taken at once, a rise when a second reading confirms it,
    unless `rises_at_once` says that both are taken at once; small deviations are smoothed.
    """
    seen = production_kw - export_kw
    doubt = abs(production_kw - load.production_kw)
    off = seen - load.value_kw
    clear = CLEAR * load.usual_kw
    value, usual, averaged = load.value_kw, load.usual_kw, 1
    if abs(off) <= clear:
        averaged = min(load.averaged + 1, MOST_AVERAGED)
        value += off / averaged
        usual = max((1 - LEARNING) * usual + LEARNING * abs(off), LEAST_NOISE * nominal_kw)
    elif off < 0:
        value = min(value, seen + doubt)
    else:
        confirmed = seen if rises_at_once else min(seen, load.last_kw)
        value = max(value, confirmed - doubt)
    return Load(value, averaged, usual, seen, production_kw)
