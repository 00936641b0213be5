"""The alarm for a slot that begins on a node which has not confirmed it."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

import pytest
from django.utils import timezone

from schedules_app.selectors import slots_unconfirmed
from schedules_app.services import schedule_create, schedule_delete, schedule_replace, slots_watch
from schedules_app.tasks import watch_slots
from sites_app.alarms import SLOT_NOT_CONFIRMED
from sites_app.models import Alarm, Node, NodeDocument
from tests.factories import device_make, device_type_make, meter_type_make, node_make, site_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("clock")]

TODAY = date(2026, 11, 23)


def at(text: str, day: date = TODAY) -> datetime:
    return datetime.combine(day, time.fromisoformat(text), tzinfo=UTC)


@pytest.fixture
def node():
    """One that controls an inverter."""
    found = node_make(site=site_make(site_tag="solarpanel_site_a"), name="node-01")
    device_make(node=found)
    return found


@pytest.fixture
def planned(node):
    """50 from 10:15 to 10:30, put down at 10:02."""
    return schedule_create(site=node.site, category="inverter", valid_on=TODAY, slots={"10:15": 50})


def answer(schedule, status="applied", error=""):
    NodeDocument.objects.filter(name=schedule.document_name).update(
        status=status, error=error, answered_version=1, answered_at=timezone.now()
    )


def reported(node, *names):
    """Let the node have reported these documents, of whatever version."""
    documents = {name: {"v": 1, "status": "applied"} for name in names}
    Node.objects.filter(pk=node.pk).update(last_reported={"documents": documents})


def watched(clock, moment):
    """Who is missing which slot at this moment."""
    clock.move_to(moment)
    return [
        (slot.node_name, slot.category, slot.begins, slot.value) for slot in slots_unconfirmed(now=moment)
    ]


def test_slot_counts_from_five_minutes_before_it_begins_until_it_ends(clock, node, planned):
    missing = [("node-01", "inverter", at("10:15:00"), 50)]
    assert watched(clock, at("10:09:59")) == []
    assert watched(clock, at("10:10:00")) == missing
    assert watched(clock, at("10:15:00")) == missing
    assert watched(clock, at("10:29:59")) == missing
    assert watched(clock, at("10:30:00")) == []


def test_confirmed_slot_does_not_count_and_a_refused_one_does(clock, node, planned):
    answer(planned)
    assert watched(clock, at("10:12:00")) == []
    for status in ("failed", "conflict"):
        answer(planned, status)
        assert len(watched(clock, at("10:12:00"))) == 1


def test_document_just_put_down_is_on_its_way(clock, node, planned):
    clock.move_to(at("10:12:00"))
    schedule_replace(schedule=planned, slots={"10:15": 60})
    assert watched(clock, at("10:12:09")) == []
    assert watched(clock, at("10:12:10")) == [("node-01", "inverter", at("10:15:00"), 60)]


def test_slot_without_a_value_counts_only_where_the_node_runs_something_else_under_that_name(
    clock, node, planned
):
    schedule_replace(schedule=planned, slots={"18:00": 50, "10:15": None})
    assert watched(clock, at("10:12:00")) == []
    reported(node, "schedule/2026-11-24/inverter")
    assert watched(clock, at("10:12:00")) == []
    reported(node, "schedule/2026-11-23/inverter")
    # What it said of the slot that runs now is not known either.
    assert watched(clock, at("10:12:00")) == [("node-01", "inverter", at("10:00:00"), None)]


def test_node_that_controls_nothing_of_the_category_does_not_count(clock, node, planned):
    measuring, other = node_make(site=node.site), node_make(site=node.site)
    device_make(node=measuring, device_type=meter_type_make())
    device_make(node=measuring, measured_only=True)
    device_make(node=measuring, include_in_curtailment=False)
    battery = device_type_make(profile="test_battery", category="battery", value_kind="power_cap_pct")
    device_make(node=other, device_type=battery)
    assert [name for name, *_ in watched(clock, at("10:12:00"))] == ["node-01"]


def test_first_slot_of_a_day_is_ruled_by_that_days_document(clock, node):
    tomorrow = TODAY + timedelta(days=1)
    schedule = schedule_create(site=node.site, category="inverter", valid_on=tomorrow, slots={"00:00": 0})
    assert watched(clock, at("23:54:59")) == []
    assert watched(clock, at("23:55:00")) == [("node-01", "inverter", at("00:00:00", tomorrow), 0)]
    answer(schedule)
    assert watched(clock, at("23:55:00")) == []


def test_category_without_a_slot_ahead_counts_for_nothing(clock, node):
    schedule_create(site=node.site, category="inverter", valid_on=TODAY, slots={"18:00": 50})
    assert watched(clock, at("10:12:00")) == []


def test_alarm_is_raised_once_and_cleared_when_the_node_confirms(clock, node, planned):
    clock.move_to(at("10:10:00"))
    assert slots_watch() == (1, 0)
    clock.move_to(at("10:10:30"))
    assert slots_watch() == (0, 0)
    alarm = Alarm.objects.get()
    assert (alarm.code, alarm.site, alarm.node, alarm.subject) == (
        SLOT_NOT_CONFIRMED,
        node.site,
        node,
        "inverter",
    )
    assert alarm.detail == (
        "50 for inverter from 2026-11-23 10:15 UTC is not confirmed: pending since 2026-11-23 10:02:00 UTC"
    )
    answer(planned)
    watch_slots()
    assert Alarm.objects.get().cleared_at == at("10:10:30")


def test_alarm_tells_the_nodes_error(clock, node, planned):
    answer(planned, "failed", "schedule: it cannot be stored")
    clock.move_to(at("10:12:00"))
    watch_slots()
    assert Alarm.objects.get().detail.endswith(
        "failed since 2026-11-23 10:02:00 UTC, schedule: it cannot be stored"
    )


def test_alarm_ends_with_the_schedule_and_with_its_slot(clock, node, planned):
    clock.move_to(at("10:12:00"))
    watch_slots()
    schedule_delete(schedule=planned)
    assert slots_watch() == (0, 1)
    schedule_create(site=node.site, category="inverter", valid_on=TODAY, slots={"10:15": 50})
    clock.move_to(at("10:13:00"))
    assert slots_watch() == (1, 0)
    clock.move_to(at("10:30:00"))
    assert slots_watch() == (0, 1)


def test_watching_costs_the_same_queries_however_many_nodes_are_behind(
    clock, node, planned, django_assert_num_queries
):
    for _ in range(5):
        device_make(node=node_make(site=node.site))
    clock.move_to(at("10:12:00"))
    slots_watch()
    assert Alarm.objects.count() == 6
    # Two slots, who runs something in the one that has no value, the devices; and the open alarms, which are
    # as they were.
    with django_assert_num_queries(5):
        assert slots_watch() == (0, 0)
