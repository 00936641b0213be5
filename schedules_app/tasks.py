"""Celery tasks: fetch, call, return. Each may run twice without harm."""

from __future__ import annotations

from celery import shared_task

from schedules_app.services import schedules_roll


@shared_task(name="schedules_app.tasks.roll_schedules")  # type: ignore[untyped-decorator]
def roll_schedules() -> None:
    """Let days enter the window that nodes are told of, and leave it."""
    schedules_roll()
