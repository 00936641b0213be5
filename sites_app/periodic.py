"""Periodic work: what of our table stands in the console, what operators made of it, and who starts it when.

The table of defaults is `app.conf.beat_schedule` (`smartgrid.celery`). Beat works from the database's copy,
whose periods operators change in the console.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from celery import schedules
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from sites_app.models import PeriodicRun

log = structlog.stdlib.get_logger(__name__)

# A beat that is a little early is not a second one: the guard lets go after this part of the period.
GUARDED_PART = 0.9
# What is due by the clock on the wall is so once a minute at most.
CRONTAB_GUARDED_S = 55.0
# A period this many times our own is as good as none.
TOO_LONG = 10
# Units an operator reads easily, and their seconds; the longest that fits is used.
_UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodicDefault:
    """One entry of our table. `expires_s`: a run that waited so long in its queue is dropped; None: none."""

    task: str
    schedule: schedules.schedule
    queue: str
    expires_s: int | None = None
    description: str = ""


def periodic_run_claim(*, name: str, period_s: float) -> bool:
    """Tell whether to start this work now: one of any number of beats is told so in each period.

    All is judged by the database's clock. Where that was set back, the last run lies in the future, and the
    next to ask starts the work.
    """
    now = Now()
    due = (
        Q(ran_at=None)
        | Q(ran_at__lte=now - timedelta(seconds=period_s * GUARDED_PART))
        | Q(ran_at__gt=now + timedelta(seconds=1))
    )
    if PeriodicRun.objects.filter(due, name=name).update(ran_at=now):
        return True
    # Not due, or an operator's own task which nobody has started yet.
    _, is_new = PeriodicRun.objects.get_or_create(name=name, defaults={"ran_at": now})
    return is_new


def periodic_tasks_sync(*, defaults: Mapping[str, PeriodicDefault]) -> None:
    """Bring the console's periodic tasks in line with our table; any number of times, and by two at once.

    What is new is added, what left the table is removed, and a default that changed is taken over: all unless
    an operator has changed the period. Whether a task is enabled is the operators' alone, as are tasks of
    their own.
    """
    for name, default in defaults.items():
        with transaction.atomic():
            _sync_one(name, default)
    gone = PeriodicRun.objects.exclude(default="").exclude(name__in=defaults)
    for run in gone:
        with transaction.atomic():
            PeriodicTask.objects.filter(name=run.name).delete()
            run.delete()
        log.info("periodic_task_removed", task=run.name)


def _sync_one(name: str, default: PeriodicDefault) -> None:
    period = _in_words(default.schedule)
    kind, schedule = _stored(default.schedule)
    ours = {
        "task": default.task,
        "queue": default.queue,
        "expire_seconds": default.expires_s,
        "description": default.description,
    }
    run, _ = PeriodicRun.objects.get_or_create(name=name)
    # Another beat that starts at this moment waits here, and then finds all done.
    run = PeriodicRun.objects.select_for_update().get(pk=run.pk)
    row, is_new = PeriodicTask.objects.get_or_create(name=name, defaults={**ours, kind: schedule})
    changed = {field: value for field, value in ours.items() if getattr(row, field) != value}
    if not is_new and run.default != period and run.default in {"", _in_words(row.schedule)}:
        changed |= {"interval": None, "crontab": None, kind: schedule}
    if changed:
        for field, value in changed.items():
            setattr(row, field, value)
        row.save()
    if is_new or changed:
        log.info("periodic_task_synchronised", task=name, is_new=is_new, fields=sorted(changed))
    if run.default != period:
        run.default = period
        run.save(update_fields=["default"])


def periodic_tasks_off() -> list[str]:
    """What keeps our periodic work from being done, one sentence each; empty where all is as it should be."""
    found = []
    tasks = {row.name: row for row in PeriodicTask.objects.select_related("interval", "crontab")}
    for run in PeriodicRun.objects.exclude(default="").order_by("name"):
        row = tasks.get(run.name)
        if row is None:
            found.append(f"'{run.name}' is missing; it comes back when beat is started again")
        elif not row.enabled:
            found.append(f"'{run.name}' is disabled")
        elif _seconds(_in_words(row.schedule)) > TOO_LONG * _seconds(run.default):
            found.append(f"'{run.name}' runs {_in_words(row.schedule)} instead of {run.default}")
    return found


def _stored(schedule: schedules.schedule) -> tuple[str, Any]:
    """The field of a periodic task and the row to put there."""
    if isinstance(schedule, schedules.crontab):
        crontab = CrontabSchedule.from_schedule(schedule)
        crontab.save()
        return "crontab", crontab
    every, unit = _every(schedule)
    interval = IntervalSchedule.objects.filter(every=every, period=unit).first()
    return "interval", interval or IntervalSchedule.objects.create(every=every, period=unit)


def _every(schedule: schedules.schedule) -> tuple[int, str]:
    seconds = round(schedule.run_every.total_seconds())
    unit, length = next((unit, length) for unit, length in _UNITS if seconds % length == 0)
    return seconds // length, unit


def _in_words(schedule: schedules.schedule) -> str:
    """A period as people read it, the same for equal periods however they are stored."""
    if isinstance(schedule, schedules.crontab):
        return (
            f"at {schedule._orig_minute} {schedule._orig_hour} {schedule._orig_day_of_month}"  # noqa: SLF001 - as the library's own `from_schedule` reads them
            f" {schedule._orig_month_of_year} {schedule._orig_day_of_week}"  # noqa: SLF001
        )
    every, unit = _every(schedule)
    return f"every {every} {unit}"


def _seconds(words: str) -> float:
    """Of a period in words; 0 where it is told by the clock on the wall, which is compared with nothing."""
    match words.split():
        case ["every", every, unit]:
            return int(every) * dict(_UNITS)[unit]
        case _:
            return 0.0
