"""POST release: what ends holds early, as a client sees it."""

from __future__ import annotations

import json
import uuid

import pytest

from control_app.models import CommandState, ControlCommand, ControlLog, ControlRequest, Kind, Status
from control_app.services import command_resolve, requests_settle
from devices_app.models import Device
from devices_app.services import device_update
from edge.wire.messages import Code, DeviceResult
from tests.factories import (
    control_command_make,
    control_request_make,
    device_make,
    proxy_type_make,
    story_make,
)
from tests.fake_node import stay_silent

ABSENT = uuid.UUID("00000000-0000-4000-8000-000000000000")


def path_of(site_id) -> str:
    return f"/v1/sites/{site_id}/release"


def release(story, *, by=None, site_id=None, **body):
    return (by or story.holder_a).post(path_of(site_id or story.site_a.pk), body)


def shown(response):
    return json.loads(response.content)


def lines() -> list[tuple[str, float | None, str, dict[str, object]]]:
    found = ControlLog.objects.order_by("category")
    return [(line.category, line.value, line.status, line.result) for line in found]


def released_by_view_that_died(story, state: CommandState) -> ControlCommand:
    request = control_request_make(site=story.site_a, deadline_in_s=-6)
    ControlRequest.objects.filter(pk=request.pk).update(kind=Kind.RELEASE, value=None, category="")
    request.refresh_from_db()
    command = control_command_make(story.device_a, request=request, state=state)
    ControlCommand.objects.update(values={"SMA_STP60_01": None})
    return ControlCommand.objects.get(pk=command.pk)


# --- what comes back ------------------------------------------------------------------------------


def test_release_of_a_site_reaches_all_its_devices_and_is_answered_like_curtail(story, node_a):
    device_make(node=story.node_a, device_tag="BAT_01", category="battery")
    response = release(story)
    assert response.status_code == 200
    assert shown(response) == {
        "status": "success",
        "result": {"updated": {"BAT_01": None, "SMA_STP60_01": None}, "not_updated": {}},
    }
    command = node_a.releases.get(timeout=1)
    assert command.devices == ("BAT_01", "SMA_STP60_01")
    assert node_a.commands.empty()


def test_release_without_a_body_is_one_of_the_whole_site(story, node_a):
    assert story.holder_a.post(path_of(story.site_a.pk)).json()["status"] == "success"


def test_release_carries_what_the_node_needs(story, node_a):
    release(story, category="inverter", reason="congestion is over")
    command = node_a.releases.get(timeout=1)
    recorded = ControlCommand.objects.get()
    assert (command.id, command.sequence) == (str(recorded.id), recorded.sequence)
    assert (command.epoch, command.request_id) == (story.node_a.epoch, str(recorded.request_id))
    assert (command.category, command.reason) == ("inverter", "congestion is over")


def test_release_is_narrowed_by_category_and_by_tags(story, node_a):
    device_make(node=story.node_a, device_tag="INV_02")
    device_make(node=story.node_a, device_tag="BAT_01", category="battery")
    for body, expected in (
        ({"category": "battery"}, ("BAT_01",)),
        ({"device_tags": ["INV_02", "BAT_01"]}, ("INV_02", "BAT_01")),
        ({"category": "inverter", "device_tags": ["INV_02"]}, ("INV_02",)),
    ):
        assert release(story, **body).json()["status"] == "success"
        assert node_a.releases.get(timeout=1).devices == expected


def test_released_devices_value_is_what_it_went_back_to(story, node_a):
    story.holder_a.put(f"/v1/sites/{story.site_a.pk}/curtail-category", {"value": 30, "category": "inverter"})
    assert Device.objects.get(pk=story.device_a.pk).value == 30
    release(story)
    assert Device.objects.get(pk=story.device_a.pk).value == 100


def test_release_outranks_the_request_before_it_by_its_sequence(story, node_a):
    story.holder_a.put(f"/v1/sites/{story.site_a.pk}/curtail-category", {"value": 30, "category": "inverter"})
    release(story)
    assert node_a.releases.get(timeout=1).sequence > node_a.commands.get(timeout=1).sequence


def test_log_tells_of_a_release_without_a_value_in_a_line_for_each_category(story, node_a):
    device_make(node=story.node_a, device_tag="BAT_01", category="battery")
    release(story, reason="over")
    assert lines() == [
        ("battery", None, "success", {"updated": {"BAT_01": None}, "not_updated": {}}),
        ("inverter", None, "success", {"updated": {"SMA_STP60_01": None}, "not_updated": {}}),
    ]
    assert set(ControlLog.objects.values_list("reason", flat=True)) == {"over"}
    narrowed = story.holder_a.get("/v1/logs?category=battery").json()
    assert [(line["value"], line["watchdog"]) for line in narrowed] == [(None, False)]


