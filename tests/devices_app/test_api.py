from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest

from devices_app.models import Device
from tests.factories import device_make, device_type_make, node_make, profile_body_make, story_make

pytestmark = pytest.mark.django_db

CREATED = datetime(2024, 8, 1, 10, 52, 55, 330076, tzinfo=UTC)
ABSENT = uuid.UUID("00000000-0000-4000-8000-000000000000")

LIST_KEYS = [
    "id",
    "created_at",
    "device_tag",
    "node_id",
    "device_type_id",
    "max_value",
    "min_value",
    "default_value",
    "value",
    "meta_data",
    "include_in_curtailment",
    "category",
    "peak_power_kw",
]


@pytest.fixture
def story():
    return story_make()


def as_printed(device):
    return {
        "id": str(device.pk),
        "created_at": "2024-08-01T10:52:55.330076Z",
        "device_tag": "SMA_STP60_01",
        "node_id": str(device.node_id),
        "device_type_id": str(device.device_type_id),
        "max_value": 100,
        "min_value": 0,
        "default_value": 100,
        "value": 80,
        "meta_data": {},
        "include_in_curtailment": True,
        "category": "inverter",
        "peak_power_kw": 60,
    }


@pytest.mark.parametrize(
    "path", ["/v1/devices", "/v1/sites/{site}/devices", "/v1/sites/{site}/nodes/{node}/devices"]
)
def test_lists_of_devices_are_the_guides(story, path):
    Device.objects.filter(pk=story.device_a.pk).update(created_at=CREATED, value=80)
    response = story.holder_a.get(path.format(site=story.site_a.pk, node=story.node_a.pk))
    body = json.loads(response.content)
    assert body == [as_printed(story.device_a)]
    assert list(body[0]) == LIST_KEYS


def test_whole_numbers_are_printed_without_a_point_and_others_with_it(story):
    assert b'"max_value":100,' in story.holder_a.get("/v1/devices").content
    assert b'"peak_power_kw":100.5' in story.holder_b.get("/v1/devices").content


def test_device_detail_adds_its_modbus_address(story):
    body = json.loads(story.holder_a.get(f"/v1/devices/{story.device_a.pk}").content)
    assert list(body) == [*LIST_KEYS, "modbus_server_host", "modbus_server_port", "modbus_id"]
    assert (body["modbus_server_host"], body["modbus_server_port"], body["modbus_id"]) == (
        "192.168.1.100",
        502,
        1,
    )


def test_device_of_another_protocol_has_no_modbus_keys(story):
    device = device_make(
        node=story.node_a,
        device_type=device_type_make(protocol="mqtt", profile="iwell"),
        modbus_server_host=None,
        modbus_server_port=None,
        modbus_id=None,
        url="mqtt://127.0.0.1",
    )
    assert list(json.loads(story.holder_a.get(f"/v1/devices/{device.pk}").content)) == LIST_KEYS


def test_device_on_a_serial_line_has_its_unit_and_no_host(story):
    body = {**profile_body_make(name="on_a_line"), "protocol": "modbus_rtu"}
    device = device_make(
        node=story.node_a,
        device_type=device_type_make(protocol="modbus_rtu", profile="on_a_line", profile_body=body),
        modbus_server_host=None,
        modbus_server_port=None,
        modbus_id=7,
        serial_port="/dev/ttyUSB0",
    )
    shown = json.loads(story.holder_a.get(f"/v1/devices/{device.pk}").content)
    assert list(shown) == [*LIST_KEYS, "modbus_id"]
    assert shown["modbus_id"] == 7


def test_value_is_null_until_the_edge_confirms_one(story):
    assert story.holder_a.get(f"/v1/devices/{story.device_a.pk}").json()["value"] is None


def test_devices_by_category_come_in_the_guides_order(story):
    for category in ("ev_charger", "wind_turbine", "battery", "anything_else"):
        device_make(node=story.node_a, device_type=device_type_make(category=category, profile=category))
    Device.objects.filter(pk=story.device_a.pk).update(created_at=CREATED, value=80)
    body = json.loads(story.holder_a.get(f"/v1/sites/{story.site_a.pk}/device-categories").content)
    assert list(body) == ["inverter", "battery", "wind_turbine", "ev_charger", "anything_else"]
    assert body["inverter"] == [as_printed(story.device_a)]


def test_root_sees_all_devices_a_token_its_sites_and_another_nothing(story):
    tags = [device["device_tag"] for device in story.root.get("/v1/devices").json()]
    assert tags == ["GENERIC_PV_01", "SMA_STP60_01"]
    assert [device["device_tag"] for device in story.holder_b.get("/v1/devices").json()] == ["GENERIC_PV_01"]
    assert story.holder_of_nothing.get("/v1/devices").json() == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/devices/{device}",
        "/v1/sites/{site}/devices",
        "/v1/sites/{site}/device-categories",
        "/v1/sites/{site}/nodes/{node}/devices",
    ],
)
def test_hidden_object_looks_like_an_absent_one(story, path):
    there = {"device": story.device_b.pk, "site": story.site_b.pk, "node": story.node_b.pk}
    assert story.holder_b.get(path.format(**there)).status_code == 200
    hidden = story.holder_a.get(path.format(**there))
    absent = story.holder_a.get(path.format(device=ABSENT, site=ABSENT, node=ABSENT))
    assert hidden.status_code == absent.status_code == 404
    assert {**hidden.json(), "request_id": ""} == {**absent.json(), "request_id": ""}


def test_node_of_another_site_is_not_found_below_this_one(story):
    path = f"/v1/sites/{story.site_a.pk}/nodes/{story.node_b.pk}/devices"
    assert story.root.get(path).status_code == 404


def test_devices_are_filtered(story):
    device_make(node=story.node_a, device_tag="OUT", include_in_curtailment=False)

    def tags(query):
        return [device["device_tag"] for device in story.root.get(f"/v1/devices?{query}").json()]

    assert tags("include_in_curtailment=false") == ["OUT"]
    assert tags(f"site_id={story.site_b.pk}") == ["GENERIC_PV_01"]
    assert tags("category=inverter&device_tag=SMA_STP60_01") == ["SMA_STP60_01"]
    assert tags("category=battery") == []


@pytest.mark.parametrize(
    ("path", "queries"),
    [
        ("/v1/devices", 1),
        ("/v1/sites/{site}/devices", 1),
        ("/v1/sites/{site}/nodes/{node}/devices", 1),
        ("/v1/sites/{site}/device-categories", 1),
        ("/v1/devices/{device}", 1),
    ],
)
def test_query_count_does_not_grow_with_the_fleet(story, django_assert_num_queries, path, queries):
    another = node_make(site=story.site_a)
    for _ in range(3):
        device_make(node=another)
    path = path.format(site=story.site_a.pk, node=story.node_a.pk, device=story.device_a.pk)
    with django_assert_num_queries(queries):
        assert story.holder_a.get(path).status_code == 200
