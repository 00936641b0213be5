"""The figures as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from bench.closed_loop.figures import Figures
from bench.closed_loop.measure import Case
from bench.closed_loop.scenarios import SCENARIOS

HEADINGS = (
    "violation kWh",
    "x bound",
    "longest s",
    "overshoot %",
    "settling s",
    "IAE/Pn s",
    "lost kWh",
    "travel %",
    "writes",
)


def table(figures: Mapping[Case, Figures]) -> str:
    """One Markdown table for each scenario and period, in the order of the cases."""
    blocks = []
    for (scenario, period_s), group in groupby(figures, key=lambda case: (case.scenario, case.period_s)):
        cases = list(group)
        bound = figures.get(Case(scenario, period_s, "bound"))
        lines = [
            f"**{scenario}** at {period_s:g} s: {SCENARIOS[scenario].title}",
            "",
            f"| {'controller':17} | " + " | ".join(f"{heading:>13}" for heading in HEADINGS) + " |",
            f"|{'-' * 19}|" + f"{'-' * 14}:|" * len(HEADINGS),
        ]
        for case in cases:
            cells = " | ".join(f"{cell:>13}" for cell in _cells(figures[case], bound))
            lines.append(f"| {case.controller:17} | {cells} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _cells(figures: Figures, bound: Figures | None) -> tuple[str, ...]:
    has_ratio = bound is not None and bound.violation_kwh >= 0.0005
    return (
        f"{figures.violation_kwh:.4f}",
        f"{figures.violation_kwh / bound.violation_kwh:.3f}" if bound is not None and has_ratio else "",
        f"{figures.longest_s:.1f}",
        f"{figures.overshoot_pct:.2f}",
        f"{figures.settling_s:.1f}",
        f"{figures.iae_s:.2f}",
        f"{figures.lost_kwh:.4f}",
        f"{figures.travel_pct:.0f}",
        f"{figures.writes:.0f}",
    )
