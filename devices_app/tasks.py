"""Celery tasks: fetch, call, return. Each may run twice without harm."""

from __future__ import annotations

from datetime import UTC, datetime

from celery import shared_task

from devices_app import means
from devices_app.watching import devices_watch


@shared_task(name="devices_app.tasks.telemetry_partitions_keep")  # type: ignore[untyped-decorator]
def telemetry_partitions_keep() -> None:
    """Make the days of the history that are to come, before any reading needs them."""
    means.partitions_keep(now=datetime.now(UTC))


@shared_task(name="devices_app.tasks.telemetry_means_make")  # type: ignore[untyped-decorator]
def telemetry_means_make() -> None:
    """Make the means of quarter hours that are over, and anew where readings came late."""
    means.means_make(now=datetime.now(UTC))


@shared_task(name="devices_app.tasks.telemetry_retain")  # type: ignore[untyped-decorator]
def telemetry_retain() -> None:
    """Let go of readings and means that are older than they are kept."""
    means.telemetry_retain(now=datetime.now(UTC))


@shared_task(name="devices_app.tasks.watch_devices")  # type: ignore[untyped-decorator]
def watch_devices() -> None:
    """Raise alarms for devices of which nothing is measured any more, and clear them."""
    devices_watch(now=datetime.now(UTC))
