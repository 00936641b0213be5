"""Figures of which one costs another: what ours reaches with deadbands from none to a wide one.

The benchmark itself is run without one. Where the deadband moves nothing the others' points alone show the
price: who commands nothing while one inverter is shaded spares its register and loses energy that its
neighbours could give.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Picture

from bench.closed_loop.figures import Figures, figures_of, mean
from bench.closed_loop.measure import PEERS, Case
from bench.closed_loop.ours import Ours
from bench.closed_loop.runs import run
from bench.closed_loop.scenarios import SCENARIOS

DEADBANDS_KW = (0.0, 1.0, 2.0, 4.0, 8.0, 12.0)
PERIOD_S = 1.0
PEER_MARKS = (("s", "#2166ac"), ("d", "#e08214"), ("^", "#b2182b"), ("v", "#542788"))
LABELS = {"lost_kwh": "lost, kWh", "travel_pct": "command travel, % Pn", "violation_kwh": "violation, kWh"}


@dataclass(frozen=True, slots=True)
class TradeOff:
    """Two figures of a scenario that exclude each other."""

    scenario: str
    across: str
    upwards: str


TRADE_OFFS = (
    TradeOff("X1", "travel_pct", "lost_kwh"),
    TradeOff("K3", "travel_pct", "lost_kwh"),
    TradeOff("S2", "lost_kwh", "violation_kwh"),
    TradeOff("S5", "lost_kwh", "violation_kwh"),
)


def measure_trade_offs(*, seeds: Sequence[int]) -> dict[str, list[Figures]]:
    """For each scenario the figures of ours with each deadband."""
    names = [trade_off.scenario for trade_off in TRADE_OFFS]
    points = [(name, deadband_kw) for name in names for deadband_kw in DEADBANDS_KW]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        measured = list(pool.map(partial(_with_deadband, seeds=seeds), points))
    return {
        name: measured[first : first + len(DEADBANDS_KW)]
        for name, first in zip(names, range(0, len(points), len(DEADBANDS_KW)), strict=True)
    }


def draw_trade_offs(
    measured: Mapping[str, Sequence[Figures]], figures: Mapping[Case, Figures], path: Path
) -> None:
    """A curve for each pair: ours by deadband, and the others as points."""
    with mpl.rc_context({"font.size": 8, "axes.grid": True, "grid.color": "#dddddd", "figure.dpi": 100}):
        picture = Picture(figsize=(10.0, 7.0), layout="constrained")
        picture.suptitle(f"ours with deadbands of {DEADBANDS_KW[0]:g} to {DEADBANDS_KW[-1]:g} kW, every 1 s")
        for trade_off, axes in zip(TRADE_OFFS, picture.subplots(2, 2).flat, strict=True):
            points = [_point(trade_off, each) for each in measured[trade_off.scenario]]
            axes.plot(*zip(*points, strict=True), "o-", color="#1b7837", label="ours", markersize=4)
            axes.annotate(f"{DEADBANDS_KW[0]:g} kW", points[0], xytext=(5, -10), textcoords="offset points")
            axes.annotate(f"{DEADBANDS_KW[-1]:g} kW", points[-1], xytext=(5, 5), textcoords="offset points")
            for name, (marker, colour) in zip(PEERS, PEER_MARKS, strict=True):
                peer = figures[Case(trade_off.scenario, PERIOD_S, name)]
                label = f"{name}, violation {peer.violation_kwh:.3f} kWh"
                axes.plot(*_point(trade_off, peer), marker, color=colour, label=label, markersize=5)
            axes.set_title(f"{trade_off.scenario}: {SCENARIOS[trade_off.scenario].title}")
            axes.set_xlabel(LABELS[trade_off.across])
            axes.set_ylabel(LABELS[trade_off.upwards])
            axes.legend(fontsize=7)
        picture.savefig(path, metadata={"Software": None})


def _point(trade_off: TradeOff, figures: Figures) -> tuple[float, float]:
    return getattr(figures, trade_off.across), getattr(figures, trade_off.upwards)


def _with_deadband(point: tuple[str, float], *, seeds: Sequence[int]) -> Figures:
    name, deadband_kw = point
    make = partial(Ours, deadband_kw=deadband_kw)
    return mean([figures_of(run(SCENARIOS[name], make, period_s=PERIOD_S, seed=seed)) for seed in seeds])
