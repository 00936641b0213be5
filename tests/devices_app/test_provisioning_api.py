"""Devices and device types made, changed and deleted by API, by root alone."""

from __future__ import annotations

import contextlib
import copy
import random
import uuid
from typing import Any

import msgspec
import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from devices_app.models import Device, DeviceType, RetiringDevice
from devices_app.retirement import retired_record
from devices_app.services import device_types_sync
from edge.profiles.errors import ProfileError
from edge.profiles.loader import load_bodies, profile_judge
from edge.wire.messages import DeviceConfig
from sites_app.models import Node, NodeDocument
from sites_app.tokens import decrypt
from tests.at_once import at_once
from tests.factories import (
    ROOT,
    client_of,
    device_make,
    device_type_make,
    meter_type_make,
    node_make,
    node_online,
    profile_body_make,
    proxy_type_make,
    report_make,
    site_make,
    story_make,
    url_type_make,
)

pytestmark = pytest.mark.django_db

ABSENT = "00000000-0000-4000-8000-000000000000"
GUIDE_KEYS = [
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
def root():
    return client_of(ROOT)


@pytest.fixture
def node():
    return node_make()


@pytest.fixture
def kind():
    return device_type_make()


def device_body(node, kind, **fields):
    return {
        "node_id": str(node.pk),
        "device_type_id": str(kind.pk),
        "device_tag": "PV_1",
        "modbus_server_host": "192.0.2.7",
        "modbus_server_port": 502,
        "modbus_id": 1,
        **fields,
    }


def configured(node) -> dict[str, DeviceConfig]:
    """What the node's configuration says of its devices, by tag."""
    body = NodeDocument.objects.get(node=node, name="config").body
    return {entry["tag"]: msgspec.convert(entry, DeviceConfig) for entry in body["devices"]}


def let_go(node: Node) -> None:
    """The node reports that it has applied what it should have, and retired all that is not in there."""
    node_online(node)
    there = Node.objects.get(pk=node.pk)
    retired_record(node=there, reported=report_make(there))


def test_site_node_and_device_made_by_api_are_in_the_nodes_configuration(root, kind):
    site = root.post("/v1/sites", {"site_tag": "park_1", "name": "Park 1"}).json()
    node = root.post("/v1/nodes", {"site_id": site["id"], "polaris_node_name": "node-1"}).json()
    made = Node.objects.get(pk=node["id"])
    response = root.post(
        "/v1/devices", device_body(made, kind, peak_power_kw=60.5, max_value=90, default_value=80)
    )
    assert response.status_code == 200
    entry = configured(made)["PV_1"]
    assert (entry.host, entry.port, entry.unit) == ("192.0.2.7", 502, 1)
    assert (entry.nameplate_kw, entry.max_value, entry.default_value) == (60.5, 90, 80)
    assert entry.profile == kind.profile


def test_created_device_answers_its_settings_which_begin_with_the_guides_keys(root, node, kind):
    body = root.post("/v1/devices", device_body(node, kind)).json()
    assert list(body)[: len(GUIDE_KEYS)] == GUIDE_KEYS
    assert (body["min_value"], body["max_value"], body["default_value"]) == (0, 100, 100)
    assert (body["value"], body["retiring"], body["waits"], body["password_set"]) == (None, [], False, False)
    assert root.get(f"/v1/devices/{body['id']}/settings").json() == body
    assert list(root.get(f"/v1/devices/{body['id']}").json()) == [
        *GUIDE_KEYS,
        "modbus_server_host",
        "modbus_server_port",
        "modbus_id",
    ]


@pytest.mark.parametrize(
    ("field", "wrong", "status"),
    [
        ("node_id", ABSENT, 404),
        ("device_type_id", ABSENT, 404),
        ("controlled_by_id", ABSENT, 404),
        ("node_id", 7, 400),
        ("device_tag", "", 400),
        ("device_tag", "x" * 65, 400),
        ("device_tag", "a\0", 400),
        ("device_tag", "a ", 400),
        ("category", "Inverter", 400),
        ("category", "a/b", 400),
        ("min_value", True, 400),
        ("min_value", "0", 400),
        ("min_value", 10**400, 400),
        ("min_value", 101, 400),
        ("max_value", -1, 400),
        ("default_value", 1e308, 400),
        ("peak_power_kw", 0, 400),
        ("peak_power_kw", -1, 400),
        ("meta_data", [1], 400),
        ("meta_data", {"a": {"b": "\0"}}, 400),
        ("include_in_curtailment", "true", 400),
        ("measured_only", None, 400),
        ("modbus_server_host", "a b", 400),
        ("modbus_server_host", "x" * 254, 400),
        ("modbus_server_host", None, 400),
        ("modbus_server_port", 0, 400),
        ("modbus_server_port", 65536, 400),
        ("modbus_server_port", 502.5, 400),
        ("modbus_id", -1, 400),
        ("modbus_id", 256, 400),
        ("protocol", "mqtt", 400),
        ("protocol", "carrier pigeon", 400),
        ("parity", "strange", 400),
        ("stop_bits", 3, 400),
        ("baud_rate", 1, 400),
        ("parameters", {"no_such": 1}, 400),
        ("parameters", None, 400),
        ("lifetime", "eternal", 400),
        ("telemetry_s", 0.5, 400),
        ("telemetry_s", None, 400),
        ("ramp_pct_per_min", 0, 400),
        ("username", 7, 400),
        ("password", 7, 400),
        ("site_id", ABSENT, 400),
        ("value", 50, 400),
        ("config_id", ABSENT, 400),
    ],
)
def test_device_with_something_wrong_is_refused_by_field(root, field, wrong, status):
    node, kind = node_make(), device_type_make()
    response = root.post("/v1/devices", device_body(node, kind, **{field: wrong}))
    assert response.status_code == status, response.json()
    if status == 400:
        told = response.json()["errors"]
        # (Of three bounds out of order none is the wrong one.)
        assert field in told or told.keys() == {"non_field_errors"}
    assert not Device.objects.exists()
    assert root.post("/v1/devices", device_body(node, kind)).status_code == 200


def test_second_device_of_a_tag_or_a_control_point_is_a_conflict(root, node, kind):
    root.post("/v1/devices", device_body(node, kind))
    for changes, named in (
        ({"modbus_id": 2}, "device_tag"),
        ({"device_tag": "PV_2"}, "control_point"),
    ):
        response = root.post("/v1/devices", device_body(node, kind, **changes))
        assert (response.status_code, list(response.json()["errors"])) == (409, [named])


def test_password_is_taken_and_never_shown(root, node):
    body = {
        "node_id": str(node.pk),
        "device_type_id": str(url_type_make("mqtt").pk),
        "device_tag": "METER_1",
        "url": "mqtt://broker.example",
        "username": "sgm",
        "password": "s3cr3t",
    }
    response = root.post("/v1/devices", body)
    assert response.status_code == 200
    device = Device.objects.get(pk=response.json()["id"])
    assert decrypt(device.password_encrypted) == "s3cr3t"
    path = f"/v1/devices/{device.pk}"
    for answer in (response, root.get(f"{path}/settings"), root.get(path), root.get("/v1/devices")):
        assert "s3cr3t" not in answer.content.decode()
        assert device.password_encrypted not in answer.content.decode()
    assert response.json()["password_set"] is True
    assert configured(node)["METER_1"].password == "s3cr3t"
    # Read, changed, and sent back whole.
    read = root.get(f"{path}/settings").json()
    assert root.put(path, {**read, "telemetry_s": 30}).json()["password_set"] is True
    assert configured(node)["METER_1"].password == "s3cr3t"
    assert root.patch(path, {"password": ""}).json()["password_set"] is False
    assert configured(node)["METER_1"].password == ""


def test_settings_that_were_read_can_be_sent_back(root, node, kind):
    device = device_make(node=node, device_type=kind, ramp_pct_per_min=5, meta_data={"a": 1}, telemetry_s=20)
    path = f"/v1/devices/{device.pk}"
    read = root.get(f"{path}/settings").json()
    before = NodeDocument.objects.get(node=node, name="config").version
    response = root.put(path, read)
    assert (response.status_code, response.json()) == (200, read)
    assert NodeDocument.objects.get(node=node, name="config").version == before
    for field in ("id", "created_at", "value", "password_set", "waits", "retiring"):
        response = root.put(path, {**read, field: "other"})
        assert (response.status_code, list(response.json()["errors"])) == (400, [field])


def test_what_is_left_out_of_a_whole_device_gets_the_default_or_the_types(root, node):
    kind = device_type_make(max_value=90, default_value=85)
    device = device_make(
        node=node,
        device_type=kind,
        device_tag="PV_1",
        max_value=50,
        default_value=40,
        ramp_pct_per_min=5,
        peak_power_kw=60,
        lifetime="singular",
        include_in_curtailment=False,
        meta_data={"a": 1},
        accept_wear=False,
    )
    body = device_body(node, kind)
    answer = root.put(f"/v1/devices/{device.pk}", body).json()
    assert (answer["max_value"], answer["default_value"]) == (90, 85)
    assert (answer["ramp_pct_per_min"], answer["peak_power_kw"], answer["lifetime"]) == (None, None, None)
    assert (answer["include_in_curtailment"], answer["meta_data"]) == (True, {})
    for required in ("node_id", "device_type_id", "device_tag"):
        rest = {name: value for name, value in body.items() if name != required}
        assert root.put(f"/v1/devices/{device.pk}", rest).status_code == 400


def test_change_names_only_what_changes(root, node, kind):
    device = device_make(node=node, device_type=kind, ramp_pct_per_min=5, peak_power_kw=60)
    answer = root.patch(f"/v1/devices/{device.pk}", {"peak_power_kw": 70, "ramp_pct_per_min": None}).json()
    assert (answer["peak_power_kw"], answer["ramp_pct_per_min"]) == (70, None)
    assert answer["modbus_server_port"] == device.modbus_server_port
    assert configured(node)[device.device_tag].nameplate_kw == 70


def test_device_that_moves_is_told_to_be_retiring_at_its_former_node(root, node, kind):
    other = node_make(site=node.site, name="node-other")
    device = device_make(node=node, device_type=kind, device_tag="PV_1")
    response = root.patch(f"/v1/devices/{device.pk}", {"node_id": str(other.pk), "peak_power_kw": 70})
    assert response.status_code == 200
    answer = response.json()
    assert answer["node_id"] == str(other.pk)
    assert [(row["node_id"], row["device_tag"]) for row in answer["retiring"]] == [(str(node.pk), "PV_1")]
    assert answer["retiring"][0]["reason"] == "moved to node-other"
    assert answer["waits"] is True
    assert configured(node) == {}
    assert (configured(other)["PV_1"].nameplate_kw, configured(other)["PV_1"].excluded) == (70, True)
    let_go(node)
    answer = root.get(f"/v1/devices/{device.pk}/settings").json()
    assert (answer["retiring"], answer["waits"]) == ([], False)


def test_device_stays_at_its_site(root, node, kind):
    device = device_make(node=node, device_type=kind)
    response = root.patch(f"/v1/devices/{device.pk}", {"node_id": str(node_make().pk)})
    assert (response.status_code, list(response.json()["errors"])) == (400, ["node_id"])
    assert root.patch(f"/v1/devices/{device.pk}", {"node_id": str(node.pk)}).status_code == 200


def test_deleted_device_keeps_its_place_until_its_node_has_let_go(root, node, kind):
    body = device_body(node, kind)
    path = f"/v1/devices/{root.post('/v1/devices', body).json()['id']}"
    response = root.delete(path)
    assert (response.status_code, response.json()["status"]) == (200, "success")
    assert response.json()["message"].startswith(f"PV_1 is deleted. {node.name} has yet to let go of it")
    assert root.delete(path).status_code == 404
    for changed in ({"modbus_id": 9}, {"device_tag": "PV_2"}):
        response = root.post("/v1/devices", {**body, **changed})
        assert (response.status_code, response.json()["code"]) == (409, "retiring")
        response = root.post("/v1/devices/bulk", [{**body, **changed}])
        assert (response.status_code, response.json()["code"]) == (409, "retiring")
    let_go(node)
    assert root.post("/v1/devices/bulk", [body]).status_code == 200


def test_device_that_controls_others_is_kept(root, node, kind):
    logger = device_make(node=node, device_type=kind, device_tag="LOGGER")
    behind = device_make(node=node, device_type=kind, device_tag="BEHIND", controlled_by=logger)
    response = root.delete(f"/v1/devices/{logger.pk}")
    assert (response.status_code, response.json()["code"]) == (409, "controls_others")
    path = f"/v1/devices/{behind.pk}"
    answer = root.patch(path, {"controlled_by_id": None, "measured_only": False}).json()
    assert (answer["controlled_by_id"], answer["measured_only"]) == (None, False)
    answer = root.patch(path, {"controlled_by_id": str(logger.pk)}).json()
    assert (answer["controlled_by_id"], answer["measured_only"]) == (str(logger.pk), True)


@pytest.mark.parametrize("many", [False, True])
def test_accepted_wear_is_recorded_with_the_client_who_accepts_it(root, node, kind, many, caplog):
    body = device_body(node, kind, accept_wear=True)
    response = root.post("/v1/devices/bulk", [body]) if many else root.post("/v1/devices", body)
    assert response.status_code == 200
    recorded = [line.msg for line in caplog.records if isinstance(line.msg, dict)]
    assert [line["by"] for line in recorded if line["event"] == "device_wear_accepted"] == ["test-client"]


CALLS = [
    ("POST", "/v1/devices"),
    ("POST", "/v1/devices/bulk"),
    ("GET", "/v1/devices/{device}/settings"),
    ("PUT", "/v1/devices/{device}"),
    ("PATCH", "/v1/devices/{device}"),
    ("DELETE", "/v1/devices/{device}"),
    ("POST", "/v1/device-types"),
    ("POST", "/v1/device-types/bulk"),
    ("PUT", "/v1/device-types/{kind}"),
    ("PATCH", "/v1/device-types/{kind}"),
    ("DELETE", "/v1/device-types/{kind}"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_site_token_changes_nothing_of_its_own_or_of_others(method, path):
    story = story_make()
    for device in (story.device_a.pk, story.device_b.pk, ABSENT):
        address = path.format(device=device, kind=story.device_a.device_type_id)
        for body in ("{}", "[]", "{"):
            response = story.holder_a.generic(method, address, body, content_type="application/json")
            assert (response.status_code, response.json()["code"]) == (403, "root_token_required")


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_what_is_absent_is_absent_for_root_too(root, method, path):
    address = path.format(device=ABSENT, kind=ABSENT)
    response = root.generic(method, address, "{}", content_type="application/json")
    assert response.status_code == (404 if "{" in path else 400)


# --- many at once -------------------------------------------------------------------------------------------


def many_bodies(nodes, kind, number):
    return [
        device_body(
            nodes[place % len(nodes)], kind, device_tag=f"PV_{place}", modbus_server_port=1000 + place
        )
        for place in range(number)
    ]


def test_many_devices_are_made_in_their_order_as_one_by_one(root, kind):
    site = site_make()
    nodes = [node_make(site=site) for _ in range(3)]
    items = many_bodies(nodes, kind, 9)
    items[4]["max_value"], items[4]["default_value"] = 70, 60
    response = root.post("/v1/devices/bulk", items)
    assert response.status_code == 200
    assert [device["device_tag"] for device in response.json()] == [f"PV_{place}" for place in range(9)]
    assert list(configured(nodes[1])) == ["PV_1", "PV_4", "PV_7"]
    for device in response.json():
        assert root.get(f"/v1/devices/{device['id']}/settings").json() == device
    single = root.post(
        "/v1/devices", device_body(nodes[0], kind, device_tag="X", modbus_server_port=9)
    ).json()
    assert single.keys() == response.json()[0].keys()


def test_all_that_is_wrong_with_many_devices_is_told_by_its_place(root, node, kind):
    device_make(node=node, device_type=kind, device_tag="PV_6")
    items = many_bodies([node], kind, 12)
    items[1]["modbus_server_host"] = "a b"
    items[3]["parameters"] = {"no_such": 1}
    items[5]["max_value"] = -5
    # 6: its tag is taken. 8 repeats the tag of 7, 9 the control point, 10 is controlled by nobody.
    items[8]["device_tag"] = "PV_7"
    items[9]["modbus_server_port"] = items[7]["modbus_server_port"]
    items[10]["controlled_by_id"] = ABSENT
    response = root.post("/v1/devices/bulk", items)
    assert response.status_code == 400
    assert list(response.json()["errors"]) == [
        "1.modbus_server_host",
        "3.parameters",
        "5.non_field_errors",
        "6.device_tag",
        "8.device_tag",
        "9.control_point",
        "10.controlled_by_id",
    ]
    assert Device.objects.count() == 1
    assert list(configured(node)) == ["PV_6"]


def test_array_that_is_sent_twice_is_a_conflict_that_names_all(root, node, kind):
    items = [{**body, "id": str(uuid.uuid4())} for body in many_bodies([node], kind, 5)]
    assert root.post("/v1/devices/bulk", items).status_code == 200
    response = root.post("/v1/devices/bulk", items)
    assert response.status_code == 409
    assert list(response.json()["errors"]) == [f"{place}.id" for place in range(5)]


@pytest.mark.parametrize("field", ["node_id", "device_type_id"])
def test_devices_of_absent_nodes_and_types_are_told_by_their_place(root, node, kind, field):
    items = many_bodies([node], kind, 3)
    items[2][field] = ABSENT
    response = root.post("/v1/devices/bulk", items)
    assert (response.status_code, list(response.json()["errors"])) == (404, [f"2.{field}"])
    assert not Device.objects.exists()


def test_devices_of_an_array_can_be_controlled_by_one_another_in_any_order(root, node, kind):
    proxy, logger = str(uuid.uuid4()), str(uuid.uuid4())
    items = [
        device_body(node, kind, device_tag="FOLLOWS", controlled_by_id=proxy),
        device_body(node, kind, device_tag="BEHIND", modbus_id=2, controlled_by_id=logger),
        device_body(node, kind, device_tag="LOGGER", modbus_id=3, id=logger),
        {
            "node_id": str(node.pk),
            "device_type_id": str(proxy_type_make().pk),
            "device_tag": "PROXY",
            "id": proxy,
            "category": "park",
        },
    ]
    response = root.post("/v1/devices/bulk", items)
    assert response.status_code == 200, response.json()
    assert [device["measured_only"] for device in response.json()] == [False, True, False, False]
    found = configured(node)
    assert (found["FOLLOWS"].owned_by, found["BEHIND"].owned_by) == ("PROXY", "LOGGER")


def test_circle_of_control_is_refused_and_not_walked_for_ever(root, node):
    kind = proxy_type_make()
    ids = [str(uuid.uuid4()) for _ in range(4)]
    # 0 hangs on the circle of 1, 2 and 3.
    owners = [ids[1], ids[2], ids[3], ids[1]]
    items = [
        {
            "node_id": str(node.pk),
            "device_type_id": str(kind.pk),
            "device_tag": f"P{place}",
            "id": ids[place],
            "controlled_by_id": owners[place],
        }
        for place in range(4)
    ]
    response = root.post("/v1/devices/bulk", items)
    assert response.status_code == 400
    assert all(name.endswith(".controlled_by_id") for name in response.json()["errors"])
    itself = [{**items[0], "controlled_by_id": ids[0]}]
    assert list(root.post("/v1/devices/bulk", itself).json()["errors"]) == ["0.controlled_by_id"]


def test_nodes_of_many_devices_are_rendered_once_each(root, kind):
    site = site_make()
    nodes = [node_make(site=site) for _ in range(10)]
    with CaptureQueriesContext(connection) as few:
        assert root.post("/v1/devices/bulk", many_bodies(nodes, kind, 10)).status_code == 200
    for device in Device.objects.all():
        device.delete()
    with CaptureQueriesContext(connection) as many:
        assert root.post("/v1/devices/bulk", many_bodies(nodes, kind, 200)).status_code == 200
    # What grows with the devices are the statements that insert them, by so many at once.
    assert len(many) - len(few) <= 12
    assert len(few) <= 80


@pytest.mark.django_db(transaction=True)
def test_of_two_devices_of_one_tag_made_at_once_one_is_a_conflict():
    node, kind = node_make(), device_type_make()
    results = at_once(
        *[
            lambda unit=unit: (
                client_of(ROOT).post("/v1/devices", device_body(node, kind, modbus_id=unit)).status_code
            )
            for unit in (1, 2)
        ]
    )
    assert sorted(results) == [200, 409]
    assert list(configured(node)) == ["PV_1"]


@pytest.mark.django_db(transaction=True)
def test_arrays_over_the_same_nodes_in_other_orders_do_not_wait_for_each_other_for_ever():
    kind = device_type_make()
    nodes = [node_make() for _ in range(4)]
    items = [many_bodies(nodes, kind, 8), many_bodies(nodes, kind, 8)[::-1]]
    for place, body in enumerate(items[1]):
        body |= {"device_tag": f"B_{place}", "modbus_server_port": 2000 + place}
    results = at_once(
        *[lambda body=body: client_of(ROOT).post("/v1/devices/bulk", body).status_code for body in items]
    )
    assert results == [200, 200]
    assert [len(configured(node)) for node in nodes] == [4, 4, 4, 4]


@pytest.mark.django_db(transaction=True)
def test_device_made_while_its_type_is_deleted_is_of_a_type_or_not_at_all():
    node, kind = node_make(), device_type_make()
    made, deleted = at_once(
        lambda: client_of(ROOT).post("/v1/devices", device_body(node, kind)).status_code,
        lambda: client_of(ROOT).delete(f"/v1/device-types/{kind.pk}").status_code,
    )
    # (400: it went between two looks at it.)
    assert (made, deleted) in ((200, 409), (404, 200), (400, 200), (409, 200))
    assert Device.objects.count() == DeviceType.objects.count() == (1 if made == 200 else 0)


# --- types --------------------------------------------------------------------------------------------------


def own_body(**changes):
    return {**profile_body_make(name="own_inverter"), **changes}


def test_any_token_lists_types_and_sees_a_profile(root):
    story = story_make()
    listed = story.holder_of_nothing.get("/v1/device-types")
    assert listed.status_code == 200
    assert "profile_body" not in listed.json()[0]
    found = story.holder_of_nothing.get(f"/v1/device-types/{listed.json()[0]['id']}").json()
    assert found["profile_body"]["name"] == found["profile"]
    assert story.holder_of_nothing.get("/v1/device-types?category=meter").json() == []
    assert story.holder_of_nothing.get(f"/v1/device-types/{ABSENT}").status_code == 404


def test_type_of_a_profile_that_comes_with_the_software_needs_only_a_name(root):
    wanted = {"name": "Ours", "profile": "generic_modbus", "lifetime": "singular"}
    response = root.post("/v1/device-types", wanted)
    assert response.status_code == 200
    assert response.json()["lifetime"] == "singular"
    assert response.json()["profile_body"] == load_bodies()["generic_modbus"]
    call_command("sync_device_types")
    assert DeviceType.objects.filter(profile="generic_modbus").count() == 1


def test_own_profile_is_judged_and_used(root, node):
    response = root.post(
        "/v1/device-types", {"name": "Own", "profile_body": own_body(max_value=90.0, default_value=90.0)}
    )
    assert response.status_code == 200, response.json()
    made = response.json()
    assert (made["profile"], made["max_value"], made["protocol"]) == ("own_inverter", 90, "modbus_tcp")
    body = device_body(node, DeviceType.objects.get(pk=made["id"]))
    assert root.post("/v1/devices", body).json()["max_value"] == 90
    assert configured(node)["PV_1"].profile == "own_inverter"


@pytest.mark.parametrize(
    "body",
    [
        {"name": "N"},
        {"name": "N", "profile": "no_such"},
        {"name": "N", "profile": "generic_modbus", "profile_body": {}},
        {"name": "N", "profile_body": {}},
        {"name": "N", "profile_body": own_body(name="not_own")},
        {"name": "N", "profile_body": own_body(name="own_x\n")},
        {"name": "N", "profile_body": own_body(points={})},
        {"name": "N", "profile_body": own_body(limit={"register": "nowhere"})},
        {"name": "N", "profile_body": own_body(category="No Category")},
        {"name": "N", "profile_body": own_body(default_value=1000.0)},
        {"name": "N", "profile_body": own_body(notes="x" * 140_000)},
        {"name": "N", "profile_body": own_body(notes="\0")},
        {"name": "", "profile_body": own_body()},
        {"name": "N", "profile_body": own_body(), "lifetime": "eternal"},
        {"name": "N", "profile_body": own_body(), "verified_on_hardware": True},
        {"name": "N", "profile_body": []},
    ],
)
def test_type_with_something_wrong_is_refused(root, body):
    response = root.post("/v1/device-types", body)
    assert response.status_code == 400
    assert response.json()["errors"]
    response = root.post("/v1/device-types/bulk", [{"name": "Good", "profile_body": own_body()}, body])
    assert response.status_code == 400
    assert all(name.startswith("1.") for name in response.json()["errors"])
    assert not DeviceType.objects.exists()


def test_name_of_an_own_profile_is_taken_once(root):
    assert root.post("/v1/device-types", {"name": "A", "profile_body": own_body()}).status_code == 200
    for body, named in (
        ({"name": "B", "profile_body": own_body(title="Other")}, "profile_body"),
        ({"name": "A", "profile_body": own_body(name="own_other")}, "name"),
    ):
        response = root.post("/v1/device-types", body)
        assert (response.status_code, list(response.json()["errors"])) == (409, [named])


def test_no_profile_that_comes_with_the_software_is_called_as_own_ones_are():
    assert [name for name in load_bodies() if name.startswith("own_")] == []


def test_own_type_is_no_type_without_a_profile(root):
    root.post("/v1/device-types", {"name": "A", "profile_body": own_body()})
    device_type_make(profile="gone_since")
    assert device_types_sync({})["without_profile"] == [DeviceType.objects.get(profile="gone_since").name]


def test_changed_own_profile_reaches_the_nodes(root, node):
    made = root.post("/v1/device-types", {"name": "A", "profile_body": own_body()}).json()
    root.post("/v1/devices", device_body(node, DeviceType.objects.get(pk=made["id"])))
    changed = own_body()
    changed["limit"]["tolerance"] = 2.0
    response = root.patch(f"/v1/device-types/{made['id']}", {"profile_body": changed})
    assert response.status_code == 200
    assert Node.objects.get(pk=node.pk).render_due_since is not None
    renamed = root.patch(f"/v1/device-types/{made['id']}", {"profile_body": own_body(name="own_b")})
    assert (renamed.status_code, list(renamed.json()["errors"])) == (400, ["profile_body"])


def test_profile_that_comes_with_the_software_is_not_changed(root):
    made = root.post("/v1/device-types", {"name": "A", "profile": "generic_modbus"}).json()
    path = f"/v1/device-types/{made['id']}"
    other = {**made["profile_body"], "title": "Mine"}
    assert root.patch(path, {"profile_body": other}).status_code == 400
    assert root.put(path, {**made, "name": "B"}).json() == {**made, "name": "B"}
    assert root.put(path, {"name": "C"}).json()["lifetime"] == "cyclic"
    assert root.put(path, {**made, "profile": "other"}).status_code == 400


def test_type_is_kept_by_its_devices_which_are_named(root, node, kind):
    device = device_make(node=node, device_type=kind, device_tag="PV_1")
    response = root.delete(f"/v1/device-types/{kind.pk}")
    assert (response.status_code, response.json()["code"]) == (409, "in_use")
    assert "PV_1" in response.json()["detail"]
    root.delete(f"/v1/devices/{device.pk}")
    response = root.delete(f"/v1/device-types/{kind.pk}")
    assert response.json() == {"status": "success", "message": f"{kind.name} is deleted."}
    assert RetiringDevice.objects.count() == 1


# --- whatever is sent ---------------------------------------------------------------------------------------

STRANGE: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    1e308,
    2**63,
    10**400,
    "",
    "x",
    "\0",
    "x" * 1000,
    "\u202e",
    "😀",
    [],
    [[]],
    {},
    {"a": 1},
    {"\0": None},
    ABSENT,
]


def test_no_strange_value_in_any_field_is_a_fault_of_ours(root, node, kind):
    device = device_make(node=node, device_type=kind, device_tag="PV_0")
    meter = meter_type_make()
    settings = root.get(f"/v1/devices/{device.pk}/settings").json()
    for field in [*settings, "password", "no_such_field"]:
        bodies = [
            device_body(node, kind, **{"device_tag": f"PV_{place}", "modbus_id": place, field: value})
            for place, value in enumerate(STRANGE)
        ]
        # All in one answer, of which some may be right, and together with one that is.
        for items in (bodies, [bodies[0], device_body(node, meter, modbus_id=99)]):
            response = root.post("/v1/devices/bulk", items)
            assert response.status_code in (200, 400, 404, 409), (field, response.content)
        for value in STRANGE[::4]:
            response = root.patch(f"/v1/devices/{device.pk}", {field: value})
            assert response.status_code in (200, 400, 404, 409), (field, value, response.content)
        Device.objects.exclude(pk=device.pk).delete()
        RetiringDevice.objects.all().delete()


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(found for key, one in inner for found in places(one, (*at, key)))]


def test_no_broken_profile_is_a_fault_of_ours():
    """Whatever stands somewhere in a profile, it is one or it is told why not."""
    random_of_ours = random.Random(6)
    bodies = list(load_bodies().values())
    for _ in range(1500):
        body = copy.deepcopy(random_of_ours.choice(bodies))
        place = random_of_ours.choice([at for at in places(body) if at])
        inner: Any = body
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = copy.deepcopy(random_of_ours.choice(STRANGE))
        with contextlib.suppress(ProfileError):
            profile_judge(body)
