"""`python -m bench.closed_loop`: all of it, or `--scenario S1 S2 --period 1 --seeds 1 --controller ours`.

A part prints its table and writes nothing. All of it, plants that nobody tuned on included, prints table and
figures, and writes them with the pictures into `bench/results`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from bench.closed_loop.figures import Figures
from bench.closed_loop.goals import GOALS, STRETCH, compared, judged
from bench.closed_loop.measure import CONTROLLERS, Case, means, measure
from bench.closed_loop.page import figures_read, page_write
from bench.closed_loop.pictures import draw_scenarios
from bench.closed_loop.plants import measure_plants, plant_figures, worst_plants
from bench.closed_loop.scenarios import SCENARIOS
from bench.closed_loop.table import table
from bench.closed_loop.trade_offs import draw_trade_offs, measure_trade_offs
from bench.record import RESULTS, Run

PERIODS_S = (1.0, 5.0)
SEEDS = 5
PLANTS = 200
DRAWING = 1
FOLDER = RESULTS / "closed_loop"


def main(arguments: list[str]) -> int:
    chosen = _parse(arguments)
    cases = [
        Case(scenario, period_s, name)
        for scenario in chosen.scenario or SCENARIOS
        for period_s in chosen.period or PERIODS_S
        for name in chosen.controller or CONTROLLERS
    ]
    seeds = range(1, (chosen.seeds or SEEDS) + 1)
    if chosen.scenario or chosen.period or chosen.controller or chosen.seeds:
        print(table(means(measure(cases, seeds=seeds))), end="")
    elif chosen.only_plants:
        _plants(Run(name="loop", broker="none", database="none"), chosen.plants, drawing=chosen.drawing)
    else:
        _all(cases, seeds=seeds, plants=chosen.plants, drawing=chosen.drawing)
    return 0


def _all(cases: Sequence[Case], *, seeds: Sequence[int], plants: int, drawing: int) -> None:
    run = Run(name="loop", broker="none", database="none")
    measured = measure(cases, seeds=seeds)
    figures = means(measured)
    page = table(figures)
    print(page)
    run.figures |= judged(GOALS, figures, periods_s=PERIODS_S, seeds=len(seeds))
    against = compared(figures, scenarios=list(SCENARIOS), periods_s=PERIODS_S, seeds=len(seeds))
    run.figures |= against.figures
    run.notes["better_than_ours"] = against.notes
    stretch = judged(STRETCH, figures, periods_s=PERIODS_S, seeds=len(seeds))
    run.notes["stretch"] = {name: figure.as_json() for name, figure in stretch.items()}
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "table.md").write_text(page, encoding="utf-8")
    _write_all(measured, figures, FOLDER / "figures.csv")
    page_write(figures_read())
    draw_scenarios(figures, FOLDER, scenarios=list(SCENARIOS), periods_s=PERIODS_S)
    draw_trade_offs(measure_trade_offs(seeds=seeds), figures, FOLDER / "trade-offs.png")
    _plants(run, plants, drawing=drawing)
    run.write()


def _plants(run: Run, plants: int, *, drawing: int) -> None:
    """Measure on plants that nobody tuned on, and print all the figures of the run."""
    if plants:
        measured = measure_plants(plants, drawing=drawing)
        run.figures |= plant_figures(measured)
        run.notes["plants"] = {"drawing": drawing, "count": plants, "worst": worst_plants(measured, drawing)}
    for name, note in run.notes.items():
        print(f"{name}: {note}")
    run.print_table()


def _write_all(
    measured: Mapping[Case, Sequence[Figures]], figures: Mapping[Case, Figures], path: Path
) -> None:
    """Every figure of every case: the mean over the seeds, and the worst."""
    names = [field.name for field in fields(Figures)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["scenario", "period_s", "controller", "of", *names])
        for case, each in measured.items():
            head = [case.scenario, f"{case.period_s:g}", case.controller]
            average = asdict(figures[case])
            writer.writerow([*head, "mean", *(f"{average[name]:.5g}" for name in names)])
            writer.writerow(
                [*head, "worst", *(f"{max(getattr(one, name) for one in each):.5g}" for name in names)]
            )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.closed_loop")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS)
    parser.add_argument("--period", nargs="+", type=float, help="seconds between two ticks")
    parser.add_argument("--seeds", type=int, help=f"how many, from 1; else {SEEDS}")
    parser.add_argument("--controller", type=_controllers, help=f"of {','.join(CONTROLLERS)}")
    parser.add_argument("--plants", type=int, default=PLANTS, help="how many plants that nobody tuned on")
    parser.add_argument("--drawing", type=int, default=DRAWING, help="the seed of their drawing")
    parser.add_argument("--only-plants", action="store_true", help="nothing else; writes nothing")
    return parser.parse_args(arguments)


def _controllers(text: str) -> list[str]:
    """The named controllers and the bound, to which the ratios are."""
    names = text.split(",")
    if unknown := set(names) - set(CONTROLLERS):
        raise argparse.ArgumentTypeError(f"no controller {', '.join(sorted(unknown))}")
    return [name for name in CONTROLLERS if name in names or name == "bound"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
