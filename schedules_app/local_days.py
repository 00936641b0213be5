"""A site's day as the clock on its wall shows it: its quarter hours, and what is planned in them.

Schedules are stored by UTC day. A local day lies in one or two of those, and has 92 quarter hours where the
clock is set forward, 100 where it is set back.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache

from edge.core.schedule import SLOT
from schedules_app.models import Schedule
from schedules_app.slots import Slots, quarter_hours
from sites_app.models import Site

# The quarter hours of a day with their values, None for the default.
Values = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Quarter:
    """A quarter hour of a local day: where it is stored, and what the site's clock shows.

    `offset` is the clock's distance from UTC then: it tells the two hours apart that an autumn night has.
    """

    begins: datetime
    utc_day: date
    key: str
    shown: str
    offset: timedelta

    @property
    def ends(self) -> datetime:
        return self.begins + SLOT

    @property
    def hour(self) -> str:
        return self.shown[:2]

    @property
    def minute(self) -> str:
        return self.shown[3:]


@lru_cache(maxsize=512)
def quarters_of(day: date, *, time_zone: str) -> tuple[Quarter, ...]:
    """The quarter hours of this day on a clock in `time_zone`, in the order in which they come."""
    midnight = datetime.combine(day, time())
    covered = quarter_hours(start=midnight, until=midnight + timedelta(days=1), time_zone=time_zone)
    zone = zoneinfo.ZoneInfo(time_zone)
    return tuple(_quarter(utc_day, key, zone) for utc_day, keys in covered.items() for key in keys)


def _quarter(utc_day: date, key: str, zone: zoneinfo.ZoneInfo) -> Quarter:
    begins = datetime.combine(utc_day, time.fromisoformat(key), tzinfo=UTC)
    local = begins.astimezone(zone)
    return Quarter(begins, utc_day, key, f"{local:%H:%M}", local.utcoffset() or timedelta())


def local_today(site: Site, *, now: datetime) -> date:
    """The day that the site's clock shows."""
    return now.astimezone(zoneinfo.ZoneInfo(site.time_zone)).date()


def stored_days(
    *, site: Site, category: str, quarters: Iterable[Quarter], lock: bool = False
) -> dict[date, Schedule]:
    """The schedules in which these quarter hours lie, by UTC day; those that there are."""
    rows = Schedule.objects.filter(
        site=site, category=category, valid_on__in={quarter.utc_day for quarter in quarters}
    )
    if lock:
        rows = rows.select_for_update(of=("self",))
    return {row.valid_on: row for row in rows.order_by("valid_on")}


def values_in(quarters: Iterable[Quarter], stored: Mapping[date, Schedule]) -> Values:
    """What is planned in each of these quarter hours."""
    return tuple(
        stored[quarter.utc_day].schedule.get(quarter.key) if quarter.utc_day in stored else None
        for quarter in quarters
    )


def slots_changed(
    quarters: Iterable[Quarter], before: Values, after: Values
) -> dict[date, dict[str, float | None]]:
    """By UTC day the slots that differ, with what they become."""
    changed: dict[date, Slots] = {}
    for quarter, was, becomes in zip(quarters, before, after, strict=True):
        if was != becomes:
            changed.setdefault(quarter.utc_day, {})[quarter.key] = becomes
    return changed


@dataclass(frozen=True, slots=True)
class ChangedRange:
    """Quarter hours in a row that went from one value to another; None is the default."""

    start: datetime
    until: datetime
    was: float | None
    becomes: float | None


def ranges_changed(quarters: Iterable[Quarter], before: Values, after: Values) -> Iterator[ChangedRange]:
    """What differs, with equal changes that follow each other told as one."""
    open_range: ChangedRange | None = None
    for quarter, was, becomes in zip(quarters, before, after, strict=True):
        if was == becomes:
            continue
        follows = (
            open_range is not None
            and open_range.until == quarter.begins
            and (open_range.was, open_range.becomes) == (was, becomes)
        )
        if open_range is not None and not follows:
            yield open_range
        start = open_range.start if open_range is not None and follows else quarter.begins
        open_range = ChangedRange(start, quarter.ends, was, becomes)
    if open_range is not None:
        yield open_range
