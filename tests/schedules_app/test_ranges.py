"""A day copied to others, and a range of time filled: all of it or nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from schedules_app.models import Schedule
from schedules_app.services import schedule_copy, schedule_create, schedule_fill
from sites_app.documents import manifest_for
from smartgrid.errors import Conflict, Invalid
from tests.factories import device_make, node_make, site_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("clock")]

TODAY = date(2026, 11, 23)
DAY = date(2026, 12, 6)


@pytest.fixture
def site():
    found = site_make(time_zone="Europe/Amsterdam")
    device_make(node=node_make(site=found), device_tag="SMA_STP60_01")
    return found


@pytest.fixture
def planned(site):
    return schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50, "10:00": None})


def stored():
    return {str(row.valid_on): row.schedule for row in Schedule.objects.order_by("valid_on")}


def fill(site, start, until, value, zone="UTC"):
    return schedule_fill(
        site=site,
        category="inverter",
        start=datetime.fromisoformat(start),
        until=datetime.fromisoformat(until),
        value=value,
        time_zone=zone,
    )


# --- copying ---------------------------------------------------------------------------------------------


def test_copied_day_is_planned_like_the_first_and_reaches_the_nodes(site, planned):
    days = [DAY + timedelta(days=number) for number in (1, 7, 30)]
    copies = schedule_copy(schedule=planned, days=days)
    assert [copy.valid_on for copy in copies] == days
    assert all(copy.schedule == {"09:00": 50, "10:00": None} for copy in copies)
    docs = manifest_for(site.nodes.get()).docs
    assert "schedule/2026-12-07/inverter" in docs
    # Beyond the window: it waits in the database.
    assert "schedule/2027-01-05/inverter" not in docs


def test_copy_names_every_day_that_stands_in_its_way_and_does_nothing(site, planned):
    schedule_create(site=site, category="inverter", valid_on=date(2026, 12, 8), slots={})
    before = stored()
    days = [date(2026, 12, 7), date(2026, 12, 8), DAY, date(2026, 11, 22)]
    with pytest.raises(Invalid) as refusal:
        schedule_copy(schedule=planned, days=days)
    assert refusal.value.errors == {
        "2026-11-22": ["This day is over (UTC)."],
        "2026-12-06": ["This is the day that is copied."],
        "2026-12-08": ["This day has a schedule already."],
    }
    assert stored() == before


def test_copy_over_planned_days_is_a_conflict_unless_it_may_overwrite_them(site, planned):
    other = schedule_create(site=site, category="inverter", valid_on=date(2026, 12, 8), slots={"00:00": 1})
    with pytest.raises(Conflict) as refusal:
        schedule_copy(schedule=planned, days=[date(2026, 12, 7), date(2026, 12, 8)])
    assert list(refusal.value.errors) == ["2026-12-08"]
    schedule_copy(schedule=planned, days=[date(2026, 12, 7), date(2026, 12, 8)], overwrite=True)
    assert set(stored()) == {"2026-12-06", "2026-12-07", "2026-12-08"}
    assert Schedule.objects.get(pk=other.pk).schedule == {"09:00": 50, "10:00": None}


def test_copy_of_a_day_that_is_over_is_planned_anew(site, clock):
    over = schedule_create(site=site, category="inverter", valid_on=TODAY, slots={"09:00": 50})
    clock.move_to(datetime(2026, 11, 30, 12, tzinfo=UTC))
    schedule_copy(schedule=over, days=[date(2026, 11, 30)])
    assert stored()["2026-11-30"] == {"09:00": 50}


def test_copy_of_values_no_longer_in_range_is_refused(site, planned):
    device_make(node=site.nodes.get(), device_tag="NARROW", max_value=40, default_value=40)
    with pytest.raises(Invalid) as refusal:
        schedule_copy(schedule=planned, days=[DAY + timedelta(days=1)])
    assert list(refusal.value.errors) == ["schedule.09:00"]


@pytest.mark.parametrize("days", [[], [TODAY + timedelta(days=n) for n in range(367)]])
def test_copy_to_no_day_or_to_more_than_a_year_of_them_is_refused(planned, days):
    with pytest.raises(Invalid) as refusal:
        schedule_copy(schedule=planned, days=days)
    assert list(refusal.value.errors) == ["days"]


# --- filling ---------------------------------------------------------------------------------------------


def test_filled_range_sets_its_slots_and_leaves_the_others(site, planned):
    fill(site, "2026-12-06T09:45", "2026-12-06T10:30", 30)
    assert stored() == {"2026-12-06": {"09:00": 50, "09:45": 30, "10:00": 30, "10:15": 30}}
    body = site.nodes.get().documents.get(name="schedule/2026-12-06/inverter").body
    assert body["slots"] == stored()["2026-12-06"]


def test_range_over_midnight_plans_both_days(site):
    fill(site, "2026-12-31T23:30", "2027-01-01T00:30", 0)
    assert stored() == {
        "2026-12-31": {"23:30": 0, "23:45": 0},
        "2027-01-01": {"00:00": 0, "00:15": 0},
    }


def test_range_in_local_time_lands_on_the_quarter_hours_of_utc(site):
    fill(site, "2027-03-28T01:30", "2027-03-28T03:30", 20, "Europe/Amsterdam")
    assert stored() == {"2027-03-28": {"00:30": 20, "00:45": 20, "01:00": 20, "01:15": 20}}


def test_null_gives_slots_back_to_the_default(site, planned):
    fill(site, "2026-12-06T09:00", "2026-12-06T09:15", None)
    assert stored() == {"2026-12-06": {"09:00": None, "10:00": None}}


def test_whole_leap_year_can_be_filled_at_once(site):
    assert len(fill(site, "2028-01-01T00:00", "2029-01-01T00:00", 70)) == 366
    assert sum(len(slots) for slots in stored().values()) == 35_136


def test_fill_that_begins_in_the_past_names_the_days_and_does_nothing(site):
    with pytest.raises(Invalid) as refusal:
        fill(site, "2026-11-21T12:00", "2026-11-24T12:00", 30)
    assert list(refusal.value.errors) == ["2026-11-21", "2026-11-22"]
    assert stored() == {}


@pytest.mark.parametrize("value", [101, -1, True, "50", float("nan")])
def test_value_that_no_device_takes_is_refused(site, value):
    with pytest.raises(Invalid) as refusal:
        fill(site, "2026-12-06T09:00", "2026-12-06T10:00", value)
    assert list(refusal.value.errors) == ["value"]
    assert stored() == {}


def test_fill_of_a_category_the_site_does_not_have_is_refused(site):
    with pytest.raises(Invalid) as refusal:
        schedule_fill(
            site=site,
            category="batery",
            start=datetime(2026, 12, 6),  # noqa: DTZ001 - what a clock on the wall shows
            until=datetime(2026, 12, 7),  # noqa: DTZ001
            value=5,
        )
    assert list(refusal.value.errors) == ["category"]
