"""Ninety-six slots of a UTC day."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import pytest

from edge.core.schedule import NO_SCHEDULE, SLOT, Schedule, slot_end, slot_key, value_at

DAY = date(2026, 3, 2)


def at(hour: int, minute: int, second: int = 0, microsecond: int = 0) -> datetime:
    return datetime(2026, 3, 2, hour, minute, second, microsecond, tzinfo=UTC)


@pytest.mark.parametrize(
    ("utc", "key"),
    [
        (at(0, 0), "00:00"),
        (at(0, 14, 59, 999999), "00:00"),
        (at(0, 15), "00:15"),
        (at(9, 59, 59), "09:45"),
        (at(23, 45), "23:45"),
        (at(23, 59, 59, 999999), "23:45"),
    ],
)
def test_key_is_the_start_of_the_quarter_hour(utc, key):
    assert slot_key(utc) == key


def test_day_has_ninety_six_slots():
    keys = {slot_key(at(0, 0) + n * timedelta(minutes=1)) for n in range(24 * 60)}
    assert len(keys) == 96


def test_key_is_one_quarter_hour_not_the_start_of_a_longer_stretch():
    schedule = Schedule({DAY: {"10:00": 70.0}})
    assert value_at(schedule, at(10, 14, 59)) == 70.0
    assert value_at(schedule, at(10, 15)) is None


def test_missing_day_has_no_value():
    assert value_at(NO_SCHEDULE, at(10, 0)) is None
    assert value_at(Schedule({date(2026, 3, 3): {"10:00": 70.0}}), at(10, 0)) is None


def test_zero_is_a_value():
    assert value_at(Schedule({DAY: {"10:00": 0.0}}), at(10, 0)) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_slot_that_is_no_number_is_missing(value):
    assert value_at(Schedule({DAY: {"10:00": value}}), at(10, 0)) is None


@pytest.mark.parametrize(
    ("utc", "end"),
    [
        (at(10, 0), at(10, 15)),
        (at(10, 14, 59, 999999), at(10, 15)),
        (at(23, 50), datetime(2026, 3, 3, tzinfo=UTC)),
        # The night in which Europe's clocks go forward has its 96 slots like any other.
        (datetime(2026, 3, 29, 0, 59, tzinfo=UTC), datetime(2026, 3, 29, 1, 0, tzinfo=UTC)),
        (datetime(2026, 3, 29, 1, 0, tzinfo=UTC), datetime(2026, 3, 29, 1, 15, tzinfo=UTC)),
    ],
)
def test_slot_ends_with_its_quarter_hour(utc, end):
    assert slot_end(utc) == end


def test_last_slot_of_the_calendar_has_an_end():
    last = datetime.max.replace(tzinfo=UTC)
    assert last - SLOT <= slot_end(last) <= last
