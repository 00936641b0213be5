from __future__ import annotations

import datetime as dt

import pytest
from django.core.management import call_command

from schedules_app.models import Schedule
from schedules_app.services import schedule_create, schedule_delete, schedule_replace, schedule_replace_on
from sites_app.documents import manifest_for
from smartgrid.errors import Conflict, Invalid, NotFound
from tests.factories import device_make, meter_type_make, node_make, proxy_type_make, site_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("clock")]

TODAY = dt.date(2026, 11, 23)
DAY = dt.date(2026, 12, 6)
NAME = "schedule/2026-12-06/inverter"


@pytest.fixture
def site():
    """With one node and one inverter on it, which takes 0 to 100."""
    found = site_make()
    device_make(node=node_make(site=found), device_tag="SMA_STP60_01")
    return found


def test_schedule_reaches_every_node_of_its_site_and_no_other(site):
    node_make(site=site)
    other = node_make()
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50, "12:00": None})
    for node in site.nodes.all():
        body = node.documents.get(name=NAME).body
        assert body == {"date": "2026-12-06", "category": "inverter", "slots": {"09:00": 50, "12:00": None}}
    assert site.nodes.count() == 2
    assert NAME not in manifest_for(other).docs


def test_node_added_later_gets_the_schedules_of_its_site(site):
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50})
    assert NAME in manifest_for(node_make(site=site)).docs


def test_second_schedule_for_the_day_is_a_conflict(site):
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={})
    with pytest.raises(Conflict):
        schedule_create(site=site, category="inverter", valid_on=DAY, slots={})


@pytest.mark.parametrize("slot", ["9:00", "24:00", "09:10", "09:00:00", "", "09:00\n", "٠٩:00"])
def test_what_is_no_quarter_hour_is_refused(site, slot):
    with pytest.raises(Invalid) as refusal:
        schedule_create(site=site, category="inverter", valid_on=DAY, slots={slot: 50})
    assert list(refusal.value.errors) == [f"schedule.{slot}"]


@pytest.mark.parametrize("value", [True, "50", float("nan"), float("inf"), -float("inf"), [50], {}, 10**400])
def test_what_is_neither_number_nor_null_or_beyond_all_bounds_is_refused(site, value):
    with pytest.raises(Invalid) as refusal:
        schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": value})
    assert list(refusal.value.errors) == ["schedule.09:00"]
    assert not Schedule.objects.exists()


@pytest.mark.parametrize("slots", [None, [], "09:00", 50, {f"{n}": 1 for n in range(97)}])
def test_what_is_no_day_of_slots_is_refused_in_one_sentence(site, slots):
    with pytest.raises(Invalid) as refusal:
        schedule_create(site=site, category="inverter", valid_on=DAY, slots=slots)
    assert list(refusal.value.errors) == ["schedule"]


def test_slots_are_kept_in_the_order_of_the_day_with_their_numbers_as_they_came(site):
    slots = {"18:00": 100, "09:00": 50.5, "00:00": None, "12:15": 50.0}
    schedule = schedule_create(site=site, category="inverter", valid_on=DAY, slots=slots)
    stored = Schedule.objects.get(pk=schedule.pk).schedule
    assert repr(stored) == "{'00:00': None, '09:00': 50.5, '12:15': 50.0, '18:00': 100}"


def test_empty_schedule_plans_the_default_for_the_whole_day(site):
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={})
    assert site.nodes.get().documents.get(name=NAME).body["slots"] == {}


# --- the range every member takes -----------------------------------------------------------------------


def test_value_must_be_in_the_range_of_every_member(site):
    device_make(node=site.nodes.get(), device_tag="NARROW", min_value=10, max_value=60, default_value=60)
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 10, "10:00": 60})
    with pytest.raises(Invalid) as refusal:
        schedule_create(site=site, category="inverter", valid_on=TODAY, slots={"11:00": 9.9, "12:00": 61})
    assert refusal.value.errors == {
        "schedule.11:00": ["Below 10, the least that NARROW takes."],
        "schedule.12:00": ["Above 60, the most that NARROW takes."],
    }


def test_excluded_and_measured_devices_do_not_narrow_the_range(site):
    device_make(
        node=site.nodes.get(), min_value=10, max_value=60, default_value=60, include_in_curtailment=False
    )
    device_make(node=site.nodes.get(), min_value=10, max_value=60, default_value=60, measured_only=True)
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 100})


def test_child_of_a_proxy_does_not_narrow_the_range_and_its_proxy_does(site):
    node = site.nodes.get()
    park = device_make(
        node=node, device_type=proxy_type_make(), device_tag="PARK", category="inverter", min_value=20
    )
    device_make(node=node, min_value=30, max_value=60, default_value=60, controlled_by=park)
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 25})
    with pytest.raises(Invalid) as refusal:
        schedule_create(site=site, category="inverter", valid_on=TODAY, slots={"09:00": 15})
    assert refusal.value.errors == {"schedule.09:00": ["Below 20, the least that PARK takes."]}


