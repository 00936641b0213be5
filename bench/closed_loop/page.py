"""The table in docs/closed-loop.md, from the figures that a whole run has kept.

`python -m bench.closed_loop.page` writes it anew without measuring.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from bench.closed_loop.figures import Figures
from bench.closed_loop.measure import Case
from bench.closed_loop.pictures import best_peer
from bench.closed_loop.scenarios import SCENARIOS
from bench.record import RESULTS, ROOT

PAGE = ROOT / "docs" / "closed-loop.md"
KEPT = RESULTS / "closed_loop" / "figures.csv"
BEGIN, END = "<!-- figures: make bench-loop -->", "<!-- end of figures -->"
# Less is no violation of which a ratio would say anything.
NO_VIOLATION_KWH = 0.0005
# Who is off for longer is where it cannot or shall not be otherwise, and does not settle.
SETTLES_WITHIN_S = 30.0
HEADINGS = (
    "",
    "what happens",
    "ours, kWh",
    "bound, kWh",
    "best peer, kWh",
    "ours, x bound",
    "settles, s",
    "lost, kWh",
)


def figures_read(path: Path = KEPT) -> dict[Case, Figures]:
    """The means over all seeds, as a whole run has kept them."""
    names = [field.name for field in fields(Figures)]
    with path.open(encoding="utf-8", newline="") as file:
        return {
            Case(row["scenario"], float(row["period_s"]), row["controller"]): Figures(
                **{name: float(row[name]) for name in names}
            )
            for row in csv.DictReader(file)
            if row["of"] == "mean"
        }


def page_table(figures: Mapping[Case, Figures]) -> str:
    """A line for each scenario; where two numbers stand they are of the shortest and the longest period."""
    periods_s = sorted({case.period_s for case in figures})
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- | --- |" + " ---: |" * (len(HEADINGS) - 2)]
    for name in dict.fromkeys(case.scenario for case in figures):
        ours, bound = ([figures[Case(name, s, who)] for s in periods_s] for who in ("ours", "bound"))
        peers = [figures[Case(name, s, best_peer(figures, scenario=name, period_s=s))] for s in periods_s]
        ratios = [
            f"{one.violation_kwh / other.violation_kwh:.2f}"
            if other.violation_kwh >= NO_VIOLATION_KWH
            else ""
            for one, other in zip(ours, bound, strict=True)
        ]
        cells = (
            name,
            SCENARIOS[name].title,
            *(_pair([f"{one.violation_kwh:.3f}" for one in each]) for each in (ours, bound, peers)),
            _pair(ratios),
            _pair(["-" if one.settling_s > SETTLES_WITHIN_S else f"{one.settling_s:.1f}" for one in ours]),
            _pair([f"{one.lost_kwh:.3f}" for one in ours]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _pair(numbers: list[str]) -> str:
    """Once, if all are the same."""
    return " / ".join(numbers if len(set(numbers)) > 1 else numbers[:1])


def page_write(figures: Mapping[Case, Figures], page: Path = PAGE) -> None:
    """Put the table between the page's two marks; what is around them stays."""
    before, found, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{page.name} has no place for the figures: {BEGIN} ... {END}")
    page.write_text(f"{before}{BEGIN}\n\n{page_table(figures)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    page_write(figures_read())
    sys.exit(0)
