"""Fifteen-minute slots of a UTC day, and the value in force.

All slots are UTC: 96 each day, whatever the site's time zone does. A key is one quarter hour, not the start
of a longer stretch; a missing or null slot means the device's default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

SLOT = timedelta(minutes=15)
SLOT_S = SLOT.total_seconds()


@dataclass(frozen=True, slots=True)
class Schedule:
    """A category's days: UTC date -> `HH:MM` of a slot's start -> value. Null slots are left out."""

    days: Mapping[date, Mapping[str, float]] = field(default_factory=dict)


NO_SCHEDULE = Schedule()


def slot_key(utc: datetime) -> str:
    return f"{utc.hour:02d}:{utc.minute - utc.minute % 15:02d}"


def slot_start(utc: datetime) -> datetime:
    """When the quarter hour this moment lies in began."""
    return utc.replace(minute=utc.minute - utc.minute % 15, second=0, microsecond=0)


def slot_end(utc: datetime) -> datetime:
    """The quarter hour after this moment."""
    start = slot_start(utc)
    return start + SLOT if start <= datetime.max.replace(tzinfo=UTC) - SLOT else start


def value_at(schedule: Schedule, utc: datetime) -> float | None:
    """The value of the slot this moment lies in; None where it is missing, or is not a finite number."""
    day = schedule.days.get(utc.date())
    value = None if day is None else day.get(slot_key(utc))
    return value if value is not None and math.isfinite(value) else None
