"""A node that moves to another site, edits of every kind, and nodes that were offline meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime

import pytest
import time_machine

from devices_app.retirement import retired_record
from devices_app.services import device_delete
from schedules_app.services import schedule_create, schedule_delete, schedule_replace
from sites_app.documents import manifest_for, node_document_put
from sites_app.models import Node, NodeDocument
from sites_app.publishing import nodes_publish
from sites_app.services import node_move
from smartgrid.errors import Conflict, Invalid
from tests.factories import (
    device_make,
    node_make,
    node_online,
    report_make,
    report_record,
    site_make,
)
from tests.sites_app.test_documents import Retained

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    with time_machine.travel(datetime(2026, 11, 23, 10, tzinfo=UTC), tick=False):
        yield


PLAN = "schedule/2026-12-06/inverter"


def test_moved_node_has_the_new_sites_configuration_and_schedules_instead_of_the_former():
    former, site = site_make(curtailment_time_limit=60), site_make(curtailment_time_limit=90)
    node, stays = node_make(site=former), node_make(site=former)
    for place, value in ((former, 10), (site, 20)):
        device_make(node=node_make(site=place))
        for category_day in (date(2026, 12, 6), date(2026, 12, 7)):
            if place is site or category_day.day == 6:
                schedule_create(
                    site=place, category="inverter", valid_on=category_day, slots={"09:00": value}
                )
    report_record(node)
    moved = node_move(node=node, site=site, by="operator")
    assert moved.site_id == site.pk
    bodies = {row.name: row.body for row in NodeDocument.objects.filter(node=node, dropped=False)}
    assert bodies.keys() == {"config", PLAN, "schedule/2026-12-07/inverter"}
    assert bodies["config"]["site"]["curtailment_time_limit_s"] == 90
    assert bodies[PLAN]["slots"] == {"09:00": 20}
    assert {row.status for row in NodeDocument.objects.filter(node=node)} == {"pending"}
    assert NodeDocument.objects.get(node=stays, name=PLAN).body["slots"] == {"09:00": 10}
    assert node_move(node=moved, site=site).pk == node.pk


def test_schedule_of_the_former_site_that_the_new_one_has_not_is_taken_from_the_broker():
    former, site = site_make(), site_make()
    node = node_make(site=former)
    node_document_put(node=node, name=PLAN, body={"slots": {}})
    broker = Retained()
    nodes_publish(node_ids=[node.pk], link=broker)
    node_move(node=node, site=site)
    nodes_publish(node_ids=[node.pk], link=broker)
    assert broker.messages[node.topics.document(PLAN)] == b""
    assert broker.manifest(node).docs.keys() == {"config"}


def test_node_with_devices_does_not_move_until_they_are_retired():
    device = device_make()
    node, site = device.node, site_make()
    with pytest.raises(Conflict, match=device.device_tag):
        node_move(node=node, site=site)
    device_delete(device=device)
    with pytest.raises(Conflict, match=f"{device.device_tag}, still retiring"):
        node_move(node=node, site=site)
    node_online(node)
    retired_record(node=Node.objects.get(pk=node.pk), reported=report_make(node))
    assert node_move(node=node, site=site).site_id == site.pk


def test_node_does_not_move_to_another_tenant():
    node = node_make()
    with pytest.raises(Invalid, match="another tenant"):
        node_move(node=node, site=site_make(tenant_tag="tenant-456"))
    assert Node.objects.get().site_id == node.site_id


def test_device_is_not_added_to_a_node_that_has_moved_meanwhile():
    node = node_make()
    node_move(node=Node.objects.get(pk=node.pk), site=site_make())
    with pytest.raises(Conflict, match="no longer"):
        device_make(node=node)


# --- edits while nobody listens ------------------------------------------------------------------------------


def test_node_offline_through_many_edits_finds_only_what_is_last_and_says_so():
    device = device_make()
    node, site = device.node, device.node.site
    first = schedule_create(site=site, category="inverter", valid_on=date(2026, 12, 6), slots={"09:00": 1})
    gone = schedule_create(site=site, category="inverter", valid_on=date(2026, 12, 7), slots={"09:00": 2})
    broker = Retained()
    nodes_publish(node_ids=[node.pk], link=broker)
    report_record(node)
    for value in range(3, 7):
        first = schedule_replace(schedule=first, slots={"09:00": value})
        nodes_publish(node_ids=[node.pk], link=broker)
    schedule_delete(schedule=gone)
    again = schedule_create(site=site, category="inverter", valid_on=date(2026, 12, 8), slots={"09:00": 8})
    nodes_publish(node_ids=[node.pk], link=broker)
    manifest = broker.manifest(node)
    assert manifest == manifest_for(node)
    assert manifest.docs.keys() == {"config", first.document_name, again.document_name}
    assert broker.document(node, first.document_name).body["slots"] == {"09:00": 6}
    assert broker.messages[node.topics.document(gone.document_name)] == b""
    report_record(node)
    assert {row.status for row in NodeDocument.objects.filter(node=node)} == {"applied"}


def test_device_added_to_a_category_that_is_planned_already_is_configured_and_the_plan_stays():
    device = device_make()
    node, site = device.node, device.node.site
    other = node_make(site=site)
    plan = schedule_create(site=site, category="inverter", valid_on=date(2026, 12, 6), slots={"09:00": 1})
    report_record(node)
    added = device_make(node=node)
    rows = {row.name: row.status for row in NodeDocument.objects.filter(node=node)}
    assert rows == {"config": "pending", plan.document_name: "applied"}
    # Every node of the site has the plan, whatever its devices: one that gets its first needs no more.
    device_make(node=other)
    assert plan.document_name in manifest_for(other).docs
    config = NodeDocument.objects.get(node=node, name="config").body
    assert {entry["tag"] for entry in config["devices"]} == {device.device_tag, added.device_tag}


def test_categories_of_a_site_are_documents_of_their_own():
    device = device_make()
    node, site = device.node, device.node.site
    device_make(node=node, category="battery")
    plans = [
        schedule_create(site=site, category=category, valid_on=date(2026, 12, 6), slots={"09:00": 1})
        for category in ("inverter", "battery")
    ]
    report_record(node)
    schedule_replace(schedule=plans[1], slots={"09:00": 2})
    rows = {row.name: row.status for row in NodeDocument.objects.filter(node=node)}
    assert rows[plans[0].document_name] == "applied"
    assert rows[plans[1].document_name] == "pending"
