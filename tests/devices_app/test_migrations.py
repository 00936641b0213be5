"""What migrations make of rows that are there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from devices_app import telemetry
from devices_app.means import partitions_keep
from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.messages import TelemetryPoint
from tests.factories import device_error_make, device_make

BEFORE_TELEMETRY = [
    ("control_app", "0003_device_errors_outlive_devices_node_events"),
    ("devices_app", "0002_retirement_bounds_owners"),
]
BEFORE = [("control_app", "0001_initial"), ("devices_app", "0001_initial")]


def migrate(targets: list[tuple[str, str]]) -> None:
    MigrationExecutor(connection).migrate(targets)


@pytest.fixture
def latest(transactional_db) -> Iterator[list[tuple[str, str]]]:
    leaves = MigrationExecutor(connection).loader.graph.leaf_nodes()
    yield leaves
    migrate(leaves)


def test_devices_that_are_there_keep_the_id_their_nodes_know_them_by(latest):
    device = device_make(device_tag="INV_01")
    device_error_make(device=device, error="no answer")
    migrate(BEFORE)
    migrate(latest)
    device.refresh_from_db()
    assert device.config_id == device.pk
    error = device.error_logs.get()
    assert (error.site, error.device_tag, error.error) == (device.site, "INV_01", "no answer")


def test_telemetry_comes_and_goes_and_leaves_all_else(latest, no_redis):
    device = device_make(device_tag="INV_01")
    device_error_make(device=device, error="no answer")
    migrate(BEFORE_TELEMETRY)
    assert not [name for name in connection.introspection.table_names() if "telemetry" in name]
    migrate(latest)
    device.refresh_from_db()
    assert device.error_logs.get().error == "no answer"
    telemetry._days_there.clear()
    now = timezone.now()
    point = TelemetryPoint(t=now.isoformat(), key="P_kW", value=1.5, device="INV_01")
    readings_record([ReceivedReadings(str(device.node_id), [point], now)])
    partitions_keep(now=now)
    migrate(BEFORE_TELEMETRY)
    assert not [name for name in connection.introspection.table_names() if "telemetry" in name]