def test_release_of_one_category_is_one_line_with_what_was_not_reached(story, node_a):
    release(story, category="inverter", device_tags=["SMA_STP60_01", "NO_SUCH"])
    assert lines() == [
        (
            "inverter",
            None,
            "partial",
            {
                "updated": {"SMA_STP60_01": None},
                "not_updated": {
                    "NO_SUCH": "unknown_device: no device of category 'inverter' has this tag here"
                },
            },
        )
    ]


def test_release_by_a_proxy_goes_to_the_proxy_and_its_children_are_not_asked_beside_it(story, node_a):
    park = device_make(
        node=story.node_a, device_type=proxy_type_make(), device_tag="PARK_01", category="park"
    )
    device_update(device=story.device_a, controlled_by=park)
    assert shown(release(story))["result"] == {"updated": {"PARK_01": None}, "not_updated": {}}
    assert node_a.releases.get(timeout=1).devices == ("PARK_01",)
    told = shown(release(story, device_tags=["SMA_STP60_01"]))["result"]["not_updated"]
    assert told == {"SMA_STP60_01": "owned_by: PARK_01 controls this device"}


def test_release_in_batch_or_not_is_as_the_node_is_set(story, node_a):
    device_make(node=story.node_a, device_tag="INV_02")
    type(story.node_a).objects.filter(pk=story.node_a.pk).update(curtail_in_batch=False)
    assert release(story).json()["status"] == "success"
    assert [node_a.releases.get(timeout=1).devices for _ in range(2)] == [("INV_02",), ("SMA_STP60_01",)]


def test_device_that_did_not_confirm_is_told_with_the_nodes_reason(story, node_a):
    failed = DeviceResult(code=Code.WRITE_FAILED, detail="no answer; still trying")

    def refuse(node, command):
        node.accept(command)
        node.finish(command, devices={"SMA_STP60_01": failed})

    node_a.behaviour = refuse
    assert release(story).json() == {
        "status": "failed",
        "result": {"updated": {}, "not_updated": {"SMA_STP60_01": "write_failed: no answer; still trying"}},
    }


# --- refused at the door --------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("category", 5),
        ("category", None),
        ("category", ""),
        ("category", "x" * 65),
        ("category", "inverter\x00"),
        ("device_tags", []),
        ("device_tags", None),
        ("device_tags", "SMA_STP60_01"),
        ("device_tags", [1]),
        ("reason", 5),
        ("value", 50),
    ],
)
def test_field_of_another_type_or_name_is_refused_by_name(field, value):
    story = story_make()
    response = release(story, **{field: value})
    assert (response.status_code, response.json()["code"]) == (400, "invalid")
    assert [name.split(".")[0] for name in response.json()["errors"]] == [field]
    assert not ControlRequest.objects.exists()


@pytest.mark.django_db
def test_site_out_of_sight_is_not_found_in_the_words_of_an_absent_one(client):
    story = story_make()
    hidden, absent = release(story, site_id=story.site_b.pk), release(story, site_id=ABSENT)
    assert hidden.status_code == absent.status_code == 404
    assert {**hidden.json(), "request_id": ""} == {**absent.json(), "request_id": ""}
    assert release(story, by=story.holder_of_nothing).status_code == 404
    assert client.post(path_of(story.site_a.pk)).status_code == 401
    assert not ControlRequest.objects.exists()


@pytest.mark.django_db
def test_release_of_what_the_site_does_not_have_is_not_found():
    assert release(story_make(), category="battery").status_code == 404


def test_device_of_another_site_is_unknown(story, node_a):
    told = shown(release(story, device_tags=["GENERIC_PV_01"]))
    assert told["status"] == "failed"
    assert told["result"]["not_updated"] == {"GENERIC_PV_01": "unknown_device: no device has this tag here"}
    assert node_a.releases.empty()


# --- what cannot be reached, and what comes later ---------------------------------------------------


def test_silent_nodes_devices_are_told_offline_and_nothing_is_sent(story, sending, eager):
    told = release(story).json()["result"]["not_updated"]
    assert told == {"SMA_STP60_01": "node_offline: the node has never been heard of"}
    assert not ControlCommand.objects.exists()


def test_no_confirmation_is_unknown_until_the_nodes_own_log_corrects_it(story, node_a, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.3
    node_a.behaviour = stay_silent
    told = release(story).json()["result"]["not_updated"]
    assert told == {"SMA_STP60_01": "unknown: no confirmation within 0.3 s"}
    command = ControlCommand.objects.get()
    assert command_resolve(command=command, devices={"SMA_STP60_01": DeviceResult(value=100, readback=100)})
    assert ControlRequest.objects.get().status == Status.SUCCESS
    assert [line[:3] for line in lines()] == [("inverter", None, "failed"), ("inverter", None, "success")]


@pytest.mark.django_db
def test_release_whose_view_died_is_closed_in_a_line_of_its_category():
    released_by_view_that_died(story_make(), CommandState.SENT)
    assert requests_settle() == 1
    assert [line[:3] for line in lines()] == [("inverter", None, "failed")]
    assert ControlCommand.objects.get().state == CommandState.UNKNOWN
