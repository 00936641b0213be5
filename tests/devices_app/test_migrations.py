"""What migrations make of rows that are there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from tests.factories import device_error_make, device_make

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
