"""Celery tasks: fetch, call, return. Each may run twice without harm."""

from __future__ import annotations

from celery import shared_task

from schedules_app.services import schedules_roll, slots_watch


@shared_task(name="schedules_app.tasks.roll_schedules")  # type: ignore[untyped-decorator]
def roll_schedules() -> None:
    """Let days enter the window that nodes are told of, and leave it."""
    schedules_roll()


@shared_task(name="schedules_app.tasks.watch_slots")  # type: ignore[untyped-decorator]
def watch_slots() -> None:
    """Raise an alarm for a slot that begins within five minutes on a node that has not confirmed it."""
    slots_watch()
