"""`make bench-latency`: from a PUT to the register and to the answer, beside the floor of the same run.

Product and floor take turns, one of each leg an iteration, so that both meet the same machine: its noise, and
caches that others have filled meanwhile.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TextIO

from bench.floor import Floor, running_floor
from bench.record import Figure, Run, percentile, ratio, spread
from bench.silent import silent_nodes
from bench.system import GAPLESS, Client, System, running_system

REQUESTS = 500
WARM_UP = 60
P50_GOAL, P99_GOAL, SILENT_GOAL = 2.0, 4.0, 1.5


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sgm-bench-") as name:
        var = Path(name)
        with running_system(var) as system:
            broker = "mosquitto" if system.demo["mqtt_isolation"] else "iotcore"
            run = Run(name="latency", broker=broker, database="SQLite")
            with running_floor(var, redis_url=system.demo["redis_url"]) as floor:
                _latency(run, system, floor)
            run.print_table()
            _silent(run, system)
        run.print_table()
        run.write()


def _latency(run: Run, system: System, floor: Floor) -> None:
    client = Client(system.demo)
    to_answer: list[float] = []
    to_register: list[float] = []
    legs: dict[str, list[float]] = {"web": [], "celery": [], "mqtt": [], "modbus": []}
    with _writes(system) as writes:
        for number in range(REQUESTS + WARM_UP):
            # A value it does not have yet, so that each request is a write.
            value = 20.0 + number % 60
            began = time.monotonic()
            answer = client.curtail(value)
            ended = time.monotonic()
            assert answer["status"] == "success", answer
            sample = {
                "web": floor.web_ms(),
                "celery": floor.celery_ms(),
                "mqtt": floor.mqtt_ms(),
                "modbus": floor.modbus_ms(value),
            }
            written = _written(writes.readlines())
            if number < WARM_UP:
                continue
            to_answer.append((ended - began) * 1e3)
            to_register.append((written - began) * 1e3)
            for leg, took in sample.items():
                legs[leg].append(took)
    client.close()
    medians = {leg: statistics.median(values) for leg, values in legs.items()}
    composed = sum(medians.values())
    for leg, median in medians.items():
        run.figures[f"floor_{leg}_p50"] = Figure(value=round(median, 3), unit="ms", n=REQUESTS)
    run.figures["floor_p50"] = Figure(value=round(composed, 3), unit="ms", n=REQUESTS)
    for name, values in (("put_to_200", to_answer), ("put_to_register", to_register)):
        for share, label in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
            value = round(percentile(values, share), 2)
            run.figures[f"{name}_{label}"] = Figure(value=value, unit="ms", n=REQUESTS)
        run.figures[f"{name}_p50_ratio"] = ratio(
            statistics.median(values), floor=composed, at_most=P50_GOAL, n=REQUESTS
        )
        run.figures[f"{name}_p99_ratio"] = ratio(
            percentile(values, 0.99), floor=composed, at_most=P99_GOAL, n=REQUESTS
        )
    run.notes["spread"] = {"put_to_200": spread(to_answer), "put_to_register": spread(to_register)}


def _writes(system: System) -> TextIO:
    """The simulators' record of writes, from here on."""
    file = system.writes.open(encoding="ascii")
    file.seek(0, 2)
    return file


def _written(lines: list[str]) -> float:
    moments = [float(line.split()[1]) for line in lines if line.startswith(f"{GAPLESS} ")]
    assert len(moments) == 1, f"expected one write, saw {lines}"
    return moments[0]


def _silent(run: Run, system: System) -> None:
    """Requests to a live node, without and with fifty under way to nodes that never answer."""
    result = silent_nodes(system)
    alone, beside = percentile(result.alone_ms, 0.99), percentile(result.beside_ms, 0.99)
    n = len(result.beside_ms)
    run.figures["live_node_alone_p99"] = Figure(value=round(alone, 2), unit="ms", n=n)
    run.figures["live_node_beside_silent_p99"] = Figure(value=round(beside, 2), unit="ms", n=n)
    figure = ratio(beside, floor=alone, at_most=SILENT_GOAL, n=n)
    run.figures["silent_nodes_p99_ratio"] = Figure(
        value=figure.value, unit="x alone", n=n, goal=figure.goal, met=figure.met, floor=figure.floor
    )
    run.notes["silent"] = {
        "nodes": result.nodes,
        "requests_under_way": result.under_way,
        "answered_unknown": result.answered_unknown,
        "alone": spread(result.alone_ms),
        "beside": spread(result.beside_ms),
    }


if __name__ == "__main__":
    main()