def test_where_all_are_excluded_the_ranges_of_those_that_could_be_included_count(site):
    site.devices.update(include_in_curtailment=False)
    with pytest.raises(Invalid):
        schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 101})
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 100})


@pytest.mark.parametrize("category", ["inverters", "battery", "", "meter", "Inverter"])
def test_category_of_which_the_site_has_nothing_to_control_is_refused_with_those_it_has(site, category):
    device_make(node=site.nodes.get(), device_type=meter_type_make())
    with pytest.raises(Invalid) as refusal:
        schedule_create(site=site, category=category, valid_on=DAY, slots={})
    assert list(refusal.value.errors) == ["category"]
    assert "its categories: inverter" in refusal.value.detail


def test_schedule_stays_when_the_last_device_of_its_category_goes(site):
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50})
    site.devices.all().delete()
    assert NAME in manifest_for(site.nodes.get()).docs


# --- replacing and deleting -----------------------------------------------------------------------------


def test_replaced_schedule_is_owed_to_the_nodes_anew(site):
    schedule = schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50})
    schedule_replace(schedule=schedule, slots={"09:00": 60})
    assert site.nodes.get().documents.get(name=NAME).body["slots"] == {"09:00": 60}


def test_replacing_a_day_with_what_it_has_publishes_nothing(site, django_capture_on_commit_callbacks):
    schedule = schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50})
    version = manifest_for(site.nodes.get()).version
    with django_capture_on_commit_callbacks() as callbacks:
        schedule_replace(schedule=schedule, slots={"09:00": 50})
    assert callbacks == []
    assert manifest_for(site.nodes.get()).version == version


def test_refused_replacement_leaves_the_plan_as_it_was(site):
    schedule = schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50})
    with pytest.raises(Invalid):
        schedule_replace(schedule=schedule, slots={"09:00": 50, "10:00": 101})
    assert Schedule.objects.get().schedule == {"09:00": 50}
    assert site.nodes.get().documents.get(name=NAME).body["slots"] == {"09:00": 50}


def test_day_without_a_plan_cannot_be_replaced(site):
    with pytest.raises(NotFound):
        schedule_replace_on(site=site, category="inverter", valid_on=DAY, slots={})


def test_schedule_that_was_deleted_meanwhile_is_not_there_to_be_changed(site):
    schedule = schedule_create(site=site, category="inverter", valid_on=DAY, slots={})
    schedule_delete(schedule=Schedule.objects.get())
    with pytest.raises(NotFound):
        schedule_replace(schedule=schedule, slots={})
    with pytest.raises(NotFound):
        schedule_delete(schedule=schedule)


def test_deleted_schedule_is_dropped_by_the_nodes(site):
    schedule_delete(
        schedule=schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50})
    )
    assert NAME not in manifest_for(site.nodes.get()).docs


# --- days that are over ---------------------------------------------------------------------------------


def test_today_can_be_planned_until_its_last_moment_in_utc(site, clock):
    clock.move_to(dt.datetime(2026, 11, 23, 23, 59, 59, 999999, tzinfo=dt.UTC))
    schedule_create(site=site, category="inverter", valid_on=TODAY, slots={"23:45": 50})
    clock.move_to(dt.datetime(2026, 11, 24, tzinfo=dt.UTC))
    with pytest.raises(Invalid) as refusal:
        schedule_replace_on(site=site, category="inverter", valid_on=TODAY, slots={})
    assert list(refusal.value.errors) == ["valid_on"]


def test_day_that_is_over_cannot_be_planned_whether_it_had_a_plan_or_not(site):
    yesterday = TODAY - dt.timedelta(days=1)
    with pytest.raises(Invalid):
        schedule_create(site=site, category="inverter", valid_on=yesterday, slots={})
    with pytest.raises(Invalid):
        schedule_replace_on(site=site, category="inverter", valid_on=yesterday, slots={})


def test_plan_of_a_day_that_is_over_is_a_record_and_cannot_be_deleted(site, clock):
    schedule = schedule_create(site=site, category="inverter", valid_on=TODAY, slots={})
    clock.move_to(dt.datetime(2026, 11, 24, tzinfo=dt.UTC))
    with pytest.raises(Conflict) as refusal:
        schedule_delete(schedule=schedule)
    assert refusal.value.code == "day_is_over"
    assert Schedule.objects.exists()


def test_models_and_migrations_agree():
    call_command("makemigrations", "schedules_app", check=True, dry_run=True, verbosity=0)
