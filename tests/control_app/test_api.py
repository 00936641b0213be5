"""PUT curtail-category and the logs, as a client sees them."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from control_app.models import ControlCommand, ControlLog, ControlRequest, Status
from devices_app.models import Device
from edge.wire.messages import Code, DeviceResult
from smartgrid import live
from tests.control_app.conftest import live_forget
from tests.factories import control_log_make, device_error_make, device_make, node_make, story_make
from tests.fake_node import stay_silent

ABSENT = uuid.UUID("00000000-0000-4000-8000-000000000000")


def path_of(site) -> str:
    return f"/v1/sites/{site.pk}/curtail-category"


def curtail(story, *, by=None, site=None, **body):
    given = {"value": 50, "category": "inverter"} | body
    return (by or story.holder_a).put(path_of(site or story.site_a), given)


def shown(response):
    """The body with its keys in the order of the bytes."""
    return json.loads(response.content)


# --- what comes back ----------------------------------------------------------------------------------------------


def test_guides_request_gets_the_guides_answer(story, node_a):
    response = curtail(story)
    assert response.status_code == 200
    assert response.content == (
        b'{"status":"success","result":{"updated":{"SMA_STP60_01":null},"not_updated":{}}}'
    )


def test_guides_request_for_a_device_gets_the_same(story, node_a):
    device_make(node=story.node_a, device_tag="INV_02")
    response = curtail(story, device_tags=["SMA_STP60_01"])
    assert shown(response)["result"] == {"updated": {"SMA_STP60_01": None}, "not_updated": {}}
    assert node_a.commands.get(timeout=1).values == {"SMA_STP60_01": 50}


def test_command_carries_what_the_node_needs(story, node_a):
    curtail(story, value=12.5, reason="congestion")
    command = node_a.commands.get(timeout=1)
    recorded = ControlCommand.objects.get()
    assert command.id == str(recorded.id)
    assert command.sequence == recorded.sequence
    assert command.epoch == story.node_a.epoch
    assert command.request_id == str(recorded.request_id)
    assert (command.category, command.values) == ("inverter", {"SMA_STP60_01": 12.5})
    assert (command.hold_s, command.reason) == (60, "congestion")


def test_confirmed_value_is_the_devices_value_at_once(story, node_a):
    curtail(story, value=30)
    body = story.holder_a.get(f"/v1/sites/{story.site_a.pk}/devices").json()
    assert [device["value"] for device in body] == [30]


def test_answered_request_is_the_newest_line_of_the_log(story, node_a):
    curtail(story, value=50)
    curtail(story, value=40)
    first, second = story.holder_a.get("/v1/logs").json()
    assert (first["value"], second["value"]) == (40, 50)
    assert list(first) == ["id", "created_at", "site_id", "status", "category", "watchdog", "value", "result"]
    assert first["site_id"] == str(story.site_a.pk)
    assert (first["status"], first["category"], first["watchdog"]) == ("success", "inverter", False)
    assert first["result"] == {"updated": {"SMA_STP60_01": None}, "not_updated": {}}


def test_some_updated_is_partial_and_says_why(story, node_a):
    device_make(node=story.node_a, device_tag="INV_02")
    failed = DeviceResult(code=Code.WRITE_FAILED, detail="no answer; still trying, release to cancel")

    def half(node, command):
        node.accept(command)
        node.finish(command, devices={"INV_02": failed})

    node_a.behaviour = half
    assert shown(curtail(story, device_tags=["INV_02", "SMA_STP60_01", "NO_SUCH"])) == {
        "status": "partial",
        "result": {
            "updated": {"SMA_STP60_01": None},
            "not_updated": {
                "NO_SUCH": "unknown_device: no device of category 'inverter' has this tag here",
                "INV_02": "write_failed: no answer; still trying, release to cancel",
            },
        },
    }


def test_none_updated_is_failed(story, node_a):
    response = curtail(story, device_tags=["NO_SUCH"])
    assert response.status_code == 200
    assert response.json()["status"] == "failed"
    assert response.json()["result"]["updated"] == {}
    assert node_a.commands.empty()


def test_refusal_of_the_whole_command_is_every_devices(story, node_a):
    node_a.behaviour = lambda node, command: node.refuse(command, Code.BUSY, detail="too many commands")
    body = curtail(story).json()
    assert body["result"]["not_updated"] == {"SMA_STP60_01": "busy: too many commands"}


def test_two_nodes_answer_one_request(story, node_a, node_b):
    Device.objects.filter(pk=story.device_b.pk).update(site=story.site_a)
    body = curtail(story).json()
    assert body["status"] == "success"
    assert sorted(body["result"]["updated"]) == ["GENERIC_PV_01", "SMA_STP60_01"]


def test_node_that_is_not_curtailed_in_batch_gets_a_command_a_device(story, node_a):
    device_make(node=story.node_a, device_tag="INV_02")
    type(story.node_a).objects.filter(pk=story.node_a.pk).update(curtail_in_batch=False)
    assert curtail(story).json()["status"] == "success"
    values = [node_a.commands.get(timeout=1).values for _ in range(2)]
    assert values == [{"INV_02": 50}, {"SMA_STP60_01": 50}]


# --- refused at the door ------------------------------------------------------------------------------------------

VALUES = ["true", '"50"', "null", "[50]", "{}", "1" + "0" * 400, "1e400"]


@pytest.mark.django_db
@pytest.mark.parametrize("value", VALUES)
def test_value_that_is_no_finite_number_is_refused(value):
    story = story_make()
    body = f'{{"value": {value}, "category": "inverter"}}'
    response = story.holder_a.put(path_of(story.site_a), body, content_type="application/json")
    assert response.status_code == 400
    assert not ControlRequest.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_value_that_is_no_json_is_malformed(value):
    story = story_make()
    body = f'{{"value": {value}, "category": "inverter"}}'
    response = story.holder_a.put(path_of(story.site_a), body, content_type="application/json")
    assert (response.status_code, response.json()["code"]) == (400, "malformed")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", 100.5),
        ("value", -1),
        ("value", int("9" * 300)),
        ("category", 5),
        ("category", None),
        ("category", ""),
        ("category", ["inverter"]),
        ("category", "x" * 65),
        ("category", "inverter\x00"),
        ("device_tags", []),
        ("device_tags", "SMA_STP60_01"),
        ("device_tags", [1]),
        ("device_tags", [None]),
        ("device_tags", [["SMA_STP60_01"]]),
        ("device_tags", {"SMA_STP60_01": True}),
        ("device_tags", None),
        ("reason", 5),
        ("unit", "MW"),
        # A misspelt `dry_run`, say, that was passed over would be carried out.
        ("dryrun", True),
    ],
)
def test_field_of_another_type_or_out_of_range_is_refused_by_name(field, value):
    story = story_make()
    response = curtail(story, **{field: value})
    assert (response.status_code, response.json()["code"]) == (400, "invalid")
    assert [name.split(".")[0] for name in response.json()["errors"]] == [field]
    assert not ControlRequest.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("body", [{}, {"value": 50}, {"category": "inverter"}, [], "text", 5, None])
def test_incomplete_body_is_refused(body):
    story = story_make()
    response = story.holder_a.put(path_of(story.site_a), json.dumps(body), content_type="application/json")
    assert response.status_code == 400


def test_unit_of_the_guide_may_be_named(story, node_a):
    assert curtail(story, unit="percent").json()["status"] == "success"


@pytest.mark.django_db
def test_site_out_of_sight_is_not_found_in_the_words_of_an_absent_one():
    story = story_make()
    hidden = curtail(story, site=story.site_b)
    absent = story.holder_a.put(f"/v1/sites/{ABSENT}/curtail-category", {"value": 50, "category": "inverter"})
    assert hidden.status_code == absent.status_code == 404
    assert {**hidden.json(), "request_id": ""} == {**absent.json(), "request_id": ""}
    assert not ControlRequest.objects.exists()


@pytest.mark.django_db
def test_token_of_nothing_reaches_nothing_and_no_token_is_let_in(client):
    story = story_make()
    assert curtail(story, by=story.holder_of_nothing).status_code == 404
    assert client.put(path_of(story.site_a), {}, content_type="application/json").status_code == 401


@pytest.mark.django_db
def test_category_without_devices_is_not_found():
    assert curtail(story_make(), category="battery").status_code == 404


# --- what cannot be reached -----------------------------------------------------------------------------------------


def test_node_never_heard_of_is_answered_at_once(story, sending, eager):
    body = curtail(story).json()
    assert body["status"] == "failed"
    assert body["result"]["not_updated"] == {"SMA_STP60_01": "node_offline: the node has never been heard of"}
    assert not ControlCommand.objects.exists()
    assert ControlLog.objects.get().status == Status.FAILED


def test_silent_nodes_devices_are_offline_while_another_nodes_are_updated(story, node_a, node_b):
    Device.objects.filter(pk=story.device_b.pk).update(site=story.site_a)
    node_b.beat(ago_s=16)
    body = curtail(story).json()
    assert body["status"] == "partial"
    assert body["result"]["updated"] == {"SMA_STP60_01": None}
    assert body["result"]["not_updated"]["GENERIC_PV_01"].startswith("node_offline: last heard 16 s ago")


def test_no_confirmation_within_the_deadline_is_unknown(story, node_a, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.3
    node_a.behaviour = stay_silent
    body = curtail(story).json()
    assert body["status"] == "failed"
    assert body["result"]["not_updated"] == {"SMA_STP60_01": "unknown: no confirmation within 0.3 s"}


@pytest.mark.django_db
def test_without_redis_the_answer_is_503_before_the_deadline(settings):
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live_forget()
    story = story_make()
    began = timezone.now()
    response = curtail(story)
    live_forget()
    assert (response.status_code, response.json()["code"]) == (503, "dispatch_unavailable")
    assert response["Retry-After"] == "1"
    assert timezone.now() - began < timedelta(seconds=settings.SGM_REQUEST_DEADLINE_S / 2)
    assert not ControlRequest.objects.exists()


def test_happy_path_costs_this_many_queries(story, node_a):
    """Site and devices; request and command; the worker's claim; command, request, log line and value.

    PostgreSQL, to which each is a round trip, makes one of those that belong together.
    """
    client = story.holder_a
    with CaptureQueriesContext(connection) as queries:
        response = client.put(path_of(story.site_a), {"value": 50, "category": "inverter"})
    assert response.json()["status"] == "success"
    statements = [query["sql"].split()[0] for query in queries.captured_queries]
    together = ["WITH"] if connection.vendor == "postgresql" else []
    assert [word for word in statements if word not in {"SAVEPOINT", "RELEASE"}] == [
        "SELECT",
        *(together or ["INSERT", "INSERT"]),
        "UPDATE",
        *(together or ["UPDATE", "UPDATE", "INSERT", "UPDATE"]),
    ]


# --- logs ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_log_line_is_the_guides():
    story = story_make()
    line = control_log_make(
        site=story.site_a, at=datetime(2024, 8, 1, 15, 22, 10, 330076, tzinfo=UTC), value=50.0
    )
    assert shown(story.holder_a.get("/v1/logs")) == [
        {
            "id": str(line.pk),
            "created_at": "2024-08-01T15:22:10.330076Z",
            "site_id": str(story.site_a.pk),
            "status": "success",
            "category": "inverter",
            "watchdog": False,
            "value": 50,
            "result": {"updated": {"SMA_STP60_01": None}, "not_updated": {}},
        }
    ]


@pytest.fixture
def logged(db):
    story = story_make()
    now = timezone.now()
    for site in (story.site_a, story.site_b):
        for number in range(110):
            control_log_make(site=site, at=now - timedelta(seconds=number), value=number)
    return story


@pytest.mark.parametrize("which", ["all", "site"])
def test_logs_are_newest_first_a_hundred_unless_asked_otherwise(logged, which):
    path = "/v1/logs" if which == "all" else f"/v1/sites/{logged.site_a.pk}/logs"
    newest = logged.holder_a.get(path)
    assert [line["value"] for line in newest.json()] == list(range(100))
    assert newest["X-Total-Count"] == "110"
    assert [line["value"] for line in logged.holder_a.get(f"{path}?limit=1").json()] == [0]
    assert len(logged.holder_a.get(f"{path}?limit=1000").json()) == 110
    for limit in ("0", "1001", "-1", "ten", ""):
        assert logged.holder_a.get(f"{path}?limit={limit}").status_code == 400


def test_logs_of_other_sites_are_out_of_sight(logged):
    assert {line["site_id"] for line in logged.holder_b.get("/v1/logs").json()} == {str(logged.site_b.pk)}
    assert logged.holder_of_nothing.get("/v1/logs").json() == []
    assert logged.root.get("/v1/logs?limit=1")["X-Total-Count"] == "220"
    hidden = logged.holder_a.get(f"/v1/sites/{logged.site_b.pk}/logs")
    absent = logged.holder_a.get(f"/v1/sites/{ABSENT}/logs")
    assert hidden.status_code == absent.status_code == 404
    assert {**hidden.json(), "request_id": ""} == {**absent.json(), "request_id": ""}


def test_logs_take_two_queries_however_long(logged, django_assert_num_queries):
    with django_assert_num_queries(2):
        assert logged.holder_a.get("/v1/logs").status_code == 200


@pytest.mark.django_db
def test_logs_can_be_narrowed():
    story = story_make()
    control_log_make(site=story.site_a, watchdog=True, value=100)
    control_log_make(site=story.site_a, category="battery", value=10)
    assert [line["value"] for line in story.root.get("/v1/logs?watchdog=true").json()] == [100]
    assert [line["value"] for line in story.root.get("/v1/logs?category=battery").json()] == [10]


@pytest.mark.django_db
def test_device_errors_are_the_guides():
    story = story_make()
    now = timezone.now()
    device_error_make(device=story.device_a, at=now - timedelta(hours=2), error="Modbus connection timeout")
    device_error_make(device=story.device_a, at=now - timedelta(hours=1), error="Invalid value range")
    body = shown(story.holder_a.get("/v1/device-error-logs?period=24"))
    assert list(body) == [str(story.site_a.pk)]
    site = body[str(story.site_a.pk)]
    assert list(site) == ["site_name", "devices"]
    assert site["site_name"] == "Solar Panel Site A"
    device = site["devices"]["SMA_STP60_01"]
    assert list(device) == ["total_errors", "error_details"]
    assert device["total_errors"] == 2
    assert [list(detail) for detail in device["error_details"]] == [["timestamp", "error"]] * 2
    assert [detail["error"] for detail in device["error_details"]] == [
        "Modbus connection timeout",
        "Invalid value range",
    ]
    assert device["error_details"][0]["timestamp"].endswith("Z")


@pytest.mark.django_db
def test_period_of_device_errors_is_a_day_unless_asked_otherwise():
    story = story_make()
    for hours in (1, 30, 700):
        device_error_make(device=story.device_a, at=timezone.now() - timedelta(hours=hours))

    def total(query: str) -> int:
        body = story.holder_a.get(f"/v1/device-error-logs{query}").json()
        return sum(device["total_errors"] for site in body.values() for device in site["devices"].values())

    assert [total(""), total("?period=24"), total("?period=31"), total("?period=720")] == [1, 1, 2, 3]
    for period in ("0", "721", "-1", "1.5", "day", ""):
        assert story.holder_a.get(f"/v1/device-error-logs?period={period}").status_code == 400


@pytest.mark.django_db
def test_device_errors_of_other_sites_are_out_of_sight():
    story = story_make()
    device_error_make(device=story.device_b)
    assert story.holder_a.get("/v1/device-error-logs").json() == {}
    assert list(story.root.get("/v1/device-error-logs").json()) == [str(story.site_b.pk)]


@pytest.mark.django_db
def test_device_errors_take_one_query_however_many(django_assert_num_queries):
    story = story_make()
    for number in range(5):
        device_error_make(device=story.device_a, error=str(number))
        device_error_make(device=story.device_b, error=str(number))
    with django_assert_num_queries(1):
        assert len(story.root.get("/v1/device-error-logs").json()) == 2


def test_live_presence_is_not_asked_for_other_nodes(story, node_a):
    """A site's request reads the presence of its own targets only."""
    node_make(site=story.site_a)
    assert curtail(story).json()["status"] == "success"
    assert live.client().keys("sgm:node:*") == [f"sgm:node:{story.node_a.pk}"]
