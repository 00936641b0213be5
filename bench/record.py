"""What every benchmark shares: percentiles, the machine's description, the result file, the table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0..1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure; `goal` None where it is only for information."""

    value: float
    unit: str
    n: int
    goal: str | None = None
    met: bool | None = None
    floor: float | None = None

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def ratio(value: float, *, floor: float, at_most: float, n: int) -> Figure:
    """A figure as a multiple of the floor measured in the same run."""
    measured = round(value / floor, 2)
    return Figure(
        value=measured,
        unit="x floor",
        n=n,
        goal=f"<= {at_most:g}",
        met=measured <= at_most,
        floor=round(floor, 3),
    )


@dataclass(kw_only=True)
class Run:
    """One run of one benchmark, and its result file."""

    name: str
    broker: str
    database: str
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def write(self) -> Path:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        content = {
            "name": self.name,
            "commit": _commit(),
            "machine": _machine(self.broker, self.database),
            "started": self.started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "duration_s": round((datetime.now(UTC) - self.started).total_seconds()),
            "figures": {name: figure.as_json() for name, figure in self.figures.items()},
            "notes": self.notes,
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path

    def print_table(self) -> None:
        """Print the figures; the last line counts those with a goal."""
        for name, figure in self.figures.items():
            verdict = "" if figure.met is None else ("met" if figure.met else "MISSED")
            goal = f"goal {figure.goal}" if figure.goal else ""
            # Energies of a second are thousandths.
            value = f"{figure.value:10.4f}" if 0 < abs(figure.value) < 0.1 else f"{figure.value:10.2f}"
            print(f"{name:36} {value} {figure.unit:8} n={figure.n:<5} {goal:12} {verdict}")
        met = sum(figure.met is True for figure in self.figures.values())
        missed = sum(figure.met is False for figure in self.figures.values())
        print(f"{met} figures met, {missed} missed")


def spread(values: Sequence[float]) -> str:
    return (
        f"p50 {statistics.median(values):.2f}, p95 {percentile(values, 0.95):.2f},"
        f" p99 {percentile(values, 0.99):.2f} ms"
    )


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _machine(broker: str, database: str) -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "os": _os_name(),
        "python": platform.python_version(),
        "broker": broker,
        "database": database,
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _os_name() -> str:
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()
