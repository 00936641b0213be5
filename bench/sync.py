"""Desired state to thousands of nodes, and what they send: how long, how late, and what it costs.

    python -m bench.sync [--nodes N ...] [--all]

For each size a PostgreSQL as durable as in production, Redis, the broker and central's processes, all their
own, and one process with the nodes (`bench.sync_fleet`). First the floor: the same documents from a bare
publisher to the same fleet. Then the phases of `bench.sync_size`. Some minutes a size; with --all the
stretch of 10,000 nodes too.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import sync_plot
from bench.record import RESULTS, ROOT, Figure, Run, percentile

SIZES = (1000, 3000)
STRETCH = 10_000
# Fleet -> most seconds of a first synchronisation, and until all is consistent after the broker was gone.
GOALS = {3000: (30.0, 60.0), 10_000: (90.0, 120.0)}
CHANGE_GOAL_S = 2.0
LAG_GOAL_S = 5.0
MEMORY_GOAL_MB = 1000.0
SIZE_WITHIN_S = 900.0

Seen = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, nargs="+", help="sizes of the fleet; default 1000 3000")
    parser.add_argument("--all", action="store_true", help="the stretch of 10,000 nodes too")
    parser.add_argument("--profile", type=Path, help="a directory for stacks of central's processes (py-spy)")
    options = parser.parse_args()
    sizes = options.nodes or ([*SIZES, STRETCH] if options.all else [*SIZES])
    run = Run(name="sync", broker="", database="")
    seen = {nodes: _measure(nodes, options.profile) for nodes in sizes}
    run.broker, run.database = seen[sizes[0]]["broker"], seen[sizes[0]]["database"]
    for nodes, what in seen.items():
        _note(run, nodes, what)
    _note_growth(run, seen)
    run.write()
    (RESULTS / "sync.svg").write_text(sync_plot.drawing(seen), encoding="utf-8")
    run.print_table()
    sys.exit(any(figure.met is False for figure in run.figures.values()))


def _measure(nodes: int, profile: Path | None) -> Seen:
    """One size in a process of its own: what it saw, as far as it came."""
    with tempfile.TemporaryDirectory(prefix="sgm-sync-result-") as name:
        result = Path(name) / "seen.json"
        argv = [sys.executable, "-m", "bench.sync_size", str(nodes), str(result)]
        if profile is not None:
            argv += ["--profile", str(profile.resolve())]
        subprocess.run(argv, cwd=ROOT, timeout=SIZE_WITHIN_S, check=False)
        seen: Seen = json.loads(result.read_text(encoding="utf-8"))
    return seen


def _note(run: Run, nodes: int, seen: Seen) -> None:
    sync_goal, restart_goal = GOALS.get(nodes, (None, None))
    has_goals = nodes in GOALS
    documents = seen["documents"]
    figures = run.figures
    if seen["sync_s"]:
        floor_s = seen["floor"]["complete_s"]
        figures[f"first_sync_{nodes}"] = _figure(
            seen["sync_s"], "s", documents, at_most=sync_goal, floor=round(floor_s, 2)
        )
        figures[f"first_sync_at_nodes_{nodes}"] = _figure(seen["sync_nodes_s"], "s", documents)
        figures[f"first_sync_ratio_{nodes}"] = _figure(seen["sync_s"] / floor_s, "x floor", documents)
    if changes := seen["change_s"]:
        figures[f"change_p50_{nodes}"] = _figure(statistics.median(changes), "s", len(changes))
        goal = CHANGE_GOAL_S if has_goals else None
        figures[f"change_p99_{nodes}"] = _figure(percentile(changes, 0.99), "s", len(changes), at_most=goal)
        at_node = percentile(seen["change_node_s"], 0.99)
        figures[f"change_at_node_p99_{nodes}"] = _figure(at_node, "s", len(changes))
    for name in ("telemetry", "heartbeat"):
        if lags := seen[f"{name}_lag_s"]:
            goal = LAG_GOAL_S if has_goals else None
            figures[f"{name}_lag_p50_{nodes}"] = _figure(statistics.median(lags), "s", len(lags))
            figures[f"{name}_lag_p99_{nodes}"] = _figure(percentile(lags, 0.99), "s", len(lags), at_most=goal)
    if sent := seen["telemetry_sent"]:
        # More than were sent would be as wrong as fewer.
        wrong = abs(sent - seen["telemetry_stored"])
        figures[f"telemetry_lost_{nodes}"] = _figure(wrong, "rows", sent, at_most=0 if has_goals else None)
    for how, took in seen["restart"].items():
        figures[f"broker_{how}_connected_{nodes}"] = _figure(took["connected_s"], "s", nodes)
        figures[f"broker_{how}_consistent_{nodes}"] = _figure(
            took["consistent_s"], "s", nodes, at_most=restart_goal
        )
    if seen["memory_mb"]:
        goal = MEMORY_GOAL_MB if has_goals else None
        figures[f"central_memory_{nodes}"] = _figure(seen["memory_mb"], "MB", 1, at_most=goal)
    if seen["failed"]:
        # The phase that did not come to its end: its figure is missed whatever the others say.
        figures[f"failed_{nodes}"] = Figure(value=1, unit="phase", n=1, goal="none", met=False)
    run.notes[str(nodes)] = {
        key: seen[key]
        for key in ("failed", "floor", "cpu_s", "memory_of_each_mb", "progress", "restart", "fleet")
    }


def _figure(
    value: float, unit: str, n: int, *, at_most: float | None = None, floor: float | None = None
) -> Figure:
    measured = round(value, 3)
    return Figure(
        value=measured,
        unit=unit,
        n=n,
        goal=None if at_most is None else f"<= {at_most:g}",
        met=None if at_most is None else measured <= at_most,
        floor=floor,
    )


def _note_growth(run: Run, seen: Mapping[int, Seen]) -> None:
    """How a first synchronisation grows with the fleet: 1 where twice the nodes take twice as long."""
    took = {nodes: what["sync_s"] for nodes, what in seen.items() if what["sync_s"]}
    if len(took) > 1:
        floor = {nodes: seen[nodes]["floor"]["complete_s"] for nodes in took}
        run.figures["growth_exponent"] = _figure(
            growth_exponent(took), "", len(took), floor=round(growth_exponent(floor), 3)
        )


def growth_exponent(took: Mapping[int, float]) -> float:
    """The slope of the straight line through sizes and times, both logarithmic."""
    sizes = [math.log(nodes) for nodes in took]
    slope, _ = statistics.linear_regression(sizes, [math.log(seconds) for seconds in took.values()])
    return slope


if __name__ == "__main__":
    main()
