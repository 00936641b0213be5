"""Readings into PostgreSQL and Redis: what a second of a fleet costs the process that takes them.

The points come as messages of ten, in batches of a second, as an inbox hands them over; then the means are
made. Processor time is that of this process alone; what PostgreSQL's own process takes is told beside it.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.record import Figure, Run
from edge.wire.codec import decode, encode
from edge.wire.messages import TelemetryBatch, TelemetryPoint
from tests.servers import postgres_server, redis_server

NODES = 500
DEVICES = 2
KEYS = ("P_kW", "Q_kvar", "V_L1_V", "T_cab_degC", "E_kWh")
MESSAGES_A_SECOND = 500
POINTS = DEVICES * len(KEYS)
SECONDS = 60
WARM = 10


def main() -> None:
    with ExitStack() as stack:
        os.environ["SGM_DATABASE_URL"] = stack.enter_context(postgres_server())
        os.environ["SGM_REDIS_URL"] = stack.enter_context(redis_server())
        os.environ["DJANGO_SETTINGS_MODULE"] = "smartgrid.settings"
        os.environ["SGM_SECRET_KEY"] = "only for this benchmark"
        os.environ["SGM_TOKEN_HASH_KEY"] = "only for this benchmark"
        os.environ["SGM_LOG_LEVEL"] = "ERROR"
        import django  # noqa: PLC0415 - settings must stand first
        from django.core.management import call_command  # noqa: PLC0415

        django.setup()
        call_command("migrate", verbosity=0)
        _measure()


def _measure() -> None:
    from django.db import connection  # noqa: PLC0415

    from devices_app.means import means_make  # noqa: PLC0415
    from devices_app.models import TelemetryMean, TelemetryReading  # noqa: PLC0415
    from devices_app.telemetry import ReceivedReadings, quarter_of, readings_record  # noqa: PLC0415

    node_ids = _fleet()
    backend_before = 0.0
    begin = quarter_of(datetime.now(UTC))
    run = Run(name="telemetry", broker="none", database="PostgreSQL")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backend = int(cursor.fetchone()[0])
    wall: list[float] = []
    mine: list[float] = []
    for second in range(WARM + SECONDS):
        at = begin + timedelta(seconds=second)
        batch = [
            ReceivedReadings(node_id, points, at)
            for node_id, points in zip(_turn(node_ids, second), _points(at, second), strict=False)
        ]
        began, used = time.monotonic(), time.process_time()
        readings_record(batch)
        if second == WARM - 1:
            backend_before = _cpu_s(backend)
        if second >= WARM:
            wall.append(time.monotonic() - began)
            mine.append(time.process_time() - used)
    count = TelemetryReading.objects.count()
    assert count == (WARM + SECONDS) * MESSAGES_A_SECOND * POINTS, count
    share = statistics.mean(mine)
    run.figures["core_at_5000_points_a_second"] = Figure(
        value=round(share, 3), unit="cores", n=SECONDS, goal="< 0.5", met=share < 0.5
    )
    rate = MESSAGES_A_SECOND * POINTS / statistics.mean(wall)
    run.figures["points_a_second_in_one_process"] = Figure(
        value=round(rate), unit="/s", n=SECONDS, goal=">= 5000", met=rate >= 5000
    )
    run.figures["core_of_postgresql_beside"] = Figure(
        value=round((_cpu_s(backend) - backend_before) / SECONDS, 3), unit="cores", n=SECONDS
    )
    again = time.monotonic()
    readings_record(batch)
    run.figures["batch_that_comes_again_ms"] = Figure(
        value=round((time.monotonic() - again) * 1e3, 1), unit="ms", n=1
    )
    assert TelemetryReading.objects.count() == count
    began = time.monotonic()
    means_make(now=begin + timedelta(minutes=18))
    run.figures["means_of_a_quarter_s"] = Figure(value=round(time.monotonic() - began, 2), unit="s", n=count)
    assert TelemetryMean.objects.count() == NODES * POINTS
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits"
            " WHERE inhparent = 'devices_app_telemetryreading'::regclass"
        )
        size = int(cursor.fetchone()[0])
    run.figures["bytes_a_point_on_disk"] = Figure(value=round(size / count, 1), unit="bytes", n=count)
    run.notes["batch"] = f"{MESSAGES_A_SECOND} messages of {POINTS} points, one batch a second"
    run.write()
    run.print_table()


def _cpu_s(pid: int) -> float:
    """Seconds of processor time a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _fleet() -> list[str]:
    from tests.factories import device_make, device_type_make, node_make, site_make  # noqa: PLC0415

    device_type_make()
    node_ids = []
    for number in range(NODES):
        node = node_make(site=site_make())
        node_ids.append(str(node.pk))
        for device in range(DEVICES):
            device_make(node=node, device_tag=f"DEV_{number}_{device}")
    return node_ids


def _turn(node_ids: list[str], second: int) -> list[str]:
    return [node_ids[(second + number) % NODES] for number in range(MESSAGES_A_SECOND)]


def _points(at: datetime, second: int) -> Iterator[list[TelemetryPoint]]:
    for number in range(MESSAGES_A_SECOND):
        node = (second + number) % NODES
        text = (at + timedelta(microseconds=number)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        batch = TelemetryBatch(
            points=[
                TelemetryPoint(
                    t=text, key=key, value=second + 0.125, unit="kW", device=f"DEV_{node}_{device}"
                )
                for device in range(DEVICES)
                for key in KEYS
            ]
        )
        # As they come off the wire: no two share their texts.
        yield decode(TelemetryBatch, encode(batch)).points


if __name__ == "__main__":
    main()
