"""What the quarter hours of a UTC day may hold, and which of them a range of local time covers."""

from __future__ import annotations

import math
import re
import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from edge.core.schedule import SLOT, slot_key
from smartgrid.errors import Invalid

SLOTS_A_DAY = 96
SLOT_KEY = re.compile(r"([01]\d|2[0-3]):(00|15|30|45)", re.ASCII)
# An error names a slot by as much of its key.
KEY_SHOWN = 32
# A range that is filled is at most a leap year long.
LONGEST_RANGE = timedelta(days=366)
# No zone is further from UTC, and none has ever jumped further.
FURTHEST_FROM_UTC = timedelta(hours=24)

Slots = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Member:
    """As much of a device as says which setpoints it takes."""

    tag: str
    minimum: float
    maximum: float


def slots_checked(slots: object, *, members: Sequence[Member]) -> Slots:
    """The slots with their values as they came, in the order of the day.

    `Invalid` names each that cannot be used: not a quarter hour, neither a finite number nor null, or outside
    the range of one of the members.
    """
    if not isinstance(slots, Mapping):
        raise Invalid.field("schedule", "an object of quarter hours and values is expected")
    if len(slots) > SLOTS_A_DAY:
        raise Invalid.field("schedule", f"a day has {SLOTS_A_DAY} quarter hours, these are {len(slots)}")
    errors: dict[str, list[str]] = {}
    for slot, value in slots.items():
        why = _refusal(slot, value, members)
        if why is not None:
            errors[f"schedule.{str(slot)[:KEY_SHOWN]}"] = [why]
    if errors:
        field, texts = next(iter(errors.items()))
        raise Invalid(f"{field}: {texts[0]}", errors=errors)
    return {slot: slots[slot] for slot in sorted(slots)}


def _refusal(slot: object, value: object, members: Sequence[Member]) -> str | None:
    if not isinstance(slot, str) or not SLOT_KEY.fullmatch(slot):
        return "Not a quarter hour, HH:00, HH:15, HH:30 or HH:45 from 00 to 23."
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "Neither a finite number nor null."
    if isinstance(value, float) and not math.isfinite(value):
        return "Neither a finite number nor null."
    if not members:
        return None
    lowest = max(members, key=lambda member: member.minimum)
    highest = min(members, key=lambda member: member.maximum)
    if value < lowest.minimum:
        return f"Below {lowest.minimum:g}, the least that {lowest.tag} takes."
    if value > highest.maximum:
        return f"Above {highest.maximum:g}, the most that {highest.tag} takes."
    return None


def quarter_hours(*, start: datetime, until: datetime, time_zone: str = "UTC") -> dict[date, list[str]]:
    """The slots a range covers, by UTC day: from `start` to before `until`, both on a quarter hour.

    With a UTC offset both are moments. Without one they are what a clock on the wall of `time_zone` shows,
    and a slot is covered if that clock, as the slot begins, shows something in between: where it is set back,
    the hour that comes twice is covered twice; what it skips is not there to be covered. `Invalid` for
    a range which is empty or longer than `LONGEST_RANGE`, and for an unknown zone.
    """
    if (start.tzinfo is None) != (until.tzinfo is None):
        raise Invalid.field("until", "either both ends have a UTC offset or neither")
    for name, end in (("start", start), ("until", until)):
        if end.minute % 15 or end.second or end.microsecond:
            raise Invalid.field(name, "a full quarter hour is expected")
    if until <= start:
        raise Invalid.field("until", "the range ends before it begins")
    if until - start > LONGEST_RANGE:
        raise Invalid.field("until", f"at most {LONGEST_RANGE.days} days are filled at once")
    try:
        zone = zoneinfo.ZoneInfo(time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Invalid.field("time_zone", "not a time zone, e.g. Europe/Amsterdam") from error
    try:
        covered = list(_covered(start, until, zone))
    except OverflowError as error:
        raise Invalid.field("until", "beyond the end of the calendar") from error
    if not covered:
        raise Invalid.field("until", f"no clock of {time_zone} ever shows a time in this range")
    days: dict[date, list[str]] = {}
    for moment in covered:
        days.setdefault(moment.date(), []).append(slot_key(moment))
    return days


def _covered(start: datetime, until: datetime, zone: zoneinfo.ZoneInfo) -> Iterator[datetime]:
    if start.tzinfo is not None:
        moment, end = start.astimezone(UTC), until.astimezone(UTC)
        while moment < end:
            yield moment
            moment += SLOT
        return
    moment = start.replace(tzinfo=UTC) - FURTHEST_FROM_UTC
    end = until.replace(tzinfo=UTC) + FURTHEST_FROM_UTC
    while moment < end:
        shown = moment.astimezone(zone).replace(tzinfo=None)
        if start <= shown < until:
            yield moment
        moment += SLOT
