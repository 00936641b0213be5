"""Celery tasks: fetch, call, return. Each may run twice without harm."""

from __future__ import annotations

from datetime import UTC, datetime

from celery import shared_task

from devices_app import means


@shared_task(name="devices_app.tasks.telemetry_partitions_keep")  # type: ignore[untyped-decorator]
def telemetry_partitions_keep() -> None:
    means.partitions_keep(now=datetime.now(UTC))


@shared_task(name="devices_app.tasks.telemetry_means_make")  # type: ignore[untyped-decorator]
def telemetry_means_make() -> None:
    means.means_make(now=datetime.now(UTC))


@shared_task(name="devices_app.tasks.telemetry_retain")  # type: ignore[untyped-decorator]
def telemetry_retain() -> None:
    means.telemetry_retain(now=datetime.now(UTC))
