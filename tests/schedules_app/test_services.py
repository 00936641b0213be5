from __future__ import annotations

import datetime as dt

import pytest

from schedules_app.services import schedule_create, schedule_delete, schedule_replace
from sites_app.documents import manifest_for
from smartgrid.errors import Conflict, Invalid
from tests.factories import node_make, site_make

pytestmark = pytest.mark.django_db

DAY = dt.date(2026, 12, 6)
NAME = "schedule/2026-12-06/inverter"


def test_schedule_reaches_every_node_of_its_site_and_no_other():
    site = site_make()
    nodes, other = [node_make(site=site), node_make(site=site)], node_make()
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50, "12:00": None})
    for node in nodes:
        body = node.documents.get(name=NAME).body
        assert body == {"date": "2026-12-06", "category": "inverter", "slots": {"09:00": 50, "12:00": None}}
    assert NAME not in manifest_for(other).docs


def test_node_added_later_gets_the_schedules_of_its_site():
    site = site_make()
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50})
    assert NAME in manifest_for(node_make(site=site)).docs


def test_second_schedule_for_the_day_is_a_conflict():
    site = site_make()
    schedule_create(site=site, category="inverter", valid_on=DAY, slots={})
    with pytest.raises(Conflict):
        schedule_create(site=site, category="inverter", valid_on=DAY, slots={})


@pytest.mark.parametrize("slot", ["9:00", "24:00", "09:10", "09:00:00", "", "09:00\n", "٠٩:00"])
def test_what_is_no_quarter_hour_is_refused(slot):
    with pytest.raises(Invalid) as refusal:
        schedule_create(site=site_make(), category="inverter", valid_on=DAY, slots={slot: 50})
    assert list(refusal.value.errors) == [f"schedule.{slot}"]


@pytest.mark.parametrize("value", [True, "50", float("nan"), float("inf"), [50]])
def test_what_is_neither_number_nor_null_is_refused(value):
    with pytest.raises(Invalid):
        schedule_create(site=site_make(), category="inverter", valid_on=DAY, slots={"09:00": value})


def test_replaced_schedule_is_owed_to_the_nodes_anew():
    site = site_make()
    node = node_make(site=site)
    schedule = schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50})
    schedule.synchronization_result = {"status": "success", "nodes": {}}
    schedule.save()
    replaced = schedule_replace(schedule=schedule, slots={"09:00": 60})
    assert replaced.synchronization_result is None
    assert node.documents.get(name=NAME).body["slots"] == {"09:00": 60}


def test_deleted_schedule_is_dropped_by_the_nodes():
    site = site_make()
    node = node_make(site=site)
    schedule_delete(
        schedule=schedule_create(site=site, category="inverter", valid_on=DAY, slots={"09:00": 50})
    )
    assert NAME not in manifest_for(node).docs
