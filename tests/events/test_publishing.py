"""What services tell those who listen, when, and what becomes of it while Redis is away."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest
from django.db import transaction
from django.utils import timezone

from control_app.api.serializers import ControlLogOutput
from control_app.events import control_log_body, control_logs_publish
from control_app.models import ControlLog, Status
from control_app.node_logs import ReceivedLog, logs_record
from control_app.services import requests_settle
from devices_app.loop_live import loops_live_follow
from devices_app.models import Device
from devices_app.services import device_update, device_values_confirm, device_values_follow
from edge.wire.messages import DeviceResult, Heartbeat, LogBatch, LogEntry, LoopStatus
from sites_app.events import TOLD_HEALTHY, nodes_publish_health
from sites_app.models import Node
from sites_app.presence import ReceivedHeartbeat
from sites_app.services import node_presence_record
from smartgrid import events, live
from smartgrid.api.renderers import json_bytes
from smartgrid.demo.state import free_port
from smartgrid.events import Event, Kind, Publisher, events_publish
from tests.factories import (
    control_log_make,
    control_request_make,
    device_make,
    loop_make,
    node_make,
    node_online,
    report_make,
    site_make,
)
from tests.servers import until

pytestmark = pytest.mark.django_db(transaction=True)


def an_event(**body) -> Event:
    return Event(Kind.NODE, uuid.uuid4(), body)


def test_event_is_told_once_its_transaction_has_committed(stream):
    with transaction.atomic():
        events_publish([an_event(n=1)])
        assert stream() == []
    assert [body for _, _, body in stream()] == [{"n": 1}]


def test_event_of_a_transaction_that_failed_is_never_told(stream):
    with transaction.atomic():
        events_publish([an_event(n=1)])
        transaction.set_rollback(True)
    events_publish([an_event(n=2)])
    assert [body for _, _, body in stream()] == [{"n": 2}]


def test_events_keep_their_order_however_many_there_are(stream):
    for first in range(0, 900, 300):
        events_publish([an_event(n=n) for n in range(first, first + 300)])
    assert [body["n"] for _, _, body in stream()] == list(range(900))


def test_stream_is_bounded(stream, settings):
    settings.SGM_EVENTS_KEPT = 100
    events_publish([an_event(n=n) for n in range(2000)])
    told = stream()
    # Redis lets go of whole pieces of a hundred entries.
    assert 100 <= len(told) <= 300
    assert told[-1][2] == {"n": 1999}


def test_nothing_is_told_where_events_are_switched_off(stream, settings):
    settings.SGM_EVENTS_KEPT = 0
    events_publish([an_event(n=1)])
    assert stream() == []


def test_events_dropped_while_redis_was_away_are_owned_up_to(stream, settings):
    there = settings.SGM_REDIS_URL
    publisher = Publisher()
    settings.SGM_REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    live.client.cache_clear()
    publisher.put([an_event(n=1), an_event(n=2)])
    assert publisher.flush(within_s=5)
    settings.SGM_REDIS_URL = there
    live.client.cache_clear()
    # By itself, though nothing more happens.
    until(lambda: bool(stream()), what="the gap was not told", within_s=10)
    assert stream() == [(events.GAP, "", {"events": 2})]
    publisher.put([an_event(n=3)])
    assert publisher.flush(within_s=5)
    assert [body for _, _, body in stream()] == [{"events": 2}, {"n": 3}]


def test_events_without_room_are_owned_up_to_as_well(stream, settings):
    settings.SGM_EVENTS_KEPT = 20_000
    publisher = Publisher()
    publisher.put([an_event(n=n) for n in range(events.WAITING_MAX + 7)])
    assert publisher.flush(within_s=20)
    gaps = [body for kind, _, body in stream() if kind == events.GAP]
    assert gaps == [{"events": 7}]


# --- what is told of what happens ---------------------------------------------------------------------------


def test_control_log_event_is_the_line_as_the_list_shows_it(stream):
    line = control_log_make(site=site_make(), value=50.5, at=datetime(2026, 1, 2, tzinfo=UTC))
    other = control_log_make(site=line.site, value=30, watchdog=True, status=Status.PARTIAL)
    none = ControlLog.objects.create(site=line.site, status=Status.FAILED, category="x", result={})
    for one in (line, other, none):
        control_logs_publish([one])
        shown = json.loads(json_bytes(ControlLogOutput(one).data))
        told = stream()[-1]
        assert told == ("control_log", str(line.site_id), {**shown, "id": str(one.pk)})
        assert list(told[2]) == list(shown)
    assert control_log_body(other)["value"] == 30


def test_request_that_is_closed_is_told(stream):
    request = control_request_make(deadline_in_s=-60)
    assert requests_settle() == 1
    [(kind, site, body)] = stream()
    assert (kind, site, body["status"]) == ("control_log", str(request.site_id), "failed")
    assert body["id"] == str(ControlLog.objects.get().pk)


def test_watchdog_line_of_a_node_is_told_with_the_value_its_device_is_at(stream):
    device = device_make()
    entry = LogEntry(
        seq=1,
        at="2026-01-01T00:00:00Z",
        kind="watchdog",
        category="inverter",
        value=100.0,
        reason="lapse",
        sequence=5,
        devices={device.device_tag: DeviceResult(value=100.0)},
    )
    batch = LogBatch(stream="control", store="store", first=1, last=1, entries=[entry])
    received = ReceivedLog(str(device.node_id), batch, timezone.now())
    logs_record([received])
    logs_record([received])
    told = {kind: body for kind, _, body in stream()}
    assert told["control_log"]["watchdog"] is True
    assert told["device"]["value"] == 100
    assert len(stream()) == 2


def test_value_that_a_device_confirmed_is_told_with_its_place(stream):
    device = device_make()
    device_values_confirm(node_id=device.node_id, values={device.device_tag: 50}, sequence=7)
    [(kind, site, body)] = stream()
    assert (kind, site) == ("device", str(device.site_id))
    at = body.pop("at")
    assert at.endswith("Z")
    assert body == {
        "id": str(device.pk),
        "device_tag": device.device_tag,
        "site_id": str(device.site_id),
        "node_id": str(device.node_id),
        "category": "inverter",
        "value": 50,
    }


def test_value_that_a_later_command_has_replaced_is_not_told(stream):
    node = node_make()
    one, other = device_make(node=node), device_make(node=node)
    device_values_confirm(node_id=node.pk, values={one.device_tag: 50}, sequence=7)
    with transaction.atomic():
        device_values_confirm(
            node_id=node.pk, values={one.device_tag: 80, other.device_tag: 80.5}, sequence=6
        )
    told = [(body["device_tag"], body["value"]) for _, _, body in stream()]
    assert told == [(one.device_tag, 50), (other.device_tag, 80.5)]
    one.refresh_from_db()
    assert one.value == 50


def test_value_that_a_node_reports_is_told_when_it_changes(stream):
    device = device_make()
    report = report_make(device.node, values={device.device_tag: 70.0})
    device_values_follow([(device.node_id, report)])
    device_values_follow([(device.node_id, report)])
    assert [body["value"] for _, _, body in stream()] == [70]
    assert Device.objects.get().value == 70


def test_node_that_comes_and_goes_is_told_once_each(stream):
    node = node_make(name="node-01")
    for _ in range(2):
        node_online(node)
    for _ in range(2):
        node_presence_record(node_id=node.pk, online=False, session="session-1", boot="boot-1")
    told = stream()
    assert [body["online"] for _, _, body in told] == [True, False]
    kind, site, body = told[0]
    assert (kind, site) == ("node", str(node.site_id))
    assert set(body) == {"id", "polaris_node_name", "site_id", "online", "at"}
    assert (body["id"], body["polaris_node_name"]) == (str(node.pk), "node-01")


def test_health_is_told_when_it_changes_and_not_to_begin_with(stream):
    node, other = node_make(), node_make()
    nodes_publish_health({node.pk: True, other.pk: False})
    assert stream() == []
    nodes_publish_health({node.pk: True, other.pk: True})
    nodes_publish_health({node.pk: True, other.pk: True})
    nodes_publish_health({node.pk: False, other.pk: True})
    told = [(body["id"], body["healthy"]) for _, _, body in stream()]
    assert told == [(str(other.pk), True), (str(node.pk), False)]


def test_health_of_nodes_that_are_all_unwell_is_remembered(stream):
    node = node_make()
    nodes_publish_health({node.pk: False})
    assert live.set_read(TOLD_HEALTHY)
    nodes_publish_health({node.pk: True})
    assert [body["healthy"] for _, _, body in stream()] == [True]


def test_node_that_was_deleted_leaves_the_healthy(stream):
    node = node_make()
    nodes_publish_health({node.pk: True})
    Node.objects.all().delete()
    nodes_publish_health({})
    assert str(node.pk) not in live.set_read(TOLD_HEALTHY)
    assert stream() == []


def test_device_that_left_its_place_is_told_to_hold_nothing_known(stream):
    device = device_make()
    device_values_confirm(node_id=device.node_id, values={device.device_tag: 50}, sequence=7)
    device_update(device=device, modbus_server_host="192.0.2.77", by="somebody")
    assert [body["value"] for _, _, body in stream()] == [50, None]


def test_loop_that_comes_to_stand_otherwise_is_told_once(stream):
    loop = loop_make(loop_tag="POC")
    status = LoopStatus(
        id=str(loop.pk),
        tag="POC",
        stand="limiting",
        since="2026-11-23T12:00:00Z",
        setpoint_kw=40.0,
        bounded_by="export_limit",
        reason="less sun than asked for",
    )
    for seq in (1, 2):
        beat = Heartbeat(session="s", seq=seq, mono_ms=0, wall="", fresh="", loops=(status,))
        loops_live_follow([ReceivedHeartbeat(str(loop.node_id), beat, 1_800_000_000.0)])
    [(kind, site, body)] = stream()
    assert (kind, site) == ("loop", str(loop.site_id))
    assert (body["id"], body["loop_tag"], body["node_id"]) == (str(loop.pk), "POC", str(loop.node_id))
    assert (body["stand"], body["since"]) == ("limiting", "2026-11-23T12:00:00.000000Z")
    assert (body["setpoint_kw"], body["measured_kw"]) == (40, None)
    assert (body["bounded_by"], body["reason"]) == ("export_limit", "less sun than asked for")
