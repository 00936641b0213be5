"""One picture a scenario: power at the connection, commands, sun and load, at a period of 1 s and of 5 s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from bench.closed_loop.figures import Figures
from bench.closed_loop.measure import CONTROLLERS, PEERS, Case
from bench.closed_loop.plant import STEP_S, step_at
from bench.closed_loop.runs import Trace, run
from bench.closed_loop.scenarios import SCENARIOS, Course, Scenario

SEED = 1
# Seconds shown before the first event and after the last.
BEFORE_S, AFTER_S = 5.0, 35.0
# S5 goes on as it begins.
LONGEST_S = 400.0
COLOURS = {"ours": "#1b7837", "bound": "#2166ac"}
PEER_COLOUR, LIMIT_COLOUR = "#b2182b", "#555555"
# Shown beside the best peer: the PID that most would take.
USUAL, USUAL_COLOUR = "simple-pid .3/.15", "#999999"
INVERTER_STYLES = ("-", "--", ":")


def best_peer(figures: Mapping[Case, Figures], *, scenario: str, period_s: float) -> str:
    """The peer with the least violation; of equal ones that which loses least."""

    def rank(name: str) -> tuple[float, float]:
        peer = figures[Case(scenario, period_s, name)]
        return round(peer.violation_kwh, 3), peer.lost_kwh

    return min(PEERS, key=rank)


def draw_scenarios(
    figures: Mapping[Case, Figures], folder: Path, *, scenarios: Sequence[str], periods_s: Sequence[float]
) -> list[Path]:
    """Write a picture for each scenario, of the runs with the first seed."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in scenarios:
        path = folder / f"{name}.png"
        _picture(figures, SCENARIOS[name], periods_s).savefig(path, metadata={"Software": None})
        paths.append(path)
    return paths


def _picture(figures: Mapping[Case, Figures], scenario: Scenario, periods_s: Sequence[float]) -> Picture:
    with mpl.rc_context({"font.size": 8, "axes.grid": True, "grid.color": "#dddddd", "figure.dpi": 100}):
        picture = Picture(figsize=(11.0, 7.0), layout="constrained")
        picture.suptitle(f"{scenario.name}: {scenario.title}")
        rows = picture.subplots(
            3, len(periods_s), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 2, 1.3)
        )
        for column, period_s in enumerate(periods_s):
            peer = best_peer(figures, scenario=scenario.name, period_s=period_s)
            traces = {
                name: run(scenario, CONTROLLERS[name], period_s=period_s, seed=SEED)
                for name in dict.fromkeys((USUAL, "bound", peer, "ours"))
            }
            power, commands, world = (row[column] for row in rows)
            power.set_title(f"every {period_s:g} s")
            _draw_power(power, traces, peer=peer)
            _draw_commands(commands, {name: traces[name] for name in (peer, "ours")}, peer=peer)
            _draw_world(world, scenario)
            world.set_xlabel("s")
        first, last = scenario.events[0] - BEFORE_S, scenario.events[-1] + AFTER_S
        rows[0][0].set_xlim(first, min(last, scenario.end_s, first + max(LONGEST_S, scenario.events[-1])))
        for row, label in zip(
            rows, ("export, kW", "commands, %\n(line: 60, dashes: 60, dots: 30 kW)", "kW"), strict=True
        ):
            row[0].set_ylabel(label)
        return picture


def _colour(name: str, *, peer: str) -> str:
    return COLOURS.get(name, PEER_COLOUR if name == peer else USUAL_COLOUR)


def _draw_power(axes: Axes, traces: Mapping[str, Trace], *, peer: str) -> None:
    scenario = next(iter(traces.values())).scenario
    steps = range(step_at(scenario.end_s) + 1)
    seconds = [step * STEP_S for step in steps]
    load = [scenario.load_kw.at(at) for at in seconds]
    for name, trace in traces.items():
        export = [production - loaded for production, loaded in zip(trace.production_kw, load, strict=True)]
        axes.plot(seconds, export, color=_colour(name, peer=peer), label=name, linewidth=1.2)
    _draw_course(axes, scenario.limit_kw, scenario.end_s, colour=LIMIT_COLOUR, label="limit", style="--")
    axes.legend(loc="best", fontsize=7)


def _draw_commands(axes: Axes, traces: Mapping[str, Trace], *, peer: str) -> None:
    for name, trace in traces.items():
        seconds = [at for at, _ in trace.commands] + [trace.scenario.end_s]
        for member, style in zip(range(len(trace.scenario.inverters)), INVERTER_STYLES, strict=False):
            values = [commands[member] for _, commands in trace.commands]
            axes.step(
                seconds,
                [*values, values[-1]],
                where="post",
                color=_colour(name, peer=peer),
                linestyle=style,
                linewidth=1.0,
            )


def _draw_world(axes: Axes, scenario: Scenario) -> None:
    sun = Course(tuple((at, scenario.sun_kw(shares)) for at, shares in scenario.sun.steps))
    _draw_course(axes, sun, scenario.end_s, colour="#e08214", label="sun")
    _draw_course(axes, scenario.load_kw, scenario.end_s, colour="#542788", label="load")
    axes.set_ylim(bottom=0.0)
    axes.legend(loc="best", fontsize=7)


def _draw_course(
    axes: Axes, course: Course[float], end_s: float, *, colour: str, label: str, style: str = "-"
) -> None:
    seconds = [at for at, _ in course.steps] + [end_s]
    values = [value for _, value in course.steps]
    axes.step(
        seconds,
        [*values, values[-1]],
        where="post",
        color=colour,
        label=label,
        linestyle=style,
        linewidth=1.2,
    )
