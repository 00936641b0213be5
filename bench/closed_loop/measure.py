"""All runs of the benchmark, on every core of the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from bench.closed_loop.bound import Bound
from bench.closed_loop.controllers import Controller, CyclicPid, Deadbeat, SimplePid, Task
from bench.closed_loop.figures import Figures, figures_of, mean
from bench.closed_loop.ours import Ours
from bench.closed_loop.runs import run
from bench.closed_loop.scenarios import SCENARIOS

CONTROLLERS: dict[str, Callable[[Task], Controller]] = {
    "ours": Ours,
    "ours-told": partial(Ours, knows_members=True),
    "bound": Bound,
    "bound-answering": partial(Bound, answers=True),
    "simple-pid .3/.15": partial(SimplePid, kp=0.3, ki=0.15),
    "simple-pid .6/.3": partial(SimplePid, kp=0.6, ki=0.3),
    "deadbeat": Deadbeat,
    "cyclic-pid": CyclicPid,
}
PEERS = ("simple-pid .3/.15", "simple-pid .6/.3", "deadbeat", "cyclic-pid")


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """What is measured together: one controller in one scenario at one period."""

    scenario: str
    period_s: float
    controller: str


def measure(cases: Sequence[Case], *, seeds: Sequence[int]) -> dict[Case, list[Figures]]:
    """The figures of each case, a run for each seed."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(partial(measure_case, seeds=seeds), cases)
        return dict(zip(cases, results, strict=True))


def measure_case(case: Case, *, seeds: Sequence[int]) -> list[Figures]:
    make = CONTROLLERS[case.controller]
    return [
        figures_of(run(SCENARIOS[case.scenario], make, period_s=case.period_s, seed=seed)) for seed in seeds
    ]


def means(figures: dict[Case, list[Figures]]) -> dict[Case, Figures]:
    return {case: mean(each) for case, each in figures.items()}
