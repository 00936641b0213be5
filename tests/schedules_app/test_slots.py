"""Which quarter hours of UTC a range of local time covers."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from schedules_app.slots import quarter_hours
from smartgrid.errors import Invalid


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def covered(start: str, until: str, zone: str = "UTC") -> list[str]:
    days = quarter_hours(start=at(start), until=at(until), time_zone=zone)
    return [f"{day} {slot}" for day, slots in days.items() for slot in slots]


def test_range_covers_its_first_slot_and_not_the_one_at_its_end():
    assert covered("2027-01-10T09:00", "2027-01-10T09:45") == [
        "2027-01-10 09:00",
        "2027-01-10 09:15",
        "2027-01-10 09:30",
    ]


def test_range_crosses_midnight_of_utc_where_the_local_day_does_not():
    slots = covered("2027-01-10T00:00", "2027-01-10T02:00", "Europe/Amsterdam")
    assert (slots[0], slots[-1], len(slots)) == ("2027-01-09 23:00", "2027-01-10 00:45", 8)


@pytest.mark.parametrize(
    ("zone", "day", "slots"),
    [
        ("Europe/Amsterdam", "2027-03-28", 92),
        ("Europe/Amsterdam", "2027-10-31", 100),
        # Half an hour, south of the equator.
        ("Australia/Lord_Howe", "2027-04-04", 98),
        ("Australia/Lord_Howe", "2027-10-03", 94),
        # An offset of two and a half hours.
        ("America/St_Johns", "2027-03-14", 92),
        ("America/St_Johns", "2027-11-07", 100),
        # A day behind New York's, and no daylight saving since 2021.
        ("Pacific/Apia", "2027-04-04", 96),
        ("UTC", "2028-02-29", 96),
    ],
)
def test_local_day_has_the_quarter_hours_its_clock_shows(zone, day, slots):
    following = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
    assert len(covered(day, following, zone)) == slots


@pytest.mark.parametrize(
    "zone", ["Europe/Amsterdam", "Australia/Lord_Howe", "America/St_Johns", "Pacific/Apia"]
)
def test_local_days_of_a_year_cover_each_quarter_hour_once_and_leave_none_out(zone):
    found = []
    for number in range(366):
        day = date(2028, 1, 1) + timedelta(days=number)
        found += covered(day.isoformat(), (day + timedelta(days=1)).isoformat(), zone)
    assert found == covered("2028-01-01", "2029-01-01", zone)
    first = datetime.strptime(found[0], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    expected = [f"{first + timedelta(minutes=15) * n:%Y-%m-%d %H:%M}" for n in range(366 * 96)]
    assert found == expected


def test_hour_that_comes_twice_is_covered_twice():
    slots = covered("2027-10-31T02:00", "2027-10-31T03:00", "Europe/Amsterdam")
    assert (slots[0], slots[-1], len(slots)) == ("2027-10-31 00:00", "2027-10-31 01:45", 8)


def test_range_that_ends_in_the_hour_that_comes_twice_covers_what_its_clock_shows_before_it():
    slots = covered("2027-10-31T01:45", "2027-10-31T02:15", "Europe/Amsterdam")
    assert slots == ["2027-10-30 23:45", "2027-10-31 00:00", "2027-10-31 01:00"]


def test_range_across_the_hour_that_is_skipped_is_an_hour_shorter():
    slots = covered("2027-03-28T01:45", "2027-03-28T03:15", "Europe/Amsterdam")
    assert slots == ["2027-03-28 00:45", "2027-03-28 01:00"]


def test_hour_that_is_skipped_cannot_be_filled():
    with pytest.raises(Invalid, match="no clock of Europe/Amsterdam ever shows"):
        covered("2027-03-28T02:00", "2027-03-28T03:00", "Europe/Amsterdam")


def test_moments_with_an_offset_are_meant_as_they_are():
    assert covered("2027-10-31T02:45+02:00", "2027-10-31T02:15+01:00", "Asia/Tokyo") == [
        "2027-10-31 00:45",
        "2027-10-31 01:00",
    ]


@pytest.mark.parametrize(
    ("start", "until", "zone", "field"),
    [
        ("2027-01-10T09:00", "2027-01-10T09:00", "UTC", "until"),
        ("2027-01-10T09:00", "2027-01-10T08:00", "UTC", "until"),
        ("2027-01-10T09:01", "2027-01-10T10:00", "UTC", "start"),
        ("2027-01-10T09:00", "2027-01-10T10:00:01", "UTC", "until"),
        ("2027-01-10T09:00", "2028-01-12T09:00", "UTC", "until"),
        ("2027-01-10T09:00+00:00", "2027-01-10T10:00", "UTC", "until"),
        ("2027-01-10T09:00", "2027-01-10T10:00", "Europe/Nowhere", "time_zone"),
        ("2027-01-10T09:00", "2027-01-10T10:00", "", "time_zone"),
        ("2027-01-10T09:00", "2027-01-10T10:00", "../etc/passwd", "time_zone"),
        ("9999-12-31T23:00", "9999-12-31T23:45", "UTC", "until"),
        ("0001-01-01T00:00", "0001-01-01T00:15", "UTC", "until"),
    ],
)
def test_range_that_cannot_be_used_is_refused_with_what_is_wrong(start, until, zone, field):
    with pytest.raises(Invalid) as refusal:
        covered(start, until, zone)
    assert list(refusal.value.errors) == [field]
