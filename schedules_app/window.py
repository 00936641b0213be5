"""Which days' schedules the nodes should have: today and the 35 days after it, in UTC.

A day that is over stays for an hour, since a node's clock may be behind. Later days wait in the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

DAYS_AHEAD = 35
# How long a day's documents stay after its end.
STAYS = timedelta(hours=1)
# When the broker may forget a document by itself, should nobody have taken it away: this long after the day.
EXPIRES = timedelta(hours=48)


@dataclass(frozen=True, slots=True)
class Window:
    """The first and the last UTC day whose documents the nodes should have."""

    first: date
    last: date

    def __contains__(self, day: date) -> bool:
        return self.first <= day <= self.last


def window_at(now: datetime) -> Window:
    utc = now.astimezone(UTC)
    return Window(first=(utc - STAYS).date(), last=utc.date() + timedelta(days=DAYS_AHEAD))


def expiry_of(day: date) -> datetime:
    """When the broker may forget the documents of a day."""
    return datetime.combine(day, time(), tzinfo=UTC) + timedelta(days=1) + EXPIRES


def is_over(day: date, *, now: datetime) -> bool:
    return day < now.astimezone(UTC).date()
