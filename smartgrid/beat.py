"""Beat: starts periodic work as the database has it, once a period however many beats there are.

The scheduler of django-celery-beat reads the clock on the wall. Ours notices when that was set, so that no
task waits for as long as the clock was set back.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import structlog
from celery import Celery, schedules
from django.db import DatabaseError, InterfaceError, close_old_connections
from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry

from sites_app.periodic import (
    CRONTAB_GUARDED_S,
    PeriodicDefault,
    periodic_run_claim,
    periodic_tasks_off,
    periodic_tasks_sync,
)

log = structlog.stdlib.get_logger(__name__)

# A clock that moved by more than this against the one that nobody sets was set.
CLOCK_SET_S = 1.0


def defaults_of(app: Celery) -> dict[str, PeriodicDefault]:
    """The table of `smartgrid.celery`, each with what its task says of itself."""
    app.loader.import_default_modules()
    unknown = {name for name, entry in app.conf.beat_schedule.items() if entry["task"] not in app.tasks}
    for name in sorted(unknown):
        # No reason to start none of the others.
        log.error("periodic_task_unknown", task=name)
    return {
        name: _default(app, **entry) for name, entry in app.conf.beat_schedule.items() if name not in unknown
    }


def _default(app: Celery, *, task: str, schedule: Any, options: dict[str, Any]) -> PeriodicDefault:
    told = (app.tasks[task].__doc__ or "").strip()
    return PeriodicDefault(
        task=task,
        schedule=schedules.maybe_schedule(schedule),
        queue=options.get("queue", app.conf.task_default_queue),
        expires_s=options.get("expires"),
        description=told.partition("\n\n")[0],
    )


class OurEntry(ModelEntry):  # type: ignore[misc]
    """A periodic task that knows a last run in the future for what it is: the clock was set back since."""

    def is_due(self) -> Any:
        if self.model.enabled and (self.last_run_at - self._default_now()).total_seconds() > CLOCK_SET_S:
            return schedules.schedstate(is_due=True, next=self.guarded_s)
        return super().is_due()

    @property
    def guarded_s(self) -> float:
        """The seconds of which one run is enough."""
        if isinstance(self.schedule, schedules.crontab):
            return CRONTAB_GUARDED_S
        return float(self.schedule.run_every.total_seconds())


class Scheduler(DatabaseScheduler):  # type: ignore[misc]
    """`celery -A smartgrid beat` uses this one (`CELERY_BEAT_SCHEDULER`)."""

    Entry = OurEntry
    _clocks_apart: float | None = None

    def setup_schedule(self) -> None:
        """Nothing of the table overrides what an operator changed, as the library's own would."""
        periodic_tasks_sync(defaults=defaults_of(self.app))
        for trouble in periodic_tasks_off():
            log.warning("periodic_task_off", trouble=trouble)

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        apart = time.time() - time.monotonic()
        if self._clocks_apart is not None and abs(apart - self._clocks_apart) > CLOCK_SET_S:
            log.warning("clock_was_set", by_s=round(apart - self._clocks_apart, 1))
            # All that is planned was so by the former clock.
            self._heap = None
            self._last_full_sync = datetime.min  # noqa: DTZ901 - the library's are naive
        self._clocks_apart = apart
        return super().tick(*args, **kwargs)

    def apply_entry(self, entry: OurEntry, producer: Any = None) -> None:
        """Send the task, unless another beat has done so in this period."""
        try:
            close_old_connections()
            claimed = periodic_run_claim(name=entry.name, period_s=entry.guarded_s)
        except (DatabaseError, InterfaceError) as error:
            # No task of ours does anything without the database; the next period comes.
            log.warning("periodic_task_not_started", task=entry.name, error=str(error))
            return
        if not claimed:
            log.debug("periodic_task_started_elsewhere", task=entry.name)
            return
        super().apply_entry(entry, producer=producer)

    def schedule_changed(self) -> bool:
        """An operator's change counts whatever the clock said when it was made."""
        before = self._last_timestamp
        changed = super().schedule_changed()
        return bool(changed) or (before is not None and self._last_timestamp not in {None, before})

    def all_as_schedule(self) -> Any:
        try:
            return super().all_as_schedule()
        except (DatabaseError, InterfaceError) as error:
            if self._schedule is None:
                raise
            log.warning("periodic_tasks_unreadable", error=str(error))
            return self._schedule
